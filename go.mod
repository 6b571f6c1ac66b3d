module github.com/vmlatch/vmlatch

go 1.26.0

require (
	github.com/digitalocean/go-qemu v0.0.0-20250212194115-ee9b0668d242
	go.uber.org/goleak v1.3.0
	golang.org/x/sys v0.49.0
)

require github.com/digitalocean/go-libvirt v0.0.0-20220804181439-8648fbde413e // indirect
