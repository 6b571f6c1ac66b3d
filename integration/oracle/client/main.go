// Command client asks for evidence in a guest as programs do that use Google's libraries, which
// know nothing of emulation. It prints what it used, and the evidence in base64.
package main

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"os"

	sev "github.com/google/go-sev-guest/client"
	tdx "github.com/google/go-tdx-guest/client"
)

func main() {
	var data [64]byte
	copy(data[:], bytes.Repeat([]byte{0xa5}, 64))
	name, b, err := ask(data)
	if err != nil {
		fmt.Println("client:", err)
		os.Exit(1)
	}
	fmt.Printf("client: %s %s\n", name, base64.StdEncoding.EncodeToString(b))
}

func ask(data [64]byte) (name string, b []byte, err error) {
	provider, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return "", nil, err
	}
	if bytes.Contains(provider, []byte("client=tdx")) {
		p, err := tdx.GetQuoteProvider()
		if err != nil {
			return "", nil, err
		}
		b, err := tdx.GetRawQuote(p, data)
		return fmt.Sprintf("%T", p), b, err
	}
	p, err := sev.GetQuoteProvider()
	if err != nil {
		return "", nil, err
	}
	b, err = p.GetRawQuote(data)
	return fmt.Sprintf("%T", p), b, err
}
