package host

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestMain lets the test binary be a QEMU: one that answers what a probe asks, or one
// with a fault.
func TestMain(m *testing.M) {
	if part := os.Getenv("HOST_TEST_QEMU"); part != "" {
		os.Exit(play(part))
	}
	os.Exit(m.Run())
}

// playScript is the end of a shell script that becomes such a QEMU.
func playScript(t *testing.T, part string) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return "HOST_TEST_QEMU='" + part + "' exec " + self + " \"$@\"\n"
}

// fakeQEMU makes such a program.
func fakeQEMU(t *testing.T, part string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "qemu")
	if err := os.WriteFile(file, []byte("#!/bin/sh\n"+playScript(t, part)), 0o700); err != nil {
		t.Fatal(err)
	}
	return file
}

// fakeSchema describes two objects that QEMU has, and one that its build left out.
const fakeSchema = `[
	{"name": "object-add", "meta-type": "command", "arg-type": "1"},
	{"name": "quit", "meta-type": "command", "arg-type": "9"},
	{"name": "1", "meta-type": "object", "variants": [
		{"case": "sev-guest", "type": "2"}, {"case": "tdx-guest", "type": "3"},
		{"case": "igvm-cfg", "type": "4"}, {"case": "x", "type": "5"}]},
	{"name": "2", "meta-type": "object", "members": [{"name": "policy"}, {"name": "cbitpos"}]},
	{"name": "3", "meta-type": "object", "members": [{"name": "attributes"}],
		"features": ["confidential-guest-reset", {}]},
	{"name": "4", "meta-type": "object", "members": [{"name": "file"}]}]`

// fakeAnswers are the answers to commands, by name and by the type they are about.
var fakeAnswers = map[string]string{
	"qmp_capabilities":                        `{}`,
	"query-qmp-schema":                        fakeSchema,
	"qom-list-properties sev-guest":           `[{"name": "id"}]`,
	"qom-list-properties tdx-guest":           `[{"name": "id"}]`,
	"qom-list-properties mktme-guest":         `[{"name": "key"}]`,
	"qom-list-properties rng-random":          `[{"name": "filename"}]`,
	"qom-list-properties pc-q35-11.1-machine": `[{"name": "smm"}, {"name": "vmport"}]`,
	"query-machines": `[{"name": "pc-q35-11.1", "alias": "q35", "cpu-max": 4096},
		{"name": "pc-q35-7.2", "cpu-max": 288}, {"name": "none", "cpu-max": 1}]`,
	"query-cpu-definitions": `[{"name": "EPYC"}, {"name": "max"}]`,
	"quit":                  `{}`,
}

// play is QEMU. A part but "whole" is a command that it fails: with an error, or, if it
// begins with "!", by its end.
func play(part string) int {
	f := os.NewFile(3, "qmp")
	conn, err := net.FileConn(f)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if !strings.Contains(strings.Join(os.Args, " "), "socket,id=ask,fd=3") {
		fmt.Fprintln(os.Stderr, "no monitor")
		return 1
	}
	fmt.Fprintln(conn, `{"QMP": {"version": {"qemu": {"micro": 0, "minor": 1, "major": 11}}, "capabilities": []}}`)
	for lines := bufio.NewScanner(conn); lines.Scan(); {
		var command struct {
			Execute   string
			Arguments struct{ Typename string }
			ID        json.RawMessage
		}
		if err := json.Unmarshal(lines.Bytes(), &command); err != nil {
			return 1
		}
		name := strings.TrimSpace(command.Execute + " " + command.Arguments.Typename)
		answer := fakeAnswers[name]
		switch {
		case part == "!"+name:
			fmt.Fprintln(os.Stderr, "out of order")
			return 1
		case part == name || answer == "":
			fmt.Fprintf(conn, "{\"error\": {\"class\": \"GenericError\", \"desc\": \"no %s\"}, \"id\": %s}\n",
				name, command.ID)
		case part == name+" []":
			fmt.Fprintf(conn, "{\"return\": {\"a\": []}, \"id\": %s}\n", command.ID)
		default:
			fmt.Fprintf(conn, "{\"return\": %s, \"id\": %s}\n", strings.ReplaceAll(answer, "\n", " "), command.ID)
		}
		if name == "quit" {
			return 0
		}
	}
	return 1
}
