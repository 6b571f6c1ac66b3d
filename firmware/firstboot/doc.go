// Package firstboot makes what configures a confidential guest at its first boot: an archive that
// stands before its initrd, and is measured with it. The launcher and the guest's owner make the
// same bytes of the same files, so that the owner predicts what the platform measures.
//
// vmlatch.config/1 is a newc archive (package newc) with the files of cloud-init's NoCloud below
// vmlatch/seed, and systemd's credentials below vmlatch/credentials, sorted by name, of root and
// readable by root alone, without times, and padded to a multiple of 512 bytes. It stands before
// the initrd whatever that is packed with: the kernel unpacks archives in their order, and cannot
// find one behind some compressed ones (Linux, init/initramfs.c: LZ4 does not say where it ends).
// What the initrd has under the same names wins, which is measured, too.
//
// Sources: cloud-init, doc/rtd/reference/datasources/nocloud.rst; systemd.system-credentials(7).
package firstboot
