#!/bin/sh
# Opens the root volume with the secret that the owner's broker releases, or the guest's TPM gives.
[ ! -e /run/latchguest.done ] || return 0 2>/dev/null || exit 0
: >/run/latchguest.done
if grep -q 'latch\.key=' /proc/cmdline; then
    unseal=
elif grep -q 'latch\.tpm=' /proc/cmdline; then
    unseal=unseal
else
    echo "latchguest: the command line names no broker (latch.key) and no TPM (latch.tpm): the disk stays shut" >/dev/console
    echo "latchguest: hint: start the guest with the command line of the owner's policy" >/dev/console
    return 0 2>/dev/null || exit 0
fi
secret=disk device='' volume=root timeout=5m
. /etc/latchguest.conf
for m in virtio_console vmw_vsock_virtio_transport configfs tsm sev_guest tdx_guest efi_secret dm_crypt tpm_crb tpm_tis; do
    modprobe -q "$m" 2>/dev/null || :
done
[ -d /sys/kernel/config/tsm ] || mount -t configfs -o nosuid,nodev,noexec configfs /sys/kernel/config 2>/dev/null || :
[ -d /sys/kernel/security/secrets ] || mount -t securityfs securityfs /sys/kernel/security 2>/dev/null || :
if latchguest ${unseal:---secret "$secret"} --device "$device" --open "$volume" --timeout "$timeout" \
    >/dev/console 2>&1 </dev/null
then
    : >/run/latchguest.opened
else
    # latchguest turns the power off itself. However else it ended, nothing else may run.
    poweroff -f
    echo o >/proc/sysrq-trigger
    while :; do sleep 3600; done
fi
