package check

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/firmware/firstboot"
	"github.com/vmlatch/vmlatch/launcher/fault"
	"github.com/vmlatch/vmlatch/launcher/internal/diskimage"
	"github.com/vmlatch/vmlatch/launcher/plan"
	"github.com/vmlatch/vmlatch/launcher/tee"
)

// DisksFree is the check whose answer changes when a VM ends.
const DisksFree = "disks-free"

// diskChecks look at the images of disks as QEMU would, without opening what they name.
func diskChecks() []tee.Check {
	return []tee.Check{
		{
			ID:       "config-unmeasured",
			Severity: tee.Refuse,
			OfSpec:   true,
			Key:      "config",
			When:     func(s *tee.Subject) bool { return confidential(s) && s.Config.On() },
			Cause: "a confidential guest is configured by what stands before its initrd and is measured with it;" +
				" by a disk or tables of the host's it would run what the host likes",
			Fix: "give it a kernel and an initrd that are measured ([kernel], kernel-hashes), or put the" +
				" configuration into the image that the guest's owner verifies",
			Source: "cloud-init, NoCloud; systemd, src/basic/confidential-virt.c",
			Look: func(s *tee.Subject) (tee.Verdict, string) {
				return tee.Verify(s.ConfigMeasured(s.Traits()), "no initrd is measured")
			},
		},
		{
			ID:       "config-found",
			Severity: tee.Warn,
			OfSpec:   true,
			Key:      "kernel.cmdline",
			When:     func(s *tee.Subject) bool { return s.Config.Seeded() && s.ConfigMeasured(s.Traits()) },
			Cause: "cloud-init looks for its seed where the image and the command line say, and else where the" +
				" host may put one; latchguest's hook puts the measured one into /run/vmlatch/seed",
			Fix: "add to cmdline: ds=nocloud;s=file://" + firstboot.GuestSeed + "/; the image needs latchguest's" +
				" 50-latchguest.cfg as well (docs/appliance.md)",
			Source: "cloud-init, NoCloud",
			Look: func(s *tee.Subject) (tee.Verdict, string) {
				return tee.Verify(firstboot.Named(s.Kernel.Cmdline), "the command line does not name it")
			},
		},
		{
			ID:       "config-size",
			Severity: tee.Refuse,
			Stage:    tee.PlanStage,
			OfSpec:   true,
			Key:      "config.credentials",
			When:     func(s *tee.Subject) bool { return len(s.Config.Credentials) > 0 },
			Cause: "credentials come in tables of SMBIOS, which have 64 KiB together; of those in an initrd systemd" +
				" takes 1 MiB",
			Fix:    "take fewer or shorter ones; user-data may have 1 MiB",
			Source: "SMBIOS, section 5.2.1 (structure table length); QEMU, hw/smbios; systemd, import-creds.c",
			Look: func(s *tee.Subject) (tee.Verdict, string) {
				n, most := s.Config.CredentialBytes(), int64(plan.MaxCredentials)
				if s.ConfigMeasured(s.Traits()) {
					most = plan.MaxMeasuredCredentials
				}
				return tee.Verify(n <= most, "%d bytes, at most %d", n, most)
			},
		},
		{
			ID:       "config-disk",
			Severity: tee.Refuse,
			OfSpec:   true,
			Key:      "disk",
			When:     confidential,
			Cause: "a disk is labelled as a seed for cloud-init, which a guest obeys that looks for one. Only raw" +
				" images are looked at, and a host that means harm does not ask",
			Fix:    "leave it out, and have the guest's image ignore such disks: datasource_list in /etc/cloud",
			Source: "cloud-init, NoCloud",
			Look:   ofDisks(func(d *plan.Disk) bool { return diskimage.IsSeed(d.Image) }),
		},
		{
			ID:       "share-there",
			Severity: tee.Refuse,
			Stage:    tee.PlanStage,
			Key:      "share",
			When:     func(s *tee.Subject) bool { return len(s.Shares) > 0 },
			Cause:    "what is shared must be a directory that this user can read, and write unless it is read-only",
			Fix:      "correct path, or write read-only = true",
			Source:   "QEMU, hw/9pfs",
			Look: func(s *tee.Subject) (tee.Verdict, string) {
				for _, x := range s.Shares {
					if why := shareFault(&x); why != "" {
						return tee.Failed, x.Path + ": " + why
					}
				}
				return tee.OK, ""
			},
		},
		{
			ID:       "share-rights",
			Severity: tee.Refuse,
			Stage:    tee.PlanStage,
			OfHost:   true,
			Key:      "share",
			When:     func(s *tee.Subject) bool { return s.Facts.VirtioFSD != "" },
			Cause:    "virtiofsd, which root starts, needs capabilities that this process does not have",
			Fix: "name them in a drop-in of the unit, CapabilityBoundingSet=, with ReadWritePaths= of the directory;" +
				` or write mode = "9p"`,
			Source: "virtiofsd, README; capabilities(7)",
			Look: func(s *tee.Subject) (tee.Verdict, string) {
				lacks := s.Facts.VirtioFSDLacks
				return tee.Verify(len(lacks) == 0, "%s", strings.Join(lacks, " "))
			},
		},
		{
			ID:       "share-private",
			Severity: tee.Refuse,
			OfSpec:   true,
			Key:      "share",
			When:     confidential,
			Cause:    "virtiofsd cannot reach the memory of a confidential guest",
			Fix:      `write mode = "9p", or use a disk`,
			Source:   "QEMU, hw/virtio/vhost-user.c: VIRTIO_F_ACCESS_PLATFORM",
			Look: func(s *tee.Subject) (tee.Verdict, string) {
				for _, x := range s.Shares {
					if x.Mode == plan.ShareVirtioFS {
						return tee.Failed, x.Tag
					}
				}
				return tee.OK, ""
			},
		},
		{
			ID:       "share-visible",
			Severity: tee.Warn,
			OfSpec:   true,
			Key:      "share",
			When:     func(s *tee.Subject) bool { return confidential(s) && len(s.Shares) > 0 },
			Cause:    "nothing measures what is in a shared directory, and the host sees and changes all of it",
			Fix:      "use an encrypted disk",
			Source:   "inference",
			Look:     func(*tee.Subject) (tee.Verdict, string) { return tee.Failed, "" },
		},
		{
			ID:       "disk-discard",
			Severity: tee.Warn,
			OfSpec:   true,
			Key:      "disk",
			When:     confidential,
			Cause:    "what the guest frees tells the host which blocks of its disk are empty",
			Fix:      "leave discard out: confidential guests do not tell",
			Source:   "cryptsetup(8), --allow-discards; QEMU, qapi/block-core.json",
			Look:     ofDisks(func(d *plan.Disk) bool { return d.Discards() }),
		},
		{
			ID:       "disk-unsafe",
			Severity: tee.Warn,
			OfSpec:   true,
			Key:      "disk",
			Cause:    "flushes are ignored: if the host crashes, the disk may be destroyed",
			Fix:      `leave cache = "unsafe" out, or make the disk ephemeral = true if it does not matter`,
			Source:   "QEMU, qemu-options.hx, cache=unsafe",
			Look:     ofDisks(func(d *plan.Disk) bool { return d.Unsafe() && d.Writes() }),
		},
		{
			ID:       "disk-image",
			Severity: tee.Refuse,
			Stage:    tee.PlanStage,
			Key:      "disk",
			Cause: "a disk image is not what the spec says: another format, or an image that names other files," +
				" which the guest would see",
			Fix: `write format = "raw" or "qcow2"; name a backing file with backing =, a data file with data-file =,` +
				" or make an image without them (qemu-img convert)",
			Source: "CVE-2024-32498; QEMU, docs/interop/qcow2.rst",
			Look: func(s *tee.Subject) (tee.Verdict, string) {
				for _, d := range s.Disks {
					if why := diskFault(&d); why != "" {
						return tee.Failed, d.Image + ": " + why
					}
				}
				return tee.OK, ""
			},
		},
		{
			ID:       DisksFree,
			Severity: tee.Refuse,
			Stage:    tee.PlanStage,
			Key:      "disk",
			Cause:    "another process uses a disk image",
			Fix:      fault.FixImageUsed,
			Source:   "QEMU, block/file-posix.c, raw_check_lock_bytes",
			Look:     ofDisks(func(d *plan.Disk) bool { return d.Writes() && ImageInUse(d.Image) }),
		},
	}
}

// ofDisks makes a check that names the first disk that is bad.
func ofDisks(bad func(*plan.Disk) bool) func(*tee.Subject) (tee.Verdict, string) {
	return func(s *tee.Subject) (tee.Verdict, string) {
		for i := range s.Disks {
			if d := &s.Disks[i]; bad(d) {
				return tee.Failed, d.Image
			}
		}
		return tee.OK, ""
	}
}

// diskFault compares a disk with its image's header; "" if they agree, or if the image
// cannot be read, which is another check's matter.
func diskFault(d *plan.Disk) string {
	info, err := diskimage.Read(d.Image)
	switch {
	case errors.Is(err, diskimage.ErrHeader):
		return err.Error()
	case err != nil:
		return ""
	case info.Format != d.Format && d.Format == "qcow2":
		return fmt.Sprintf("it is not a qcow2 image: its content is %s", info.Format)
	case info.Format != d.Format && d.Guessed():
		return fmt.Sprintf("its content is %s, and by its name it would be used as raw", info.Format)
	case d.Format != "qcow2":
		return ""
	case info.Unusable != "":
		return info.Unusable
	case info.Corrupt && d.Writes():
		return `it is marked as damaged: "qemu-img check -r all" repairs it`
	}
	if why := named("backing file", "backing", d.Image, info.Backing, d.Backing); why != "" {
		return why
	}
	if info.DataFile == "?" && d.DataFile == "" {
		return "its data is in another file"
	}
	if info.DataFile != "?" {
		if why := named("data file", "data-file", d.Image, info.DataFile, d.DataFile); why != "" {
			return why
		}
	}
	if d.Backing == "" {
		return ""
	}
	base, err := diskimage.Read(d.Backing)
	switch format := plan.FormatByName(d.Backing); {
	case err != nil:
		return fmt.Sprintf("its backing file: %v", err)
	case base.Format != format:
		return fmt.Sprintf(
			"its backing file %s is %s, and by its name would be used as %s",
			d.Backing,
			base.Format,
			format,
		)
	case base.Backing+base.DataFile != "":
		return fmt.Sprintf("its backing file %s names a file itself: %s%s", d.Backing, base.Backing, base.DataFile)
	}
	return ""
}

// named compares the file that an image's header names with the one that the spec does.
func named(what, key, image, header, spec string) string {
	if header == "" && spec == "" {
		return ""
	}
	if header == "" {
		return fmt.Sprintf("it has no %s, and the spec names one", what)
	}
	abs := strings.TrimPrefix(header, "file:")
	if protocol, _, ok := strings.Cut(abs, ":"); ok && !strings.ContainsRune(protocol, '/') {
		return fmt.Sprintf("its %s is %q, and vmlatch opens only files: make an image without it"+
			" (qemu-img convert), or one over a file (qemu-img rebase)", what, header)
	}
	if !filepath.IsAbs(abs) {
		abs = filepath.Join(filepath.Dir(image), abs)
	}
	switch {
	case spec == "":
		return fmt.Sprintf("it has the %s %q, which the spec does not name: %s = %q", what, header, key, abs)
	case filepath.Clean(spec) != filepath.Clean(abs):
		return fmt.Sprintf("it has the %s %q, and the spec names %s", what, header, spec)
	}
	return ""
}

// ImageInUse reports whether a QEMU has an image open for writing: it locks bytes from 100 on.
func ImageInUse(path string) bool {
	const first, many = 100, 200
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	l := unix.Flock_t{Type: unix.F_WRLCK, Start: first, Len: many}
	return unix.FcntlFlock(uintptr(fd), unix.F_OFD_GETLK, &l) == nil && l.Type != unix.F_UNLCK
}

// shareFault says why a directory cannot be shared; "" if it can.
func shareFault(s *plan.Share) string {
	mode := uint32(unix.R_OK | unix.X_OK)
	if !s.ReadOnly {
		mode |= unix.W_OK
	}
	info, err := os.Stat(s.Path)
	switch {
	case err != nil:
		return fault.Bare(err)
	case !info.IsDir():
		return "it is not a directory"
	}
	if err := unix.Access(s.Path, mode); err != nil {
		return err.Error()
	}
	return ""
}
