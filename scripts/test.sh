#!/usr/bin/env bash
# The tests, as CI runs them. Makes .venv first where it is missing; further arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
exec .venv/bin/python -m pytest "$@"
