package host

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"path/filepath"

	"github.com/vmlatch/vmlatch/firmware/regular"
)

// textEntry is a text that was worked out from a file.
type textEntry struct {
	Schema string `json:"schema"`
	Path   string `json:"path"`
	File   fileID `json:"file"`
	Text   string `json:"text"`
}

// textSchema changes with the meaning of the texts.
const textSchema = "vmlatch.text/1"

// Text returns what work makes of a file, from the cache if the file is the same. kind tells texts
// about one file apart.
func (c Cache) Text(kind, path string, work func() (string, error)) (string, error) {
	id, err := identify(path)
	if err != nil {
		return "", err
	}
	want := textEntry{Schema: textSchema, Path: path, File: id}
	file := ""
	if c.Dir != "" {
		sum := sha256.Sum256([]byte(path))
		file = filepath.Join(c.Dir, kind+"-"+hex.EncodeToString(sum[:8])+".json")
		if b, err := regular.ReadNoFollow(file, maxRead); err == nil {
			var have textEntry
			if json.Unmarshal(b, &have) == nil && have.Schema == want.Schema && have.Path == path && have.File == id {
				return have.Text, nil
			}
		}
	}
	if want.Text, err = work(); err != nil {
		return "", err
	}
	if now, err := identify(path); err == nil && now == id {
		c.store(file, &want)
	}
	return want.Text, nil
}
