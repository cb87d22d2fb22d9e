#!/bin/sh
# Bring Icarus Verilog into a folder of the checkout: download the distribution's own package and
# unpack it there. Needs apt; neither root nor any change of the system.
# Usage: scripts/fetch_icarus.sh FOLDER
#
# Ends with status 0 also where it cannot be had: one line then says how to get it, and the tests
# that need it say that they were skipped.
set -eu
folder=$1

give_up() {
    echo "icarus: $*; get Icarus Verilog 11 or newer with your system's package manager" \
        "(Debian and Ubuntu: sudo apt install iverilog; macOS: brew install icarus-verilog)" >&2
    exit 0
}

command -v apt-get >/dev/null 2>&1 && command -v dpkg >/dev/null 2>&1 ||
    give_up "no iverilog on PATH, and no apt to bring it"

echo "icarus: fetching Icarus Verilog into $folder"
mkdir -p "$folder"
rm -rf "$folder"/* # what an interrupted run left
folder=$(cd "$folder" && pwd)
work=$folder/apt
mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$work/debs"

# apt with package lists and cache of its own: an ordinary user may not write the system's, and a
# fresh machine has empty ones. The status file stays the system's: it tells what is installed.
private_apt() {
    apt-get -q -o Dir::State="$work" -o Dir::State::lists="$work/lists" -o Dir::Cache="$work/cache" \
        -o Dir::State::status=/var/lib/dpkg/status -o Debug::NoLocking=1 \
        -o APT::Sandbox::User="$(id -un)" -o APT::Get::List-Cleanup=0 "$@"
}

private_apt update >"$work/log" 2>&1 || give_up "apt-get update failed ($(tail -n 1 "$work/log"))"
# The package and those of its dependencies that this system lacks; alone if apt finds the system
# too untidy to say which these are.
packages=$(private_apt install --simulate --no-install-recommends iverilog 2>>"$work/log" |
    sed -n 's/^Inst \([^ ]*\) .*/\1/p')
(cd "$work/debs" && private_apt download ${packages:-iverilog} >>"$work/log" 2>&1) ||
    give_up "apt-get download failed ($(tail -n 1 "$work/log"))"
for package in "$work"/debs/*.deb; do
    dpkg -x "$package" "$folder/root"
done

# The programs look for their helpers under /usr: wrappers tell them where these are instead,
# relative to themselves, so that the folder may be moved.
helpers=$(cd "$folder" && dirname "$(find root/usr/lib -name vvp.conf | head -n 1)")
libraries=$(dirname "$helpers")
mkdir "$folder/new"
for program in iverilog vvp; do
    option=-B
    [ "$program" = vvp ] && option=-M
    cat >"$folder/new/$program" <<WRAPPER
#!/bin/sh
folder=\$(cd "\$(dirname "\$0")/.." && pwd)
libraries=\$folder/$libraries:\$folder/root/${libraries#root/usr/}
LD_LIBRARY_PATH="\$libraries\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}" \\
    exec "\$folder/root/usr/bin/$program" $option"\$folder/$helpers" "\$@"
WRAPPER
    chmod 755 "$folder/new/$program"
    "$folder/new/$program" -V >/dev/null 2>"$work/log" ||
        give_up "the unpacked $program does not run ($(tail -n 1 "$work/log"))"
done
mv "$folder/new" "$folder/bin" # last: a complete bin is what says that all went well
rm -rf "$work"
