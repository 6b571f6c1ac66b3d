package laws

import (
	"go/ast"
	"go/token"
	"regexp"
	"testing"
)

// TestNoExportedVariables: a package's exported variables are errors and GUIDs, of which
// Go has no constants; anything else would be state that every importer can change.
func TestNoExportedVariables(t *testing.T) {
	eachFile(t, func(f *sourceFile) {
		if f.Name.Name == "main" {
			return
		}
		for _, d := range f.Decls {
			g, ok := d.(*ast.GenDecl)
			if !ok || g.Tok != token.VAR {
				continue
			}
			for _, s := range g.Specs {
				for _, name := range s.(*ast.ValueSpec).Names {
					if name.IsExported() && !constant(name.Name) {
						t.Errorf("%v: %s is an exported variable: make it a constant or a function", f.at(name),
							name.Name)
					}
				}
			}
		}
	})
}

var constantName = regexp.MustCompile(`^(Err|GUID)[A-Z0-9]`)

// constant reports whether a variable is, by its name, a value that is made once.
func constant(name string) bool {
	return constantName.MatchString(name)
}

// TestNothingAssignsToThem: no package changes an exported variable of another.
func TestNothingAssignsToThem(t *testing.T) {
	eachFile(t, func(f *sourceFile) {
		ast.Inspect(f.File, func(n ast.Node) bool {
			a, ok := n.(*ast.AssignStmt)
			if !ok {
				return true
			}
			for _, left := range a.Lhs {
				name := root(left)
				if s, ok := left.(*ast.SelectorExpr); ok {
					name = s.Sel.Name
				}
				if constant(name) {
					t.Errorf("%v: assigns to %s", f.at(a), name)
				}
			}
			return true
		})
	})
}
