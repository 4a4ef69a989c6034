"""Audit of the pinned packages: fails on an advisory, or if a package of requirements-dev.lock could not be looked up.

pip-audit reports "No known vulnerabilities found" even for packages that are unknown to its index, so the packages that it
looked up are compared with the lock file.
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

LOCK = Path(__file__).parents[1] / "requirements-dev.lock"
TOOL = "pip-audit>=2.9,<3"
# Advisories that do not apply, with the reason: {"GHSA-...": "reason"}.
ACCEPTED: dict[str, str] = {}


def pinned(lock: str) -> set[str]:
    """Return the names of the packages that a lock file pins for this machine.

    Raises:
        ValueError: a package has no hashes.
    """
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    found = set()
    for block in re.split(r"\n(?=\S)", lock.replace("\\\n", " ")):
        text = " ".join(line for line in block.splitlines() if not line.lstrip().startswith("#"))
        pin, *hashes = text.split("--hash=")
        if not pin.strip():
            continue
        if not hashes:
            raise ValueError(f"every package in requirements-dev.lock must have hashes; {pin.strip()} has none")
        requirement = Requirement(pin.strip())
        if requirement.marker is None or requirement.marker.evaluate():
            found.add(canonicalize_name(requirement.name))
    return found


def findings(names: set[str], report: dict[str, Any]) -> list[str]:
    """Return advisories, and the packages that were not looked up, one line each."""
    audited = {entry["name"].lower(): entry for entry in report["dependencies"] if "skip_reason" not in entry}
    found = [
        f"{name} {entry['version']}: {advisory['id']}, fixed in {', '.join(advisory['fix_versions']) or 'no release'}"
        for name, entry in sorted(audited.items())
        for advisory in entry["vulns"]
        if not {advisory["id"], *advisory.get("aliases", ())} & set(ACCEPTED)
    ]
    missing = sorted(names - set(audited))
    if missing:
        found.append(
            f"{len(names) - len(missing)} of {len(names)} packages were looked up; missing: {', '.join(missing)}"
        )
    return found


def main() -> int:
    names = pinned(LOCK.read_text())
    command = [
        *("uv", "tool", "run", "--quiet", "--from", TOOL, "pip-audit", "--require-hashes", "--disable-pip"),
        *("-r", str(LOCK), "--format", "json", "--progress-spinner", "off", *sys.argv[1:]),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    try:
        report = json.loads(done.stdout)
    except ValueError:
        print(f"pip-audit wrote no report: {done.stderr.strip()[-500:]}", file=sys.stderr)
        return 1
    found = findings(names, report)
    print("\n".join(found) or f"{len(names)} packages, no advisories")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
