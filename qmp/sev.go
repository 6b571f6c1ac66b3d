package qmp

import (
	"context"
	"log/slog"
)

// Commands of qapi/misc-target.json up to QEMU 10.0, of misc-i386.json since.
// Bytes travel as base64.

// QuerySEV asks for the state of the guest's SEV object. Since 2.12.
type QuerySEV struct{}

// SEVInfo is the answer to QuerySEV.
type SEVInfo struct {
	Enabled   bool   `json:"enabled"`
	APIMajor  uint8  `json:"api-major"`
	APIMinor  uint8  `json:"api-minor"`
	BuildID   uint8  `json:"build-id"`
	State     string `json:"state"`    // uninit, launch-update, launch-secret, running, …
	Type      string `json:"sev-type"` // "sev", "sev-snp"; empty before 9.1
	Policy    uint32 `json:"policy"`
	Handle    uint32 `json:"handle"`
	SNPPolicy uint64 `json:"snp-policy"`
}

// Execute runs query-sev.
func (QuerySEV) Execute(ctx context.Context, e Executor) (info SEVInfo, err error) {
	err = e.Execute(ctx, "query-sev", nil, &info)
	return info, err
}

// QuerySEVCapabilities asks for what an owner needs of the platform. Since 2.12.
type QuerySEVCapabilities struct{}

// SEVCapabilities is the answer to QuerySEVCapabilities.
type SEVCapabilities struct {
	PDH             []byte `json:"pdh"`        // certificate, 2084 bytes
	CertChain       []byte `json:"cert-chain"` // PEK, OCA, CEK: 6252 bytes
	CPU0ID          []byte `json:"cpu0-id"`    // 64 bytes, since 7.1
	CBitPos         int    `json:"cbitpos"`
	ReducedPhysBits int    `json:"reduced-phys-bits"`
}

// Execute runs query-sev-capabilities.
func (QuerySEVCapabilities) Execute(ctx context.Context, e Executor) (caps SEVCapabilities, err error) {
	err = e.Execute(ctx, "query-sev-capabilities", nil, &caps)
	return caps, err
}

// QuerySEVLaunchMeasure asks for the launch measurement. Since 2.12.
type QuerySEVLaunchMeasure struct{}

// Execute runs query-sev-launch-measure and returns MAC and nonce, 48 bytes.
func (QuerySEVLaunchMeasure) Execute(ctx context.Context, e Executor) (data []byte, err error) {
	var out struct {
		Data []byte `json:"data"`
	}
	err = e.Execute(ctx, "query-sev-launch-measure", nil, &out)
	return out.Data, err
}

// SEVInjectLaunchSecret hands the platform a secret packet. The guest must be
// paused. Since 6.0.
type SEVInjectLaunchSecret struct {
	PacketHeader []byte  `json:"packet-header"` // 52 bytes
	Secret       []byte  `json:"secret"`        // encrypted
	GPA          *uint64 `json:"gpa,omitempty"` // nil: where the firmware's table says
}

// Execute runs sev-inject-launch-secret.
func (s SEVInjectLaunchSecret) Execute(ctx context.Context, e Executor) error {
	return e.Execute(ctx, "sev-inject-launch-secret", s, nil)
}

// LogValue keeps the packet out of logs.
func (SEVInjectLaunchSecret) LogValue() slog.Value { return slog.StringValue("[redacted]") }
