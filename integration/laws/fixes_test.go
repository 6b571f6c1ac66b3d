package laws

import (
	"go/ast"
	"go/parser"
	"go/token"
	"strings"
	"testing"
)

// TestFixesStandOnce: the text of a fix stands in one place, or two of them drift apart.
// What several places say is a constant, whatever its name.
func TestFixesStandOnce(t *testing.T) {
	isFix, places := map[string]bool{}, map[string][]string{}
	eachFile(t, func(f *sourceFile) {
		if !strings.HasPrefix(f.name, "launcher/") && !strings.HasPrefix(f.name, "cmd/vmlatch/") {
			return
		}
		for _, lit := range fixes(f.File) {
			isFix[lit.Value] = true
		}
		for _, lit := range longTexts(f.File) {
			places[lit.Value] = append(places[lit.Value], f.at(lit).String())
		}
	})
	for text, at := range places {
		if isFix[text] && len(at) > 1 {
			t.Errorf("the fix %s stands at %s, want one place", text, strings.Join(at, " and "))
		}
	}
	if len(isFix) < 100 { // or they are written in a way that fixes does not see
		t.Errorf("%d fixes were found, want at least 100", len(isFix))
	}
}

// longTexts are the literals of at least 25 characters below a node.
func longTexts(in ast.Node) (found []*ast.BasicLit) {
	ast.Inspect(in, func(n ast.Node) bool {
		if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING && len(lit.Value) >= 25+len(`""`) {
			found = append(found, lit)
		}
		return true
	})
	return found
}

// fixes are the long texts that a file gives as fixes: to a field Fix or fix, in a row of
// a table, or by a name that begins so.
func fixes(file *ast.File) (found []*ast.BasicLit) {
	add := func(e ast.Expr) { found = append(found, longTexts(e)...) }
	isFix := func(e ast.Expr) bool {
		switch e := e.(type) {
		case *ast.Ident:
			return strings.HasPrefix(strings.ToLower(e.Name), "fix")
		case *ast.SelectorExpr:
			return e.Sel.Name == "Fix" || e.Sel.Name == "Fixes"
		}
		return false
	}
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.KeyValueExpr:
			if isFix(n.Key) {
				add(n.Value)
			}
		case *ast.AssignStmt:
			for i, to := range n.Lhs {
				if isFix(to) && i < len(n.Rhs) {
					add(n.Rhs[i])
				}
			}
		case *ast.ValueSpec:
			for i, name := range n.Names {
				if isFix(name) && i < len(n.Values) {
					add(n.Values[i])
				}
			}
		}
		return true
	})
	return found
}

// TestFixes proves that the law above sees fixes, and nothing else.
func TestFixes(t *testing.T) {
	const long = `"a text of twenty-five bytes"`
	for body, want := range map[string]int{
		"var x = T{Fix: " + long + "}":                 1,
		"var x = T{Fix: " + long + " + " + long + "}":  2,
		"var x = T{Fix: fmt.Sprintf(" + long + ")}":    1,
		"var x = []T{{fix: " + long + "}}":             1,
		"const FixPaths = " + long:                     1,
		"func f() { e.Fix = " + long + " }":            1,
		"func f() { a, fix := 1, " + long + " }":       1,
		"func f() { version, fix = f(), " + long + "}": 1,
		"var x = T{Cause: " + long + "}":               0,
		"func f() { e.Err = " + long + " }":            0,
		`var x = T{Fix: "short"}`:                      0,
	} {
		file, err := parser.ParseFile(token.NewFileSet(), "x.go", "package x\n"+body, 0)
		if err != nil {
			t.Fatal(err)
		}
		if got := fixes(file); len(got) != want {
			t.Errorf("%s: %d found, want %d", body, len(got), want)
		}
	}
}
