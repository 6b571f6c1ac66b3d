// Package spec reads what users write: specs (TOML files, one a VM), a host's own
// settings (host.toml) and the demands of disk images (IMAGE.vmlatch.toml). It only
// parses: what a key means is known to the room that brings the key's table, package
// plan for devices and package tee for technologies.
//
// Start with [Parse] and [LoadHost].
package spec
