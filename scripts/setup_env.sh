#!/bin/sh
# What `make setup` runs: finds a Python 3.10 to 3.12 and hands over to setup_env.py.
# PYTHON=... names it; else that of an existing .venv, else the first that fits below.
set -u
root=$(cd "$(dirname "$0")/.." && pwd)

version() { # "3.11"; nothing if the command is no Python
    "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null
}

fits() {
    case $(version "$1") in
        3.10 | 3.11 | 3.12) return 0 ;;
        *) return 1 ;;
    esac
}

fail() {
    echo "setup: $1" >&2
    exit 1
}

want="give a Python 3.10, 3.11 or 3.12, for example: make setup PYTHON=python3.11"
if [ -n "${PYTHON:-}" ]; then
    command -v "$PYTHON" >/dev/null 2>&1 || fail "PYTHON=$PYTHON: no such command; $want"
    found=$(version "$PYTHON")
    [ -n "$found" ] || fail "PYTHON=$PYTHON does not run as a Python; $want"
    fits "$PYTHON" || fail "PYTHON=$PYTHON is Python $found; $want"
    exec "$PYTHON" "$root/scripts/setup_env.py"
fi
for candidate in "$root/.venv/bin/python" python3 python3.11 python3.12 python3.10; do
    if fits "$candidate"; then
        exec "$candidate" "$root/scripts/setup_env.py"
    fi
done
fail "no Python 3.10 to 3.12 on PATH; install one, or: make setup PYTHON=/path/to/python3.11"
