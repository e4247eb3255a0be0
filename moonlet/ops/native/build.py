"""Compile, keep and load the C++ kernels.

What is kept is named after a hash of everything it follows from: the source with what it includes, the flags, the
compiler and the processor (which -march=native builds for). It is written under a temporary name and renamed, so that
runs that start together find none or a whole one. A source's first line may add flags of its own, "// flags: ...".
MOONLET_NATIVE=0 switches all kernels off; MOONLET_CACHE moves the folder.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

_FOLDER = Path(__file__).parent
_SECONDS = 120  # a compiler that takes longer hangs
_COMPILERS = ("c++", "g++", "clang++")

# -ffast-math would take the care out of infinities; only the order of sums is set free, for vectors.
_FLAGS = (
    "-std=c++17", "-O3", "-march=native", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math",
    "-fassociative-math", "-fno-signed-zeros", "-ffp-contract=fast",
)  # fmt: skip
# Linked against no OpenMP of its own: at load the names resolve to the one that torch brought, so that both share one
# pool of threads. Two pools would wait for each other's cores.
_TRIES = (
    ("-fopenmp", "-mprefer-vector-width=512", "-nodefaultlibs", "-lstdc++", "-lm", "-lc", "-lgcc_s"),
    ("-fopenmp",),
    (),
)


class _Failure(Exception):
    """Why there is no library, in one line."""


_off = False


def library(name: str) -> ctypes.CDLL | None:
    """The kernels of `NAME.cpp`, built at the first call of any process on this machine; None: not to be had here."""
    return None if _off else _load(name)[0]


@contextmanager
def without_kernels() -> Iterator[None]:
    """Do everything in PyTorch inside the block, as on a machine without a compiler."""
    global _off
    before, _off = _off, True
    try:
        yield
    finally:
        _off = before


def why_not(name: str) -> str:
    """One line on why `library(name)` is None; empty where it is not."""
    return _load(name)[1]


def every_kernel() -> dict[str, str]:
    """The name of each library, and why it is not to be had here, empty where it is; builds what is not yet built."""
    return {path.stem: why_not(path.stem) for path in sorted(_FOLDER.glob("*.cpp"))}


@cache
def compiler_name() -> str:
    """The compiler's own first line, or empty without one."""
    compiler = _compiler()
    if compiler is None:
        return ""
    try:
        done = subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return next(iter(done.stdout.splitlines()), "")


@cache
def _load(name: str) -> tuple[ctypes.CDLL | None, str]:
    try:
        if os.environ.get("MOONLET_NATIVE", "") == "0":
            raise _Failure("switched off by MOONLET_NATIVE=0")
        return ctypes.CDLL(str(build(_FOLDER / f"{name}.cpp"))), ""
    except _Failure as failure:
        return None, str(failure)
    except OSError as error:
        return None, f"the built library does not load ({_line(str(error))})"


def build(source: Path, folder: Path | None = None) -> Path:
    """Compile `source` into a shared library in `folder` (default: the user's cache), unless it is there already.

    Raises:
        _Failure: no compiler, or it does not compile.
    """
    compiler, version = _compiler(), compiler_name()
    if compiler is None or not version:
        raise _Failure("no C++ compiler: install g++ or clang, and the next start builds the kernels")
    problem = ""
    texts = _texts(source)
    own = texts[0].partition("\n")[0].partition("// flags:")[2].split()
    for flags in _TRIES:
        command = [compiler, *_FLAGS, *own, *flags]
        facts = [*texts, *command, version, _processor()]
        key = hashlib.sha256("\0".join(facts).encode()).hexdigest()[:16]
        target = (folder or cache_folder("native")) / f"{source.stem}-{key}.so"
        if target.is_file():
            return target
        problem = _compile([*command[:1], str(source), *command[1:]], target)
        if not problem:
            return target
    raise _Failure(f"{Path(compiler).name} does not compile {source.name} ({problem})")


def _texts(source: Path) -> list[str]:
    """The source and every header beside it that it includes, itself or through another."""
    paths, texts = [source], []
    for path in paths:
        texts.append(path.read_text(encoding="utf-8"))
        named = (path.parent / name for name in re.findall(r'^#include "(.+)"', texts[-1], re.MULTILINE))
        paths += [header for header in named if header not in paths]
    return texts


def _compile(command: list[str], target: Path) -> str:
    """Run it and load what it makes once; what went wrong in one line, empty when nothing did."""
    handle, made = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    os.close(handle)
    try:
        done = subprocess.run([*command, "-o", made], capture_output=True, text=True, timeout=_SECONDS)
        if done.returncode:
            return _line(done.stderr)
        ctypes.CDLL(made)  # names that nothing brought, say of OpenMP, show here
        os.replace(made, target)
    except (OSError, subprocess.SubprocessError) as error:
        return _line(str(error))
    finally:
        Path(made).unlink(missing_ok=True)
    return ""


def _line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return next((line for line in lines if "error" in line), lines[0] if lines else "no message")[:200]


def _compiler() -> str | None:
    named = os.environ.get("CXX")
    return next(filter(None, map(shutil.which, (named,) if named else _COMPILERS)), None)


def _processor() -> str:
    """What -march=native looks at."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine() + platform.processor()
    kept = {line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))}
    return platform.machine() + "".join(sorted(kept))


def cache_folder(name: str) -> Path:
    """A folder that only this user can write: what lies in it is run. Without one, a temporary one for this process."""
    named = os.environ.get("MOONLET_CACHE")
    base = Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moonlet"
    folder = base / name
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        state = folder.stat()
        ours = not hasattr(os, "getuid") or state.st_uid == os.getuid()
        if ours and (sys.platform == "win32" or not state.st_mode & 0o022) and os.access(folder, os.W_OK):
            return folder
    except (OSError, RuntimeError):
        pass  # no home, or a read-only one
    return _own_folder(name)


@cache
def _own_folder(name: str) -> Path:
    return Path(tempfile.mkdtemp(prefix=f"moonlet-{name}-"))
