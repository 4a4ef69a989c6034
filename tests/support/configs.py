"""The options of every config group."""

from alexlab.config import CONFIG_DIR

# Group -> options. tests/config/test_configs.py compares their number, so that an added or a missing file is noticed.
OPTIONS = {
    group: sorted(path.stem for path in (CONFIG_DIR / group).glob("*.yaml"))
    for group in sorted({str(path.parent.relative_to(CONFIG_DIR)) for path in CONFIG_DIR.rglob("*.yaml")})
}
