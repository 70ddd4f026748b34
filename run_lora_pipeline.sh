#!/usr/bin/env bash
# From a folder of videos to an adapter and a report; --help lists the flags. The first run creates .venv here.
set -euo pipefail
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)

# Any Python of 3.10 or newer: it checks the flags, creates the environment and starts the pipeline there.
for name in python3 python3.13 python3.12 python3.11 python3.10 python; do
  if command -v "$name" >/dev/null && "$name" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
    PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} exec "$name" -m mmaudio.pipeline.environment "$@"
  fi
done
printf '%s\n' "error: no Python of 3.10 or newer found; install one and run this again" >&2
exit 1
