#!/usr/bin/env bash
# The whole test suite in an environment of its own: ruff, mypy, pytest. Arguments go to pytest (`-m "not slow"` is quick).
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

[[ -d .venv ]] || python3 -m venv .venv
./run_lora_pipeline.sh --setup-only
stamp=.venv/.installed-dev
if [[ ! -f $stamp || $(<"$stamp") != "$(cksum <pyproject.toml)" ]]; then
  .venv/bin/python -m pip install --quiet --editable '.[dev]'
  cksum <pyproject.toml >"$stamp"
fi

.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
# Two workers, each with half of the cores; a file's tests go to one of them, the longest files first. `-n 0`: none.
cores=$(nproc)
export OMP_NUM_THREADS=$((cores > 1 ? cores / 2 : 1))
.venv/bin/python -m pytest -n logical --maxprocesses 2 --dist loadfile --no-loadscope-reorder "$@"
