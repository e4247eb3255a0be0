"""`import moonlet` is light: it imports neither torch nor anything else that takes time."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = ("torch", "numpy", "matplotlib", "tokenizers", "safetensors", "transformers", "rich", "typer")


def loaded_after(statement: str) -> set[str]:
    """Top-level modules a fresh interpreter has loaded after `statement`."""
    code = f"{statement}\nimport sys\nprint(' '.join({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    return set(done.stdout.split())


def test_the_probe_sees_what_is_loaded() -> None:
    assert "numpy" in loaded_after("import numpy")


@pytest.mark.parametrize("statement", ["import moonlet", "import moonlet; dir(moonlet); moonlet.__version__"])
def test_importing_the_package_imports_nothing_heavy(statement: str) -> None:
    assert not loaded_after(statement) & set(HEAVY)


def test_configurations_need_no_torch() -> None:
    loaded = loaded_after("import moonlet\nfrom moonlet.config import preset\npreset('kimi-k2')\nmoonlet.ModelConfig")
    assert not loaded & {"torch", "numpy", "matplotlib"}


@pytest.mark.parametrize("room", ["text", "data"])
def test_texts_and_data_need_no_torch(room: str) -> None:
    assert "torch" not in loaded_after(f"import moonlet.{room}")


def test_the_command_line_is_light_before_a_verb_runs() -> None:
    assert not loaded_after("import moonlet.cli.inspect") & {"torch", "numpy", "matplotlib"}


def verbs() -> list[tuple[str, ...]]:
    """Every verb and sub-verb of the command line."""
    from moonlet.cli.main import app

    found = [(str(c.name or c.callback.__name__),) for c in app.registered_commands if c.callback]
    for group in app.registered_groups:
        inner = group.typer_instance.registered_commands if group.typer_instance else []
        found += [(str(group.name), str(c.name or c.callback.__name__)) for c in inner if c.callback]
    return found


def test_help_imports_nothing_heavy() -> None:
    """One interpreter asks every verb in turn; the first that imports something is the first to be named."""
    code = f"""
import contextlib, io, json, sys
from moonlet.cli.main import app
heavy = {{'torch', 'numpy', 'matplotlib', 'tokenizers', 'safetensors', 'transformers'}}
found = []
for verb in {verbs()!r}:
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        app([*verb, '--help'], standalone_mode=False)
    assert 'Usage' in shown.getvalue(), verb
    found.append((*verb, *sorted(heavy & {{name.split('.')[0] for name in sys.modules}})))
print(json.dumps(found))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert [tuple(verb) for verb in json.loads(done.stdout)] == verbs()
