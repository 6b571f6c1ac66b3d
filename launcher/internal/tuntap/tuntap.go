// Package tuntap opens the kernel's virtual network interfaces as descriptors, which QEMU needs no
// right of its own for.
//
// Sources: Linux, Documentation/networking/tuntap.rst; include/uapi/linux/if_tun.h, if.h,
// if_bridge.h, sockios.h.
package tuntap

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Errors.
var (
	// ErrNoBridge means that there is no bridge of a name.
	ErrNoBridge = errors.New("there is no such bridge")
	// ErrNoInterface means that there is no interface of a name, or one of another kind.
	ErrNoInterface = errors.New("there is no such interface")
	// ErrRights means that this user may not have the interface.
	ErrRights = errors.New("this user has no right to it")
)

const (
	device = "/dev/net/tun"
	sysNet = "/sys/class/net"
)

// IsBridge reports whether an interface is a bridge.
func IsBridge(name string) bool { return isKind(name, "bridge") }

// IsTap reports whether an interface is a TAP interface.
func IsTap(name string) bool { return isKind(name, "tun_flags") }

// IsMacvtap reports whether an interface is a macvtap.
func IsMacvtap(name string) bool { return isKind(name, "macvtap") }

func isKind(name, entry string) bool {
	if !IsName(name) {
		return false
	}
	_, err := os.Stat(filepath.Join(sysNet, name, entry))
	return err == nil
}

// IsName reports whether a text can be the name of an interface (net/core/dev.c, dev_valid_name).
func IsName(text string) bool {
	return text != "" && len(text) < unix.IFNAMSIZ && text != "." && text != ".." &&
		!strings.ContainsAny(text, "/: \t\n\v\f\r\x00")
}

// flags of the interfaces: frames without a header of the kernel's, but with one that lets the
// guest leave checksums and segmentation to the host.
const flags = unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR

// OnBridge makes an interface on a bridge; it is gone with its last descriptor. Its address follows
// from the guest's, and is higher than that of other interfaces, so that the bridge keeps its own.
func OnBridge(bridge string, guest net.HardwareAddr) (*os.File, error) {
	if !IsBridge(bridge) {
		return nil, fmt.Errorf("bridge %s: %w", bridge, ErrNoBridge)
	}
	f, name, err := open("vml%d")
	if err != nil {
		return nil, fmt.Errorf("an interface on the bridge %s: %w", bridge, err)
	}
	err = withSocket(func(fd int) error {
		if len(guest) == 6 {
			if err := setAddress(fd, name, append(net.HardwareAddr{0xfe}, guest[1:]...)); err != nil {
				return err
			}
		}
		if err := addToBridge(fd, bridge, name); err != nil {
			return err
		}
		return up(fd, name)
	})
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("an interface on the bridge %s: %w", bridge, rights(err))
	}
	return f, nil
}

// Existing opens an interface that was made for this user.
func Existing(name string) (*os.File, error) {
	if !IsTap(name) { // to open it would make one
		return nil, fmt.Errorf("tap %s: %w", name, ErrNoInterface)
	}
	f, err := whenLetGo(func() (*os.File, error) {
		f, _, err := open(name)
		return f, err
	})
	if err != nil {
		return nil, fmt.Errorf("tap %s: %w", name, err)
	}
	return f, nil
}

// letGo is how long the kernel gets to take an interface from a QEMU that has ended. QEMU since
// 10.2 waits for its descriptors by io_uring, which keeps them open until the ring is torn down: by
// a worker of the kernel's, some 30 ms after the process has gone.
const letGo = 300 * time.Millisecond

// whenLetGo opens an interface that another process had a moment ago. The kernel does not tell
// when it is free, so it is tried again.
func whenLetGo(open func() (*os.File, error)) (*os.File, error) {
	for end := time.Now().Add(letGo); ; time.Sleep(letGo / 30) {
		f, err := open()
		if !errors.Is(err, unix.EBUSY) || time.Now().After(end) {
			return f, err
		}
	}
}

// Macvtap opens an interface that was made for this user. The guest must have its address.
func Macvtap(name string) (*os.File, error) {
	b, err := os.ReadFile(filepath.Join(sysNet, name, "ifindex"))
	if err != nil || !IsMacvtap(name) {
		return nil, fmt.Errorf("macvtap %s: %w", name, ErrNoInterface)
	}
	f, err := whenLetGo(func() (*os.File, error) {
		return os.OpenFile("/dev/tap"+strings.TrimSpace(string(b)), os.O_RDWR, 0)
	})
	if err != nil {
		return nil, fmt.Errorf("macvtap %s: %w", name, rights(err))
	}
	return f, nil
}

// Address is an interface's address; nil for one that is not there.
func Address(name string) net.HardwareAddr {
	if !IsName(name) {
		return nil
	}
	b, err := os.ReadFile(filepath.Join(sysNet, name, "address"))
	if err != nil {
		return nil
	}
	mac, err := net.ParseMAC(strings.TrimSpace(string(b)))
	if err != nil {
		return nil
	}
	return mac
}

// VHost opens the kernel's own backend of network devices.
func VHost() (*os.File, error) { return os.OpenFile("/dev/vhost-net", os.O_RDWR, 0) }

// HasVHost reports whether this user can open it.
func HasVHost() bool { return unix.Access("/dev/vhost-net", unix.R_OK|unix.W_OK) == nil }

// ifreq is struct ifreq.
type ifreq struct {
	name [unix.IFNAMSIZ]byte
	data [24]byte
}

func request(name string) *ifreq {
	r := &ifreq{}
	copy(r.name[:], name)
	return r
}

func ioctl(fd int, number uint, r *ifreq) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(number), uintptr(unsafe.Pointer(r)))
	if errno != 0 {
		return errno
	}
	return nil
}

// open opens an interface, or makes one for a name with %d in it.
func open(name string) (*os.File, string, error) {
	fd, err := unix.Open(device, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, "", rights(&os.PathError{Op: "open", Path: device, Err: err})
	}
	f := os.NewFile(uintptr(fd), "tap")
	r := request(name)
	*(*uint16)(unsafe.Pointer(&r.data[0])) = flags
	if err := ioctl(fd, unix.TUNSETIFF, r); err != nil {
		_ = f.Close()
		return nil, "", rights(os.NewSyscallError("TUNSETIFF", err))
	}
	made, _, _ := strings.Cut(string(r.name[:]), "\x00")
	return f, made, nil
}

// rights marks errors about rights.
func rights(err error) error {
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		return fmt.Errorf("%w (%w)", ErrRights, err)
	}
	return err
}

func withSocket(do func(fd int) error) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	return do(fd)
}

func setAddress(fd int, name string, mac net.HardwareAddr) error {
	r := request(name)
	*(*uint16)(unsafe.Pointer(&r.data[0])) = syscall.ARPHRD_ETHER
	copy(r.data[2:], mac)
	return os.NewSyscallError("SIOCSIFHWADDR", ioctl(fd, unix.SIOCSIFHWADDR, r))
}

func addToBridge(fd int, bridge, name string) error {
	index, err := net.InterfaceByName(name)
	if err != nil {
		return err
	}
	r := request(bridge)
	*(*int32)(unsafe.Pointer(&r.data[0])) = int32(index.Index)
	return os.NewSyscallError("SIOCBRADDIF", ioctl(fd, unix.SIOCBRADDIF, r))
}

func up(fd int, name string) error {
	r := request(name)
	if err := ioctl(fd, unix.SIOCGIFFLAGS, r); err != nil {
		return os.NewSyscallError("SIOCGIFFLAGS", err)
	}
	*(*uint16)(unsafe.Pointer(&r.data[0])) |= unix.IFF_UP
	return os.NewSyscallError("SIOCSIFFLAGS", ioctl(fd, unix.SIOCSIFFLAGS, r))
}

// VSock opens the kernel's backend of vsock devices for a CID, which is taken then.
func VSock(cid uint32) (*os.File, error) {
	const path = "/dev/vhost-vsock"
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, rights(err)
	}
	const setGuestCID = 0x4008af60 // VHOST_VSOCK_SET_GUEST_CID (linux/vhost.h)
	n := uint64(cid)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), setGuestCID, uintptr(unsafe.Pointer(&n)))
	if errno != 0 {
		_ = f.Close()
		return nil, fmt.Errorf("vsock: CID %s: %w", strconv.FormatUint(n, 10), errno)
	}
	return f, nil
}
