"""`moonlet inspect`: what a model consists of and what it costs, without making it.

The modules are built on the meta device, so a model of a trillion parameters takes a second and no memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from moonlet.config import ModelConfig
    from moonlet.model.count import Counts

_PARTS = {
    "embedding": "embedding",
    "attention": "attention",
    "dense": "dense feed-forward",
    "router": "routers",
    "routed_experts": "routed experts",
    "shared_experts": "shared experts",
    "norms": "norms",
    "head": "head",
}


def inspect(
    target: Annotated[
        str, typer.Argument(help="A preset's name, a Hugging Face folder (or its config.json), or a run folder.")
    ],
    overrides: Annotated[list[str] | None, typer.Argument(help="Changes of single values: hidden_size=128.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Print a model's modules, their shapes and exact sizes, and what it costs to run.

    Example: moonlet inspect moonlight-16b-a3b n_routed_experts=128 num_experts_per_tok=8
    """
    import json

    from rich.console import Console

    from moonlet.config.recipe import override_model

    config = override_model(read_target(target), overrides or [])
    console = Console()
    if as_json:
        console.out(json.dumps(describe(config, target), indent=2), highlight=False)
    else:
        _print(console, config, target)


def read_target(target: str) -> ModelConfig:
    """The configuration that `target` names.

    Raises:
        ValueError: neither a preset nor a path (the message names the nearest preset), or a damaged file.
        FileNotFoundError: a folder that holds no model.
    """
    from pathlib import Path

    from moonlet.config import ModelConfig, load_recipe, preset, preset_names

    path = Path(target)
    if target in preset_names() or not path.exists():
        return preset(target)
    if path.is_file() or (path / "config.json").is_file():
        return ModelConfig.from_file(path)
    if (path / "recipe.toml").is_file():
        return load_recipe(path / "recipe.toml").model
    raise FileNotFoundError(f"{path} is neither a model folder (config.json) nor a run folder (recipe.toml)")


def describe(config: ModelConfig, name: str) -> dict[str, Any]:
    """Everything `inspect` knows, as plain values."""
    from dataclasses import asdict

    from moonlet.model.count import cache_bytes_per_token, count, full_cache_bytes_per_token, shapes

    tensors = shapes(config)
    counts = count(config, tensors)
    return {
        "name": name,
        "layers": config.num_hidden_layers,
        "parameters": {"total": counts.total, **counts.parts},
        "active_per_token": {
            "without_embedding_and_head": counts.active,
            "with_head": counts.active_with_head,
            "with_head_and_embedding": counts.active_with_embedding,
        },
        "cache_bytes_per_token": {
            "latent_bf16": cache_bytes_per_token(config),
            "full_heads_bf16": full_cache_bytes_per_token(config),
        },
        "weights_bytes_bf16": 2 * counts.total,
        "softmax_scale": config.softmax_scale,
        "rope_theta": config.rope_theta,
        "rope_scaling": asdict(config.rope_scaling) if config.rope_scaling else None,
        "max_position_embeddings": config.max_position_embeddings,
        "tensors": {tensor: list(shape) for tensor, shape in tensors.items()},
    }


@dataclass(frozen=True)
class Group:
    """Consecutive layers with the same tensors, or (`layers` None) the tensors outside of layers."""

    layers: range | None
    tensors: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def size(self) -> int:
        """Parameters of one such layer."""
        from math import prod

        return sum(prod(shape) for _, shape in self.tensors)


def group_layers(tensors: Mapping[str, Sequence[int]]) -> list[Group]:
    """Collapse layers that follow one another and look alike, keeping the order of the modules."""
    prefix = "model.layers."

    def layer_of(item: tuple[str, tuple[int, ...]]) -> int | None:
        name = item[0]
        return int(name.removeprefix(prefix).split(".", 1)[0]) if name.startswith(prefix) else None

    groups: list[Group] = []
    for layer, items in groupby(((name, tuple(shape)) for name, shape in tensors.items()), key=layer_of):
        if layer is None:
            groups.append(Group(None, tuple(items)))
            continue
        inner = tuple((name.removeprefix(f"{prefix}{layer}."), shape) for name, shape in items)
        last = groups[-1] if groups else None
        if last and last.layers and last.tensors == inner:
            groups[-1] = Group(range(last.layers.start, layer + 1), inner)
        else:
            groups.append(Group(range(layer, layer + 1), inner))
    return groups


def human(number: float, units: Sequence[str] = ("", "K", "M", "B", "T"), base: int = 1000) -> str:
    """`number` with three digits and a unit: 1.03T."""
    power = 0
    while round(number, 1) >= base and power < len(units) - 1:
        number, power = number / base, power + 1
    digits = 0 if power == 0 else max(0, 3 - len(str(int(number))))
    return f"{number:.{digits}f}{units[power]}"


def human_bytes(number: float) -> str:
    """`number` bytes: 68.6 KiB."""
    return human(number, (" B", " KiB", " MiB", " GiB", " TiB"), 1024)


def _print(console: Any, config: ModelConfig, name: str) -> None:
    from rich.markup import escape

    from moonlet.model.count import count, shapes

    tensors = shapes(config)
    counts = count(config, tensors)
    console.print(f"\n[bold]{escape(name)}[/bold]", highlight=False)
    console.print(_summary(config, counts), highlight=False)
    console.print(_module_table(tensors))
    console.print(_size_table(counts))
    for line in _costs(config, counts):
        console.print(line, highlight=False)
    console.print()


def _summary(config: ModelConfig, counts: Counts) -> str:
    layers = f"{config.num_hidden_layers} layers of width {config.hidden_size:,}"
    return f"{human(counts.total)} parameters, {human(counts.active_with_embedding)} active a token, {layers}"


def _module_table(tensors: Mapping[str, Sequence[int]]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("module", no_wrap=True)
    table.add_column("shape", justify="right", no_wrap=True)
    table.add_column("parameters", justify="right", no_wrap=True)
    for group in group_layers(tensors):
        indent = ""
        if group.layers is not None:
            first, last, indent = group.layers.start, group.layers.stop - 1, "  "
            title = f"model.layers.{first}" + ("" if first == last else f"-{last}")
            times = "" if first == last else f"{len(group.layers)} x"
            table.add_row(f"[bold]{title}[/bold]", times, f"[bold]{group.size:,}[/bold]")
        for name, size in _rows(group.tensors):
            table.add_row(f"{indent}{name}", size, f"{_product(size):,}", style="" if group.layers is None else "dim")
    return table


def _rows(tensors: Sequence[tuple[str, tuple[int, ...]]]) -> Iterator[tuple[str, str]]:
    for name, shape in tensors:
        yield name.removesuffix(".weight"), " x ".join(str(n) for n in shape)


def _product(size: str) -> int:
    from math import prod

    return prod(int(n) for n in size.split(" x "))


def _size_table(counts: Counts) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("part")
    for title in ("parameters", "", "share"):
        table.add_column(title, justify="right", no_wrap=True)
    for part, number in counts.parts.items():
        if number:
            table.add_row(_PARTS[part], f"{number:,}", human(number), f"{number / counts.total:.2%}")
    table.add_row("[bold]total[/bold]", f"[bold]{counts.total:,}[/bold]", f"[bold]{human(counts.total)}[/bold]", "")
    table.add_section()
    for title, number in (
        ("active a token", counts.active),
        ("  and the head", counts.active_with_head),
        ("  and the embedding", counts.active_with_embedding),
    ):
        table.add_row(title, f"{number:,}", human(number), f"{number / counts.total:.2%}")
    return table


def _costs(config: ModelConfig, counts: Counts) -> Iterator[str]:
    from moonlet.model.count import cache_bytes_per_token, full_cache_bytes_per_token

    latent, full = cache_bytes_per_token(config), full_cache_bytes_per_token(config)
    context = config.max_position_embeddings
    yield f"cache          {latent:,} bytes a token in bf16 (full heads: {full:,}, {full / latent:.1f} x)"
    yield f"softmax scale  {config.softmax_scale:.6f}{' (YaRN included)' if config.rope_scaling else ''}"
    yield (
        f"memory         {human_bytes(2 * counts.total)} of bf16 weights"
        f" + {human_bytes(latent * context)} of cache for {context:,} tokens"
    )
