#!/usr/bin/env bash
# Makes .venv with the tested stack, solo-learn 1.0.2 and this checkout. Run again: does what is left.
#   PYTHON=python3.12 bash scripts/setup.sh      another interpreter (3.10 or newer)
#   EXTRAS=all bash scripts/setup.sh             further extras of setup.py (default: dev,dali,h5,umap,detect)
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
EXTRAS=${EXTRAS:-dev,dali,h5,umap,detect}
VENV=${VENV:-.venv}

say() { printf '[setup] %s\n' "$*"; }

"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
  echo "error: Python is missing or too old: $PYTHON. 3.10 or newer is needed. Run PYTHON=python3.x bash scripts/setup.sh." >&2
  exit 2
}

# What was asked for last time; when it is the same, nothing is left to do.
wanted=$(cat scripts/constraints.txt setup.py scripts/setup.sh; echo "$EXTRAS"; "$PYTHON" --version)
if [ -f "$VENV/.installed" ] && [ "$(cat "$VENV/.installed")" = "$wanted" ]; then
  say "$VENV is up to date"
  exit 0
fi

if [ "$("$VENV/bin/python" --version 2>/dev/null)" != "$("$PYTHON" --version)" ]; then
  say "making $VENV with $("$PYTHON" --version)"
  "$PYTHON" -m venv --clear "$VENV"
fi
rm -f "$VENV/.installed"
say "installing the tested stack (several GB, once)"
"$VENV/bin/python" -m pip install --quiet --upgrade pip
"$VENV/bin/python" -m pip install --quiet --constraint scripts/constraints.txt --editable ".[$EXTRAS]"
say "installing solo-learn 1.0.2 without its pins (it asks for torch 1.9.1)"
"$VENV/bin/python" -m pip install --quiet --no-deps solo-learn==1.0.2
printf '%s' "$wanted" > "$VENV/.installed"
say "done: $VENV/bin/solo-minent"
