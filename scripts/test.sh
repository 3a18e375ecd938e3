#!/usr/bin/env bash
# The tests, as CI runs them. Makes .venv first where it is missing; further arguments go to pytest.
# Those of the report's page run where a browser is: apt-get install chromium chromium-driver
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
browser=()
if ! command -v chromium >/dev/null || ! command -v chromedriver >/dev/null; then
  echo "[test] no chromium with chromedriver: the page of the report is not tested in a browser" >&2
  browser=(-m "not browser")
fi
exec .venv/bin/python -m pytest "${browser[@]}" "$@"
