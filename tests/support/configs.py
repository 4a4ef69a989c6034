"""The options of every config group."""

from alexlab.config import CONFIG_DIR

# Group -> options. Counted, so that a file that nobody tests is noticed, and one that is missing too.
OPTIONS = {
    group: sorted(path.stem for path in (CONFIG_DIR / group).glob("*.yaml"))
    for group in sorted({str(path.parent.relative_to(CONFIG_DIR)) for path in CONFIG_DIR.rglob("*.yaml")})
}
