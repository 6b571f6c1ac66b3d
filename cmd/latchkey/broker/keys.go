package broker

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"

	"github.com/vmlatch/vmlatch/firmware/evidence/exchange"
)

// Errors that callers tell apart.
var (
	ErrInUse  = errors.New("another broker uses this state directory")
	ErrConfig = errors.New("broker")
)

const keyPEM = "PRIVATE KEY"

// purpose stands before the key of a broker whose guests trust their hosts: what it signs, a host
// can have, so that no other guest may pin it. Readers of PEM skip it.
const purpose = "Purpose: guests that trust their hosts\n"

// NewTrustingKey makes the key of a broker whose guests trust their hosts.
func NewTrustingKey() (file []byte, pin exchange.Key, err error) {
	b, pin, err := NewKey()
	defer clear(b)
	return append([]byte(purpose), b...), pin, err
}

// TrustsHosts reports whether a key's file is of a broker whose guests trust their hosts.
func TrustsHosts(file []byte) bool { return bytes.HasPrefix(file, []byte(purpose)) }

// NewKey makes a broker's key, as a PEM file (PKCS #8), and its public half as guests pin it.
func NewKey() (file []byte, pin exchange.Key, err error) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, pin, err
	}
	defer clear(private)
	return encodeKey(private)
}

func encodeKey(private ed25519.PrivateKey) (file []byte, pin exchange.Key, err error) {
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, pin, err
	}
	defer clear(der)
	return pem.EncodeToMemory(
			&pem.Block{Type: keyPEM, Bytes: der},
		), exchange.Key(
			private.Public().(ed25519.PublicKey),
		), nil
}

// ParseKey reads a broker's key.
func ParseKey(file []byte) (ed25519.PrivateKey, error) {
	block, rest := pem.Decode(file)
	if block == nil || block.Type != keyPEM {
		return nil, fmt.Errorf("%w: key: does not hold a %q in PEM", ErrConfig, keyPEM)
	}
	defer clear(block.Bytes)
	if more, _ := pem.Decode(rest); more != nil {
		return nil, fmt.Errorf("%w: key: holds several: one file for each key", ErrConfig)
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%w: key: is damaged", ErrConfig)
	}
	private, ok := k.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%w: key: is not one of Ed25519", ErrConfig)
	}
	return private, nil
}
