// Package inhost has tests of vmlatch on a host of their own: a guest whose root is this host's,
// and whose kernel has what this host's may lack, such as AppArmor, device-mapper, vhost, macvtap
// and all control groups of version 2. They have the build tag inhost; an integration test builds
// them, and boots the guest.
package inhost
