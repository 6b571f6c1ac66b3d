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

var topics = []cli.Topic{
	{Name: "spec", Title: "the file that describes a VM", Text: topicSpec},
	{Name: "latch", Title: "what holds a VM, and what opens it", Text: topicLatch},
	{Name: "states", Title: "the life of a VM, step by step", Text: topicStates},
	{Name: "emulation", Title: "confidential VMs without the hardware", Text: topicEmulation},
	{Name: "files", Title: "where vmlatch keeps things, and the host's settings", Text: topicFiles},
}
