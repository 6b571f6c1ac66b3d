package tcg

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/firmware/swtee"
	"github.com/vmlatch/vmlatch/firmware/swtee/internal/front"
	"github.com/vmlatch/vmlatch/qmp"
)

// handle answers what needs a platform, and finishes the launch before the guest runs.
func (t *machine) handle(_ context.Context, command string, args json.RawMessage) (any, error) {
	if answer, ok := sevCommands[command]; ok {
		t.mu.Lock()
		defer t.mu.Unlock()
		return answer(t, args)
	}
	if command == "cont" {
		if err := t.launchFinish(); err != nil {
			return nil, front.Generic("sev_launch_finish: %v", err)
		}
	}
	return nil, front.Pass
}

// sevCommands answers the commands of qapi/misc-i386.json that need a platform.
// Error texts are QEMU's (target/i386/sev.c).
var sevCommands = map[string]func(t *machine, args json.RawMessage) (any, error){
	"query-sev": func(t *machine, _ json.RawMessage) (any, error) {
		info := map[string]any{
			"enabled": t.guest != nil, "api-major": 0, "api-minor": 0, "build-id": 0,
			"policy": 0, "state": "uninit", "handle": 0,
		}
		if t.guest != nil {
			b := swtee.FirmwareBuild()
			info["api-major"], info["api-minor"], info["build-id"] = b.Major, b.Minor, b.Build
			info["policy"], info["state"] = uint32(t.guest.Policy()), t.guest.State().String()
			info["handle"] = t.guest.Handle()
		}
		return info, nil
	},
	"query-sev-capabilities": func(t *machine, _ json.RawMessage) (any, error) {
		p := t.opt.Firmware
		return qmp.SEVCapabilities{
			PDH: p.Chain().PDH.Bytes(), CertChain: p.Chain().Bytes(), CPU0ID: p.ID(),
			CBitPos: swtee.CBitPos, ReducedPhysBits: swtee.ReducedPhysBits,
		}, nil
	},
	"query-sev-launch-measure": func(t *machine, _ json.RawMessage) (any, error) {
		if t.guest == nil {
			return nil, front.Generic("SEV launch measurement is not available")
		}
		m, ok := t.guest.Measurement()
		if !ok {
			return nil, front.Generic("SEV launch measurement is not available")
		}
		return map[string][]byte{"data": m.Bytes()}, nil
	},
	"sev-inject-launch-secret": injectSecret,
	"query-sev-attestation-report": func(t *machine, args json.RawMessage) (any, error) {
		var a struct{ MNonce []byte }
		if err := json.Unmarshal(args, &a); err != nil || len(a.MNonce) != 16 {
			return nil, front.Generic("SEV: mnonce must be 16 bytes")
		}
		if t.guest == nil {
			return nil, front.Generic("SEV is not enabled")
		}
		r, err := t.guest.AttestationReport([16]byte(a.MNonce))
		if err != nil {
			return nil, front.Generic("SEV: Failed to get the attestation report: %v", err)
		}
		return map[string][]byte{"data": r}, nil
	},
}

func injectSecret(t *machine, args json.RawMessage) (any, error) {
	var a qmp.SEVInjectLaunchSecret
	if err := json.Unmarshal(args, &a); err != nil {
		return nil, front.Generic("SEV: Failed to decode sev header or secret")
	}
	if t.guest == nil {
		return nil, front.Generic("SEV not enabled for guest")
	}
	if t.guest.State() != swtee.StateLaunchSecret {
		return nil, front.Generic("SEV: Not in correct state. (LSECRET) %x", int(t.guest.State()))
	}
	gpa := uint64(0)
	if a.GPA != nil {
		gpa = *a.GPA
	} else {
		area, ok, err := t.image.SecretArea()
		if err != nil || !ok || area.Size == 0 {
			return nil, front.Generic("SEV: no secret area found in OVMF, gpa must be specified.")
		}
		if uint64(len(a.Secret)) > uint64(area.Size) {
			return nil, front.Generic("SEV: secret of %d bytes does not fit the firmware's area of %d",
				len(a.Secret), area.Size)
		}
		gpa = uint64(area.Base)
	}
	plain, err := t.guest.LaunchSecret(a.PacketHeader, a.Secret, len(a.Secret))
	t.command("LAUNCH_SECRET", err, "gpa", fmt.Sprintf("%#x", gpa), "bytes", len(a.Secret))
	var status sev.Status
	if errors.As(err, &status) {
		return nil, front.Generic("SEV: failed to inject secret ret=-5 fw_error=%d '%s'", uint32(status), status.Text())
	}
	if err != nil {
		return nil, front.Generic("SEV: %v", err)
	}
	defer clear(plain)
	if err := t.qemu.Test.Write(gpa, plain); err != nil {
		return nil, front.Generic("SEV: failed to write the secret to guest memory: %v", err)
	}
	return struct{}{}, nil
}
