# shellcheck shell=bash
say() { printf '%s: %s\n' "${0##*/}" "$*"; }
die() { local name=${0##*/}; printf "$name: %s\n" "$@" >&2; exit 1; }

# Files out of Debian packages that are not installed, for the scripts that source this. They set
# $cache. apt has a state of its own under .cache/, so that nothing of the system's
# changes and no root is needed. Mirrors are the system's.
mirrors() {
    apt-get indextargets --format '$(REPO_URI) $(RELEASE)' 'Created-By: Packages' 2>/dev/null | sort -u
}
prepare_apt() { # NAME: stable, sid, or backports of Debian 12
    local dir=$cache/apt/$1 uri release
    [ -s "$dir/sources.list" ] && [ -z "$(find "$dir/sources.list" -mmin +1440)" ] && return
    mkdir -p "$dir/lists/partial" "$dir/archives/partial"
    local key='[arch=amd64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]'
    : >"$dir/sources.new"
    if [ "$1" != stable ]; then
        release=$1; [ "$1" = backports ] && release=bookworm-backports
        uri=$(mirrors | awk '$1 ~ /\/debian\/?$/ {print $1; exit}')
        [ -n "$uri" ] && echo "deb $key $uri $release main" >"$dir/sources.new"
    else
        mirrors | while read -r uri release; do
            case $uri in */debian/|*/debian|*/debian-security/|*/debian-security) echo "deb $key $uri $release main" ;; esac
        done >"$dir/sources.new"
    fi
    [ -s "$dir/sources.new" ] || return 1
    say "reading package lists ($1)"
    apt_private "$1" "$dir/sources.new" update >"$cache/apt-$1.log" 2>&1 || return 1
    mv "$dir/sources.new" "$dir/sources.list"
}
apt_private() { # NAME SOURCES ARGS...
    local dir=$cache/apt/$1 sources=$2; shift 2
    apt-get -q -o Dir::State::lists="$dir/lists" -o Dir::Cache="$dir" -o Dir::Etc::sourcelist="$sources" \
        -o Dir::Etc::sourceparts=- -o Acquire::Check-Valid-Until=false -o Acquire::Languages=none \
        -o APT::Sandbox::User="$(id -un)" -o APT::Update::Post-Invoke= -o APT::Update::Post-Invoke-Success= "$@"
}
unpack() { # NAME PACKAGE: download and unpack into .cache/root
    local dir=$cache/apt/$1
    prepare_apt "$1" || return 1
    say "fetching $2 ($1)"
    (cd "$dir" && rm -f "$2"_*.deb && apt_private "$1" "$dir/sources.list" download "$2" >>"$cache/apt-$1.log" 2>&1) || return 1
    dpkg-deb -x "$dir/$2"_*.deb "$cache/root" || return 1
    rm -f "$dir/$2"_*.deb
}
why() { grep -m1 '^E:' "$cache/apt-$1.log" 2>/dev/null || echo "apt has no Debian mirror configured"; }
depends() { # NAME PACKAGE PATTERN: the package that another one depends on
    local dir=$cache/apt/$1
    apt-cache -o Dir::State::lists="$dir/lists" -o Dir::Cache="$dir" -o Dir::Etc::sourcelist="$dir/sources.list" \
        -o Dir::Etc::sourceparts=- depends "$2" 2>/dev/null | awk -v p="Depends: $3" '$0 ~ p {print $2; exit}'
}

# A registry that lacks a package is not a failure of this project: the tests that
# measure its images skip and say why. Anything else, such as a lost connection, is.
lacks='does not have a Release file|404 +Not Found|Unable to locate package|no installation candidate'
optional() { # NAME PACKAGE: unpack it if it can be had
    [ -e "$cache/root/usr/share/doc/$2" ] && return
    rm -f "$cache/root/$2.unavailable"
    unpack "$1" "$2" && return
    why "$1" | grep -qE "$lacks" || die "$2 cannot be had: $(why "$1")"
    why "$1" >"$cache/root/$2.unavailable"
    say "$2: the registry lacks it: $(why "$1")"
}
