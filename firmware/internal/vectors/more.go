package vectors

import (
	"encoding/json"
	"os"
	"path/filepath"
)

// moreVar names further files of vectors, separated as PATH is.
const moreVar = "VMLATCH_VECTORS"

// More are the files of a schema that VMLATCH_VECTORS names: other people's expectations, in
// the same format.
func More(schema string) (files []string) {
	for _, f := range filepath.SplitList(os.Getenv(moreVar)) {
		b, err := os.ReadFile(f)
		var head struct{ Schema string }
		if err == nil && json.Unmarshal(b, &head) == nil && head.Schema == schema {
			files = append(files, f)
		}
	}
	return files
}
