"""Private names of other libraries are used in alexlab.compat only."""

import ast
import functools
import importlib
import inspect
import re
from collections.abc import Iterator

import pytest

from support.runs import ROOT

SOURCE = ROOT / "src"
OURS = ("alexlab", "hydra_plugins")
COMPAT = "alexlab.compat."
MODULES = {
    ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in SOURCE.rglob("*.py")
}
# Attributes that begin with an underscore and are documented: of the module `os`, and of named tuples.
DOCUMENTED = {"_exit", "_replace", "_asdict", "_fields", "_make"}
# Attributes of other libraries that are documented as there to be assigned.
ASSIGNABLE = {
    *("sys.stdin", "sys.stdout", "sys.stderr", "sys.__stdin__", "sys.excepthook", "sys.argv"),
    *("os.environ", "tempfile.tempdir", "Image.MAX_IMAGE_PIXELS"),
    *("torch.backends.cudnn.benchmark", "torch.backends.cudnn.allow_tf32"),
}


def is_private(name: str) -> bool:
    return re.fullmatch(r"_[a-zA-Z]\w*", name) is not None


def is_ours(module: str) -> bool:
    return module.split(".")[0] in OURS


@functools.cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text())


def class_members(tree: ast.Module) -> set[str]:
    """Return the methods, class attributes and instance attributes of all classes of a module."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            names |= {child.name for child in node.body if isinstance(child, ast.FunctionDef)}
            assigned = [child.target for child in node.body if isinstance(child, ast.AnnAssign)]
            names |= {target.id for target in assigned if isinstance(target, ast.Name)}
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_self(node.value):
            names.add(node.attr)
    return names


def is_self(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def imports(tree: ast.Module) -> tuple[set[str], set[str]]:
    """Return the names that are imported from other libraries, and the modules of this package that anything is imported from."""
    foreign, ours = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            foreign |= {(alias.asname or alias.name).split(".")[0] for alias in node.names if not is_ours(alias.name)}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            if is_ours(node.module):
                ours |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)} & {*MODULES}
            else:
                foreign |= {alias.asname or alias.name for alias in node.names}
    return foreign, ours


def private_uses(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield line and source of each private name of another library, and of each attribute of one that is replaced."""
    foreign, ours = imports(tree)
    members = class_members(tree).union(*(class_members(tree_of(module)) for module in ours))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            parts = [part for name in names for part in name.split(".")]
            if any(map(is_private, parts)) and not is_ours(names[-1]):
                yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.Attribute):
            is_known = is_self(node.value) or node.attr in members | DOCUMENTED
            text = ast.unparse(node)
            is_patched = re.fullmatch(r"[\w.]+", text) and text.split(".")[0] in foreign and text not in ASSIGNABLE
            is_replaced = is_patched and not isinstance(node.ctx, ast.Load)
            if (is_private(node.attr) and not is_known) or is_replaced:
                yield node.lineno, text
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr", "hasattr", "delattr"):
            name = node.args[1]
            if isinstance(name, ast.Constant) and is_private(str(name.value)) and name.value not in members:
                yield node.lineno, ast.unparse(node)


def source_of(kind: type) -> str:
    """Return the source of a class; nothing if it is written in C."""
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):
        return ""


def inherited_uses(module: str) -> Iterator[str]:
    """Yield each private name of a class of this package that a base class from another library uses too."""
    for kind in vars(importlib.import_module(module)).values():
        if not inspect.isclass(kind) or kind.__module__ != module:
            continue
        source = source_of(kind)
        names = {*re.findall(r"(?:\bself\.|def |^    )(_[a-z]\w*)", source, re.MULTILINE)}
        for base in kind.__mro__[1:]:
            if is_ours(base.__module__) or base.__module__ in ("builtins", "typing"):
                continue
            theirs = source_of(base)
            for name in sorted(names):
                if name in vars(base) or re.search(rf"\bself\.{name}\b", theirs):
                    yield f"{kind.__name__}.{name} of {base.__name__}"


def test_no_module_uses_private_names_of_other_libraries() -> None:
    found = [
        f"{MODULES[module].relative_to(ROOT)}:{line}: {text}"
        for module in sorted(MODULES)
        if not module.startswith(COMPAT)
        for line, text in private_uses(tree_of(module))
    ]
    assert found == [], "move these to alexlab.compat"


def test_no_class_overrides_private_names_of_a_base_class() -> None:
    assert [use for module in sorted(MODULES) if is_ours(module) for use in inherited_uses(module)] == []


def test_number_of_private_uses() -> None:
    """Each one makes the next upgrade harder: look for a public way before you raise the number."""
    assert len([use for module in MODULES if module.startswith(COMPAT) for use in private_uses(tree_of(module))]) <= 24


@pytest.mark.parametrize(
    "source",
    [
        "from hydra._internal.utils import run",
        "import hydra._internal.utils",
        "from torch.utils.data.dataloader import _Iterator",
        "import torch\nnorms = torch._foreach_norm(tensors)",
        "value = trainer.fit_loop._data_fetcher",
        "value = getattr(trial, '_trial_id')",
        "import lightning\nlightning.Trainer.fit = fit",
        "import lightning\nlightning.Trainer.fit.first: int = 1",
    ],
)
def test_violations_are_found(source: str) -> None:
    assert len([*private_uses(ast.parse(source))]) == 1


@pytest.mark.parametrize(
    "source",
    [
        "import os\nos._exit(0)",
        "class A:\n    def _step(self):\n        self._count = 1\n\na = A()\na._step()\na._count",
        "import sys\nsys.excepthook = hook",
        "name = __name__.__len__()",
    ],
)
def test_own_and_documented_names_are_allowed(source: str) -> None:
    assert [*private_uses(ast.parse(source))] == []
