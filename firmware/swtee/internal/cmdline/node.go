package cmdline

import (
	"encoding/json"
	"fmt"
	"strings"
)

// Node is a block node, the value of -blockdev.
type Node struct {
	Name  string
	Child string // name of the node below; "" if that stands in this one, or if there is none
	File  string // name of the file, of this node or of one that stands in it
}

func isJSON(s string) bool { return strings.HasPrefix(strings.TrimSpace(s), "{") }

// ParseJSON reads a value that is a JSON object.
func ParseJSON(value string) (map[string]any, error) {
	var m map[string]any
	d := json.NewDecoder(strings.NewReader(value))
	d.UseNumber()
	err := d.Decode(&m)
	return m, err
}

// JSON is the reverse of ParseJSON.
func JSON(m map[string]any) (string, error) {
	b, err := json.Marshal(m)
	return string(b), err
}

// ParseNode reads both forms of -blockdev, keys and JSON.
func ParseNode(value string) (n Node, err error) {
	if !isJSON(value) {
		kvs := Split(value)
		n = Node{Name: kvs.Get("node-name"), Child: kvs.Get("file"), File: kvs.Get("file.filename")}
		if n.File == "" {
			n.File = kvs.Get("filename")
		}
		return n, nil
	}
	m, err := ParseJSON(value)
	if err != nil {
		return n, fmt.Errorf("-blockdev: %w", err)
	}
	text := func(m map[string]any, key string) string { s, _ := m[key].(string); return s }
	n = Node{Name: text(m, "node-name"), Child: text(m, "file"), File: text(m, "filename")}
	if inner, ok := m["file"].(map[string]any); ok {
		n.File = text(inner, "filename")
	}
	return n, nil
}

// SetNodeFile returns a node with another file that is only read, in the form that it had.
func SetNodeFile(value, file string) (string, error) {
	if !isJSON(value) {
		kvs := Split(value)
		key := "filename"
		if kvs.Get("file.filename") != "" {
			key = "file.filename"
		}
		kvs = kvs.Set(key, file).Drop("read-only", "auto-read-only")
		return append(kvs, Element{Key: "read-only", Value: "on"}).String(), nil
	}
	m, err := ParseJSON(value)
	if err != nil {
		return "", fmt.Errorf("-blockdev: %w", err)
	}
	to := m
	if inner, ok := m["file"].(map[string]any); ok {
		to = inner
	}
	to["filename"] = file
	delete(m, "auto-read-only")
	m["read-only"] = true
	return JSON(m)
}
