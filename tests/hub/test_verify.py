"""`moonlet verify` sees every kind of damage, says where it is, and says of a whole folder that it is whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from moonlet.cli.main import main
from moonlet.folder import save
from moonlet.hub.verify import Verdict, verify
from moonlet.text import train_bpe
from tests.hub import official


@pytest.fixture
def folder(tiny_model: Callable[..., Any], tmp_path: Path) -> Path:
    """A model of 400 ids and its tokenizer."""
    tokenizer = train_bpe(["one day a cat sat on a mat. " * 20], 280)
    save(tiny_model(vocab_size=400), tokenizer, tmp_path / "model")
    return tmp_path / "model"


def outcome(verdict: Verdict) -> dict[str, bool | None]:
    return {check.name: check.ok for check in verdict.checks}


def failed(folder: Path) -> dict[str, str]:
    return {check.name: check.detail for check in verify(folder).checks if check.ok is False}


def test_a_whole_folder_is_whole(folder: Path) -> None:
    read: list[int] = []
    verdict = verify(folder, read.append)
    assert verdict.ok
    assert outcome(verdict) == {
        "config": True, "headers": True, "shapes": True, "scales": None, "values": True, "hashes": None,
        "tokenizer": True,
    }  # fmt: skip
    assert {file.name: (file.nbytes, file.sha256) for file in verdict.files} == {
        path.name: (path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()) for path in folder.iterdir()
    }
    assert sum(read) == sum(file.nbytes for file in verdict.files)


@pytest.mark.parametrize("piece", [1 << 22, 48])
@pytest.mark.parametrize("place", [0, -1])
def test_one_wrong_number_is_found_wherever_it_lies(
    folder: Path, monkeypatch: pytest.MonkeyPatch, piece: int, place: int
) -> None:
    monkeypatch.setattr("moonlet.hub.verify._PIECE_BYTES", piece)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    assert verify(folder).ok
    tensors["model.layers.1.mlp.experts.3.up_proj.weight"].view(-1)[place] = torch.nan
    save_file(tensors, path)
    assert failed(folder) == {"values": "model.layers.1.mlp.experts.3.up_proj.weight is not finite"}


def test_a_missing_tensor_a_cut_file_and_a_wrong_config(folder: Path) -> None:
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    tensors = load_file(path)
    del tensors["model.norm.weight"]
    save_file(tensors, path)
    assert failed(folder) == {"shapes": "model.norm.weight is missing"}
    path.write_bytes(whole[:-1])
    assert "it is cut off" in failed(folder)["headers"]
    path.write_bytes(whole)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"hidden_act": "situ"}), encoding="utf-8")
    assert list(failed(folder)) == ["config"]


def test_tensors_that_overlap_are_wrong_headers_and_nothing_worse(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    placed = sorted((entry["data_offsets"], name) for name, entry in header.items() if name != "__metadata__")
    for (begin, end), name in placed[1:3]:
        header[name]["data_offsets"] = [begin - 3, end - 3]  # not even whole numbers begin there
    changed = json.dumps(header, separators=(",", ":")).encode()
    path.write_bytes(len(changed).to_bytes(8, "little") + changed + content[8 + length :])
    found = failed(folder)
    assert "overlaps" in found["headers"]
    assert set(found) == {"headers"}


def test_a_flipped_bit_is_seen_by_a_sum_of_either_kind(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = path.read_bytes()
    metadata = folder / ".cache" / "huggingface" / "download" / "model.safetensors.metadata"
    metadata.parent.mkdir(parents=True)
    digest = hashlib.sha256(content).hexdigest()
    for write in (
        lambda: (folder / "SHA256SUMS").write_text(f"# made by hand\n{digest}  model.safetensors\n"),
        lambda: (folder / "model.safetensors.sha256").write_text(digest.upper()),
        lambda: metadata.write_text(f"revision\n{digest}\n1700000000.0\n"),
        lambda: metadata.write_text("revision\n" + hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()),
    ):
        write()
        assert outcome(verify(folder))["hashes"] is True
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert "model.safetensors differs from" in failed(folder)["hashes"]
        path.write_bytes(content)
        for name in ("SHA256SUMS", "model.safetensors.sha256"):
            (folder / name).unlink(missing_ok=True)


def test_a_sum_of_a_file_that_is_not_there(folder: Path) -> None:
    (folder / "SHA256SUMS").write_text(f"{'0' * 64}  gone.safetensors\n{'0' * 64}  ../elsewhere\nnonsense\n")
    detail = failed(folder)["hashes"]
    assert "gone.safetensors is named by SHA256SUMS and missing" in detail
    assert "SHA256SUMS, line 2" in detail
    assert "SHA256SUMS, line 3" in detail


def test_the_tokenizer_must_be_there_and_fit(folder: Path, tiny_model: Callable[..., Any]) -> None:
    from moonlet.hub.write import write_model

    write_model(tiny_model(vocab_size=270), folder)
    assert failed(folder) == {"tokenizer": "280 ids, and the model has 270"}
    (folder / "tokenizer_config.json").unlink()
    assert failed(folder) == {"tokenizer": "280 ids; it is not one that moonlet runs, and the model has 270"}
    (folder / "tokenizer.json").write_text("{")
    assert list(failed(folder)) == ["tokenizer"]
    (folder / "tokenizer.json").unlink()
    assert "none of tokenizer.json" in failed(folder)["tokenizer"]


def test_parts_of_quantised_weights_are_checked(tmp_path: Path) -> None:
    base = official.saved(official.deepseek(), tmp_path / "base")
    form = official.int4(*base)
    verdict = verify(official.write(tmp_path / "int4", form.config, form.tensors, shards=2))
    assert [check.name for check in verdict.checks if not check.ok] == ["hashes", "tokenizer"]
    assert next(check.detail for check in verdict.checks if check.name == "scales") == "36 quantised weights"
    name = "model.layers.1.mlp.experts.0.up_proj.weight"
    form.tensors[f"{name}_scale"][0, 0] = torch.nan
    form.tensors[f"{name}_shape"][0] = 7
    detail = failed(official.write(tmp_path / "int4", form.config, form.tensors, shards=2))
    assert f"{name}_scale holds NaN" in detail["scales"]
    assert f"{name}_shape says [7, 160]" in detail["scales"]
    assert f"{name}_scale is not finite" in detail["values"]


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["moonlet", "verify", *arguments])
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as stopped:
        main()
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


def test_the_exit_code_says_whole_damaged_or_nothing_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, str(folder)) == 0
    out = capsys.readouterr().out
    assert "is whole" in out
    assert max(map(len, out.splitlines()[:-1])) <= 100
    assert run(monkeypatch, str(folder), "--json") == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True
    (folder / "model.safetensors").write_bytes(b"short")
    assert run(monkeypatch, str(folder)) == 1
    assert "damaged or incomplete: headers" in " ".join(capsys.readouterr().out.split())
    assert run(monkeypatch, str(folder / "nowhere")) == 2
    assert capsys.readouterr().err.count("\n") == 1
