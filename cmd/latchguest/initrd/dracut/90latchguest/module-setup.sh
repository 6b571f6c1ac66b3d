#!/bin/bash
# Puts latchguest, its settings, cryptsetup and the drivers that they need into dracut's initrd, and
# refuses to build one that would let a person at the console in.

check() {
    require_binaries latchguest cryptsetup || return 1
    return 255 # only where it is asked for: add_dracutmodules+=" latchguest "
}

depends() {
    echo dm
}

installkernel() {
    hostonly='' instmods virtio_pci virtio_blk virtio_scsi virtio_console vmw_vsock_virtio_transport \
        configfs tsm sev_guest tdx_guest efi_secret dm_crypt algif_skcipher tpm_crb tpm_tis =crypto
}

refuse() {
    dfatal "latchguest: $1"
    [[ -z ${2-} ]] || dfatal "latchguest: hint: $2"
    exit 1
}

install() {
    local settings=/etc/latchguest.conf f module
    [[ -r $settings ]] || refuse "$settings is missing" "reinstall latchguest"
    local secret device volume timeout tpm
    # shellcheck disable=SC1090
    . "$settings"
    inst_multiple latchguest poweroff sleep
    inst_hook pre-pivot 10 "$moddir/config.sh"
    [[ $device != none ]] || return 0
    case $device in
        '') refuse "$settings names no device" "such as device=/dev/vda2" ;;
        /dev/?*) ;;
        *) refuse "device=$device in $settings is not a device" "such as /dev/vda2" ;;
    esac
    for module in crypt systemd-ask-password ssh-client crypt-ssh sshd debug; do
        # Those that are installed already, those that will be, and those that were asked for.
        # shellcheck disable=SC2154
        [[ " $modules_loaded $mods_to_load $dracutmodules " != *" $module "* ]] ||
            refuse "dracut's module $module lets a person in" "omit_dracutmodules+=\" $module \""
    done
    # shellcheck disable=SC2154
    [[ ! -s $initdir/etc/crypttab ]] ||
        refuse "the initrd would ask for a passphrase (/etc/crypttab)" "take the volumes out of it: latchguest opens the root"
    if [[ -r /etc/kernel/cmdline ]]; then
        latchguest --check=/etc/kernel/cmdline --open "$volume" ||
            refuse "/etc/kernel/cmdline is not safe" "see the lines above"
    fi
    if [[ $tpm != yes ]] && grep -qs 'latch\.\(tpm=\|trust=host\)' /etc/kernel/cmdline; then
        refuse "the command line wants the TPM (latch.tpm, latch.trust), and $settings does not (tpm=no)" "write tpm=yes"
    fi
    inst_multiple cryptsetup grep poweroff
    [[ $tpm != yes ]] || inst_multiple latchguest-tpm
    inst_libdir_file 'libgcc_s.so*'
    inst_simple "$settings"
    # shellcheck disable=SC2154
    inst_hook initqueue/settled 50 "$moddir/latchguest.sh"
    # That the volume is there is not enough: latchguest must have opened it.
    inst_hook initqueue/finished 50 "$moddir/opened.sh"
    inst_hook pre-mount 00 "$moddir/required.sh"
    dracut_need_initqueue
}
