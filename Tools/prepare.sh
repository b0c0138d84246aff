# Sourced by the scripts beside it: finds the Swift toolchain, installs Debian packages that are missing, builds.

die() {
    echo "$(basename "$0"): $*" >&2
    exit 1
}

# sudo drops the path to the toolchain: look where toolchains are usually unpacked too.
find_swift() {
    local place
    for place in /opt/swift/usr/bin /opt/swift/bin /usr/local/swift/usr/bin /usr/libexec/swift/bin \
        "$(getent passwd "${SUDO_USER:-root}" | cut -d: -f6)/.local/share/swiftly/bin"; do
        if ! command -v swift >/dev/null && [ -x "$place/swift" ]; then PATH="$place:$PATH"; fi
    done
    command -v swift >/dev/null ||
        die "no swift in PATH. Install Swift 6.3 from https://www.swift.org/install/linux/ and try again."
}

# install_missing PACKAGE...
install_missing() {
    local package missing=()
    for package in "$@"; do
        dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q "install ok installed" || missing+=("$package")
    done
    [ "${#missing[@]}" -gt 0 ] || return 0
    echo "Installing: ${missing[*]}"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# build_release ROOT PRODUCT...: builds them quietly; says in `binaries` where they are.
build_release() {
    local root=$1 product log
    shift
    echo "Building in release mode (the first time takes some minutes)."
    for product in "$@"; do
        log=$(mktemp)
        if ! swift build --package-path "$root" -c release --product "$product" >"$log" 2>&1; then
            cat "$log" >&2
            rm -f "$log"
            die "the build of $product failed."
        fi
        rm -f "$log"
    done
    binaries=$(swift build --package-path "$root" -c release --show-bin-path)
}
