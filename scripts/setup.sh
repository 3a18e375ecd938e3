#!/usr/bin/env bash
# Makes .venv with the tested stack, solo-learn 1.0.2 and this checkout. Run again: does what is left.
#   PYTHON=python3.12 bash scripts/setup.sh      another interpreter (3.10 or newer)
#   EXTRAS=all bash scripts/setup.sh             further extras of setup.py (default: dev,dali,h5,umap,detect)
#   STACK=oldest bash scripts/setup.sh           .venv-oldest with the lower bounds of setup.py
#   STACK=latest bash scripts/setup.sh           .venv-latest with the newest of everything, anew each day
#   PIP_ARGS='torch<2.15' bash scripts/setup.sh  further words for pip, where two newest do not go together
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
EXTRAS=${EXTRAS:-dev,dali,h5,umap,detect}
STACK=${STACK:-tested}
read -r -a further <<< "${PIP_ARGS:-}"

say() { printf '[setup] %s\n' "$*"; }

"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
  echo "error: Python is missing or too old: $PYTHON. 3.10 or newer is needed. Run PYTHON=python3.x bash scripts/setup.sh." >&2
  exit 2
}
case $STACK in
  tested)
    VENV=${VENV:-.venv}
    constraints=scripts/constraints.txt
    pip_options=(--constraint "$constraints")
    ;;
  oldest)
    VENV=${VENV:-.venv-oldest}
    constraints=scripts/constraints-oldest.txt
    pip_options=(--constraint "$constraints")
    ;;
  latest)
    VENV=${VENV:-.venv-latest}
    constraints=/dev/null
    pip_options=(--upgrade --upgrade-strategy eager)
    ;;
  *)
    echo "error: STACK is unknown: $STACK. It is tested, oldest or latest. Run STACK=tested bash scripts/setup.sh." >&2
    exit 2
    ;;
esac

# What was asked for last time; when it is the same, nothing is left to do.
wanted=$(cat "$constraints" setup.py scripts/setup.sh; echo "$EXTRAS ${PIP_ARGS:-}"; "$PYTHON" --version)
[ "$STACK" != latest ] || wanted+=$(date +%F)
if [ -f "$VENV/.installed" ] && [ "$(cat "$VENV/.installed")" = "$wanted" ]; then
  say "$VENV is up to date"
  exit 0
fi

if [ "$("$VENV/bin/python" --version 2>/dev/null)" != "$("$PYTHON" --version)" ]; then
  say "making $VENV with $("$PYTHON" --version)"
  "$PYTHON" -m venv --clear "$VENV"
fi
rm -f "$VENV/.installed"
say "installing the $STACK stack (several GB, once)"
"$VENV/bin/python" -m pip install --quiet --upgrade pip
"$VENV/bin/python" -m pip install --quiet "${pip_options[@]}" --editable ".[$EXTRAS]" ${further[@]+"${further[@]}"}
say "installing solo-learn 1.0.2 without its pins (it asks for torch 1.9.1)"
"$VENV/bin/python" -m pip install --quiet --no-deps solo-learn==1.0.2
# A torchvision that was built for another torch installs, imports, and has no operators.
"$VENV/bin/python" - <<'PYTHON' >&2 || exit 2
import sys
import torch

try:
    import torchvision

    torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
except Exception as error:
    from importlib.metadata import version

    reason = " ".join(str(error).split())[:120]
    sys.exit(
        f"error: torch {torch.__version__} and torchvision {version('torchvision')} do not go "
        f"together: {reason}. torchvision's operators must load. Ask for a pair that fits, such as "
        "PIP_ARGS='torch<2.13'."
    )
PYTHON
printf '%s' "$wanted" > "$VENV/.installed"
say "done: $VENV/bin/solo-minent"
