package keyring

import (
	"strings"
	"time"
)

// Serial is the kernel's number of a key: its handle.
type Serial int32

// Key is a key to be made.
type Key struct {
	Type        Type
	Description string
	Payload     []byte // wiped by [Ring.Add]
	// Expires is when it becomes useless, rounded up to whole seconds; 0 is never.
	Expires time.Duration
	// Permissions are [Possessed] if they are 0.
	Permissions Permissions
}

// Description is what the kernel tells of a key.
type Description struct {
	Type        Type
	UID, GID    int
	Permissions Permissions
	Text        string
}

// Permissions are four sets of six rights (keyctl_setperm(3)): of the key's possessors,
// of its user, of its group, of others.
type Permissions uint32

// Rights of possessors.
const (
	View    Permissions = 1 << (24 + iota) // describe it
	Read                                   // read its payload, if its type allows that; so does Search
	Write                                  // change, link into it, revoke it
	Search                                 // find it
	Link                                   // link it elsewhere
	SetAttr                                // change its permissions and timeout
)

// Possessed lets only possessors use a key. No process, theirs included, can keep it
// elsewhere or give rights on it away.
const Possessed = View | Read | Write | Search

// String writes rights as "possessor view,read; user view".
func (p Permissions) String() string {
	var sets []string
	for i, who := range []string{"possessor", "user", "group", "other"} {
		var rights []string
		for bit, name := range []string{"view", "read", "write", "search", "link", "setattr"} {
			if p&(1<<(24-8*i+bit)) != 0 {
				rights = append(rights, name)
			}
		}
		if rights != nil {
			sets = append(sets, who+" "+strings.Join(rights, ","))
		}
	}
	if sets == nil {
		return "none"
	}
	return strings.Join(sets, "; ")
}
