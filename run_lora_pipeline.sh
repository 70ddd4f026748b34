#!/usr/bin/env bash
# From a folder of videos to an adapter and a report; --help lists the flags. The first run creates .venv here.
set -euo pipefail
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)

log() { printf '%s\n' "$*" >&2; }

# Prints the path of a Python of 3.10 or newer, for parsing the flags and creating the environment.
system_python() {
  local name
  for name in python3 python3.13 python3.12 python3.11 python3.10 python; do
    if command -v "$name" >/dev/null && "$name" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
      command -v "$name"
      return
    fi
  done
  log "error: no Python of 3.10 or newer found; install one and run this again"
  exit 1
}

# Succeeds if $1 has the package and its dependencies installed, not merely this folder on its path.
importable() { (cd / && "$1" -c 'import mmaudio, torch, hydra, peft, open_clip, av') >/dev/null 2>&1; }

# Installs into .venv with the Python $1, unless that was done for the current pyproject.toml.
set_up() {
  local stamp_file stamp
  stamp_file=$root/.venv/.installed
  stamp=$(cksum <"$root/pyproject.toml")
  if [[ -f $stamp_file && $(<"$stamp_file") == "$stamp" ]] && "$root/.venv/bin/python" -c 'import mmaudio' 2>/dev/null; then
    return
  fi
  log "== set up: installing into $root/.venv (about 5 GB, a few minutes)"
  if ! "$1" -m venv "$root/.venv"; then
    log "error: no environment made in $root/.venv, for the reason above; where venv is absent: apt install python3-venv"
    exit 1
  fi
  "$root/.venv/bin/python" -m pip install --quiet --editable "$root"
  printf '%s\n' "$stamp" >"$stamp_file"
  log "== set up: done"
}

base=$(system_python)
for argument in "$@"; do
  [[ $argument == -- ]] && break
  if [[ $argument == --help || $argument == -h ]]; then
    PYTHONPATH=$root exec "$base" -m mmaudio.pipeline --help
  fi
done
PYTHONPATH=$root "$base" -m mmaudio.pipeline --parse-only "$@"

python=$root/.venv/bin/python
if [[ ! -d $root/.venv && -n ${VIRTUAL_ENV:-} ]] && importable "$VIRTUAL_ENV/bin/python"; then
  python=$VIRTUAL_ENV/bin/python
else
  set_up "$base"
fi
exec "$python" -m mmaudio.pipeline "$@"
