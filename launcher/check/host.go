package check

import (
	"fmt"
	"slices"

	"github.com/vmlatch/vmlatch/firmware/bytesize"
	"github.com/vmlatch/vmlatch/launcher/fault"
	"github.com/vmlatch/vmlatch/launcher/host"
	"github.com/vmlatch/vmlatch/launcher/plan"
	"github.com/vmlatch/vmlatch/launcher/rundir"
	"github.com/vmlatch/vmlatch/launcher/slot"
	"github.com/vmlatch/vmlatch/launcher/tee"
)

// hostChecks need the host and its QEMU besides the spec.
func hostChecks() []tee.Check {
	return []tee.Check{
		{
			ID:       "limits-memory",
			Severity: tee.Refuse,
			OfSpec:   true,
			Key:      "limits.memory",
			When:     func(s *tee.Subject) bool { return confidential(s) && s.Limits.Memory > 0 },
			Cause: "the guest would be killed for its memory, what it shares with its devices once more, and what" +
				" QEMU pins",
			Fix:    "raise the limit",
			Source: "Linux, virt/kvm/guest_memfd.c; Documentation/admin-guide/cgroup-v2.rst",
			Look: func(s *tee.Subject) (tee.Verdict, string) {
				need := s.Budget(s.Traits())
				return tee.Verify(s.Limits.Memory >= need, "%v, and %v are needed", s.Limits.Memory, need)
			},
		},
		{
			ID:       "limits-possible",
			Severity: tee.Refuse,
			Stage:    tee.HostStage,
			OfSpec:   true,
			Key:      "limits",
			When:     func(s *tee.Subject) bool { return s.Limits.On() },
			Cause:    "the limits cannot be set here, and the VM would run without them",
			Fix: "leave [limits] out; or use a host whose control groups are of version 2, with systemd or as root." +
				" A service has those of its unit: MemoryMax=, CPUQuota=, TasksMax=, and IO limits in a drop-in",
			Source: "Linux, Documentation/admin-guide/cgroup-v2.rst; systemd.resource-control(5)",
			Look: func(s *tee.Subject) (tee.Verdict, string) {
				if s.Facts.Groups == nil {
					return tee.Failed, s.Facts.NoGroups
				}
				l, err := s.Limits.Of()
				if err != nil {
					return tee.Failed, err.Error()
				}
				why := s.Facts.Groups.Lacks(l)
				return tee.Verify(why == "", "%s", why)
			},
		},
		{
			ID:       "limits-session",
			Severity: tee.Warn,
			Stage:    tee.HostStage,
			OfSpec:   true,
			Key:      "limits",
			When:     func(s *tee.Subject) bool { return s.Limits.On() },
			Cause:    "the VM ends when you log out: its limits are a scope of your own systemd's, which ends then",
			Fix:      "loginctl enable-linger",
			Source:   "loginctl(1); logind.conf(5)",
			Look: func(s *tee.Subject) (tee.Verdict, string) {
				return tee.Verify(!s.Facts.GroupsEnd, "this user does not linger")
			},
		},
		{
			ID:       "pin-processors",
			Severity: tee.Refuse,
			Stage:    tee.HostStage,
			OfSpec:   true,
			Key:      "pin",
			When:     func(s *tee.Subject) bool { return s.Pin.On() },
			Cause:    "a thread cannot be pinned to a processor that this host does not have",
			Fix:      "lscpu --extended shows those that it has",
			Source:   "sched_setaffinity(2)",
			Look: func(s *tee.Subject) (tee.Verdict, string) {
				return allOf("processor", s.Pin.Processors(), s.Facts.Processors)
			},
		},
		{
			ID:       fault.TechnologyUsable,
			Severity: tee.Refuse,
			Stage:    tee.HostStage,
			When:     tee.Real,
			Cause:    fault.ErrHost.Error() + " run guests of the technology",
			Fix:      `"vmlatch host" says what is missing; choose another host or technology if it is the processor`,
			Source:   "snphost ok; virt-host-validate; Linux, arch/x86/kvm",
			Look: func(s *tee.Subject) (tee.Verdict, string) {
				t := s.Facts.Host.Technology(s.Traits().Name)
				if t.Usable == host.Unknown {
					return tee.Unknown, t.Why
				}
				return tee.Verify(t.Usable == host.Yes, "%s", t.Why)
			},
		},
		{
			ID:       fault.QEMUObject,
			Severity: tee.Refuse,
			Stage:    tee.HostStage,
			When:     confidential,
			Cause:    "this QEMU has no object for the technology",
			Fix:      "install a QEMU that has it, or name one with qemu = in the spec",
			Source:   "QEMU, qapi/qom.json",
			Look: func(s *tee.Subject) (tee.Verdict, string) {
				err := s.Knows(s.Facts)
				return tee.Verify(err == nil, "%v", err)
			},
		},
		{
			ID:       "cpu-model-known",
			Severity: tee.Refuse,
			Stage:    tee.HostStage,
			OfSpec:   true,
			Key:      "cpu",
			When:     func(s *tee.Subject) bool { return s.CPU != "" && s.Facts.Info != nil },
			Cause:    "this QEMU does not know the CPU model",
			Fix:      "run the QEMU with -cpu help, and correct the spec",
			Source:   "QEMU, query-cpu-definitions",
			Look: func(s *tee.Subject) (tee.Verdict, string) {
				m := s.Model()
				return tee.Verify(slices.Contains(s.Facts.Info.CPUs, m), "%s", m)
			},
		},
		{
			ID:       "vcpu-limit",
			Severity: tee.Refuse,
			Stage:    tee.HostStage,
			OfSpec:   true,
			Key:      "cpus",
			When:     func(s *tee.Subject) bool { return s.Facts.Info != nil && s.Facts.Info.MaxCPUs[s.Machine] > 0 },
			Cause:    "the machine type takes fewer CPUs",
			Fix:      "lower cpus",
			Source:   "QEMU, query-machines",
			Look: func(s *tee.Subject) (tee.Verdict, string) {
				most := s.Facts.Info.MaxCPUs[s.Machine]
				return tee.Verify(s.CPUs <= most, "%d of at most %d", s.CPUs, most)
			},
		},
		{
			ID:       FreeSlots,
			Severity: tee.Refuse,
			Stage:    tee.HostStage,
			When: func(s *tee.Subject) bool {
				p := s.Facts.Slot(s.Traits())
				if p == nil ||
					p.Size == 0 && tee.Real(s) && s.Facts.Host.Technology(s.Traits().Name).Usable == host.No {
					return false // another check says why the pool is empty
				}
				return p.Size != slot.Unlimited || !s.Facts.Emulated()
			},
			Cause:  "all encryption slots are taken",
			Fix:    fault.FixSlots,
			Source: "Linux, misc controller; nova, num_memory_encrypted_guests",
			Look: func(s *tee.Subject) (tee.Verdict, string) {
				p := s.Facts.Slot(s.Traits())
				if p.Size == slot.Unlimited {
					return tee.Unknown, "the number of slots is unknown"
				}
				used, err := p.Leases().Used()
				if err != nil {
					return tee.Unknown, err.Error()
				}
				return tee.Verify(used < p.Size, "%d of %d in pool %s", used, p.Size, p.Pool)
			},
		},
		{
			ID:       "memory-lock",
			Severity: tee.Refuse,
			Stage:    tee.HostStage,
			Key:      "memory",
			When: func(s *tee.Subject) bool {
				return tee.Real(s) && s.Traits().Pinned || len(s.PCI) > 0 && !s.Traits().Private
			},
			Cause: "QEMU has to pin the guest's memory, for its platform or for devices of the host that reach all" +
				" of it, and may not pin as much",
			Fix:    fault.FixMemlock,
			Source: "nova, AMD SEV spec; libvirt; enarx-keepldr#14",
			Look: func(s *tee.Subject) (tee.Verdict, string) {
				need := plan.LockedMemory(s.Memory)
				most := bytesize.Size(s.Facts.MaxLock)
				return tee.Verify(most >= need, "it needs %v and gets %v", need, most)
			},
		},
		{
			ID:       MemoryAvailable,
			Severity: tee.Warn,
			Stage:    tee.HostStage,
			Key:      "memory",
			When:     func(s *tee.Subject) bool { return s.Facts.Host.MemFree > 0 },
			Cause: "the guest may get more memory than the host has left;" +
				" what is encrypted or locked is never swapped out",
			Fix:    "lower memory, or stop another VM",
			Source: "cloud-hypervisor#8501; nova, AMD SEV spec",
			Look: func(s *tee.Subject) (tee.Verdict, string) {
				need := s.Budget(s.Traits())
				return tee.Verify(uint64(need) <= s.Facts.Host.MemFree, "%v of %d MiB", need,
					s.Facts.Host.MemFree>>20)
			},
		},
		{
			ID:       "memory-nodes",
			Severity: tee.Refuse,
			Stage:    tee.HostStage,
			OfSpec:   true,
			Key:      "memory-backend.nodes",
			When:     func(s *tee.Subject) bool { return s.Backend.Nodes != "" },
			Cause:    "memory cannot be on a node that this host does not have, or that has no memory",
			Fix:      "lscpu shows the nodes",
			Source:   "Linux, Documentation/admin-guide/mm/numa_memory_policy.rst",
			Look: func(s *tee.Subject) (tee.Verdict, string) {
				return allOf("node", s.Backend.HostNodes(), s.Facts.Nodes)
			},
		},
		{
			ID:       "bounce-buffers",
			Severity: tee.Warn,
			OfSpec:   true,
			Key:      "kernel.cmdline",
			When:     confidential,
			Cause: "devices of a confidential guest reach memory only by bounce buffers, which all of them share;" +
				" when they are full, the guest sees I/O errors",
			Fix: "give it more memory, of which Linux takes 6 %; or write swiotlb= to the command line," +
				" in slots of 2 KiB",
			Source: "Linux, arch/x86/mm/mem_encrypt.c; kernel/dma/swiotlb.c; 16 MiB for each device are inferred",
			Look: func(s *tee.Subject) (tee.Verdict, string) {
				const each = 16 << 20
				devices := len(s.Disks) + len(s.Networks) + len(s.Shares)
				have, need := s.Shared(), bytesize.Size(devices*each)
				return tee.Verify(have >= need, "%v for %d devices, which may need %v", have, devices, need)
			},
		},
		{
			ID:       FreeHugePages,
			Severity: tee.Refuse,
			Stage:    tee.HostStage,
			Key:      "memory-backend.hugepages",
			When:     func(s *tee.Subject) bool { return s.Backend.HugePages != 0 && s.Facts.HugePages != nil },
			Cause:    "the host has too few free huge pages of the size",
			Fix: "reserve more (sysctl vm.nr_hugepages, or hugepages= on the kernel's command line)," +
				" or leave hugepages out",
			Source: "Linux, Documentation/admin-guide/mm/hugetlbpage.rst",
			Look: func(s *tee.Subject) (tee.Verdict, string) {
				size := s.Backend.HugePages
				free, need := s.Facts.HugePages[uint64(size)], uint64(s.Memory/size)
				return tee.Verify(free >= need, "%d of %v are free, %d are needed", free, size, need)
			},
		},
		{
			ID:       NameFree,
			Severity: tee.Refuse,
			Stage:    tee.PlanStage,
			Key:      "name",
			Cause:    "a VM of this name is running, or being launched",
			Fix:      `stop it, or start this one under another name (--name)`,
			Source:   "canonical/tdx, run_td; lxd#11670",
			Look: func(s *tee.Subject) (tee.Verdict, string) {
				e, err := s.Plan.Dirs.Peek(s.Plan.Name)
				if err != nil || e == nil {
					return tee.OK, "" // it is free, or that is found out when it is taken
				}
				return tee.Verify(
					e.Status() == rundir.Ended || e.Status() == rundir.Abandoned,
					"it is %s",
					e.Status(),
				)
			},
		},
	}
}

// allOf fails with the first number that the host does not have.
func allOf(what string, want, have []int) (tee.Verdict, string) {
	for _, n := range want {
		if !slices.Contains(have, n) {
			return tee.Failed, fmt.Sprintf("%s %d", what, n)
		}
	}
	return tee.OK, ""
}
