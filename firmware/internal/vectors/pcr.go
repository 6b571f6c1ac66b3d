package vectors

import (
	_ "embed"
	"encoding/json"
	"os"
	"testing"
)

//go:embed pcr.json
var pcrJSON []byte

// pcrSchema names files of measured boots.
const pcrSchema = "vmlatch.pcr-vectors/1"

// PCRs are recorded measured boots, and small inputs with their digests.
type PCRs struct {
	Volumes []struct {
		Firmware string   `json:"firmware"`
		SHA256   string   `json:"sha256"`
		Volumes  [][4]any `json:"volumes"` // name, address, size, SHA-256
	} `json:"firmware_volumes"`
	Boots []Boot `json:"boots"`
	Small struct {
		LoadOptions []struct {
			Cmdline string `json:"cmdline_given"`
			Style   string `json:"style"`
			Initrd  bool   `json:"initrd"`
			Options string `json:"load_options"`
			SHA256  string `json:"sha256"`
		} `json:"load_options"`
		Authenticode []struct {
			File   string `json:"file"`
			Image  []byte `json:"image_base64"`
			SHA256 string `json:"sha256"`
		} `json:"authenticode"`
		Patched struct {
			Cases []struct {
				Authenticode string `json:"authenticode_sha256"`
				Bytes        string `json:"bytes_0x210_0x22c"`
				InitrdSize   int64  `json:"initrd_size"`
				Memory       uint64 `json:"memory_mib"`
			} `json:"cases"`
		} `json:"qemu_patched_kernel"`
		Variables []struct {
			GUID   string `json:"guid_bytes"`
			Name   string `json:"name"`
			Data   string `json:"data"`
			Event  string `json:"event_data"`
			SHA256 string `json:"sha256"`
		} `json:"variables"`
		UKI []struct {
			Sections [][2]string `json:"sections"` // name, contents in hexadecimal
			PCR11    string      `json:"pcr11_sha256"`
		} `json:"uki_pcr11"`
		GPT struct {
			Header  string   `json:"header"`
			Entries []string `json:"entries"`
			Event   string   `json:"event_data"`
			SHA256  string   `json:"sha256"`
		} `json:"gpt"`
		SMBIOS struct {
			Tables  string `json:"fw_cfg_etc_smbios_smbios_tables"`
			Vendor  string `json:"vendor"`
			Version string `json:"version"`
			Date    string `json:"date"`
			SHA256  string `json:"sha256"`
		} `json:"smbios"`
		BootOptions []struct {
			Option string `json:"option"`
			Data   string `json:"data"`
			SHA256 string `json:"sha256"`
		} `json:"boot_options"`
		IMA []struct {
			Template string            `json:"template"`
			PCRs     map[string]string `json:"pcrs_0_to_9"`
			PCR10    string            `json:"pcr10"`
		} `json:"ima"`
	} `json:"small"`
}

// Boot is a measured boot.
type Boot struct {
	Name         string            `json:"name"`
	Firmware     string            `json:"firmware"`
	FirmwareSum  string            `json:"firmware_sha256"`
	QEMU         string            `json:"qemu"`
	Memory       uint64            `json:"memory_mib"`
	KernelSum    string            `json:"kernel_sha256"`
	InitrdSize   int64             `json:"initrd_size"`
	InitrdSum    string            `json:"initrd_sha256"`
	Cmdline      string            `json:"cmdline"`
	KernelHeader string            `json:"kernel_header"`
	PCRs         map[string]string `json:"pcrs_sha256"`
	Predicted    []int             `json:"predicted"`
	Log          []byte            `json:"event_log_base64"`
}

// PCRVectors are those of this package.
func PCRVectors(t testing.TB) *PCRs {
	t.Helper()
	return readPCRs(t, pcrJSON)
}

func readPCRs(t testing.TB, b []byte) *PCRs {
	t.Helper()
	v := &PCRs{}
	if err := json.Unmarshal(b, v); err != nil {
		t.Fatal(err)
	}
	return v
}

// EachPCRs runs a test for the vectors of this package, and for those that VMLATCH_VECTORS names.
func EachPCRs(t *testing.T, test func(t *testing.T, v *PCRs)) {
	t.Helper()
	files := map[string][]byte{"pcr.json": pcrJSON}
	for _, name := range More(pcrSchema) {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		files[name] = b
	}
	for name, b := range files {
		t.Run(name, func(t *testing.T) { test(t, readPCRs(t, b)) })
	}
}
