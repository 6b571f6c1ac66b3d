package plan

import (
	"encoding/json"
	"path/filepath"
	"slices"
	"strings"
)

// outward is what QEMU itself connects to: not by descriptors that it was given.
type outward struct {
	networks string   // why it uses the host's networks; "" if it does not
	sockets  []string // by path: they may come later, or anew
	vsock    bool
}

func (b *Builder) outward(options *Options) (o outward) {
	g := b.Guest
	for _, n := range g.Networks {
		if n.Mode == netUser {
			o.networks = `mode = "user" runs in it, and passt does not`
		}
	}
	if g.Broker.Connect != "" && !b.Traits.Measurable {
		switch network, address := g.Broker.Address(); network {
		case "unix":
			o.sockets = append(o.sockets, address)
		default:
			o.networks = "it connects to the broker itself; a broker at unix:PATH does not need that"
		}
	}
	for _, object := range options.Values["-object"] {
		var props struct {
			Quotes struct{ Type, Path string } `json:"quote-generation-socket"`
		}
		if json.Unmarshal([]byte(object), &props) != nil {
			continue
		}
		switch props.Quotes.Type {
		case "unix":
			o.sockets = append(o.sockets, props.Quotes.Path)
		case "vsock":
			o.vsock = true
		}
	}
	return o
}

// place is the directory of a socket, if QEMU may see all of it: a socket that is made anew, or
// later, is found there.
func (b *Builder) place(socket string) (dir string, ok bool) {
	dir = filepath.Dir(socket)
	switch dir {
	case "/", "/run", "/var/run", "/tmp", "/var/tmp", "/home", "/root":
		return dir, false
	}
	for _, own := range []string{b.plan.Dirs.Run, b.plan.Dirs.State} {
		if strings.HasPrefix(own+"/", dir+"/") || strings.HasPrefix(dir+"/", own+"/") {
			return dir, false
		}
	}
	return dir, true
}

// hostFiles are what devices and objects open on the host without naming it, by their type.
var hostFiles = map[string][]string{
	"usb-host":        {"/dev/bus/usb", "/sys"},
	"vhost-scsi-pci":  {"/dev/vhost-scsi"},
	"vhost-vsock-pci": {"/dev/vhost-vsock"},
	"vfio-pci":        {"/dev/vfio", "/dev/iommu", "/sys"},
	"iommufd":         {"/dev/iommu"},
}

// labels are keys whose values are never files, whatever they look like.
var labels = []string{"serial", "id", "model", "wwn", "name", "tag", "mount_tag", "bus", "driver", "qom-type"}

func isLabel(key string) bool { return slices.Contains(labels, key) }

// extraFiles are the files of the spec's own devices and objects: named, or implied.
func (g *Guest) extraFiles() (paths []string) {
	for _, tables := range [][]map[string]any{g.Devices, g.Objects} {
		for _, t := range tables {
			paths = append(paths, pathsOf(t)...)
			for _, kind := range []string{"driver", "qom-type"} {
				name, _ := t[kind].(string)
				paths = append(paths, hostFiles[name]...)
			}
		}
	}
	return paths
}

// pathsOf are the absolute paths among values; the root of all files is not one of them.
func pathsOf(v any) (paths []string) {
	switch v := v.(type) {
	case string:
		if filepath.IsAbs(v) && filepath.Clean(v) != "/" {
			return []string{v}
		}
	case []any:
		for _, e := range v {
			paths = append(paths, pathsOf(e)...)
		}
	case map[string]any:
		for key, e := range v {
			if !isLabel(key) {
				paths = append(paths, pathsOf(e)...)
			}
		}
	}
	return paths
}
