package keyring_test

import (
	"fmt"
	"log"
	"os/exec"

	"github.com/vmlatch/vmlatch/keyring"
)

// A key is given to a process, and is gone with it: the process, or what it starts,
// finds it in the session keyring that it inherits.
func Example() {
	payload := []byte("secret") // Add overwrites it
	var child *exec.Cmd
	err := keyring.Apart(func(r *keyring.Ring) error {
		key, err := r.Add(keyring.Key{Type: keyring.User, Description: "guest:memory", Payload: payload})
		if err != nil {
			return err
		}
		child = exec.Command("qemu-system-x86_64", "-object", fmt.Sprintf("mktme-guest,id=key0,key=%d", key))
		return child.Start()
	})
	if err != nil {
		log.Fatal(err)
	}
	_ = child.Wait() // and the kernel collects the key
}

// Check tells what is wrong with a key before the kernel refuses it without a reason.
func ExampleCheck() {
	fmt.Println(keyring.Check(keyring.Logon, "disk", []byte("secret")))
	fmt.Println(keyring.Check(keyring.Encrypted, "disk", []byte("new user:master 8")))
	fmt.Println(keyring.Check(keyring.Encrypted, "disk", []byte("new user:master 32")))
	// Output:
	// logon key: its description must be SERVICE:NAME
	// encrypted key: its size must be 20 to 4096 bytes, not 8
	// <nil>
}

func ExampleMKTME_Payload() {
	payload, err := keyring.MKTME{Source: keyring.FromCPU}.Payload()
	fmt.Printf("%s %v\n", payload, err)
	// Output: type=cpu algorithm=aes-xts-128 <nil>
}
