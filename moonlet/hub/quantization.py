"""A config.json's `quantization_config`: which weights are stored in fewer bits, and how. No torch.

| who | quant_method, format | which weights |
|---|---|---|
| Kimi-K2, DeepSeek-V3 | `fp8`, blocks of 128 x 128 | every linear one but the head; routers are none |
| K2-Thinking, K2.5 | `compressed-tensors`, `pack-quantized` | `targets` without `ignore`: the routed experts, INT4 |
| K3 | `compressed-tensors`, `mxfp4-pack-quantized` | the same, MXFP4 |

and what the weight [out, in] of the module M is stored as:

| scheme | tensors |
|---|---|
| fp8 | `M.weight` F8_E4M3 [out, in], `M.weight_scale_inv` F32 [ceil(out/128), ceil(in/128)] |
| int4 | `M.weight_packed` I32 [out, ceil(in/8)], `M.weight_scale` BF16 [out, ceil(in/32)], `M.weight_shape` I64 [2] |
| mxfp4 | `M.weight_packed` U8 [out, ceil(in/2)], `M.weight_scale` U8 [out, ceil(in/32)] |

What is quantised besides weights (activations, on the fly) is not computed so here, and loses nothing by it. A setting
that would change what the tensors mean is refused, never passed over.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from moonlet.config.nearest import unknown
from moonlet.config.wrapper import PREFIX

Scheme = Literal["fp8", "int4", "mxfp4"]
SCHEMES: tuple[Scheme, ...] = get_args(Scheme)
BLOCK = 128
GROUP = 32

_FORMATS: dict[str, Scheme] = {"pack-quantized": "int4", "mxfp4-pack-quantized": "mxfp4"}
_FORMAT_OF = {scheme: name for name, scheme in _FORMATS.items()}

# Modules of the family that are linear layers. A router is none, in no published code, nor is a convolution.
_LINEAR = re.compile(r"(?:.*\.)?(?:\w+_proj|kv_a_proj_with_mqa|w[123])$")
_HEAD = re.compile(r"(?:.*\.)?lm_head$")
# As Kimi-K2-Thinking publishes it: of all linear layers the routed experts are left.
_IGNORED = ("lm_head", "re:.*self_attn.*", "re:.*shared_experts.*", r"re:.*mlp\.(gate|up|gate_up|down)_proj.*")

# Each key a table may have, and its values; an empty tuple takes any.
_Valid = Mapping[str, tuple[Any, ...]]
_NOTHING: tuple[Any, ...] = (None, {}, [])
_FP8_KEYS: _Valid = {
    "quant_method": ("fp8",), "fmt": ("e4m3", "float8_e4m3fn"), "activation_scheme": ("dynamic",),
    "weight_block_size": ([BLOCK, BLOCK],), "scale_fmt": (None, "float", "ue8m0"), "expert_dtype": (None, "fp8"),
    "modules_to_not_convert": (), "ignored_layers": (), "modules_to_convert": _NOTHING, "dequantize": (True, False),
}  # fmt: skip
_PACKED_KEYS: _Valid = {
    "quant_method": ("compressed-tensors",), "format": tuple(_FORMATS),
    "quantization_status": ("compressed", None), "kv_cache_scheme": _NOTHING, "sparsity_config": _NOTHING,
    "transform_config": _NOTHING, "config_groups": (), "ignore": (), "global_compression_ratio": (), "version": (),
    "run_compressed": (), "dequantize": (), "use_optimized_inference": (),
}  # fmt: skip
_GROUP_KEYS: _Valid = {
    "targets": (), "weights": (), "input_activations": (), "output_activations": _NOTHING,
    "format": (None, *_FORMATS),
}  # fmt: skip
_OBSERVING: _Valid = {"observer": (), "observer_kwargs": (), "zp_dtype": ()}
_WEIGHT_KEYS: dict[Scheme, _Valid] = {
    "int4": {
        "num_bits": (4,), "type": ("int",), "symmetric": (True,), "strategy": ("group",), "group_size": (32, 64, 128),
        "dynamic": (False,), "actorder": (None, "weight", "static"), "block_structure": (None,),
        "scale_dtype": (None, "torch.bfloat16", "torch.float16", "torch.float32"), **_OBSERVING,
    },
    "mxfp4": {
        "num_bits": (4,), "type": ("float",), "symmetric": (True,), "strategy": ("group",), "group_size": (GROUP,),
        "dynamic": (False,), "actorder": (None,), "block_structure": (None,), "scale_dtype": (None, "torch.uint8"),
        **_OBSERVING,
    },
}  # fmt: skip
_NEEDED = ("num_bits", "type", "strategy", "group_size")
# More would be no pattern for names, and take longer than a reader waits.
_MAX_PATTERN, _MAX_REPEATS = 300, 4


class Part(NamedTuple):
    """One tensor on disk: the dtypes it may have, in safetensors' words, the one that is written first; its shape."""

    dtypes: tuple[str, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Quantization:
    """How a checkpoint's weights are stored.

    method: the scheme of those that are stored in fewer bits; None: there are none.
    targets: classes ("Linear"), names, or `re:` and a pattern that a name begins with, of modules that may be.
    ignored: of modules that are not, in the same words.
    group_size: inputs that share a scale, in INT4 and MXFP4.
    """

    method: Scheme | None = None
    targets: tuple[str, ...] = ("Linear",)
    ignored: tuple[str, ...] = ()
    group_size: int = GROUP

    @classmethod
    def from_config(cls, data: Mapping[str, Any] | None) -> Quantization:
        """Read a `quantization_config`; None is a checkpoint without.

        Raises:
            ValueError: a method, a format or a setting that is not known here; one line with what is valid.
        """
        if data is None:
            return cls()
        if not isinstance(data, Mapping):
            raise ValueError(f"quantization_config is {data!r:.80}; it must be a table")
        method = data.get("quant_method")
        if method == "fp8":
            _check("quantization_config", data, _FP8_KEYS, ("weight_block_size",))
            left = [*_texts(data, "modules_to_not_convert"), *_texts(data, "ignored_layers")]
            return cls("fp8", ("Linear",), ("lm_head", *left))
        if method == "compressed-tensors":
            return _packed(data)
        raise ValueError(f"quantization_config.quant_method is {method!r:.80}; valid: 'fp8', 'compressed-tensors'")

    @classmethod
    def of(cls, method: Scheme | None) -> Quantization:
        """What is written where a model is to be stored so: as the family's own checkpoints."""
        if method is None:
            return cls()
        return cls(method, ("Linear",), ("lm_head",) if method == "fp8" else _IGNORED)

    def to_config(self) -> dict[str, Any] | None:
        """The `quantization_config` that says this; None where nothing is quantised."""
        if self.method is None:
            return None
        if self.method == "fp8":
            config: dict[str, Any] = {
                "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
                "weight_block_size": [BLOCK, BLOCK],
            }  # fmt: skip
            left = [name for name in self.ignored if name != "lm_head"]
            return config | ({"modules_to_not_convert": left} if left else {})
        int4 = self.method == "int4"
        weights: dict[str, Any] = {
            "num_bits": 4, "type": "int" if int4 else "float", "symmetric": True, "strategy": "group",
            "group_size": self.group_size, "dynamic": False, "observer": "minmax", "observer_kwargs": {},
            "actorder": None, "block_structure": None,
        } | ({} if int4 else {"scale_dtype": "torch.uint8", "zp_dtype": "torch.uint8"})  # fmt: skip
        group = {
            "targets": list(self.targets), "weights": weights, "input_activations": None, "output_activations": None,
        }  # fmt: skip
        return {
            "quant_method": "compressed-tensors", "format": _FORMAT_OF[self.method],
            "quantization_status": "compressed", "kv_cache_scheme": None, "config_groups": {"group_0": group},
            "ignore": list(self.ignored),
        }  # fmt: skip

    def scheme(self, name: str) -> Scheme | None:
        """How the weight of the module `name` (without `.weight`) is stored; None: in the dtype that it has."""
        if self.method is None or not (_LINEAR.match(name) or _HEAD.match(name)):
            return None
        # Within a multimodal model the same names stand behind a prefix, and patterns may count on either.
        names = {name, name.removeprefix(PREFIX), PREFIX + name.removeprefix(PREFIX)}
        if any(_matches(pattern, names, self.method) for pattern in self.ignored):
            return None
        return self.method if any(_matches(pattern, names, self.method) for pattern in self.targets) else None

    def parts(self, name: str, shape: tuple[int, ...]) -> dict[str, Part]:
        """The tensors that hold the weight [out, in] of the module `name`, by their names on disk."""
        method = self.scheme(name) if len(shape) == 2 else None
        if method is None:
            return {f"{name}.weight": Part(("BF16", "F32", "F16", "F64"), shape)}
        rows, width = shape
        if method == "fp8":
            blocks = (-(-rows // BLOCK), -(-width // BLOCK))
            found = {"weight": Part(("F8_E4M3",), shape), "weight_scale_inv": Part(("F32", "BF16"), blocks)}
        elif method == "int4":
            found = {
                "weight_packed": Part(("I32",), (rows, -(-width // 8))),
                "weight_scale": Part(("BF16", "F16", "F32"), (rows, -(-width // self.group_size))),
                "weight_shape": Part(("I64", "I32"), (2,)),
            }
        else:
            found = {
                "weight_packed": Part(("U8",), (rows, -(-width // 2))),
                "weight_scale": Part(("U8", "F8_E8M0"), (rows, -(-width // self.group_size))),
            }
        return {f"{name}.{part}": about for part, about in found.items()}


def _packed(data: Mapping[str, Any]) -> Quantization:
    """Read compressed-tensors' table."""
    _check("quantization_config", data, _PACKED_KEYS, ("format", "config_groups"))
    method = _FORMATS[data["format"]]
    groups = data["config_groups"]
    if not isinstance(groups, Mapping) or not groups:
        raise ValueError(f"quantization_config.config_groups is {groups!r:.80}; it must be a table of groups")
    targets: list[str] = []
    sizes: set[int] = set()
    for key, group in groups.items():
        where = f"config_groups.{key!s:.40}"
        if not isinstance(group, Mapping) or not isinstance(group.get("weights"), Mapping):
            raise ValueError(f"{where} is {group!r:.80}; it must be a table with targets and weights")
        _check(where, group, _GROUP_KEYS, ("targets",))
        if group.get("format") not in (None, data["format"]):
            raise ValueError(f"{where}.format is {group['format']!r}; valid here: {data['format']!r}, as of the whole")
        _check(f"{where}.weights", group["weights"], _WEIGHT_KEYS[method], _NEEDED)
        activations = group.get("input_activations")
        if activations and not (isinstance(activations, Mapping) and activations.get("dynamic") is True):
            raise ValueError(f"{where}.input_activations is {activations!r:.80}; valid: null, or with dynamic true")
        sizes.add(group["weights"]["group_size"])
        targets += _texts(group, "targets")
    if len(sizes) > 1:
        raise ValueError(f"config_groups have group_size {' and '.join(map(str, sorted(sizes)))}; they must agree")
    ignored = _texts(data, "ignore")
    for pattern in (*targets, *ignored):
        _check_pattern(pattern)
    for target in targets:
        if target != "Linear" and not target.startswith("re:") and "." not in target:
            raise ValueError(
                f"config_groups has target {target!r:.80}; valid: 'Linear', a module's name, 're:' patterns"
            )
    return Quantization(method, tuple(targets), tuple(ignored), sizes.pop())


def _check(where: str, data: Mapping[str, Any], valid: _Valid, needed: Collection[str]) -> None:
    """Refuse unknown keys that say something, values that are not valid, and what is missing."""
    for key, value in data.items():
        if key not in valid:
            if value not in _NOTHING:
                raise unknown(f"key of {where}", str(key)[:80], list(valid))
        elif valid[key] and not any(type(value) is type(v) and value == v for v in valid[key]):
            raise ValueError(f"{where}.{key} is {value!r:.80}; valid: {', '.join(map(repr, valid[key]))}")
    for key in needed:
        if key not in data:
            allowed = f"; valid: {', '.join(map(repr, valid[key]))}" if valid[key] else ""
            raise ValueError(f"{where}.{key} is missing{allowed}")


def _texts(data: Mapping[str, Any], key: str) -> list[str]:
    value = data.get(key) or []
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ValueError(f"quantization_config: {key} is {value!r:.80}; it must be a list of texts")
    return value


def _matches(pattern: str, names: Collection[str], method: Scheme) -> bool:
    """Whether an entry of `targets` or `ignore` means the linear layer that has one of these `names`."""
    if pattern == "Linear":
        return True
    if pattern.startswith("re:"):
        return any(re.match(pattern[3:], name) is not None for name in names)
    if method == "fp8":
        # Those lists name whole subtrees, or only how a name ends.
        return any(name == pattern or name.startswith(f"{pattern}.") or name.endswith(f".{pattern}") for name in names)
    return pattern in names


def _check_pattern(pattern: str) -> None:
    """Refuse a pattern that is none, or could keep a reader busy for hours: repeats of repeats, or many of them.

    What is repeated may be a character or a class, as in every published checkpoint, and no bracketed part.
    """
    if not pattern.startswith("re:"):
        return
    expression = pattern[3:]
    plain = re.sub(r"\[\^?\]?(?:\\.|[^\]\\])*\]", "c", re.sub(r"\\.", "c", expression))
    repeats = len(re.findall(r"[*+{?]", plain.replace("(?", "(")))
    try:
        compiled = re.compile(expression) if len(expression) <= _MAX_PATTERN else None
    except (re.error, RecursionError, OverflowError):
        compiled = None
    if compiled is None or repeats > _MAX_REPEATS or re.search(r"\)[*+{]", plain) or re.search(r"\\\d", expression):
        raise ValueError(
            f"quantization_config has the pattern {pattern!r:.80}; valid: a regular expression of at most "
            f"{_MAX_PATTERN} characters with at most {_MAX_REPEATS} repeats, of single characters"
        )
