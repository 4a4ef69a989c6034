"""Rooms of the package: imports point one way, and little lies outside the rooms."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from support.runs import ROOT

PACKAGE = ROOT / "src/alexlab"
# A room may import from itself and from the rooms after it.
ROOMS = (
    *(
        "__main__",
        "api",
        "cli",
        "tasks",
        "benchmark",
        "papers",
        "sweeps",
        "inference",
        "config",
        "training",
        "models",
        "data",
    ),
    *("distributed", "records", "pages", "compat", "errors", "output"),
)
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")
HEAVY = ("torch", "torchvision", "lightning", "torchmetrics", "matplotlib")


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_modules(path: Path) -> Iterator[str]:
    """Yield the modules of the package that a module imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("alexlab."))
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "alexlab":
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_room_has_a_place_in_the_order() -> None:
    assert {room(path) for path in MODULES} == set(ROOMS)
    assert len(MODULES) > 150


@pytest.mark.parametrize("name", ROOMS)
def test_imports_point_one_way(name: str) -> None:
    allowed = set(ROOMS[ROOMS.index(name) :])
    wrong = [
        f"{path.relative_to(PACKAGE)} imports {module}"
        for path in MODULES
        if room(path) == name
        for module in imported_modules(path)
        if module.split(".")[1] not in allowed
    ]
    assert not wrong, "\n".join(wrong)


def test_no_modules_import_each_other() -> None:
    names = {".".join(("alexlab", *path.relative_to(PACKAGE).with_suffix("").parts)): path for path in MODULES}
    graph = {}
    for name, path in names.items():
        imported = {module if module in names else module.rpartition(".")[0] for module in imported_modules(path)}
        graph[name] = imported & names.keys() - {name}
    assert len(list(TopologicalSorter(graph).static_order())) == len(names)


def test_two_modules_lie_outside_the_rooms() -> None:
    outside = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert outside == {"__main__", "errors"}


def test_the_training_module_does_not_import_the_data_module() -> None:
    assert not [
        module
        for module in imported_modules(PACKAGE / "training/module.py")
        if module.startswith("alexlab.data.datamodule")
    ]
    assert set(imported_modules(PACKAGE / "records/layout.py")) == set()
