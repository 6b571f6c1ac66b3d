package swtee

import (
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/firmware/sev"
)

// ReportSchema names the format of a Report. A change that old readers would
// misunderstand gets a new number.
const ReportSchema = "swtee-report/1"

// Report lists what an emulated platform was given, page by page. It holds digests
// and register pages, never keys or secrets.
type Report struct {
	Schema     string          `json:"schema"`
	Emulated   bool            `json:"emulated"` // always true
	Firmware   sev.Build       `json:"firmware"`
	Technology string          `json:"technology,omitempty"` // sev, sev-es, sev-snp or tdx
	Launch     *LaunchReport   `json:"launch,omitempty"`
	Commands   []CommandRecord `json:"commands"` // in the order in which they came
	Pages      []Page          `json:"pages"`    // in the order in which they were measured
}

// LaunchReport is the outcome of a launch.
type LaunchReport struct {
	Policy       string    `json:"policy,omitempty"`        // hexadecimal; SEV and SEV-SNP
	Digest       string    `json:"digest,omitempty"`        // launch digest or MRTD, hexadecimal
	Measurement  []byte    `json:"measurement,omitempty"`   // SEV, SEV-ES: MAC and nonce, 48 bytes
	VMSAFeatures string    `json:"vmsa-features,omitempty"` // sev_features of INIT2, hexadecimal
	HostData     []byte    `json:"host-data,omitempty"`     // SEV-SNP, 32 bytes
	IDBlock      bool      `json:"id-block,omitempty"`      // SEV-SNP: one was given and verified
	AuthorKey    bool      `json:"author-key,omitempty"`
	VCEKDisabled bool      `json:"vcek-disabled,omitempty"`
	SecretSize   int       `json:"secret-size,omitempty"` // SEV, SEV-ES: bytes injected
	TD           *TDReport `json:"td,omitempty"`
}

// TDReport is what TDH.MNG.INIT was given.
type TDReport struct {
	Attributes    string `json:"attributes"`
	XFAM          string `json:"xfam"`
	MRConfigID    string `json:"mrconfigid"`
	MROwner       string `json:"mrowner"`
	MROwnerConfig string `json:"mrownerconfig"`
	VCPUs         int    `json:"vcpus"`
	// RTMRProfile is the firmware as which RTMR1 and RTMR2 were measured by the emulator: RTMR0 is
	// zero then.
	RTMRProfile string `json:"rtmr-profile,omitempty"`
}

// CommandRecord is one command and how it ended.
type CommandRecord struct {
	Command Command `json:"command"`
	Count   int     `json:"count"`  // its number among those of its kind, from 1
	Status  string  `json:"status"` // SUCCESS, a firmware status, or an error of the kernel
	Error   string  `json:"error,omitempty"`
}

// Page is one piece of memory or register state that was submitted: a page of
// 4096 bytes; for SEV and SEV-ES data, a region.
type Page struct {
	Type string  `json:"type"` // data, vmsa, normal, zero, unmeasured, secrets, cpuid, page
	GPA  *uint64 `json:"gpa,omitempty"`
	Size int     `json:"size"`
	VCPU *int    `json:"vcpu,omitempty"`
	// Measured reports whether the contents enter the digest.
	Measured bool `json:"measured"`
	// Digest of the contents: SHA-256 for SEV and SEV-ES, else SHA-384.
	Digest string `json:"digest"`
	// Contents of register pages, up to the last byte that is not zero.
	Contents []byte `json:"contents,omitempty"`
}

// UnknownGPA is the address of memory outside all memory slots.
const UnknownGPA = ^uint64(0)

func address(gpa uint64) *uint64 {
	if gpa == UnknownGPA {
		return nil
	}
	return &gpa
}

func hexSHA256(b []byte) string { s := sha256.Sum256(b); return hex.EncodeToString(s[:]) }
func hexSHA384(b []byte) string { s := sha512.Sum384(b); return hex.EncodeToString(s[:]) }

// maxCommands bounds the commands in a report: a guest may ask for evidence without end. SEV-SNP
// launches have a command for each region.
const maxCommands = 1 << 16

func (f *Firmware) record(cmd Command, err error) {
	r := CommandRecord{Command: cmd, Count: f.counts[cmd], Status: sev.StatusOK.Name()}
	if err != nil {
		r.Error = err.Error()
		if status := Status(err); status != sev.StatusOK {
			r.Status = status.Name()
		} else {
			r.Status = unix.ErrnoName(Errno(err))
		}
	}
	if len(f.report.Commands) < maxCommands { // a guest may go on asking
		f.report.Commands = append(f.report.Commands, r)
	}
	switch cmd {
	case CmdLaunchMeasure, CmdLaunchSecret, CmdLaunchFinish, CmdSNPLaunchFinish, CmdTDXFinalizeVM:
		if f.Changed != nil {
			f.Changed(&f.report)
		}
	}
}

func (f *Firmware) addPage(p Page) {
	if f.RecordPages {
		f.report.Pages = append(f.report.Pages, p)
	}
}

func (f *Firmware) launch() *LaunchReport {
	if f.report.Launch == nil {
		f.report.Launch = &LaunchReport{}
	}
	return f.report.Launch
}

// WithReport calls a function with the report as it stands; it must not keep it.
func (f *Firmware) WithReport(use func(*Report)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	use(&f.report)
}

// Write writes the report as JSON.
func (r *Report) Write(w io.Writer) error {
	b, err := json.MarshalIndent(r, "", " ")
	if err == nil {
		_, err = w.Write(append(b, '\n'))
	}
	if err != nil {
		return fmt.Errorf("report: %w", err)
	}
	return nil
}

// WriteFile writes the report in place of a regular file; readers see the old one
// or the new one, never half of it.
func (r *Report) WriteFile(file string) error {
	tmp, err := os.CreateTemp(filepath.Dir(file), ".swtee-report-*")
	if err != nil {
		return fmt.Errorf("report: %w", err)
	}
	defer os.Remove(tmp.Name())
	err = r.Write(tmp)
	if err = errors.Join(err, tmp.Chmod(0o644), tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), file)
	}
	if err != nil {
		return fmt.Errorf("report: %w", err)
	}
	return nil
}
