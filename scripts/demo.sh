# shellcheck shell=bash
# How the demonstrations tell their stories: what is printed after a prompt is what runs, to the
# letter.
b='' d='' r=''
if [ -t 1 ]; then b=$(printf '\033[1m') d=$(printf '\033[2m') r=$(printf '\033[0m'); fi
step() { printf '\n%s%s%s\n' "$b" "$*" "$r"; }
run() { # SIDE COMMAND: print the command and run it in that side's folder
    printf '%s%s$ %s%s\n' "$d" "$1" "$2" "$r"
    (umask 077; cd "$1"; eval "$2")
}
# A console without the firmware's control sequences, which would clear the screen.
plain() { tr -d '\r' | sed 's/\x1b\[[0-9;=]*[A-Za-z]//g'; }
