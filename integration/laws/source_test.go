package laws

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// moduleRoot is the module's directory, as seen from this package's.
const moduleRoot = "../.."

// sourceFile is one file of the module, parsed.
type sourceFile struct {
	*ast.File
	name string // below the module's root
	set  *token.FileSet
}

// at is a node's position, for messages.
func (f *sourceFile) at(n ast.Node) token.Position {
	pos := f.set.Position(n.Pos())
	pos.Filename = f.name
	return pos
}

// eachFile calls see for every Go file of the module that is not a test.
func eachFile(t *testing.T, see func(*sourceFile)) {
	t.Helper()
	root := os.DirFS(moduleRoot)
	if _, err := fs.Stat(root, "go.mod"); err != nil {
		t.Fatal(err)
	}
	set, seen := token.NewFileSet(), 0
	err := fs.WalkDir(root, ".", func(name string, d fs.DirEntry, err error) error {
		switch base := d.Name(); {
		case err != nil:
			return err
		case d.IsDir() && name != "." && (strings.HasPrefix(base, ".") || base == "testdata"):
			return fs.SkipDir
		case d.IsDir() || filepath.Ext(name) != ".go" || strings.HasSuffix(name, "_test.go"):
			return nil
		}
		file, err := parser.ParseFile(set, filepath.Join(moduleRoot, name), nil, parser.ParseComments)
		if err != nil {
			return err
		}
		seen++
		see(&sourceFile{file, name, set})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if seen < 100 { // the walk went elsewhere, and every law would hold trivially
		t.Fatalf("%d files were read, want at least 100", seen)
	}
}
