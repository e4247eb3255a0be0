"""Kernels are built once, found again, and missed in one line."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pytest

from moonlet.ops.native import build as native

SOURCE = """
extern "C" int twice(int n) {
  int sum = 0;
#pragma omp parallel for reduction(+ : sum)
  for (int i = 0; i < n; i++) sum += 2;
  return sum;
}
"""

needs_compiler = pytest.mark.skipif(not native.compiler_name(), reason="no C++ compiler here")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "twice.cpp"
    path.write_text(SOURCE)
    return path


@needs_compiler
def test_builds_once_and_finds_it_again(source: Path, tmp_path: Path) -> None:
    built = native.build(source, tmp_path)
    when = built.stat().st_mtime_ns
    assert ctypes.CDLL(str(built)).twice(21) == 42
    assert native.build(source, tmp_path) == built
    assert built.stat().st_mtime_ns == when
    source.write_text(SOURCE.replace("+= 2", "+= 3"))
    assert native.build(source, tmp_path) != built
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".cpp", ".so", ".so"]  # nothing half-made is left


@needs_compiler
def test_threads_are_torchs(source: Path, tmp_path: Path) -> None:
    import torch

    source.write_text(
        'extern "C" int omp_get_max_threads(); extern "C" int twice(int n) { return omp_get_max_threads(); }'
    )
    built = ctypes.CDLL(str(native.build(source, tmp_path)))
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            assert built.twice(0) == threads
    finally:
        torch.set_num_threads(before)


@needs_compiler
def test_source_that_does_not_compile_is_one_line(source: Path, tmp_path: Path) -> None:
    source.write_text("int broken(")
    with pytest.raises(native._Failure, match=r"does not compile twice\.cpp") as failure:
        native.build(source, tmp_path)
    assert "\n" not in str(failure.value)


def test_no_compiler_is_one_line(source: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "nothing"))
    native.compiler_name.cache_clear()
    try:
        with pytest.raises(native._Failure, match="no C\\+\\+ compiler: install"):
            native.build(source, tmp_path)
    finally:
        monkeypatch.undo()
        native.compiler_name.cache_clear()


def test_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOONLET_NATIVE", "0")
    native._load.cache_clear()
    try:
        assert native.library("anything") is None
        assert native.why_not("anything") == "switched off by MOONLET_NATIVE=0"
    finally:
        native._load.cache_clear()


@pytest.mark.skipif(os.name == "nt", reason="modes of another kind")
def test_a_folder_others_can_write_is_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MOONLET_CACHE", str(tmp_path))
    assert native.cache_folder("native") == tmp_path / "native"
    (tmp_path / "native").chmod(0o777)
    assert native.cache_folder("native") != tmp_path / "native"


@needs_compiler
def test_headers_and_a_sources_own_flags_are_followed(source: Path, tmp_path: Path) -> None:
    source.write_text(f'// flags: -DTHREE=3\n#include "outer.hpp"\n{SOURCE.replace("+= 2", "+= THREE + NONE")}')
    (tmp_path / "outer.hpp").write_text('#include "inner.hpp"\n')
    (tmp_path / "inner.hpp").write_text("#define NONE 0\n")
    built = native.build(source, tmp_path)
    assert ctypes.CDLL(str(built)).twice(10) == 30
    (tmp_path / "inner.hpp").write_text("#define NONE 1\n")
    assert ctypes.CDLL(str(native.build(source, tmp_path))).twice(10) == 40


@needs_compiler
def test_a_block_can_do_without() -> None:
    with native.without_kernels():
        assert native.library("swiglu") is None
    assert native.library("swiglu") is not None
