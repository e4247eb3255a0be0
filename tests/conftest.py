"""What all tests share: one thread, no network, tiny models, and hypothesis drawing the same examples every time."""

from __future__ import annotations

import os
import sys

# Set before torch or transformers are first imported: tiny matrices are slower on several threads, and no test may
# look for anything outside the repository.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import settings

from moonlet.config import LinearAttention, ModelConfig


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest, which would else come last and keep one worker busy while the other has no work.

    The rest stays in order: a worker has whole files, so that what a file's tests share is made once.
    """
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


settings.register_profile("moonlet", deadline=None, derandomize=True, database=None, max_examples=40)
settings.load_profile("moonlet")

# Every width differs from every other, so that a mixed-up shape cannot pass unnoticed.
TINY: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": 28,
    "kv_lora_rank": 24,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 10,
    "intermediate_size": 56,
    "moe_intermediate_size": 18,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 3,
    "first_k_dense_replace": 1,
    "max_position_embeddings": 512,
    "routed_scaling_factor": 2.5,
    "initializer_range": 0.2,
    "dtype": "float32",
}
# What makes grouped-query attention of it; two heads of keys, and a width that the hidden size does not give.
GQA: dict[str, Any] = {"kv_lora_rank": None, "num_key_value_heads": 2, "head_dim": 14}
# Kimi Linear: three layers of KDA to one of MLA without position.
# What makes Kimi Linear of it: KDA with a dense layer and with experts, then MLA without position.
LINEAR: dict[str, Any] = {
    "q_lora_rank": None,
    "mla_use_nope": True,
    "linear_attn_config": LinearAttention(head_dim=6, num_heads=5, kda_layers=(1, 2), short_conv_kernel_size=3),
}
# The published pattern, three layers of KDA to one of attention.
HYBRID: dict[str, Any] = LINEAR | {"num_hidden_layers": 4, "linear_attn_config": LinearAttention(6, 3, (1, 2, 3))}


@pytest.fixture(scope="session", autouse=True)
def brisk() -> Iterator[None]:
    """No write waits for the disk, and no run draws its curve: together three quarters of the time of a tiny run.

    Processes that a test starts do both, as whoever types the command sees it.
    """
    with pytest.MonkeyPatch.context() as patch:
        # Only a power cut could tell; that the handle is open is still found out.
        patch.setattr(os, "fsync", lambda handle: os.fstat(handle) and None)
        if "moonlet.cli.job" in sys.modules:  # else nothing that was collected trains
            patch.setattr("moonlet.cli.job.draw_loss", lambda *facts: None)
        yield


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., ModelConfig]:
    """tiny_config(**changes): a configuration of three small layers."""

    def make(**changes: Any) -> ModelConfig:
        return ModelConfig(**(TINY | changes))

    return make


@pytest.fixture(scope="session")
def tiny_gqa(tiny_model: Callable[..., Any]) -> Callable[..., Any]:
    """tiny_gqa(**changes): as tiny_model, with grouped-query attention."""
    return lambda **changes: tiny_model(**(GQA | changes))


@pytest.fixture(scope="session")
def tiny_model(tiny_config: Callable[..., ModelConfig]) -> Callable[..., Any]:
    """tiny_model(**changes): a model in evaluation mode whose every parameter and bias is random, seeded by `seed`."""

    def make(seed: int = 0, **changes: Any) -> Any:
        import torch

        from moonlet.model.init import build

        model = build(tiny_config(**changes), seed=seed).eval()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, value in model.state_dict().items():
                if value.dim() == 1:
                    spread = 0.1 if name.endswith("e_score_correction_bias") else 0.3
                    value.add_(torch.randn(value.shape, generator=generator), alpha=spread)
        return model

    return make
