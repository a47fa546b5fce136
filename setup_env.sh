#!/usr/bin/env bash
# Sets up all that the package needs: a virtual environment with it installed, and
# ESPnet's recipe template linked into the LibriSpeech recipe.
#
#   ./setup_env.sh                 does it; instant when it is done already
#   ./setup_env.sh --no-template   the environment only
#   ./setup_env.sh --print-python  says which Python it would use, and does nothing
#
# VENV (default .venv) is the environment's folder, PYTHON the Python tried first.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

VENV=${VENV:-.venv}
finished=${VENV}/.omnisparse-finished
unfinished=${VENV}/.omnisparse-unfinished

say() { echo "[setup_env] $*"; }

die() {
    echo "error: $*" >&2
    exit 1
}

# Prints the real interpreter behind a candidate, if it runs and can make environments.
# A candidate that merely exists proves nothing: version managers put stubs on PATH, and
# Debian ships Python without ensurepip.
try_python() {
    local found
    found=$("$1" -c '
import ensurepip, sys, venv
major, minor = sys.version_info[:2]
if not (3, 12) <= (major, minor) < (3, 14):
    sys.exit(1)
print(f"{sys.base_prefix}/bin/python{major}.{minor}")
' 2>/dev/null </dev/null) && [ -x "${found}" ] && echo "${found}"
}

find_python() {
    local candidate
    for candidate in ${PYTHON:+"${PYTHON}"} python3.12 python3.13 python3 \
        "${PYENV_ROOT:-${HOME}/.pyenv}"/versions/*/bin/python3.1[23] \
        /usr/local/bin/python3.1[23] /usr/local/*/bin/python3.1[23] \
        /opt/*/bin/python3.1[23]; do
        if try_python "${candidate}"; then
            return
        fi
    done
    die "no Python 3.12 or 3.13 that runs was found: install one (on Debian and" \
        "Ubuntu with its -venv package), or set PYTHON to one."
}

create() {
    local python
    # only what an earlier run of ours began is ever deleted, or an empty folder
    if [ -e "${unfinished}" ]; then
        say "An earlier set-up was interrupted: starting over."
        rm -rf "${VENV}"
    fi
    rmdir "${VENV}" 2>/dev/null || true
    if [ -e "${VENV}" ]; then
        if ! try_python "${VENV}/bin/python" >/dev/null; then
            die "${VENV} exists and is not a virtual environment of Python 3.12 or" \
                "3.13: delete it, or set VENV to another folder."
        fi
        return
    fi
    python=$(find_python)
    say "1/3 Creating ${VENV} with ${python}"
    mkdir -p "${VENV}"
    touch "${unfinished}"
    "${python}" -m venv "${VENV}"
}

install() {
    local wanted
    # the folder is part of it: an editable install points to one checkout
    wanted="$(sha256sum <setup.py) ${PWD}"
    if [ "$(cat "${finished}" 2>/dev/null)" = "${wanted}" ] &&
        try_python "${VENV}/bin/python" >/dev/null; then
        return
    fi
    create
    rm -f "${finished}"
    say "2/3 Upgrading pip"
    "${VENV}/bin/python" -m pip install --quiet --upgrade pip
    say "3/3 Installing espnet-omnisparse, ESPnet and PyTorch (some minutes, some GB)"
    "${VENV}/bin/python" -m pip install -e ".[dev,demo]"
    echo "${wanted}" >"${finished}"
    rm -f "${unfinished}"
    say "The environment is ready: . ${VENV}/bin/activate"
}

template=true
case "${1:-}" in
    "") ;;
    --no-template) template=false ;;
    --print-python) find_python; exit ;;
    *) die "$1 is unknown: give --no-template, --print-python or nothing." ;;
esac

# one set-up at a time; setup.py serves as the lock file and is not changed by it (the
# script itself cannot: Linux does not start what is open for writing)
exec 9>>setup.py
if ! flock --nonblock 9; then
    say "Waiting for another set-up to finish ..."
    flock 9
fi
install
if "${template}"; then
    "${VENV}/bin/python" -m espnet_omnisparse.recipe.template egs2/librispeech/asr1
fi
