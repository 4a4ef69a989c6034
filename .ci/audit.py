"""Looks every pinned package up in an advisory database; fails on an advisory, and when not every package was looked up.

pip-audit says "No known vulnerabilities found" also of packages that the index in use knows nothing of. So what it has looked
up is counted against requirements.lock.
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

LOCK = Path(__file__).parents[1] / "requirements.lock"
TOOL = "pip-audit>=2.9,<3"
# Advisories that do not apply, with the reason: {"GHSA-...": "why"}.
ACCEPTED: dict[str, str] = {}


def pinned(lock: str) -> set[str]:
    """Names of the packages that a lock file pins for this machine.

    Raises:
        ValueError: for a package without hashes.
    """
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    found = set()
    for block in re.split(r"\n(?=\S)", lock.replace("\\\n", " ")):
        text = " ".join(line for line in block.splitlines() if not line.lstrip().startswith("#"))
        words, *hashes = text.split("--hash=")
        if not words.strip():
            continue
        if not hashes:
            raise ValueError(f"every package of the lock must have hashes; {words.strip()} has none")
        requirement = Requirement(words.strip())
        if requirement.marker is None or requirement.marker.evaluate():
            found.add(canonicalize_name(requirement.name))
    return found


def findings(names: set[str], report: dict[str, Any]) -> list[str]:
    """What is wrong, a line each: advisories, and packages that were not looked up."""
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
            f"{len(names) - len(missing)} of {len(names)} packages could be looked up; not {', '.join(missing)}"
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
        print(f"pip-audit gave no report: {done.stderr.strip()[-500:]}", file=sys.stderr)
        return 1
    found = findings(names, report)
    print("\n".join(found) or f"{len(names)} packages, no advisory")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
