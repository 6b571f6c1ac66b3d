package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// mutant is one change of one file.
type mutant struct {
	file          string // from the module's directory
	src           []byte // of the file
	line          int
	what          string
	start, end    int // of the bytes that with replaces
	with          string
	before, after string // the lines that it changes, on one line each
}

// key identifies a mutant by file and text, so that it outlives other changes.
func (m *mutant) key() string { return m.file + "\n" + m.before + "\n" + m.after }

func keyFile(key string) string { file, _, _ := strings.Cut(key, "\n"); return file }

var swapped = map[token.Token]token.Token{
	token.EQL: token.NEQ, token.NEQ: token.EQL,
	token.LSS: token.LEQ, token.LEQ: token.LSS, token.GTR: token.GEQ, token.GEQ: token.GTR,
	token.LAND: token.LOR, token.LOR: token.LAND,
	token.ADD: token.SUB, token.SUB: token.ADD,
}

// finder collects the mutants of a file.
type finder struct {
	fset    *token.FileSet
	src     []byte
	file    string
	results []*ast.FuncType // of the functions around
	found   []*mutant
}

func findMutants(top, file string) ([]*mutant, error) {
	src, err := os.ReadFile(filepath.Join(top, file))
	if err != nil {
		return nil, err
	}
	f := &finder{fset: token.NewFileSet(), src: src, file: file}
	tree, err := parser.ParseFile(f.fset, file, src, parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	for _, d := range tree.Decls {
		if fn, ok := d.(*ast.FuncDecl); ok && fn.Body != nil {
			f.function(fn.Type, fn.Body)
		}
	}
	return f.found, nil
}

// function collects in a body; literals within are functions of their own.
func (f *finder) function(typ *ast.FuncType, body *ast.BlockStmt) {
	ast.Inspect(body, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncLit:
			f.function(n.Type, n.Body)
			return false
		case *ast.IfStmt:
			f.add("condition negated", n.Cond, "!("+f.text(n.Cond)+")")
		case *ast.BinaryExpr:
			if to, ok := swapped[n.Op]; ok {
				at := f.fset.Position(n.OpPos).Offset
				f.edit("operator swapped", at, at+len(n.Op.String()), to.String())
			}
		case *ast.ExprStmt:
			f.add("call dropped", n, "")
		case *ast.AssignStmt:
			if n.Tok != token.DEFINE {
				f.add("assignment dropped", n, "")
			}
		case *ast.ReturnStmt:
			f.returned(typ, n)
		}
		return true
	})
}

// returned makes the mutant that returns no error.
func (f *finder) returned(typ *ast.FuncType, n *ast.ReturnStmt) {
	if typ.Results == nil || len(n.Results) == 0 {
		return
	}
	last := typ.Results.List[len(typ.Results.List)-1]
	id, ok := last.Type.(*ast.Ident)
	value := n.Results[len(n.Results)-1]
	if !ok || id.Name != "error" || f.text(value) == "nil" {
		return
	}
	if _, call := value.(*ast.CallExpr); call && len(n.Results) == 1 && typ.Results.NumFields() > 1 {
		return // the call gives all results
	}
	f.add("error returned as nil", value, "nil")
}

func (f *finder) text(n ast.Node) string {
	return string(f.src[f.fset.Position(n.Pos()).Offset:f.fset.Position(n.End()).Offset])
}

func (f *finder) add(what string, n ast.Node, with string) {
	f.edit(what, f.fset.Position(n.Pos()).Offset, f.fset.Position(n.End()).Offset, with)
}

func (f *finder) edit(what string, start, end int, with string) {
	first := strings.LastIndexByte(string(f.src[:start]), '\n') + 1
	last := len(f.src)
	if i := strings.IndexByte(string(f.src[end:]), '\n'); i >= 0 {
		last = end + i
	}
	one := func(s string) string { return strings.Join(strings.Fields(s), " ") }
	f.found = append(f.found, &mutant{
		file: f.file, src: f.src, line: 1 + strings.Count(string(f.src[:start]), "\n"), what: what,
		start: start, end: end, with: with,
		before: one(string(f.src[first:last])),
		after:  one(string(f.src[first:start]) + with + string(f.src[end:last])),
	})
}

// apply returns the file with the change.
func (m *mutant) apply() []byte {
	return slices.Concat(m.src[:m.start], []byte(m.with), m.src[m.end:])
}
