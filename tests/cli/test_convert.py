"""`moonlet convert`: from a run or a folder to a folder, told in one line; errors in one line."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import moonlet as package
from moonlet.cli.convert import _bytes, convert
from moonlet.model.model import CausalLM
from moonlet.text import ByteTokenizer
from tests.cli.command import moonlet, process


@pytest.fixture
def folder(tiny_model: Callable[..., CausalLM], tmp_path: Path) -> Path:
    tokenizer = ByteTokenizer()
    package.save(tiny_model(vocab_size=tokenizer.vocab_size), tokenizer, tmp_path / "a")
    return tmp_path / "a"


def test_a_folder_is_converted_and_loads_with_its_tokenizer(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "b"
    done = process("convert", folder, target, "--format", "int4", "--max-shard", "50KB")
    assert (done.returncode, done.stderr) == (0, "")
    model, tokenizer = package.load(target, packed=False)
    files = list(target.glob("model-*.safetensors"))
    size = sum(p.stat().st_size for p in files)
    found = re.fullmatch(
        rf"{re.escape(str(target))}: ([\d,]+) weights in int4, ([\d,]+) bytes \([\d.]+ \w+\) in {len(files)} files, "
        r"([\d.]+) bits a weight\n",
        done.stdout,
    )
    assert found is not None, done.stdout
    weights, nbytes = (int(found[i].replace(",", "")) for i in (1, 2))
    assert weights == sum(t.numel() for t in model.state_dict().values())
    assert nbytes < size
    assert float(found[3]) == pytest.approx(8 * nbytes / weights, abs=0.01)
    assert tokenizer.content_hash() == ByteTokenizer().content_hash()
    assert next(model.parameters()).dtype == torch.bfloat16


def test_a_gguf_file_is_written_once_and_looked_into(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    target = tmp_path / "new" / "moon.gguf"
    done = moonlet("convert", folder, target, "--format", "GGUF-Q8_0")
    assert done.returncode == 0, done.stderr
    assert f"{target}: deepseek2, " in done.stdout
    size = target.stat().st_size
    assert "deepseek2" in moonlet("inspect", target).stdout
    for wrong, message in ((target, "--overwrite"), (folder, "is a folder; a GGUF is one file")):
        refused = moonlet("convert", folder, wrong, "--format", "gguf-f16")
        assert refused.returncode == 2
        assert message in refused.stderr
    assert target.stat().st_size == size


def test_errors_name_the_way_out(folder: Path, tmp_path: Path) -> None:
    full, new = tmp_path / "full", tmp_path / "b"
    full.mkdir()
    (full / "x").write_text("", encoding="utf-8")
    for arguments, message in (
        ((folder, full, "bf16"), "is not empty; give another folder, or --overwrite"),
        ((folder, new, "int3"), "--format is 'int3'; valid: bf16, fp32"),
        ((folder, new, "bf16", "big"), "--max-shard 'big' is no size; give e.g."),
        ((tmp_path / "no", new, "bf16"), "no such folder"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=re.escape(message)):
            convert(*arguments)  # type: ignore[arg-type]
    assert not new.exists()
    convert(folder, full, "bf16", overwrite=True)
    assert package.load(full)[1].vocab_size == ByteTokenizer().vocab_size


def test_sizes_are_read() -> None:
    sizes = {"5GB": 5e9, "500MB": 5e8, "2GiB": 2**31, "1.5 kb": 1500, "5e9": 5e9, "1000": 1000, "3TB": 3e12}
    assert {text: _bytes(text) for text in sizes} == sizes
    for text in ("", "GB", "-5GB", "0", "5 apples", "1e3e3"):
        with pytest.raises(ValueError, match="is no size"):
            _bytes(text)
