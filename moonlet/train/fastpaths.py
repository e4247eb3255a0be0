"""Which implementation each operation will take on this machine, and why: asked of the choosers themselves."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from torch import Tensor

from moonlet.ops import attention, delta, experts, fla, flash
from moonlet.ops.dispatch import chosen
from moonlet.ops.native import every_kernel, library, why_not
from moonlet.train.compile import describe_auto
from moonlet.train.packages import installed
from moonlet.train.precision import choose_precision

_LENGTHS = (256, 512, 2048)
_WHY = {
    "native": "a C++ kernel: nothing hidden is computed, no logit reaches memory",
    "products": "cheaper while [T, S] is small",
    "blocks": "some queries at a time, never holds [T, S]",
    "sdpa": "PyTorch's fused kernel, never holds [T, S]",
    "flash": "the flash_attn package",
    "grouped": "one product for heads that share keys",
    "reference": "the plain form",
    "few": "only chosen experts are read",
    "chunked": "KDA in products of chunks, not a step a token",
    "fla": "KDA by the flash-linear-attention package",
    "sorted": "tokens sorted once, a product an expert",
}
_WHY_EXPERTS = {
    "native": "sorted, with C++ passes between the products",
    "grouped_mm": "one product for all experts",
}


@dataclass(frozen=True)
class FastPath:
    """One choice."""

    what: str
    choice: str
    why: str


def fast_paths(device: torch.device, dtype: str = "auto") -> list[FastPath]:
    """What training and decoding on `device` will use; "auto" probes the dtype, as training does."""
    precision = choose_precision(dtype, device)
    resolved = precision.dtype
    return [
        FastPath("compute dtype", precision.name, precision.why),
        *_attention_paths(device, resolved),
        *_expert_paths(device, resolved),
        *_delta_paths(device, resolved),
        _step_path(device),
        _flash_path(device),
        _fla_path(device),
        *_native_paths(device),
        FastPath("torch.compile", *describe_auto(device)),
        *_forced(),
    ]


def _attention_paths(device: torch.device, dtype: torch.dtype) -> list[FastPath]:
    def asked(queries: int, keys: int, heads: int, widths: tuple[int, int]) -> str:
        q = torch.empty(1, 4, queries, widths[0], device=device, dtype=dtype)
        k = torch.empty(1, heads, keys, widths[0], device=device, dtype=dtype)
        v = torch.empty(1, heads, keys, widths[1], device=device, dtype=dtype)
        return chosen("attention", attention.choose(q, k, v, keys - queries))

    by_choice: dict[str, list[str]] = {}
    for length in _LENGTHS:
        by_choice.setdefault(asked(length, length, 4, (48, 32)), []).append(f"{length:,}")
    paths = [
        FastPath(f"attention at {', '.join(lengths)}", choice, _WHY.get(choice, ""))
        for choice, lengths in by_choice.items()
    ]
    decode = asked(1, 512, 1, (80, 64))
    return [*paths, FastPath("attention decoding", decode, _WHY.get(decode, ""))]


def _expert_paths(device: torch.device, dtype: torch.dtype) -> list[FastPath]:
    def asked(tokens: int, learns: bool) -> str:
        x = torch.empty(tokens, 8, device=device, dtype=dtype, requires_grad=learns)
        index = torch.zeros(tokens, 2, dtype=torch.int64, device=device)
        weights: Tensor = torch.empty(4, 16, 8, device=device, dtype=dtype)
        return chosen("experts", experts.choose(x, weights, index))

    training, decode = asked(4096, True), asked(1, False)
    return [
        FastPath("experts training", training, _WHY_EXPERTS.get(training, _WHY.get(training, ""))),
        FastPath("experts decoding", decode, _WHY.get(decode, "")),
    ]


def _flash_path(device: torch.device) -> FastPath:
    if device.type != "cuda":
        return FastPath("flash-attention", "off", "it runs on NVIDIA GPUs only")
    if flash.package() is None:
        why = "installed, but made for another torch" if installed("flash-attn") else "pip install flash-attn"
        return FastPath("flash-attention", "off", why)
    return FastPath("flash-attention", "on", "for bf16 and fp16, heads up to 256 wide")


def _delta_paths(device: torch.device, dtype: torch.dtype) -> list[FastPath]:
    q = torch.empty(1, 512, 1, 16, device=device, dtype=dtype)
    choice = chosen("delta_rule", delta.choose(q, q, q.to(torch.float32), None))
    why = "a C++ kernel: KDA in chunks that stay in the cache" if choice == "native" else _WHY.get(choice, "")
    return [FastPath("delta rule", choice, why)]


def _step_path(device: torch.device) -> FastPath:
    if "decode_step=plain" in os.environ.get("MOONLET_OPS", ""):
        return FastPath("decode step", "plain", "PyTorch: asked for by MOONLET_OPS")
    if device.type != "cpu":
        return FastPath("decode step", "plain", "PyTorch: the native one runs on CPUs only")
    if library("decode") is None:
        return FastPath("decode step", "plain", f"PyTorch: {why_not('decode')}")
    return FastPath("decode step", "native", "one call of C++ a token, fp32 and bf16")


def _fla_path(device: torch.device) -> FastPath:
    name = "flash-linear-attention"
    if device.type != "cuda":
        return FastPath(name, "off", "it runs on NVIDIA GPUs only")
    if fla.kernel() is None:
        return FastPath(
            name, "off", "installed, but it does not load here" if installed(name) else f"pip install {name}"
        )
    return FastPath(name, "on", "for KDA in bf16 and fp16, heads up to 256 wide")


def _native_paths(device: torch.device) -> list[FastPath]:
    if device.type != "cpu":
        return []  # what the host computes hardly matters then
    by_reason: dict[str, list[str]] = {}
    for name, why in every_kernel().items():
        by_reason.setdefault(why, []).append(name)
    built = by_reason.pop("", None)
    paths = [FastPath("native kernels", ", ".join(built), "compiled for this processor")] if built else []
    return paths + [FastPath("native kernels", "off", f"{', '.join(n)}: {why}") for why, n in by_reason.items()]


def _forced() -> list[FastPath]:
    forced = os.environ.get("MOONLET_OPS", "")
    return [FastPath("forced", forced, "by the environment, MOONLET_OPS")] if forced else []
