package collateral

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"slices"
	"time"

	"github.com/vmlatch/vmlatch/firmware/refusal"
)

// Status is what Intel says of a platform, a module or an enclave (PCS, tcbStatus).
type Status string

// States.
const (
	UpToDate                          Status = "UpToDate"
	SWHardeningNeeded                 Status = "SWHardeningNeeded"
	ConfigurationNeeded               Status = "ConfigurationNeeded"
	ConfigurationAndSWHardeningNeeded Status = "ConfigurationAndSWHardeningNeeded"
	OutOfDate                         Status = "OutOfDate"
	OutOfDateConfigurationNeeded      Status = "OutOfDateConfigurationNeeded"
	Revoked                           Status = "Revoked"
)

// Statuses are those that an owner may accept.
func Statuses() []Status {
	return []Status{
		UpToDate, SWHardeningNeeded, ConfigurationNeeded, ConfigurationAndSWHardeningNeeded, OutOfDate,
		OutOfDateConfigurationNeeded,
	}
}

// State is what Intel says of a platform as a whole.
type State struct {
	Status     Status    `json:"status"` // converged
	Platform   Status    `json:"platform"`
	Module     Status    `json:"module,omitempty"` // "" for TDX 1.0
	QE         Status    `json:"qe"`
	Advisories []string  `json:"advisories,omitempty"`
	Date       string    `json:"tcb-date,omitempty"` // of the platform's level
	Evaluation int       `json:"evaluation-number"`
	Until      time.Time `json:"collateral-until"` // when the first part of the collateral expires
}

// Measured is what a quote says of the module and the enclave below it.
type Measured struct {
	TEETCBSVN      [16]byte
	MRSignerSEAM   []byte // 48
	SEAMAttributes []byte // 8
	QE             QEReport
}

// QEReport are fields of the quoting enclave's report (Intel SDM volume 3D, chapter 37.15).
type QEReport struct {
	MiscSelect [4]byte
	Attributes [16]byte
	MRSigner   []byte // 32
	ProdID     uint16
	SVN        uint16
}

// Demands are the owner's about collateral.
type Demands struct {
	MinEvaluation int
	Stale         time.Duration // how long collateral may be used after its date
}

// Judge works out the state of a platform (QVL, TcbLevelCheck and TdxModuleCheck). The error is
// a refusal.
func Judge(t *TCBInfo, q *QEIdentity, p *PCK, m *Measured, asOf time.Time, d Demands) (*State, error) {
	if err := t.validAt(refusal.TCBInfoExpired, asOf, d.Stale); err != nil {
		return nil, err
	}
	if err := q.validAt(refusal.QEIdentityExpired, asOf, d.Stale); err != nil {
		return nil, err
	}
	if t.Evaluation < d.MinEvaluation || q.Evaluation < d.MinEvaluation {
		return nil, refusal.New(refusal.TCBEvaluationNumber).Value("tcbEvaluationDataNumber",
			fmt.Sprint(min(t.Evaluation, q.Evaluation)), fmt.Sprintf("%d or above", d.MinEvaluation))
	}
	if !bytes.Equal(t.FMSPC, p.FMSPC) {
		return nil, refusal.New(refusal.TCBInfoPlatform).Differs("fmspc", t.FMSPC, p.FMSPC)
	}
	if !bytes.Equal(t.PCEID, p.PCEID) {
		return nil, refusal.New(refusal.TCBInfoPlatform).Differs("pceId", t.PCEID, p.PCEID)
	}
	module, err := t.module(m)
	if err != nil {
		return nil, err
	}
	if err := q.is(&m.QE); err != nil {
		return nil, err
	}
	platform := t.level(p, m)
	if platform == nil {
		return nil, refusal.New(refusal.TCBNotSupported).Because("no level of the platform fits")
	}
	s := &State{
		Platform: platform.Status, Date: platform.Date, Evaluation: min(t.Evaluation, q.Evaluation),
		Until: earlier(t.NextUpdate, q.NextUpdate), Advisories: slices.Clone(platform.Advisories),
		Status: platform.Status,
	}
	if module != nil {
		l := levelOf(module.Levels, uint16(m.TEETCBSVN[0]))
		if l == nil {
			return nil, refusal.New(refusal.TCBNotSupported).Because("no level of the TDX module fits")
		}
		s.Module, s.Status = l.Status, converge(s.Status, l.Status)
		s.Advisories = append(s.Advisories, l.Advisories...)
	}
	l := levelOf(q.Levels, m.QE.SVN)
	if l == nil {
		return nil, refusal.New(refusal.TCBNotSupported).Because("no level of the quoting enclave fits")
	}
	s.QE, s.Status = l.Status, converge(s.Status, l.Status)
	s.Advisories = append(s.Advisories, l.Advisories...)
	slices.Sort(s.Advisories)
	s.Advisories = slices.Compact(s.Advisories)
	return s, nil
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// module finds the identity of the module that runs the trust domain, whose version is the
// second byte of TEE_TCB_SVN, and compares it. It is nil for version 0, whose state is the
// platform's.
func (t *TCBInfo) module(m *Measured) (found *moduleIdentity, err error) {
	want := t.Module
	if version := m.TEETCBSVN[1]; version != 0 {
		id := fmt.Sprintf("TDX_%02x", version)
		i := slices.IndexFunc(t.Identities, func(x moduleIdentity) bool { return x.ID == id })
		if i < 0 {
			return nil, refusal.New(refusal.TDXModule).Because("there is no identity %s in the TCB info", id)
		}
		found, want = &t.Identities[i], t.Identities[i].identity
	}
	if !bytes.Equal(m.MRSignerSEAM, want.MRSigner) {
		return nil, refusal.New(refusal.TDXModule).Differs("MRSIGNERSEAM", m.MRSignerSEAM, want.MRSigner)
	}
	if !masked(m.SEAMAttributes, want.AttributesMask, want.Attributes) {
		return nil, refusal.New(refusal.TDXModule).Differs("SEAMATTRIBUTES", m.SEAMAttributes, want.Attributes)
	}
	return found, nil
}

// masked reports whether a value is equal to another under a mask. All have one length.
func masked(value, mask, want []byte) bool {
	if len(value) != len(mask) || len(value) != len(want) {
		return false
	}
	for i := range value {
		if value[i]&mask[i] != want[i]&mask[i] {
			return false
		}
	}
	return true
}

// is compares the quoting enclave with its identity. Without this any enclave of a genuine
// platform could vouch for any key.
func (q *QEIdentity) is(r *QEReport) error {
	switch {
	case !bytes.Equal(r.MRSigner, q.MRSigner):
		return refusal.New(refusal.QEIdentity).Differs("MRSIGNER", r.MRSigner, q.MRSigner)
	case r.ProdID != q.ISVProdID:
		return refusal.New(refusal.QEIdentity).Value("ISVPRODID", fmt.Sprint(r.ProdID), fmt.Sprint(q.ISVProdID))
	case !masked(r.MiscSelect[:], q.MiscSelectMask, q.MiscSelect):
		return refusal.New(refusal.QEIdentity).Value("MISCSELECT", hex.EncodeToString(r.MiscSelect[:]), "")
	case !masked(r.Attributes[:], q.AttributesMask, q.Attributes):
		return refusal.New(refusal.QEIdentity).Value("ATTRIBUTES", hex.EncodeToString(r.Attributes[:]), "")
	}
	return nil
}

// KnownQE is a refusal unless the enclave is Intel's, by what every published identity of the TD
// quoting enclave says. It stands in for collateral, which says it newly each month.
func KnownQE(r *QEReport) error {
	identity := &QEIdentity{
		MiscSelect: make([]byte, 4), MiscSelectMask: hexBytes{0xff, 0xff, 0xff, 0xff}, ISVProdID: 2,
		identity: identity{
			MRSigner:       TDQESigner(),
			Attributes:     append(hexBytes{0x11}, make([]byte, 15)...),
			AttributesMask: append(hexBytes{0xfb, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, make([]byte, 8)...),
		},
	}
	return identity.is(r)
}

// TDQESigner is the signer of Intel's quoting enclaves (MRSIGNER, 32 bytes).
func TDQESigner() []byte {
	return []byte{
		0xdc, 0x9e, 0x2a, 0x7c, 0x6f, 0x94, 0x8f, 0x17, 0x47, 0x4e, 0x34, 0xa7, 0xfc, 0x43, 0xed, 0x03,
		0x0f, 0x7c, 0x15, 0x63, 0xf1, 0xba, 0xbd, 0xdf, 0x63, 0x40, 0xc8, 0x2e, 0x0e, 0x54, 0xa8, 0xc5,
	}
}

// level is the first level of the platform that its versions reach; nil if there is none.
func (t *TCBInfo) level(p *PCK, m *Measured) *platformLevel {
	for i := range t.Levels {
		l := &t.Levels[i]
		if p.PCESVN < l.TCB.PCESVN {
			continue
		}
		fits := true
		for c := range Components {
			// Of modules with a version the first two are judged by their own identity.
			own := c < 2 && m.TEETCBSVN[1] != 0
			fits = fits && p.SVN[c] >= l.TCB.SGX[c].SVN && (own || m.TEETCBSVN[c] >= l.TCB.TDX[c].SVN)
		}
		if fits {
			return l
		}
	}
	return nil
}

func levelOf(levels []isvLevel, version uint16) *isvLevel {
	for i := range levels {
		if levels[i].TCB.ISVSVN <= version {
			return &levels[i]
		}
	}
	return nil
}

// converge is the state of a platform with a component that has a state of its own. It never
// becomes better.
func converge(platform, component Status) Status {
	switch component {
	case Revoked:
		return Revoked
	case OutOfDate:
		switch platform {
		case UpToDate, SWHardeningNeeded:
			return OutOfDate
		case ConfigurationNeeded, ConfigurationAndSWHardeningNeeded:
			return OutOfDateConfigurationNeeded
		}
	}
	if component != OutOfDate && !slices.Contains(Statuses(), component) { // no owner can have accepted it
		return Revoked
	}
	return platform
}

// Relaunch reports whether a platform's module is out of date only in the trust domain's own
// eyes: the host has a newer one by now, whose versions TDX 1.5 shows, and which a launch anew
// would use (QVL, TD relaunch).
func (t *TCBInfo) Relaunch(m *Measured, s *State, now [16]byte) bool {
	outOfDate := s.Platform == OutOfDate || s.Platform == OutOfDateConfigurationNeeded || s.Platform == Revoked
	if outOfDate || s.Module != OutOfDate || len(t.Levels) == 0 {
		return false
	}
	newest := &t.Levels[0]
	loader := now[2] >= newest.TCB.TDX[2].SVN
	id := fmt.Sprintf("TDX_%02x", now[1])
	for i := range t.Identities {
		if x := &t.Identities[i]; x.ID == id && len(x.Levels) > 0 {
			return loader && uint16(now[0]) >= x.Levels[0].TCB.ISVSVN
		}
	}
	return loader && now[1] == 0 && now[0] >= newest.TCB.TDX[0].SVN
}
