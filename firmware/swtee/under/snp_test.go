//go:build !quick

package under

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmlatch/vmlatch/firmware/internal/vectors"
	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/integration/qemus"
)

// vectorFirmware writes a firmware image from the test vectors to a file.
func vectorFirmware(t testing.TB, name string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), filepath.Base(name))
	if err := os.WriteFile(file, vectors.File(t, name), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func snpArgs(firmware string, props ...string) []string {
	return []string{
		"-machine", "q35,confidential-guest-support=cgs0", "-bios", firmware,
		"-object", strings.Join(append([]string{"sev-snp-guest,id=cgs0,cbitpos=51,reduced-phys-bits=1"}, props...), ","),
	}
}

// SNP digests of sev-snp-measure: snp-0018, and snp-0067 with kernel hashes.
const (
	snpMilan2       = "54a8c0dd731ffacb4980b3bf926adcbfef705146fdf443ca2a03c3104610a8add28b31c86df235618"
	snpMilan2Kernel = "2b2f4999869416d2a3c344ca54fd1db662f95c0a6fa22a0a70e9604073e8693c6a71d71883354c207"
)

// snpLaunch takes an SNP guest to its digest, which it has only after cont.
func snpLaunch(t testing.TB, qemu string, args []string) *run {
	t.Helper()
	r := startFake(t, qemu, append(args, "-smp", "2", "-cpu", "EPYC-Milan-v1")).up()
	if r.digest() != "" {
		t.Error("an SNP guest has a digest before cont")
	}
	_ = r.conn.Execute(r.ctx(), "cont", nil, nil)
	return r
}

func TestSNPDigests(t *testing.T) {
	firmware := vectorFirmware(t, "sid/OVMF.amdsev.fd")
	qemus.Each(t, "10.0", func(t *testing.T, qemu string) {
		r := snpLaunch(t, qemu, snpArgs(firmware))
		if got := r.digest(); !strings.HasPrefix(got, snpMilan2) {
			t.Errorf("digest %s, want %s…", got, snpMilan2)
		}
		rep := r.report()
		types := map[string]int{}
		for _, p := range rep.Pages {
			types[p.Type]++
		}
		if rep.Technology != "sev-snp" {
			t.Errorf("technology %s, want sev-snp", rep.Technology)
		}
		for kind, want := range map[string]int{"normal": 1024, "vmsa": 2, "cpuid": 1, "secrets": 1} {
			if types[kind] != want {
				t.Errorf("%d pages of type %s, want %d", types[kind], kind, want)
			}
		}
		r.quit()
	})
}

func TestSNPKernelHashes(t *testing.T) {
	firmware := vectorFirmware(t, "sid/OVMF.amdsev.fd")
	dir := t.TempDir()
	write := func(name, vector string) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, vectors.File(t, vector), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	kernel, initrd := write("kernel", "debian/vmlinuz-6.1.0-56-cloud-amd64"), write("initrd", "synth/initrd-a")
	qemus.Each(t, "10.0", func(t *testing.T, qemu string) {
		args := append(snpArgs(firmware, "kernel-hashes=on"),
			"-kernel", kernel, "-initrd", initrd, "-append", "console=ttyS0 root=/dev/vda1 ro")
		r := snpLaunch(t, qemu, args)
		if got := r.digest(); !strings.HasPrefix(got, snpMilan2Kernel) {
			t.Errorf("digest %s, want %s…", got, snpMilan2Kernel)
		}
		r.quit()
	})
}

// TestSNPIDBlock: the platform itself refuses a launch if its digest, policy or
// signature is not the owner's.
func TestSNPIDBlock(t *testing.T) {
	firmware := guestFile(t, "OVMF.amdsev.fd")
	key := func() *ecdsa.PrivateKey {
		k, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	idKey, author := key(), key()
	qemus.Each(t, "10.0", func(t *testing.T, qemu string) {
		r := snpLaunch(t, qemu, snpArgs(firmware))
		digest, err := hex.DecodeString(r.digest())
		if err != nil || len(digest) != 48 {
			t.Fatal(r.digest(), err)
		}
		r.quit()
		good := sev.IDBlock{Digest: sev.SNPDigest(digest), Version: 1, Policy: 0x30000}
		bad := good
		bad.Digest[0] ^= 1
		other := good
		other.Policy = 0xb0000
		for _, c := range []struct {
			name   string
			block  sev.IDBlock
			signed sev.IDBlock
			author crypto.Signer
			want   string // QEMU's words; "": the launch succeeds
		}{
			{"right", good, good, nil, ""},
			{"right, with author", good, good, author, ""},
			{"other digest", bad, bad, nil, "fw_error=11 'Bad measurement'"},
			{"other policy", other, other, nil, "fw_error=7 'Policy is not allowed'"},
			{"signed for another", good, bad, nil, "fw_error=10 'Bad signature'"},
		} {
			auth, err := sev.SignIDBlock(rand.Reader, c.signed, idKey, c.author)
			if err != nil {
				t.Fatal(err)
			}
			host := bytes.Repeat([]byte{9}, 32)
			props := []string{
				"id-block=" + base64.StdEncoding.EncodeToString(c.block.Bytes()),
				"id-auth=" + base64.StdEncoding.EncodeToString(auth),
				"host-data=" + base64.StdEncoding.EncodeToString(host),
			}
			if c.author != nil {
				props = append(props, "author-key-enabled=on")
			}
			r := snpLaunch(t, qemu, snpArgs(firmware, props...))
			if c.want != "" {
				r.wait()
				if r.code != 1 || !strings.Contains(r.said(), c.want) {
					t.Errorf("%s: code %d, said %q, want %q", c.name, r.code, r.said(), c.want)
				}
				continue
			}
			l := r.report().Launch
			if !l.IDBlock || l.AuthorKey != (c.author != nil) || !bytes.Equal(l.HostData, host) {
				t.Errorf("%s: %+v", c.name, l)
			}
			r.quit()
		}
	})
}

// TestTDXDigest compares MRTD with gce-tcb-verifier's (vector mrtd-0317).
func TestTDXDigest(t *testing.T) {
	firmware := vectorFirmware(t, "sid/OVMF.inteltdx.ms.fd")
	const want = "a7a1f751abc454f9cbab198ca8d2edb2821935df525c74182b5e776cb0929e8c59aefecce725b0d08a5e9d3d3183bd08"
	qemus.Each(t, "11.1", func(t *testing.T, qemu string) {
		config := base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{5}, 48))
		r := startFake(t, qemu, append(tdxArgs(firmware, "mrconfigid="+config), "-smp", "2")).up()
		rep := r.report()
		if got := r.digest(); got != want {
			t.Errorf("MRTD %s, want %s", got, want)
		}
		if rep.Technology != "tdx" || rep.Launch.TD.VCPUs != 2 ||
			rep.Launch.TD.MRConfigID != strings.Repeat("05", 48) {
			t.Errorf("%s: %+v", rep.Technology, rep.Launch.TD)
		}
		r.quit()
	})
}
