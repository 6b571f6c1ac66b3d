package firstboot

import (
	"io"
	"maps"
	"os"
	"path"
	"slices"

	"github.com/vmlatch/vmlatch/firmware/internal/mapfile"
)

// Initrd is what a guest gets as its initrd.
type Initrd struct {
	Config []byte // the archive that stands before it; nil for none
	File   string // "" for no initrd, which has no archive either
}

// Before reads a configuration, which stands before a file then; nil for none.
func (c *Config) Before(file string) (Initrd, error) {
	if c == nil {
		return Initrd{File: file}, nil
	}
	content, err := c.Read()
	return Initrd{content.Archive(), file}, err
}

// Size is its length in bytes.
func (i Initrd) Size() (int64, error) {
	info, err := os.Stat(i.File)
	if err != nil {
		return 0, err
	}
	return int64(len(i.Config)) + info.Size(), nil
}

// WriteTo writes all of it, such as into a hash; nothing where there is none.
func (i Initrd) WriteTo(w io.Writer) (n int64, err error) {
	if i.File == "" {
		return 0, nil
	}
	err = mapfile.With(i.File, func(b []byte) error {
		for _, part := range [][]byte{i.Config, b} {
			k, err := w.Write(part)
			n += int64(k)
			if err != nil {
				return err
			}
		}
		return nil
	})
	return n, err
}

// Other is an initrd that a host may have loaded, and how its configuration differs.
type Other struct {
	Say string
	Initrd
}

// maxOthers bounds how many differences are looked for: the initrd is hashed for each.
const maxOthers = 32

// Others are initrds with configurations that differ from c by one thing: that it was left out,
// that one of its files was, or that one of other files, by name, stands in its place.
func (c Content) Others(initrd string, other map[string][]byte) []Other {
	if len(c) == 0 {
		c = Content{} // there is one all the same: of the other files
	}
	var list []Other
	add := func(say string, with Content) {
		if len(list) < maxOthers {
			list = append(list, Other{say, Initrd{with.Archive(), initrd}})
		}
	}
	names := slices.Sorted(maps.Keys(c))
	if len(c) > 0 {
		add("none was loaded", nil)
	}
	for _, name := range names {
		if len(c) > 1 {
			without := maps.Clone(c)
			delete(without, name)
			add("it lacks "+path.Base(name), without)
		}
	}
	places := slices.Clone(names)
	for _, name := range []string{UserData, MetaData, NetworkConfig} {
		if !slices.Contains(places, seedDir+name) {
			places = append(places, seedDir+name)
		}
	}
	for _, file := range slices.Sorted(maps.Keys(other)) {
		for _, name := range places {
			with := maps.Clone(c)
			with[name] = other[file]
			add(path.Base(name)+" is "+file, with)
		}
	}
	return list
}
