package main

import (
	"crypto/sha256"
	"crypto/sha512"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/vmlatch/vmlatch/firmware/sev"
)

// measure times predictions of an SNP digest as whole processes, against the
// hashing that cannot be left out: kernel and initrd next to the distinct pages of
// the firmware; and many vCPUs against one.
func (b *bench) measure() error {
	var files [3][]byte
	for i, name := range []string{"OVMF.amdsev.fd", "vmlinuz", "initrd.img"} {
		var err error
		if files[i], err = os.ReadFile(filepath.Join(".cache/guest", name)); err != nil {
			return fmt.Errorf("%w: run make setup", err)
		}
	}
	guest, err := filepath.Abs(".cache/guest")
	if err != nil {
		return err
	}
	predict := func(vcpus string, more ...string) (time.Duration, error) {
		args := []string{
			"measure", "--technology", "sev-snp", "--cpu", "EPYC-Milan", "--vcpus", vcpus,
			"--firmware", filepath.Join(guest, "OVMF.amdsev.fd"),
		}
		return b.timed("latchkey", append(args, more...)...)
	}
	kernel := []string{
		"--kernel", filepath.Join(guest, "vmlinuz"), "--initrd", filepath.Join(guest, "initrd.img"),
		"--cmdline", "console=ttyS0",
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	var floors, bare, hashed, one, many []time.Duration
	for range b.rounds {
		floors = append(floors, hashingFloor(files))
		d, err := b.timed(self, "-sha256", filepath.Join(guest, "vmlinuz"))
		if err != nil {
			return err
		}
		bare = append(bare, d)
		for _, m := range []struct {
			to    *[]time.Duration
			vcpus string
			args  []string
		}{{&hashed, "1", kernel}, {&one, "1", nil}, {&many, "255", nil}} {
			d, err := predict(m.vcpus, m.args...)
			if err != nil {
				return err
			}
			*m.to = append(*m.to, d)
		}
	}
	b.row("SNP digest with kernel, whole process, to hashing",
		median(hashed), median(floors), medianRatio(hashed, floors), "<= 1.3")
	b.row("a program that only maps and hashes the kernel, to the same",
		median(bare), median(floors), medianRatio(bare, floors), "")
	b.row("SNP digest of 255 vCPUs, to 1 vCPU", median(many), median(one), medianRatio(many, one), "<= 1.1")
	return nil
}

// hashMapped does the least that a process must do to hash a file. It shows which part
// of a ratio to hashing in memory is the system's work: starting a process, mapping a
// file, and removing both.
func hashMapped(name string) error {
	sum, err := sev.HashFile(name)
	if err == nil {
		_, err = fmt.Printf("%x\n", sum)
	}
	return err
}

// hashingFloor hashes a firmware's distinct pages next to a kernel and an initrd.
func hashingFloor(files [3][]byte) time.Duration {
	began := time.Now()
	var wg sync.WaitGroup
	for _, f := range files[1:] {
		wg.Go(func() { sha256.Sum256(f) })
	}
	seen := map[[4096]byte]bool{}
	for p := files[0]; len(p) >= 4096; p = p[4096:] {
		page := [4096]byte(p)
		if !seen[page] {
			seen[page] = true
			sha512.Sum384(page[:])
		}
	}
	wg.Wait()
	return time.Since(began)
}
