package main

import (
	_ "embed"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
)

//go:embed topics/spec.txt
var topicSpec string

//go:embed topics/latch.txt
var topicLatch string

//go:embed topics/emulation.txt
var topicEmulation string

//go:embed topics/states.txt
var topicStates string

//go:embed topics/files.txt
var topicFiles string

//go:embed topics/settings.txt
var topicSettings string

//go:embed topics/systemd.txt
var topicSystemd string

//go:embed schemas/ps.json
var topicPSJSON string

var topics = []cli.Topic{
	{Name: "spec", Title: "the file that describes a VM", Text: topicSpec, Man: "vmlatch.toml.5"},
	{Name: "latch", Title: "what holds a VM, and what opens it", Text: topicLatch},
	{Name: "states", Title: "the life of a VM, step by step", Text: topicStates},
	{Name: "emulation", Title: "confidential VMs without the hardware", Text: topicEmulation},
	{Name: "systemd", Title: "VMs as units of a service manager", Text: topicSystemd},
	{
		Name: "ps-json", Title: "the JSON of ps and inspect, as a JSON Schema",
		Text: topicPSJSON, Man: "vmlatch-ps.json.5",
	},
	{Name: "files", Title: "where vmlatch keeps its files", Text: topicFiles},
	{
		Name: "settings", Title: "the host's settings, host.toml",
		Text: topicSettings, Man: "vmlatch-host.toml.5",
	},
}
