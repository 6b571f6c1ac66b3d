package laws

import (
	"go/ast"
	"go/parser"
	"go/token"
	"slices"
	"testing"
)

// TestReturnsReadNothingThatTheyChange forbids
//
//	return out, call(&out)
//
// The order in which a return statement reads a variable and makes a call is not
// specified (The Go Programming Language Specification, "Order of evaluation"): it
// may return what out was before the call.
func TestReturnsReadNothingThatTheyChange(t *testing.T) {
	eachFile(t, func(f *sourceFile) {
		for _, r := range unorderedReturns(f.File) {
			t.Errorf("%v: returns a variable with a call that takes its address; write err = …; return out, err",
				f.at(r))
		}
	})
}

// unorderedReturns are the return statements that read a variable whose address
// the same statement hands to a call.
func unorderedReturns(file *ast.File) (found []*ast.ReturnStmt) {
	ast.Inspect(file, func(n ast.Node) bool {
		r, ok := n.(*ast.ReturnStmt)
		if !ok {
			return true
		}
		var read, changed []string
		for _, result := range r.Results {
			if name := root(result); name != "" {
				read = append(read, name)
			}
			changed = append(changed, addressed(result)...)
		}
		if slices.ContainsFunc(read, func(name string) bool { return slices.Contains(changed, name) }) {
			found = append(found, r)
		}
		return true
	})
	return found
}

// root is the variable that an expression reads: out of out, out.Data and out[i].
func root(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.SelectorExpr:
		return root(e.X)
	case *ast.IndexExpr:
		return root(e.X)
	case *ast.SliceExpr:
		return root(e.X)
	case *ast.ParenExpr:
		return root(e.X)
	case *ast.StarExpr:
		return root(e.X)
	}
	return ""
}

// addressed are the variables whose address an expression hands to a call. A function
// literal counts too: the call that takes it may run it.
func addressed(e ast.Expr) (names []string) {
	ast.Inspect(e, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		for _, arg := range call.Args {
			ast.Inspect(arg, func(n ast.Node) bool {
				if u, ok := n.(*ast.UnaryExpr); ok && u.Op == token.AND {
					if name := root(u.X); name != "" {
						names = append(names, name)
					}
				}
				return true
			})
		}
		return true
	})
	return names
}

// TestUnorderedReturns proves that the law above sees what it forbids.
func TestUnorderedReturns(t *testing.T) {
	for body, want := range map[string]int{
		"return out, call(&out)":                               1,
		"return out.Data, call(ctx, &out)":                     1,
		"return out[1:], call(T{in: &out[0]})":                 1,
		"return call(&out), out":                               1,
		"return (*out).X, wrap(call(&out.Y))":                  1,
		"if err := call(&out); err != nil { return out, err }": 0,
		"err = call(&out); return out, err":                    0,
		"return other, call(&out)":                             0,
		"return &out, call(out)":                               0,
		"return call(&out)":                                    0,
		"return":                                               0,
		"x(func() error { return out, call(&out) })":           1,
	} {
		file, err := parser.ParseFile(token.NewFileSet(), "x.go", "package x\nfunc f() {\n"+body+"\n}", 0)
		if err != nil {
			t.Fatal(err)
		}
		if got := len(unorderedReturns(file)); got != want {
			t.Errorf("%s: %d found, want %d", body, got, want)
		}
	}
}
