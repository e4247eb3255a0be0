"""Packed experts on disk: every published tensor is a view of the buffers, and all of them together are all bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from moonlet.hub.names import layout_of
from moonlet.hub.packed import split_packed, weight_shapes
from moonlet.model.model import CausalLM
from moonlet.model.packed import pack_experts
from moonlet.ops.low_bit_codes import SCHEMES, Packed, Scheme
from tests.conftest import LINEAR

Make = Callable[..., CausalLM]
SUFFIXES = {
    "int4": ("weight_packed", "weight_scale"),
    "mxfp4": ("weight_packed", "weight_scale"),
    "fp8": ("weight", "weight_scale_inv"),
}
FAMILIES: dict[str, tuple[dict[str, Any], str, tuple[str, str, str]]] = {
    "k2": ({}, "mlp", ("gate_proj", "up_proj", "down_proj")),
    "kimi linear": (LINEAR, "block_sparse_moe", ("w1", "w3", "w2")),
}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("changes", "mixture", "matrices"), FAMILIES.values(), ids=FAMILIES)
def test_each_experts_matrix_has_its_published_tensors(
    tiny_model: Make, scheme: Scheme, changes: dict[str, Any], mixture: str, matrices: tuple[str, str, str]
) -> None:
    model = pack_experts(tiny_model(**changes, moe_intermediate_size=35), scheme)
    layout, state = layout_of(model.config), model.state_dict()
    parts = {disk: part for name, value in state.items() for disk, part in split_packed(layout, name, value)}
    experts = model.model.layers[1].mlp.experts
    codes, scale = SUFFIXES[scheme]
    for e in range(8):
        stacks = (experts.gate_up[e][0], experts.gate_up[e][1], experts.down[e])
        for matrix, packed in zip(matrices, stacks, strict=True):
            name = f"model.layers.1.{mixture}.experts.{e}.{matrix}."
            found = Packed(scheme, parts.pop(name + codes), parts.pop(name + scale), packed.width)
            assert torch.equal(found.dequantize(), packed.dequantize())
            assert found.codes.data_ptr() == packed.codes.data_ptr()  # a view, to be read into
            assert found.scale.data_ptr() == packed.scale.data_ptr()
    assert not any("layers.1" in name and ".experts." in name for name in parts)
    assert {n for n in parts if ".experts." not in n} == {
        disk for name, value in state.items() if ".experts." not in name for disk, _ in layout.split(name, value)
    }


def test_int4_says_its_shapes_besides(tiny_model: Make) -> None:
    model = pack_experts(tiny_model(moe_intermediate_size=35))
    shapes = weight_shapes(layout_of(model.config), model)
    assert len(shapes) == 2 * 8 * 3
    prefix = "model.layers.2.mlp.experts.7."
    assert shapes[f"{prefix}up_proj.weight_shape"].tolist() == [35, 40]
    assert shapes[f"{prefix}down_proj.weight_shape"].tolist() == [40, 35]
    assert shapes[f"{prefix}down_proj.weight_shape"].dtype == torch.int64
    assert weight_shapes(layout_of(model.config), pack_experts(tiny_model(), "mxfp4")) == {}
