#!/usr/bin/env bash
# Are there known vulnerabilities in the packages of .venv? First the advisories of scripts/advisories.csv
# (offline), then pip-audit with PyPI's service on every package that is installed.
#   VENV=.venv-latest bash scripts/audit.sh      another environment
#   SERVICE=osv bash scripts/audit.sh            OSV's service (default: pypi)
# Exit status: 0 none; 1 there are, or an advisory affects a pin; 3 the service did not answer for all.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}
service=${SERVICE:-pypi}
audit=.venv-audit
if [ ! -x "$venv/bin/python" ]; then
  echo "error: environment is missing: $venv. It is what scripts/setup.sh makes. Run bash scripts/setup.sh" >&2
  exit 2
fi
status=0
"$venv/bin/python" scripts/audit.py || status=1

if [ ! -x "$audit/bin/pip-audit" ]; then
  "${PYTHON:-python3}" -m venv --clear "$audit"
  "$audit/bin/python" -m pip install --quiet pip-audit==2.10.1
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# Local versions (2.11.0+cu128) are not known to the services.
"$venv/bin/python" -m pip freeze --exclude-editable | grep -E '^[A-Za-z0-9._-]+==' | sed 's/+.*//' > "$work/installed.txt"
# Found, accepted and why: the rows of the table that do not reach this package.
ignore=()
while IFS=, read -r id _; do
  case $id in CVE-* | GHSA-* | PYSEC-*) ignore+=(--ignore-vuln "$id") ;; esac
done < <(grep ',no: ' scripts/advisories.csv)
answer=0
"$audit/bin/pip-audit" --vulnerability-service "$service" --no-deps --disable-pip --progress-spinner off \
  --requirement "$work/installed.txt" --format json --output "$work/answer.json" \
  ${ignore[@]+"${ignore[@]}"} 2> "$work/errors" || answer=$?
"$venv/bin/python" - "$work/answer.json" "$answer" "$work/errors" <<'PYTHON' || { code=$?; [ "$status" -ne 0 ] || status=$code; }
import json
import pathlib
import sys

path, answer, errors = pathlib.Path(sys.argv[1]), int(sys.argv[2]), pathlib.Path(sys.argv[3])
packages = json.loads(path.read_text())["dependencies"] if path.is_file() and path.stat().st_size else []
known = [p for p in packages if "skip_reason" not in p]
for package in known:
    for found in package["vulns"]:
        fixed = ", ".join(found["fix_versions"]) or "no release"
        print(f"{found['id']:<24} {package['name']:<24} {package['version']:<12} fixed in {fixed}")
bad = sum(len(package["vulns"]) for package in known)
print(f"[audit] pip-audit: {bad} vulnerabilities in {len(known)} packages")
skipped = len(packages) - len(known)
if bad:
    sys.exit(1)
if skipped or not packages or answer:
    # pip-audit itself calls packages that it cannot look up a success.
    last = (errors.read_text().strip().splitlines() or ["no answer"])[-1]
    what = f"{skipped} packages are not known to the service" if packages else last
    print(
        f"error: not everything is audited: {what}. The service must be reached. Run it where it is, "
        "or with SERVICE=osv.",
        file=sys.stderr,
    )
    sys.exit(3)
PYTHON
exit "$status"
