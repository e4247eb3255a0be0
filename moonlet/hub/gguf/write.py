"""Writing a GGUF file that llama.cpp loads, a tensor at a time.

The configuration alone says which tensors there are and how large (`tensors.py`), so the header comes first and every
official tensor is written to its place as it comes, in any order. Beside the source no more is held than one tensor,
and of that a few rows converted; a checkpoint of a terabyte is as good as one of a megabyte.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from torch import Tensor

from moonlet import text
from moonlet.config import ModelConfig
from moonlet.hub.gguf.folder import folder_tensors
from moonlet.hub.gguf.header import write_header
from moonlet.hub.gguf.limits import architecture
from moonlet.hub.gguf.tensors import Plan, official_tensors, plan
from moonlet.hub.gguf.types import asked_for, check_type, size_of, stored, type_of
from moonlet.hub.gguf.vocabulary import Vocabulary, vocabulary_of
from moonlet.hub.names import skipped
from moonlet.model.model import CausalLM
from moonlet.text.atomic import atomic_path
from moonlet.text.chat.detect import template_of
from moonlet.text.tokenizer import Tokenizer

_MAX_PROBLEMS = 8


@dataclass(frozen=True)
class Written:
    """What was written.

    types: how many tensors there are of each type.
    notes: what a user should know, a line each; where llama.cpp will not do exactly what moonlet does.
    """

    path: Path
    architecture: str
    size: int
    types: dict[str, int]
    notes: list[str] = field(default_factory=list)


def write_gguf(
    source: CausalLM | str | Path,
    tokenizer: Tokenizer | None,
    path: str | Path,
    type: str = "F32",
    name: str | None = None,
    progress: Callable[[int, int], object] | None = None,
    experts: str | None = None,
) -> Written:
    """Write a model as a GGUF file, atomically.

    Args:
        source: a model, or a Hugging Face directory, which is read a tensor at a time.
        tokenizer: whose vocabulary the file gets. None: the directory's, or with a model none at all, and then
            llama.cpp speaks in token ids.
        path: the file; "*.gguf" by custom.
        type: of the matrices, one of `types.TYPES`.
        name: of the model, in the file. None: the directory's.
        progress: called with bytes done and bytes in all, after each tensor.
        experts: type of the routed experts, where it is another one.

    Raises:
        ValueError: a model or tokenizer that llama.cpp has no form for, an unknown type, tensors missing, extra or
            mis-shaped, or the package gguf is not installed.
        FileNotFoundError: no model in the directory.
    """
    package = _package()
    kind, path = check_type(type), Path(path)
    experts = experts and check_type(experts)
    if isinstance(source, CausalLM):
        config, tensors, template = source.config, official_tensors(source), None
        words = tokenizer
    else:
        folder = Path(source)
        config = ModelConfig.from_file(folder)
        tensors, template = folder_tensors(folder), template_of(folder)
        words = tokenizer or text.load(folder)
        name = name or folder.resolve().name
    arch = architecture(config)
    vocabulary = vocabulary_of(words, config) if words is not None else None
    layout = plan(config, exact=kind == "F32")
    types = {target: type_of(target, shape, kind, experts) for target, shape in layout.shapes.items()}
    with atomic_path(path) as temporary:
        writer = package.GGUFWriter(str(temporary), arch)
        try:
            heads = max(config.num_attention_heads, getattr(config.linear_attn_config, "num_heads", 0))
            write_header(writer, config, heads, name or "moonlet", kind, package)
            _write_vocabulary(writer, vocabulary, template)
            file, places, total = _open(writer, layout, types, package)
            _write_tensors(file, tensors, layout, types, places, config, package, progress)
            file.truncate(total)
        finally:
            writer.close()
    notes = [*_notes(layout, types, kind, experts, config), *(vocabulary.notes if vocabulary else ())]
    return Written(path, arch, path.stat().st_size, dict(Counter(types.values())), notes)


def _package() -> Any:
    try:
        import gguf
    except ImportError:
        raise ValueError('the package gguf is not installed; install it with: pip install "moonlet[gguf]"') from None
    return gguf


def _write_vocabulary(writer: Any, vocabulary: Vocabulary | None, template: str | None) -> None:
    if vocabulary is None:
        writer.add_tokenizer_model("none")
    else:
        vocabulary.write(writer)
        if template is not None:
            writer.add_chat_template(template)


def _open(writer: Any, layout: Plan, types: Mapping[str, str], package: Any) -> tuple[BinaryIO, dict[str, int], int]:
    """Write everything before the weights; returns the file, where each tensor begins, and where the file ends."""
    for target, shape in layout.shapes.items():
        kind = package.GGMLQuantizationType[types[target]]
        # Any dtype but bytes: the shape is one of numbers.
        writer.add_tensor_info(target, shape, np.dtype(np.float32), size_of(shape, types[target]), kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    file: BinaryIO = writer.fout[0]
    pad = writer.ggml_pad
    end, places = pad(file.tell(), writer.data_alignment), {}
    for target, shape in layout.shapes.items():
        places[target] = end
        end += pad(size_of(shape, types[target]), writer.data_alignment)
    return file, places, end


def _write_tensors(
    file: BinaryIO,
    tensors: Iterable[tuple[str, Tensor]],
    layout: Plan,
    types: Mapping[str, str],
    places: Mapping[str, int],
    config: ModelConfig,
    package: Any,
    progress: Callable[[int, int], object] | None,
) -> None:
    """Every official tensor at its place, in whatever order they come."""
    left, problems, done = dict(layout.parts), [], 0
    total = sum(size_of(shape, types[target]) for target, shape in layout.shapes.items())
    for name, tensor in tensors:
        if name not in left:
            if not _needless(name, config, tensor):
                problems.append(f"{name} {'comes twice' if name in layout.parts else 'is not part of this model'}")
            continue
        parts = left.pop(name)
        if tuple(tensor.shape) != layout.officials[name]:
            problems.append(f"{name} has shape {list(tensor.shape)}, expected {list(layout.officials[name])}")
            continue
        for part in parts:
            shape = layout.shapes[part.target]
            changed = part.change(tensor)
            assert tuple(changed.shape) == (shape if part.index is None else shape[1:]), part.target
            kind = types[part.target]
            file.seek(places[part.target] + (part.index or 0) * size_of(changed.shape, kind))
            for piece in stored(changed, kind, package):
                file.write(piece.data)
            done += size_of(changed.shape, kind)
        if progress is not None:
            progress(done, total)
    problems += [f"{name} is missing" for name in left]
    if problems:
        more = f" (and {len(problems) - _MAX_PROBLEMS} more)" if len(problems) > _MAX_PROBLEMS else ""
        raise ValueError(f"{'; '.join(problems[:_MAX_PROBLEMS])}{more}")


def _needless(name: str, config: ModelConfig, tensor: Tensor) -> bool:
    """Whether a tensor that the model has no place for may lie beside it."""
    tied_head = config.tie_word_embeddings and name == "lm_head.weight"
    return tied_head or bool(skipped(name, config)) or tensor.numel() == 0


def _notes(layout: Plan, types: Mapping[str, str], kind: str, experts: str | None, config: ModelConfig) -> list[str]:
    notes = []
    narrow = [t for t, found in types.items() if found == "F16" and asked_for(t, kind, experts) != "F16"]
    if narrow:
        widths = ", ".join(map(str, sorted({layout.shapes[t][-1] for t in narrow})))
        wants = asked_for(narrow[0], kind, experts)
        notes.append(
            f"{len(narrow)} tensors are F16: their rows are no multiple of 32 long ({widths}), as {wants} wants"
        )
    if config.n_routed_experts and not config.n_shared_experts:
        notes.append("the model has no shared expert; the file has one of zeros, which llama.cpp wants")
    linear = config.linear_attn_config
    if linear is not None and linear.num_heads != config.num_attention_heads:
        few, many = sorted((linear.num_heads, config.num_attention_heads))
        notes.append(f"llama.cpp has one number of heads: layers of {few} have {many - few} of zeros behind them")
    if linear is not None and config.rms_norm_eps != 1e-6:
        notes.append(
            f"llama.cpp takes rms_norm_eps {config.rms_norm_eps:g} also for the lengths of KDA's queries and keys, "
            "where it is 1e-6: a difference in the sixth digit once trained, a visible one in untrained models"
        )
    scaling = config.rope_scaling
    if scaling is not None and scaling.type == "dynamic":
        notes.append(f"llama.cpp has no dynamic rope scaling: the context ends at {config.max_position_embeddings}")
    return notes
