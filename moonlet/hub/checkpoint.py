"""A folder's configuration and tensors side by side: what every weight is stored as, and what does not fit.

| stored as | tensors of the module M |
|---|---|
| it is | `M.weight` BF16, F16, F32 or F64 [out, in] |
| FP8 in blocks | `M.weight` F8_E4M3 [out, in], `M.weight_scale_inv` F32 [ceil(out/128), ceil(in/128)] |
| INT4 in groups | `M.weight_packed` I32 [out, ceil(in/8)], `.weight_scale` BF16 [out, in/32], `.weight_shape` I64 [2] |
| MXFP4 | `M.weight_packed` U8 [out, in/2], `M.weight_scale` U8 [out, in/32] |

All of it from headers: a terabyte is known in seconds, and nothing of it is in memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from moonlet.config import ModelConfig
from moonlet.config.json_file import read_json, shown
from moonlet.config.wrapper import PREFIX, text_part, wrapper_of
from moonlet.hub.header import Entry
from moonlet.hub.names import EMBEDDING, HEAD, Layout, layout_of, skipped
from moonlet.hub.quantization import Part, Quantization, Scheme
from moonlet.hub.source import Source
from moonlet.model.model import CausalLM

# transformers joins tensors in memory, and can be told to save them so.
_JOINED = re.compile(r"\.experts\.(gate_up_proj|down_proj)$|\.self_attn\.(forget_gate|conv1d)\.")
PLAIN = ("F32", "BF16", "F16", "F64")
# Beyond what the files hold by so many tensors, a config is not compared name by name but refused as another model's.
_FAR = 1_000
# By the last piece of a part's name.
_Expected = dict[str, Part]


@dataclass(frozen=True)
class Stored:
    """How one tensor of a model lies in the files: `scheme` None is as it is.

    name: on disk, were it stored as it is.
    parts: its tensors on disk, by the last piece of their names.
    shape: of the tensor they stand for.
    group: inputs that share a scale of INT4.
    """

    name: str
    scheme: Scheme | None
    parts: Mapping[str, Entry]
    shape: tuple[int, ...]
    group: int = 32

    @property
    def nbytes(self) -> int:
        """How many bytes of the files these are."""
        return sum(entry.nbytes for entry in self.parts.values())


@dataclass(frozen=True)
class Checkpoint:
    """What a folder holds, as far as it belongs to the model that its config.json describes.

    tensors: by the names that `layout` gives them, those left out that `skipped` holds.
    skipped: what is no part of the model by design, by why.
    wrapper: the model_type around the language model's, where there is one.
    remote_code: whether config.json names code to be run, which never happens here.
    """

    config: ModelConfig
    source: Source
    layout: Layout
    quantization: Quantization
    tensors: dict[str, Entry]
    skipped: dict[str, list[Entry]]
    wrapper: str | None = None
    remote_code: bool = False

    @property
    def prefix(self) -> str:
        """What stands before the layout's names in the files."""
        return PREFIX if self.wrapper else ""

    @property
    def embedding_dtype(self) -> str:
        """What the weights are kept in where nobody asks for another dtype."""
        entry = self.tensors.get(EMBEDDING)
        return entry.dtype if entry is not None else ""

    def notices(self) -> list[str]:
        """What a person should know before they compute with this model."""
        lines = []
        for why, entries in self.skipped.items():
            size = sum(entry.nbytes for entry in entries)
            lines.append(f"{why}: {len(entries):,} tensors, {size / 1e6:,.1f} MB, are not read")
        if self.wrapper is not None:
            lines.insert(0, f"{self.wrapper} is computed as the language model in it, without pictures")
        return lines


def checkpoint_of(source: Source) -> Checkpoint:
    """Read the configuration beside `source`'s files and sort its tensors.

    Raises:
        FileNotFoundError: no config.json.
        ValueError: a configuration that cannot be read or computed.
    """
    path = source.folder / "config.json"
    config = ModelConfig.from_file(source.folder)
    data = read_json(path)
    text = text_part(data)
    try:
        quantization = Quantization.from_config(text.get("quantization_config"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    wrapper, layout = wrapper_of(data), layout_of(config)
    prefix = PREFIX if wrapper else ""
    stripped = {name.removeprefix(prefix): entry for name, entry in source.tensors.items()}
    if len(stripped) < len(source.tensors):
        twice = next(name for name in stripped if name in source.tensors and prefix + name in source.tensors)
        raise ValueError(f"{source.folder} holds {shown(twice)} with {prefix!r} and without; one of the two is wrong")
    tensors: dict[str, Entry] = {}
    left: dict[str, list[Entry]] = {}
    for name, entry in stripped.items():
        why = skipped(name, config)
        if why is not None:
            left.setdefault(why, []).append(entry)
        else:
            tensors[layout.published(name, stripped)] = entry
    remote = "auto_map" in data or "auto_map" in text
    return Checkpoint(config, source, layout, quantization, tensors, left, wrapper, remote)


def empty_model(checkpoint: Checkpoint) -> CausalLM:
    """The model of the configuration, without memory.

    Raises:
        ValueError: far more tensors than the files hold.
    """
    config, held = checkpoint.config, len(checkpoint.tensors)
    layers = sum(config.is_moe(i) for i in range(config.num_hidden_layers))
    needed = config.num_hidden_layers + 3 * config.n_routed_experts * layers
    if needed > 2 * held + _FAR:
        raise ValueError(
            f"{config.source} describes more than {needed:,} tensors, and the files hold {held:,}; they do not belong "
            "together"
        )
    with torch.device("meta"):
        return CausalLM(config)


def match(checkpoint: Checkpoint, model: CausalLM) -> tuple[dict[str, Stored], list[str]]:
    """How each tensor of `model`, which needs no memory, is stored; and what does not fit, one line each."""
    tensors, problems = checkpoint.tensors, []
    wanted = {
        disk: tuple(part.shape)
        for name, value in model.state_dict().items()
        for disk, part in checkpoint.layout.split(name, value)
    }
    joined = next((shown(entry.name) for entry in tensors.values() if _JOINED.search(entry.name)), None)
    if joined is not None:
        return {}, [
            f"the folder holds {joined}, a tensor as transformers has it in memory; save it in the published layout, "
            "which is what save_pretrained does unless save_original_format is false"
        ]
    stored, used = {}, set()
    for name, shape in wanted.items():
        form = _form(checkpoint, name, shape)
        if isinstance(form, str):
            problems.append(form)
            used |= {name, f"{name}_packed"}
            continue
        scheme, expected = form
        stem = name[: -len(name.rsplit(".", 1)[-1])]
        used |= {stem + part for part in expected}
        problems += _unfit(checkpoint, stem, expected)
        parts = {part: tensors[stem + part] for part in expected if stem + part in tensors}
        stored[name] = Stored(checkpoint.prefix + name, scheme, parts, shape, checkpoint.quantization.group_size)
    for name, entry in tensors.items():
        # Some files hold a tied matrix twice, and transformers writes shared experts of width 0 as empty tensors.
        tied = name == HEAD and checkpoint.config.tie_word_embeddings
        if name not in used and not tied and 0 not in entry.shape:
            problems.append(f"{shown(entry.name)} is not part of this model")
    return stored, sorted(problems)


def _form(checkpoint: Checkpoint, name: str, shape: tuple[int, ...]) -> tuple[Scheme | None, _Expected] | str:
    """What `name` is stored as, judged by what is there and by what the configuration says of it; or what is wrong."""
    tensors, last = checkpoint.tensors, name.rsplit(".", 1)[-1]
    plain, packed = tensors.get(name), tensors.get(f"{name}_packed") if last == "weight" else None
    if plain is not None and (plain.dtype != "F8_E4M3" or last != "weight"):
        return None, {last: Part(PLAIN, shape)}
    entry = plain or packed
    if entry is None:
        return f"{checkpoint.prefix}{name} is missing"
    module = entry.name.removesuffix("_packed").removesuffix(".weight")
    scheme = checkpoint.quantization.scheme(module)
    if len(shape) != 2 or scheme is None or (scheme == "fp8") != (plain is not None):
        return (
            f"{entry.name} is stored as {entry.dtype}, and config.json's quantization_config does not say how; "
            f"known without it: {', '.join(PLAIN)}"
        )
    parts = checkpoint.quantization.parts(module, shape)
    return scheme, {name.removeprefix(f"{module}."): part for name, part in parts.items()}


def _unfit(checkpoint: Checkpoint, stem: str, expected: _Expected) -> Iterator[str]:
    """What is wrong with the tensors that are expected behind `stem`."""
    for part, (dtypes, size) in expected.items():
        entry = checkpoint.tensors.get(stem + part)
        if entry is None:
            yield f"{checkpoint.prefix}{stem}{part} is missing"
        elif entry.shape != size:
            yield f"{entry.name} has shape {list(entry.shape)}, expected {list(size)}"
        elif entry.dtype not in dtypes:
            yield f"{entry.name} is stored as {entry.dtype}; this reader knows {', '.join(dtypes)}"
