package main

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// networking does what the words vmlatch.net=ADDRESS/BITS, vmlatch.gateway=ADDRESS,
// vmlatch.serve=PORT and vmlatch.connect=ADDRESS:PORT say, each as often as it is there. What is
// connected to is shown with its first line, or with why there is none.
func networking(cmdline string) error {
	if !strings.Contains(cmdline, "vmlatch.net=") {
		return nil
	}
	if err := configure("lo", "127.0.0.1/8"); err != nil { // package net looks for ::1 to see if there is IPv6
		return err
	}
	for word := range strings.FieldsSeq(cmdline) {
		key, value, _ := strings.Cut(word, "=")
		var err error
		switch key {
		case "vmlatch.net":
			err = configure("eth0", value)
		case "vmlatch.gateway":
			err = gateway(value)
		case "vmlatch.serve":
			err = serve(":" + value)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", word, err)
		}
	}
	for word := range strings.FieldsSeq(cmdline) {
		if to, ok := strings.CutPrefix(word, "vmlatch.connect="); ok {
			say("%s says %s", to, ask(to))
		}
	}
	return nil
}

// configure gives an interface an address, and switches it on.
func configure(name, text string) error {
	p, err := netip.ParsePrefix(text)
	if err != nil {
		return err
	}
	i, err := net.InterfaceByName(name)
	if err != nil {
		return err
	}
	family := unix.AF_INET
	if p.Addr().Is6() {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	flags, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	flags.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, flags); err != nil {
		return err
	}
	if p.Addr().Is6() {
		r := struct { // struct in6_ifreq
			addr  [16]byte
			bits  uint32
			index int32
		}{p.Addr().As16(), uint32(p.Bits()), int32(i.Index)}
		return ioctl(fd, unix.SIOCSIFADDR, unsafe.Pointer(&r))
	}
	for _, x := range []struct {
		request uint
		addr    net.IP
	}{{unix.SIOCSIFADDR, p.Addr().AsSlice()}, {unix.SIOCSIFNETMASK, net.IP(net.CIDRMask(p.Bits(), 32))}} {
		r, err := unix.NewIfreq(name)
		if err == nil {
			err = r.SetInet4Addr(x.addr)
		}
		if err == nil {
			err = unix.IoctlIfreq(fd, x.request, r)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func ioctl(fd int, request uint, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(request), uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}

// gateway sets the default route.
func gateway(text string) error {
	a, err := netip.ParseAddr(text)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	const up, viaGateway = 1, 2 // RTF_UP, RTF_GATEWAY
	var route [120]byte         // struct rtentry
	address := func(at int, ip [4]byte) {
		binary.NativeEndian.PutUint16(route[at:], unix.AF_INET)
		copy(route[at+4:], ip[:])
	}
	address(8, [4]byte{})
	address(24, a.As4())
	address(40, [4]byte{})
	binary.NativeEndian.PutUint16(route[56:], up|viaGateway)
	return ioctl(fd, unix.SIOCADDRT, unsafe.Pointer(&route))
}

// serve greets whoever connects.
func serve(at string) error {
	l, err := net.Listen("tcp", at)
	if err != nil {
		return err
	}
	say("serving %s", at)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Read(make([]byte, 64)) // or the end would drop what was sent
			_, _ = io.WriteString(c, "hello from "+c.LocalAddr().(*net.TCPAddr).IP.String()+"\n")
			_ = c.Close()
		}
	}()
	return nil
}

// ask connects until it gets an answer, for a time.
func ask(to string) string {
	var last error
	for end := time.Now().Add(15 * time.Second); time.Now().Before(end); time.Sleep(time.Second) {
		c, err := net.DialTimeout("tcp", to, 3*time.Second)
		if err != nil {
			last = err
			continue
		}
		_ = c.SetDeadline(time.Now().Add(3 * time.Second))
		_, _ = io.WriteString(c, "hello\n")
		b, err := io.ReadAll(io.LimitReader(c, 100))
		_ = c.Close()
		if err == nil && len(b) > 0 {
			return strings.TrimSpace(string(b))
		}
		last = err
	}
	return fmt.Sprintf("nothing: %v", last)
}
