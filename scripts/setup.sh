#!/bin/sh
# Create the virtual environment and install everything that `make demo` and `make test` need.
# Usage: scripts/setup.sh PYTHON VENV
set -eu
python=$1
venv=$2

fail() {
    echo "setup: $*" >&2
    exit 1
}

command -v "$python" >/dev/null 2>&1 ||
    fail "$python: not on PATH; install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$python is $("$python" -V 2>&1); allowed is 3.11 or newer, name one: make PYTHON=/path/to/python3"
command -v c++ >/dev/null 2>&1 ||
    fail "c++: no C++ compiler on PATH, and the simulators need one (Debian and Ubuntu: sudo apt install g++)"
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
    fail "$python has no venv module (Debian and Ubuntu: sudo apt install python3-venv)"

[ -x "$venv/bin/python" ] && "$venv/bin/python" -c '' 2>/dev/null || "$python" -m venv --clear "$venv"

echo "setup: installing into $venv (several minutes the first time)"
export PIP_DISABLE_PIP_VERSION_CHECK=1
# PyTorch first and pinned, so that no other package's wish for it decides which build comes.
"$venv/bin/python" -m pip install --quiet -c constraints.txt torch ||
    fail "pip could not install torch; run the same command again once the reason above is mended"
"$venv/bin/python" -m pip install --quiet -c constraints.txt -e '.[golden,sim,plot,cluster,report,fpga,soc,docs,dev]' ||
    fail "pip could not install kvtq-hw; run the same command again once the reason above is mended"
