"""Writing a folder: the bytes are safetensors', files keep to their size, and no reader ever sees half a model."""

from __future__ import annotations

import json
import os
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from moonlet.hub import shards
from moonlet.hub.read import read_model
from moonlet.hub.shards import Planned, word, write_folder
from moonlet.hub.write import write_model
from moonlet.model.model import CausalLM
from tests.conftest import LINEAR
from tests.hub.test_read_write import assert_same_bits

CONFIG = {"config.json": "{}\n"}


def tensors() -> dict[str, Tensor]:
    """One of every dtype that is written, of odd sizes, one empty and one without axes."""
    generator = torch.Generator().manual_seed(0)
    out = {}
    for i, dtype in enumerate(shards._WORDS):
        numbers = torch.randint(0, 2 if dtype == torch.bool else 120, (3 + i, 5 + 2 * i), generator=generator)
        out[f"layer.{i % 4}.{dtype}"] = numbers.to(dtype)
    return out | {"empty": torch.empty(0, 4), "number": torch.tensor(3.5)}


def plan(values: dict[str, Tensor]) -> list[Planned]:
    return [Planned(name, word(value.dtype), tuple(value.shape)) for name, value in values.items()]


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_one_file_has_the_bytes_that_safetensors_writes(tmp_path: Path) -> None:
    values = tensors()
    write_folder(tmp_path, plan(values), values.items(), CONFIG)
    save_file(values, tmp_path / "theirs", metadata={"format": "pt"})
    assert (tmp_path / "model.safetensors").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_views_and_transposed_tensors_are_written_as_they_look(tmp_path: Path) -> None:
    base = torch.arange(60.0).view(6, 10)
    values = {"a": base.T, "b": base[1:4, ::2], "c": base[2]}
    write_folder(tmp_path, plan(values), values.items(), CONFIG)
    found = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(found[name], value) for name, value in values.items())


@pytest.mark.parametrize("limit", [1, 100, 500, 1e9])
def test_shards_keep_to_their_size_and_the_index_finds_everything(tmp_path: Path, limit: float) -> None:
    values, told = tensors(), []
    write_folder(tmp_path, plan(values), values.items(), CONFIG, limit, told.append)
    sizes = {name: value.numel() * value.itemsize for name, value in values.items()}
    assert sum(told) == sum(sizes.values())
    if limit == 1e9:
        assert listing(tmp_path) == ["config.json", "model.safetensors"]
        return
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": sum(sizes.values())}
    files = sorted(set(index["weight_map"].values()))
    n = len(files)
    assert files == [f"model-{i + 1:05}-of-{n:05}.safetensors" for i in range(n)]
    assert listing(tmp_path) == sorted(["config.json", "model.safetensors.index.json", *files])
    found: dict[str, Tensor] = {}
    for file in files:
        held = load_file(tmp_path / file)
        assert set(held) == {name for name, where in index["weight_map"].items() if where == file}
        assert len(held) == 1 or sum(sizes[name] for name in held) <= limit
        found |= held
    assert set(found) == set(values)
    for name, value in values.items():
        assert torch.equal(found[name].view(-1).view(torch.uint8), value.reshape(-1).view(torch.uint8))


def test_a_tensor_is_gone_when_the_next_but_one_is_asked_for(tmp_path: Path) -> None:
    alive: list[weakref.ref[Tensor]] = []

    def make() -> Iterator[tuple[str, Tensor]]:
        for i in range(20):
            assert sum(ref() is not None for ref in alive) <= 1
            value = torch.full((1000,), float(i))
            alive.append(weakref.ref(value))
            yield f"t{i}", value
            del value

    # One file of them all takes no more than several.
    write_folder(tmp_path, [Planned(f"t{i}", "F32", (1000,)) for i in range(20)], make(), CONFIG)
    assert load_file(tmp_path / "model.safetensors")["t7"][0] == 7


def test_two_tensors_of_one_name_and_limits_of_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a would be written twice"):
        write_folder(tmp_path, [Planned("a", "F32", (1,))] * 2, [], CONFIG)
    with pytest.raises(ValueError, match="a shard of at most 0 bytes holds nothing"):
        write_folder(tmp_path, [], [], CONFIG, 0)
    with pytest.raises(ValueError, match="complex64 cannot be written"):
        word(torch.complex64)


def test_a_failure_leaves_the_old_model_and_no_temporary_files(
    tiny_model: Callable[..., CausalLM], tmp_path: Path
) -> None:
    old = tiny_model()
    write_model(old, tmp_path, max_shard_bytes=30_000)
    before = listing(tmp_path)
    broken = tiny_model(seed=1)
    with torch.no_grad():
        broken.get_parameter("model.layers.2.mlp.experts.down_proj")[7, 3, 5] = torch.nan
    with pytest.raises(ValueError, match=r"layers.2.mlp.experts.7.down_proj.weight: the weight holds NaN or infinity"):
        write_model(broken, tmp_path, format="int4", max_shard_bytes=20_000)
    assert listing(tmp_path) == before
    assert_same_bits(read_model(tmp_path), old)


@pytest.mark.parametrize(
    "limits", [(1e9, 1e9), (1e9, 30_000), (30_000, 1e9), (30_000, 30_000), (30_000, 60_000)], ids=str
)
@pytest.mark.parametrize("same_config", [True, False])
def test_at_no_instant_can_half_a_model_be_read(
    tiny_model: Callable[..., CausalLM],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    limits: tuple[float, float],
    same_config: bool,
) -> None:
    old, new = tiny_model(), tiny_model(seed=1, **({} if same_config else {"rms_norm_eps": 1e-3}))
    write_model(old, tmp_path, max_shard_bytes=limits[0])
    seen: list[str] = []

    def look() -> None:
        try:
            found = read_model(tmp_path)
        except (FileNotFoundError, ValueError):
            seen.append("none")
            return
        for name, model in (("old", old), ("new", new)):
            same = all(torch.equal(a, b) for a, b in zip(found.parameters(), model.parameters(), strict=True))
            if same and found.config.rms_norm_eps == model.config.rms_norm_eps:
                seen.append(name)
                return
        seen.append("mixed")

    def watch(original: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **kwargs: Any) -> Any:
            look()
            result = original(*args, **kwargs)
            look()
            return result

        return step

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", watch(os.replace))
        patched.setattr(Path, "unlink", watch(Path.unlink))
        write_model(new, tmp_path, max_shard_bytes=limits[1])
    assert "mixed" not in seen
    assert seen[0] == "old"
    assert seen[-1] == "new"
    # And once the old one is gone it does not come back.
    assert [*dict.fromkeys(seen)] in (["old", "new"], ["old", "none", "new"])
    fresh = tmp_path / "fresh"
    write_model(new, fresh, max_shard_bytes=limits[1])
    assert listing(fresh) == [name for name in listing(tmp_path) if name != "fresh"]
    for name in listing(fresh):
        assert (fresh / name).read_bytes() == (tmp_path / name).read_bytes()


def test_what_else_lies_in_the_folder_stays(tiny_model: Callable[..., CausalLM], tmp_path: Path) -> None:
    write_model(tiny_model(), tmp_path, max_shard_bytes=30_000)
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "model-of-mine.safetensors").write_bytes(b"1")
    (tmp_path / "state").mkdir()
    write_model(tiny_model(**LINEAR), tmp_path)
    assert listing(tmp_path) == [
        "config.json", "model-of-mine.safetensors", "model.safetensors", "state", "tokenizer.json",
    ]  # fmt: skip
