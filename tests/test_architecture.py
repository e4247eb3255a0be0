"""The direction of imports, and what no file of the package may hold.

Rooms stand in a line; a room imports from rooms before it, never from those after it. Every import counts, also one
inside a function or under TYPE_CHECKING: an arrow that runs backwards is one wherever it is written.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "moonlet"
FILES = sorted(PACKAGE.rglob("*.py"))

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 70

_TRAIN = {"config", "text", "data", "ops", "model", "hub", "optim"}
_LINE = _TRAIN | {"train", "folder", "generate", "serve"}
ALLOWED: dict[str, set[str]] = {
    "config": set(),
    "text": {"config"},
    "data": {"config", "text"},
    "ops": {"config"},
    "model": {"config", "ops"},
    "hub": {"config", "text", "ops", "model"},
    "optim": {"config", "text", "data", "ops", "model"},
    "train": _TRAIN,
    # moonlet/folder.py, the public load and save: it looks into run folders, so it stands behind train.
    "folder": _TRAIN | {"train"},
    "generate": _TRAIN | {"train", "folder"},
    "serve": _TRAIN | {"train", "folder", "generate"},
    "posttrain": _LINE,
    "eval": _LINE,
    "plot": _LINE,
    "course": _LINE,
    "widgets": _LINE,
    "cli": _LINE | {"posttrain", "eval", "plot", "course"},
}
# The package's own two files find everything lazily, for whoever imports moonlet.
ROOT = {"__init__", "__main__"}
WITHOUT_TORCH = {"config", "text", "data"}
UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml"}
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}


def room_of(path: Path) -> str:
    """The room a file of the package belongs to: its first folder, or its own name at the top."""
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imports(source: str, module: str) -> Iterator[tuple[int, str]]:
    """Line and full dotted name of everything `source`, the module `module`, imports; relative imports resolved.

    `from a import b` yields a.b, which may be a module or a name in one.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = module.split(".")[: -node.level]
                base = ".".join([*above, *([base] if base else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def backwards(source: str, module: str) -> list[str]:
    """What is wrong with the imports of `module` (moonlet.room.file), one line each."""
    room = module.split(".")[1]
    wrong = []
    for line, name in imports(source, module):
        parts = name.split(".")
        if parts[0] != "moonlet" or name == "moonlet.__version__":
            continue
        target = parts[1] if len(parts) > 1 else "the package itself"
        if target != room and target not in ALLOWED[room]:
            wrong.append(f"{module}:{line} imports {name}; {room} may import from {sorted(ALLOWED[room]) or 'no room'}")
    return wrong


def unsafe(source: str, module: str) -> list[str]:
    """Loaders that run what they read, one line each."""
    wrong = [
        f"{module}:{line} imports {name}"
        for line, name in imports(source, module)
        if name.split(".")[0] in UNSAFE_MODULES or name == "torch.load"
    ]
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        call = ast.unparse(node.func)
        pickled = any(k.arg == "allow_pickle" and ast.unparse(k.value) != "False" for k in node.keywords)
        if call in ("eval", "exec", "torch.load", "__import__") or pickled:
            wrong.append(f"{module}:{node.lineno} calls {call}{' with allow_pickle' if pickled else ''}")
    return wrong


def long_functions(source: str, limit: int) -> list[str]:
    """Functions of more than `limit` lines."""
    return [
        f"{node.name} has {length} lines"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or node.lineno) - node.lineno + 1) > limit
    ]


def dotted(path: Path) -> str:
    """moonlet.room.file; a package's __init__ keeps its name, so that relative imports count levels right."""
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)


def test_every_room_is_in_the_plan() -> None:
    assert {room_of(path) for path in FILES} - ROOT <= set(ALLOWED)


def test_the_plan_itself_runs_one_way() -> None:
    order = list(ALLOWED)
    for room, allowed in ALLOWED.items():
        assert allowed <= set(order[: order.index(room)]), room
    above = {"posttrain", "eval", "plot", "course", "widgets", "cli"}
    assert not any(ALLOWED[room] & above for room in ALLOWED if room != "cli")


@pytest.mark.parametrize("path", [p for p in FILES if room_of(p) not in ROOT], ids=dotted)
def test_imports_run_one_way(path: Path) -> None:
    assert backwards(path.read_text(encoding="utf-8"), dotted(path)) == []


@pytest.mark.parametrize("room", sorted(WITHOUT_TORCH))
def test_room_never_imports_torch(room: str) -> None:
    for path in (PACKAGE / room).rglob("*.py"):
        found = [
            name for _, name in imports(path.read_text(encoding="utf-8"), dotted(path)) if "torch" in name.split(".")
        ]
        assert found == [], path


def test_nothing_unsafe_is_loaded() -> None:
    assert [line for path in FILES for line in unsafe(path.read_text(encoding="utf-8"), dotted(path))] == []


def test_files_are_named_for_what_they_hold() -> None:
    assert [str(path) for path in PACKAGE.rglob("*") if path.stem in VAGUE_NAMES] == []


def test_files_and_functions_stay_short() -> None:
    long = []
    for path in FILES:
        source = path.read_text(encoding="utf-8")
        lines = len(source.splitlines())
        long += [f"{dotted(path)} has {lines} lines"] * (lines > MAX_FILE_LINES)
        long += [f"{dotted(path)}.{found}" for found in long_functions(source, MAX_FUNCTION_LINES)]
    assert long == []


# The checkers themselves: a check that cannot fail is none.


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("moonlet.config.model", "from moonlet.text import load"),
        ("moonlet.config.model", "import moonlet.model.mla"),
        ("moonlet.model.mla", "def f():\n    from moonlet.hub.read import read_model"),
        ("moonlet.model.mla", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from moonlet import train"),
        ("moonlet.ops.loss", "from ..model.mla import MLA"),
        ("moonlet.ops.__init__", "from ..model import mla"),
        ("moonlet.text.bpe", "from moonlet.data import prepare"),
        ("moonlet.hub.read", "from moonlet.train import run"),
        ("moonlet.train.loop", "from moonlet.generate import sample"),
        ("moonlet.train.loop", "from moonlet.folder import load"),
        ("moonlet.train.loop", "import moonlet"),
        ("moonlet.generate.engine", "from moonlet.eval import bits"),
        ("moonlet.eval.bits", "from moonlet.plot import loss"),
        ("moonlet.posttrain.sft", "import moonlet.cli.main as m"),
    ],
)
def test_a_backwards_import_is_caught(module: str, source: str) -> None:
    assert len(backwards(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("moonlet.model.mla", "from moonlet.ops.attention import attention\nfrom .norm import RMSNorm\nimport torch"),
        ("moonlet.data.loader", "from ..text import load\nfrom moonlet import text, __version__"),
        ("moonlet.cli.train", "from moonlet.course import lessons\nfrom moonlet import serve"),
        ("moonlet.text.bpe", "import moonlet_of_another_name"),
    ],
)
def test_a_forward_import_is_let_through(module: str, source: str) -> None:
    assert backwards(source, module) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from yaml import safe_load",
        "def f(p):\n    import torch\n    return torch.load(p)",
        "from torch import load",
        "eval('1')",
        "exec('x = 1')",
        "import numpy as np\nnp.load('x.npy', allow_pickle=True)",
    ],
)
def test_an_unsafe_loader_is_caught(source: str) -> None:
    assert len(unsafe(source, "moonlet.hub.read")) == 1


def test_a_module_put_into_evaluation_mode_is_not_unsafe() -> None:
    assert unsafe("model.eval()\nimport json\njson.load(f)", "moonlet.hub.read") == []


def test_a_long_function_is_caught() -> None:
    source = "class A:\n    def f(self):\n" + "        x = 1\n" * 70
    assert long_functions(source, 70) == ["f has 71 lines"]
    assert long_functions(source, 71) == []
