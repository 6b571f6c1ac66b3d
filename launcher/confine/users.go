package confine

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/launcher/internal/procfs"
)

// Users is a range of ids that are for VMs, one for each.
type Users struct {
	First int `json:"first"`
	Count int `json:"count"`
}

// usersName owns the range in /etc/subuid and /etc/subgid.
const usersName = "vmlatch"

// leastUser is behind the ids of people and services (systemd, "Users, Groups, UIDs and GIDs").
const leastUser = 1 << 16

// ErrNoUsers means that a host has set no ids aside for VMs.
var ErrNoUsers = errors.New("no line vmlatch:FIRST:COUNT in /etc/subuid and /etc/subgid")

// ReadUsers reads the range that a host has set aside (subuid(5)): the same line in both files. A
// range that others have a part of is an error. root is the directory of the host's files.
func ReadUsers(root string) (*Users, error) {
	var found [2]*Users
	for i, name := range []string{"etc/subuid", "etc/subgid"} {
		f, err := os.Open(filepath.Join(root, name))
		if errors.Is(err, fs.ErrNotExist) {
			return nil, ErrNoUsers
		}
		if err != nil {
			return nil, err
		}
		found[i], err = readUsers(bufio.NewScanner(f))
		_ = f.Close()
		if err != nil {
			return nil, fmt.Errorf("/%s: %w", name, err)
		}
	}
	switch u := found[0]; {
	case u == nil && found[1] == nil:
		return nil, ErrNoUsers
	case u == nil || found[1] == nil || *u != *found[1]:
		return nil, fmt.Errorf("/etc/subuid and /etc/subgid differ: %w", ErrNoUsers)
	default:
		return u, nil
	}
}

func readUsers(s *bufio.Scanner) (own *Users, err error) {
	var others []Users
	for s.Scan() {
		name, rest, _ := strings.Cut(s.Text(), ":")
		first, count, _ := strings.Cut(rest, ":")
		u := Users{}
		var err1, err2 error
		u.First, err1 = strconv.Atoi(first)
		u.Count, err2 = strconv.Atoi(strings.TrimSpace(count))
		switch bad := errors.Join(err1, err2) != nil || u.Count < 1 || u.First < 0; {
		case name != usersName && !bad:
			others = append(others, u)
		case name != usersName:
		case bad || own != nil || u.First < leastUser || u.First > 1<<31-2-u.Count:
			return nil, fmt.Errorf("%q: must be one line, with ids from %d on", s.Text(), leastUser)
		default:
			own = &u
		}
	}
	if err := s.Err(); err != nil || own == nil {
		return nil, err
	}
	for _, o := range others {
		if own.First < o.First+o.Count && o.First < own.First+own.Count {
			return nil, fmt.Errorf("ids %d to %d are also another's", o.First, o.First+o.Count-1)
		}
	}
	return own, nil
}

// Busy are the ids of a range that processes have, as users or as groups (proc(5), status).
func (u Users) Busy() (map[int]bool, error) {
	pids, err := procfs.PIDs()
	if err != nil {
		return nil, err
	}
	busy := map[int]bool{}
	for _, pid := range pids {
		status, err := procfs.Status(filepath.Join("/proc", strconv.Itoa(pid)))
		if err != nil {
			continue // it has ended
		}
		for id := range strings.FieldsSeq(status["Uid"] + " " + status["Gid"]) {
			if n, err := strconv.Atoi(id); err == nil && n >= u.First && n < u.First+u.Count {
				busy[n] = true
			}
		}
	}
	return busy, nil
}

// DeviceGroups are the groups by which a box's devices can be opened, besides root's.
func (b *Box) DeviceGroups() (groups []int) {
	for _, f := range b.Files {
		var st unix.Stat_t
		if f.Access != Device || unix.Stat(f.Path, &st) != nil {
			continue
		}
		const group, all = 0o060, 0o006
		gid, needed := int(st.Gid), st.Mode&group == group && st.Mode&all != all
		if needed && gid != 0 && !slices.Contains(groups, gid) {
			groups = append(groups, gid)
		}
	}
	return groups
}
