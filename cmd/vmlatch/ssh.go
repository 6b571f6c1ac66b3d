package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"

	urfave "github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/launcher/rundir"
)

func newSSH(s *cli.IO) *urfave.Command {
	return &urfave.Command{
		Name: "ssh", Usage: "log in to a VM by ssh", ArgsUsage: "[USER@]NAME [COMMAND…]",
		Category: catLook, BashComplete: completeAlive,
		Description: `The way is one that the spec has: a port of the host that leads to the guest's port 22
(forward), or vsock, on which guests of systemd 256 and newer serve ssh. The first login
remembers the guest's host key under the VM's name; a later guest with another key is
refused, as by ssh. What a guest and its keys are is the host's word: for a confidential
guest put its host key on the owner's machine, and log in from there.

Options of ssh go behind "--".

Examples:

   vmlatch ssh guest
   vmlatch ssh root@guest -- -i key.pem uptime`,
		Flags: hostFlags(
			&urfave.BoolFlag{Name: "print", Usage: "only print the command"},
			&urfave.BoolFlag{
				Name:   "proxy",
				Hidden: true,
				Usage:  "connect standard input and output to the guest's vsock",
			},
		),
		Action: func(c *urfave.Context) error {
			if c.NArg() == 0 {
				return cli.Usagef("NAME is missing")
			}
			user, name, both := strings.Cut(c.Args().First(), "@")
			if !both {
				user, name = "", user
			}
			root, _, err := vms(c, s)
			if err != nil {
				return err
			}
			r, err := running(c.Context, root, name)
			if err != nil {
				return err
			}
			if c.Bool("proxy") {
				return proxy(c.Context, s, r.VSock)
			}
			args, err := sshArgs(c, r, user)
			if err != nil {
				return err
			}
			if args = append(args, c.Args().Tail()...); c.Bool("print") {
				for i, a := range args {
					if strings.ContainsAny(a, " '\"$\\*?&|;<>()") {
						args[i] = quoted(a)
					}
				}
				_, err := fmt.Fprintln(s.Out, strings.Join(args, " "))
				return err
			}
			program, err := exec.LookPath(args[0])
			if err != nil {
				return cli.Fail(
					cli.ExitFailure,
					errors.New("ssh is missing"),
					"install it: the package openssh-client",
				)
			}
			return os.NewSyscallError("exec "+program, unix.Exec(program, args, os.Environ()))
		},
	}
}

// running is the record of a VM that runs.
func running(ctx context.Context, root rundir.Root, name string) (*rundir.Record, error) {
	d, e, err := root.Find(ctx, name)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	if !e.VMHeld || e.Record == nil {
		return nil, fmt.Errorf("%s: %w", name, rundir.ErrNotFound)
	}
	return e.Record, nil
}

// sshArgs is the command line that leads to a guest.
func sshArgs(c *urfave.Context, r *rundir.Record, user string) ([]string, error) {
	args := []string{"ssh"}
	if user != "" {
		args = append(args, "-l", user)
	}
	for _, n := range r.Networks {
		for _, f := range n.Forward {
			p := strings.Split(f, ":")
			if len(p) != 4 || p[0] != "tcp" || p[3] != "22" {
				continue
			}
			address := p[1]
			if address == "" || address == "0.0.0.0" {
				address = "127.0.0.1"
			}
			return append(args, "-o", "HostKeyAlias="+r.Name+".vmlatch", "-p", p[2], address), nil
		}
	}
	if r.VSock == 0 {
		return nil, cli.Fail(cli.ExitUsage, fmt.Errorf("%s: no way leads to its port 22", r.Name),
			`in the spec: forward = ["tcp:127.0.0.1:2222:22"] in [[network]], or [vsock]`)
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	way := quoted(self) + " ssh --proxy"
	for _, flag := range []string{"run-dir", "state-dir", "config"} {
		if c.IsSet(flag) {
			way += " --" + flag + " " + quoted(c.String(flag))
		}
	}
	way = strings.ReplaceAll(way, "%", "%%") // ssh replaces words that begin with one
	return append(args, "-o", "HostKeyAlias="+r.Name+".vmlatch", "-o", "ProxyCommand="+way+" "+r.Name, r.Name), nil
}

// quoted is a text for a shell.
func quoted(text string) string { return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'" }

// proxy connects this program's streams to the guest's port 22 on vsock.
func proxy(ctx context.Context, s *cli.IO, cid uint32) error {
	if cid == 0 {
		return cli.Usagef("the VM has no [vsock]")
	}
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	const port = 22
	if err := unix.Connect(fd, &unix.SockaddrVM{CID: cid, Port: port}); err != nil {
		_ = unix.Close(fd)
		return cli.WithHint(fmt.Errorf("vsock %s:%d: %w", strconv.FormatUint(uint64(cid), 10), port, err),
			"the guest must serve ssh there: systemd 256 does, and sshd-vsock@.service is its unit")
	}
	f := os.NewFile(uintptr(fd), "vsock")
	defer f.Close()
	go func() {
		_, _ = io.Copy(f, s.In)
		_ = unix.Shutdown(fd, unix.SHUT_WR)
	}()
	stop := context.AfterFunc(ctx, func() { _ = unix.Shutdown(fd, unix.SHUT_RDWR) }) // wakes the reader
	defer stop()
	_, err = io.Copy(s.Out, f)
	return cmp.Or(ctx.Err(), err)
}
