package launcher

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"time"

	evidence "github.com/vmlatch/vmlatch/firmware/evidence/exchange"
	"github.com/vmlatch/vmlatch/firmware/sev/exchange"
	"github.com/vmlatch/vmlatch/launcher/rundir"
)

// brokerSession is a session that a broker gave for one launch.
type brokerSession struct {
	pin   evidence.Key
	token []byte
}

// askSession gets a session for this launch, and puts it where QEMU reads it.
func (p *Plan) askSession(ctx context.Context, dir *rundir.Dir) (*brokerSession, error) {
	w, err := p.Guest.BrokerWords()
	if err != nil {
		return nil, err
	}
	platform, err := QueryPlatform(ctx, p.Facts)
	if err != nil {
		return nil, err
	}
	ask := &evidence.AskSession{
		Broker: w.Key, Name: w.Name, Technology: p.Technology, PDH: platform.PDH, Chain: platform.CertChain,
	}
	_, _ = rand.Read(ask.Hello[:]) // never fails (crypto/rand)
	line, err := askBroker(ctx, &p.Guest.Broker, ask.Line())
	if err != nil {
		return nil, p.brokerFailed("get a session", err)
	}
	s, err := evidence.ReadSession(line, w.Key, ask)
	if err != nil {
		return nil, p.brokerFailed("get a session", err)
	}
	if err := p.guest.Session(s.Policy); err != nil {
		return nil, err
	}
	for name, b := range map[string][]byte{rundir.OwnerCertFile: s.GODH, rundir.SessionFile: s.Session} {
		text := base64.StdEncoding.AppendEncode(nil, b)
		if err := os.WriteFile(dir.Path(name), append(text, '\n'), 0o600); err != nil {
			return nil, err
		}
	}
	return &brokerSession{pin: w.Key, token: s.Token}, nil
}

// askPacket shows a measurement to the broker that gave the session, which answers with the secret.
// A person may have to approve it.
func (m *Machine) askPacket(ctx context.Context, p *Plan, measured *exchange.Measurement) (*exchange.Packet, error) {
	m.takes(ctx, "owner")
	ctx, cancel := context.WithTimeout(ctx, time.Duration(p.Guest.Latch.Timeout))
	defer cancel()
	b := measured.Firmware
	ask := &evidence.AskPacket{
		Broker: m.session.pin, Token: m.session.token, Measurement: measured.Measurement,
		Major: b.Major, Minor: b.Minor,
		Build: b.Build,
	}
	for {
		line, err := askBroker(ctx, &p.Guest.Broker, ask.Line())
		if err != nil {
			return nil, p.brokerFailed("get the secret", err)
		}
		packet, err := evidence.ReadPacket(line, m.session.pin, ask)
		var pending *evidence.PendingError
		if !errors.As(err, &pending) {
			if err != nil {
				return nil, p.brokerFailed("get the secret", err)
			}
			return &exchange.Packet{Schema: exchange.PacketSchema, Header: packet.Header, Secret: packet.Secret}, nil
		}
		select {
		case <-time.After(time.Duration(pending.Retry) * time.Second):
		case <-ctx.Done():
			return nil, p.brokerFailed("get the secret", fmt.Errorf("%w: %w", err, ctx.Err()))
		}
	}
}
