package swtee

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha512"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"

	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/firmware/swtee/attest"
	"github.com/vmlatch/vmlatch/firmware/swtee/internal/keyfile"
	"github.com/vmlatch/vmlatch/firmware/xdg"
)

// FirmwareBuild is the API version and build that the emulated platform reports.
func FirmwareBuild() sev.Build { return sev.Build{Major: 1, Minor: 55, Build: 24} }

// Where the emulated processor keeps its encryption bit (as EPYC 9004 does).
const (
	CBitPos         = 51
	ReducedPhysBits = 1
)

// Platform is an emulated chip with its keys and certificates.
type Platform struct {
	dir   string
	root  sev.Root
	chain *sev.Chain       // as exported
	cek   *sev.Certificate // signed
	// The private keys, parsed when one is first used: most launches need none, and
	// making the curve's tables takes milliseconds.
	keys func() (keyPair, error)

	amd   func() (*attest.AMD, error)
	intel func() (*attest.Intel, error)
}

// AMD returns the authorities over the keys of SEV-SNP, which are made when they are first
// needed: that takes seconds.
func (p *Platform) AMD() (*attest.AMD, error) { return p.amd() }

// Intel returns the authorities over the keys of TDX.
func (p *Platform) Intel() (*attest.Intel, error) { return p.intel() }

// keyPair are a platform's private keys.
type keyPair struct{ pdh, pek *ecdsa.PrivateKey }

func parseKeys(pf *platformFile, chain *sev.Chain) (k keyPair, err error) {
	if k.pdh, err = x509.ParseECPrivateKey(pf.PDH); err != nil {
		return k, fmt.Errorf("emulated platform: %w", err)
	}
	if k.pek, err = x509.ParseECPrivateKey(pf.PEK); err != nil {
		return k, fmt.Errorf("emulated platform: %w", err)
	}
	if !k.pdh.PublicKey.Equal(chain.PDH.Key) || !k.pek.PublicKey.Equal(chain.PEK.Key) {
		return k, errors.New("emulated platform: keys and certificates do not belong together")
	}
	return k, nil
}

// platformFile is the format in which a platform is stored: platform.json, readable only
// by its user.
type platformFile struct {
	About string `json:"about"`
	PDH   []byte `json:"pdh-key"` // SEC 1 DER
	PEK   []byte `json:"pek-key"`
	Root  []byte `json:"root"`  // ASK, ARK
	Cert  []byte `json:"pdh"`   // PDH certificate
	Chain []byte `json:"chain"` // PEK, OCA, CEK
}

const platformName = "platform.json"

// DefaultDir is the directory of a user's emulated platform.
func DefaultDir() (string, error) {
	dir, err := xdg.StateDir()
	if err != nil {
		return "", fmt.Errorf("no place for the emulated platform's keys: %w", err)
	}
	return filepath.Join(dir, "swtee"), nil
}

// ErrPlatform means that a platform's file is damaged.
var ErrPlatform = errors.New("emulated platform")

// OpenPlatform loads the platform of a directory, making one there first if
// it holds none. Two processes that do so at once get the same platform.
func OpenPlatform(dir string) (*Platform, error) {
	pf, err := keyfile.Open(dir, platformName, newPlatformFile)
	if err == nil {
		var p *Platform
		if p, err = pf.platform(dir); err == nil {
			return p, nil
		}
		err = &keyfile.Damaged{File: filepath.Join(dir, platformName), Err: err}
	}
	return nil, damaged(err)
}

// DamagedFile is the file of a platform that an error is about, "" for another error.
func DamagedFile(err error) string {
	var d *keyfile.Damaged
	if errors.As(err, &d) {
		return d.File
	}
	return ""
}

// damaged names what is wrong with a platform's file.
func damaged(err error) error {
	if err == nil {
		return nil
	}
	var d *keyfile.Damaged
	if errors.As(err, &d) {
		return fmt.Errorf("%w: %w", ErrPlatform, err)
	}
	return fmt.Errorf("emulated platform: %w", err)
}

func newPlatformFile() (*platformFile, error) {
	var rsaKeys [2]*rsa.PrivateKey // ARK, ASK
	for i := range rsaKeys {
		k, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			return nil, err
		}
		rsaKeys[i] = k
	}
	arkID, askID := [16]byte([]byte("swtee test ARK\x00\x00")), [16]byte([]byte("swtee test ASK\x00\x00"))
	ark, err := sev.NewCACertificate(rand.Reader, &rsaKeys[0].PublicKey, sev.UsageARK, arkID, arkID, rsaKeys[0])
	if err != nil {
		return nil, err
	}
	ask, err := sev.NewCACertificate(rand.Reader, &rsaKeys[1].PublicKey, sev.UsageASK, askID, arkID, rsaKeys[0])
	if err != nil {
		return nil, err
	}
	keys := map[sev.Usage]*ecdsa.PrivateKey{}
	certs := map[sev.Usage]*sev.Certificate{}
	for usage, algo := range map[sev.Usage]sev.Algo{
		sev.UsageOCA: sev.AlgoECDSASHA256, sev.UsageCEK: sev.AlgoECDSASHA256,
		sev.UsagePEK: sev.AlgoECDSASHA256, sev.UsagePDH: sev.AlgoECDHSHA256,
	} {
		if keys[usage], err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader); err != nil {
			return nil, err
		}
		if certs[usage], err = sev.NewCertificate(&keys[usage].PublicKey, usage, algo, FirmwareBuild()); err != nil {
			return nil, err
		}
	}
	if certs[sev.UsageOCA], err = ownersCertificate(&keys[sev.UsageOCA].PublicKey); err != nil {
		return nil, err
	}
	err = errors.Join(
		certs[sev.UsageCEK].SignRSA(rand.Reader, 0, sev.UsageASK, rsaKeys[1]),
		certs[sev.UsageOCA].SignECDSA(rand.Reader, 0, sev.UsageOCA, keys[sev.UsageOCA]),
		certs[sev.UsagePEK].SignECDSA(rand.Reader, 0, sev.UsageOCA, keys[sev.UsageOCA]),
		certs[sev.UsagePEK].SignECDSA(rand.Reader, 1, sev.UsageCEK, keys[sev.UsageCEK]),
		certs[sev.UsagePDH].SignECDSA(rand.Reader, 0, sev.UsagePEK, keys[sev.UsagePEK]),
	)
	if err != nil {
		return nil, err
	}
	pf := &platformFile{
		About: "keys of an emulated SEV platform (swtee): they protect nothing",
		Root:  slices.Concat(ask.Bytes(), ark.Bytes()),
		Cert:  certs[sev.UsagePDH].Bytes(),
		Chain: slices.Concat(certs[sev.UsagePEK].Bytes(), certs[sev.UsageOCA].Bytes(), certs[sev.UsageCEK].Bytes()),
	}
	if pf.PDH, err = x509.MarshalECPrivateKey(keys[sev.UsagePDH]); err != nil {
		return nil, err
	}
	pf.PEK, err = x509.MarshalECPrivateKey(keys[sev.UsagePEK])
	return pf, err
}

// Where the public key of a certificate ends, and its signatures begin (SEV API, appendix
// C.1, table 108).
const (
	keyEnd        = 16 + 4 + 2*72
	signaturesAre = 1044
)

// ownersCertificate is an OCA as the tools in use make it: API version 0.0, and 329 bytes of
// whatever was in memory at the end of the public key's area, which the signature covers
// (seen in the reply of query-sev-capabilities on an EPYC 9654).
func ownersCertificate(key *ecdsa.PublicKey) (*sev.Certificate, error) {
	c, err := sev.NewCertificate(key, sev.UsageOCA, sev.AlgoECDSASHA256, sev.Build{})
	if err != nil {
		return nil, err
	}
	b := c.Bytes()
	_, _ = rand.Read(b[max(keyEnd, signaturesAre-329):signaturesAre]) // never fails (crypto/rand)
	return sev.ParseCertificate(b)
}

func (pf *platformFile) platform(dir string) (*Platform, error) {
	p := &Platform{dir: dir}
	var err error
	var chain *sev.Chain
	if p.root, err = sev.ParseRoot("swtee test root", pf.Root); err != nil {
		return nil, err
	}
	if chain, err = sev.ParseChain(pf.Cert, pf.Chain); err != nil {
		return nil, err
	}
	exported := *chain
	exported.CEK = chain.CEK.Unsigned()
	p.chain, p.cek = &exported, chain.CEK
	if len(pf.PDH) == 0 || len(pf.PEK) == 0 {
		return nil, errors.New("it holds no keys")
	}
	p.amd = sync.OnceValues(func() (*attest.AMD, error) {
		a, err := attest.OpenAMD(dir, p.ID())
		return a, damaged(err)
	})
	p.intel = sync.OnceValues(func() (*attest.Intel, error) {
		i, err := attest.OpenIntel(dir)
		return i, damaged(err)
	})
	p.keys = sync.OnceValues(func() (keyPair, error) { return parseKeys(pf, p.chain) })
	return p, nil
}

// Chain returns the platform's certificates as PDH_CERT_EXPORT gives them: the CEK is not
// signed (SEV API, chapter 5.8). With SignedCEK in its place they end in Root.
func (p *Platform) Chain() *sev.Chain { return p.chain }

// SignedCEK returns the chip's certificate signed by the test ASK: what AMD's key server
// gives for the ID of a chip.
func (p *Platform) SignedCEK() []byte { return p.cek.Bytes() }

// Root returns the test root.
func (p *Platform) Root() sev.Root { return p.root }

// RootPEMType marks a test root's PEM block.
const RootPEMType = "SWTEE TEST ROOT"

// RootPEM is the test root as owners name it to trust it: ASK and ARK.
func (p *Platform) RootPEM() []byte {
	return pem.EncodeToMemory(&pem.Block{
		Type:    RootPEMType,
		Headers: map[string]string{"Emulated": "yes: whoever trusts this root trusts a simulation"},
		Bytes:   slices.Concat(p.root.ASK.Bytes(), p.root.ARK.Bytes()),
	})
}

// ID is the chip's unique id, 64 bytes (SEV API, GET_ID).
func (p *Platform) ID() []byte {
	sum := sha512.Sum512(p.cek.Bytes())
	return sum[:]
}
