"""The command line, called: in this process, where only importing torch would differ, or in one of its own."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from moonlet.cli.main import main


def moonlet(*arguments: object, cwd: Path | None = None) -> CompletedProcess[str]:
    """What `moonlet ARGUMENTS` prints and its exit code, without a process, which takes seconds to import torch."""
    out, errors = io.StringIO(), io.StringIO()
    code: object = None
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        patch.setattr(sys, "argv", ["moonlet", *map(str, arguments)])
        if cwd is not None:
            patch.chdir(cwd)
        try:
            main()
        except SystemExit as end:
            code = end.code
    assert isinstance(code, int)
    return CompletedProcess(sys.argv, code, out.getvalue(), errors.getvalue())


def process(*arguments: object, cwd: Path | None = None) -> CompletedProcess[str]:
    """The same in a process, as a person starts it."""
    command = [sys.executable, "-m", "moonlet", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=cwd, check=False)
