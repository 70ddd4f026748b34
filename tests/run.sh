#!/usr/bin/env bash
# The whole test suite in an environment of its own: the checks of .pre-commit-config.yaml, then pytest. Arguments go to
# pytest (`-m "not slow"` is quick).
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

[[ -d .venv ]] || python3 -m venv .venv
./run_lora_pipeline.sh --setup-only
stamp=.venv/.installed-dev
if [[ ! -f $stamp || $(<"$stamp") != "$(cksum <pyproject.toml)" ]]; then
  .venv/bin/python -m pip install --quiet --editable '.[dev]'
  cksum <pyproject.toml >"$stamp"
fi

if git rev-parse --is-inside-work-tree >/dev/null 2>&1; then
  PRE_COMMIT_HOME=$PWD/.venv/.pre-commit .venv/bin/pre-commit run --all-files
else # pre-commit needs git; its commands do not
  sed -n 's/^ *entry: //p' .pre-commit-config.yaml | while read -r check; do
    printf '== %s\n' "$check"
    bash -c "$check"
  done
fi
unset PYTHONDONTWRITEBYTECODE # or every worker and every command under test compiles all modules anew
# Two workers, each with half of the cores; a file's tests go to one of them, the longest files first. `-n 0`: none.
cores=$(nproc)
export OMP_NUM_THREADS=$((cores > 1 ? cores / 2 : 1))
.venv/bin/python -m pytest -n logical --maxprocesses 2 --dist loadfile --no-loadscope-reorder "$@"
