"""The audit fails on an advisory, and on a package that was not looked up."""

import importlib.util
from typing import Any

import pytest

from support.runs import ROOT

spec = importlib.util.spec_from_file_location("audit", ROOT / ".ci/audit.py")
assert spec is not None and spec.loader is not None
audit = importlib.util.module_from_spec(spec)
spec.loader.exec_module(audit)

LOCK = """one==1.0 \\
    --hash=sha256:aa \\
    --hash=sha256:bb
    # via two
two-three==2.0 ; sys_platform == 'linux' \\
    --hash=sha256:cc
four==4.0 ; sys_platform == 'another' \\
    --hash=sha256:dd
"""


def entry(name: str, *advisories: str, **more: Any) -> dict[str, Any]:
    vulns = [{"id": advisory, "fix_versions": ["9.9"], "aliases": []} for advisory in advisories]
    return {"name": name, "version": "1.0", "vulns": vulns, **more}


def test_packages_pinned_for_this_machine() -> None:
    assert audit.pinned(LOCK) >= {"one"}
    assert "four" not in audit.pinned(LOCK)
    with pytest.raises(
        ValueError, match=r"every package in requirements-dev.lock must have hashes; one==1\.0 has none"
    ):
        audit.pinned("one==1.0\n    # via two\n")


def test_the_lock_pins_everything_with_hashes_and_without_urls() -> None:
    text = (ROOT / "requirements-dev.lock").read_text()
    names = audit.pinned(text)
    assert {"torch", "torchvision", "lightning", "hydra-core", "pillow"} <= names and len(names) > 60
    assert "://" not in text


def test_advisories_and_missing_packages_are_reported() -> None:
    names = {"one", "two-three"}
    assert audit.findings(names, {"dependencies": [entry("one"), entry("two-three")]}) == []
    found = audit.findings(
        names, {"dependencies": [entry("one", "GHSA-1"), {"name": "two-three", "skip_reason": "none"}]}
    )
    assert found == ["one 1.0: GHSA-1, fixed in 9.9", "1 of 2 packages were looked up; missing: two-three"]
    assert audit.findings(names, {"dependencies": []}) == ["0 of 2 packages were looked up; missing: one, two-three"]
