// Package vectors gives tests the digests and layouts that other implementations
// computed, and what these were computed from.
//
// Most were computed from firmware of a distribution. What the measurements depend
// on is recorded ([Facts]), so that no test of a calculation needs the images
// themselves. The few vectors that need a file which may not be distributed with
// the project are left out under the build tag quick.
package vectors

import (
	_ "embed"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
)

//go:embed vectors.json
var vectorsJSON []byte

// Vector is one expectation.
type Vector struct {
	ID          string          `json:"id"`
	Kind        string          `json:"kind"`
	Inputs      json.RawMessage `json:"inputs"`
	Expected    json.RawMessage `json:"expected"`
	ExpectError bool            `json:"expect_error"`
	Source      string          `json:"source"`
	// NeedsFile marks a vector whose input is a file that cannot be derived.
	NeedsFile bool `json:"needs_file"`
}

type content struct {
	Files   map[string]file
	Vectors []Vector
}

// load parses the vectors once, and adds those of other people. Nothing changes what it returns.
var load = sync.OnceValues(func() (c content, err error) {
	if err := json.Unmarshal(vectorsJSON, &c); err != nil {
		return c, err
	}
	for _, name := range More("cvm-measurement-vectors/1") {
		var more content
		b, err := os.ReadFile(name)
		if err == nil {
			err = json.Unmarshal(b, &more)
		}
		if err != nil {
			return c, err
		}
		maps.Copy(more.Files, c.Files) // of one name ours is meant
		c.Files = more.Files
		for _, v := range more.Vectors {
			v.ID = filepath.Base(name) + "/" + v.ID
			c.Vectors = append(c.Vectors, v)
		}
	}
	return c, nil
})

func all(t testing.TB) content {
	t.Helper()
	c, err := load()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// Each runs f as a subtest for each vector of the kind. There must be one.
func Each(t *testing.T, kind string, f func(t *testing.T, v Vector)) {
	t.Helper()
	vs := slices.DeleteFunc(slices.Clone(all(t).Vectors), func(v Vector) bool {
		return v.Kind != kind || v.NeedsFile && !withFiles
	})
	if len(vs) == 0 {
		t.Fatalf("no vector of kind %s", kind)
	}
	for _, v := range vs {
		t.Run(v.ID, func(t *testing.T) { f(t, v) })
	}
}

// In decodes a vector's inputs, Want its expectation.
func (v Vector) In(t testing.TB, to any)   { t.Helper(); decode(t, v.Inputs, to) }
func (v Vector) Want(t testing.TB, to any) { t.Helper(); decode(t, v.Expected, to) }

func decode(t testing.TB, raw json.RawMessage, to any) {
	t.Helper()
	if err := json.Unmarshal(raw, to); err != nil {
		t.Fatal(err)
	}
}
