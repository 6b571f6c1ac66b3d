// Package guestdev gives a test guest on an emulated platform the interfaces by which a guest on
// silicon asks for evidence, so that programs in the guest need not know the difference: the
// kernel's configfs-tsm and a trust domain's registers, as file systems in user space (FUSE), and
// /dev/sev-guest, as a device in user space (CUSE). What stands behind them is the platform, which
// it asks through package port.
//
// It behaves as the drivers of Linux 6.12 do, edge by edge, as far as a file system in user space
// can. It needs root and is for test guests only; it gives no power that changing the guest would
// not.
// The protocol of FUSE and CUSE is spoken here and not by a library, because none has both.
//
// Sources: Linux, include/uapi/linux/fuse.h, include/uapi/linux/sev-guest.h,
// Documentation/ABI/testing/configfs-tsm-report, drivers/virt/coco.
package guestdev
