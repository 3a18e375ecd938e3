#!/usr/bin/env bash
# The tests, as CI runs them. Makes .venv first where it is missing; further arguments go to pytest.
#   bash scripts/test.sh --stress              the full campaigns of kills, faults and mutations, and only those
#   bash scripts/test.sh --oldest              on the lower bounds of setup.py (.venv-oldest)
#   bash scripts/test.sh --latest              on the newest of everything (.venv-latest)
# The last two, and --record, write versions and counts of a whole run to zoo/results/compatibility.csv
# and the table made from it into README.md. PYTHON, EXTRAS and PIP_ARGS are those of scripts/setup.sh.
# JOBS=1 runs one file of tests at a time (default 2).
# Those of the report's page run where a browser is: apt-get install chromium chromium-driver
set -euo pipefail
cd "$(dirname "$0")/.."
asked=$*
stack=tested
marked="not stress"
record=no
while [ $# -gt 0 ]; do
  case $1 in
    --oldest | --latest) stack=${1#--} record=yes ;;
    --stress) marked=stress ;;
    --record) record=yes ;;
    *) break ;;
  esac
  shift
done
# Counts of a part of the tests would stand in the table as if they were of all.
if [ $# -gt 0 ] || [ "$marked" = stress ]; then record=no; fi

venv=.venv
[ "$stack" = tested ] || venv=.venv-$stack
VENV=$venv STACK=$stack bash scripts/setup.sh
# pytest takes one expression, the last: all that is left out stands in it.
if ! command -v chromium >/dev/null || ! command -v chromedriver >/dev/null; then
  echo "[test] no chromium with chromedriver: the page of the report is not tested in a browser" >&2
  marked="$marked and not browser"
fi
# All of the tests run two files at a time; a part of them as pytest is asked to (-x, --pdb, …).
jobs=()
[ $# -gt 0 ] || jobs=(--numprocesses "${JOBS:-2}" --dist loadfile)
if [ "$record" = no ]; then
  exec "$venv/bin/python" -m pytest -m "$marked" ${jobs[@]+"${jobs[@]}"} "$@"
fi
status=0
"$venv/bin/python" -m pytest -m "$marked" "${jobs[@]}" --junit-xml="$venv/tests.xml" || status=$?
"$venv/bin/python" scripts/compatibility.py record "$stack" "$venv/tests.xml" "bash scripts/test.sh${asked:+ $asked}"
exit "$status"
