"""The delta rule by fla: what is handed to it and what is made of its answer, with a stand-in that computes the law."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from moonlet.ops import fla
from moonlet.ops.delta import choose, delta_rule, reference
from moonlet.ops.delta_stress import Case, draw, judge, law
from moonlet.ops.dispatch import force

CASES = [
    Case("plain", 33),
    Case("no state", 33, state=False),
    Case("scale", 17, scale=0.7),
    Case("documents", 70, documents="random", shape=(1, 2, 8, 6)),
    Case("documents, no state", 70, documents="random", state=False, shape=(1, 2, 8, 6)),
]


class Calls:
    """The stand-in for `chunk_kda`, with the arguments the package documents; states are [sequences, H, K, V]."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    def now(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        g: Tensor,
        beta: Tensor,
        scale: float | None = None,
        initial_state: Tensor | None = None,
        output_final_state: bool = False,
        use_qk_l2norm_in_kernel: bool = False,
        use_gate_in_kernel: bool = False,
        state_v_first: bool = True,
        cu_seqlens: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        assert not state_v_first
        return self.before(q, k, v, g, beta, scale, initial_state, output_final_state, cu_seqlens=cu_seqlens)

    def before(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        g: Tensor,
        beta: Tensor,
        scale: float | None = None,
        initial_state: Tensor | None = None,
        output_final_state: bool = False,
        cu_seqlens: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """As it was before the layout of states could be asked for."""
        assert not kwargs
        assert output_final_state
        assert scale is not None
        self.seen.append({"cu_seqlens": cu_seqlens})
        if cu_seqlens is None:
            return reference(q, k, v, g, beta, scale, initial_state)
        assert len(q) == 1
        ends = cu_seqlens.tolist()
        assert initial_state is None or len(initial_state) == len(ends) - 1
        parts = [
            reference(*(x[:, a:b] for x in (q, k, v, g, beta)), scale, None if initial_state is None else S[None])
            for (a, b), S in zip(
                itertools.pairwise(ends), ends[1:] if initial_state is None else initial_state, strict=True
            )
        ]
        return torch.cat([o for o, _ in parts], 1), torch.cat([S for _, S in parts])


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    return Calls()


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    fla.kernel.cache_clear()
    yield
    fla.kernel.cache_clear()


@pytest.mark.parametrize("version", ["now", "before"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_equals_the_law(monkeypatch: pytest.MonkeyPatch, calls: Calls, case: Case, version: str) -> None:
    monkeypatch.setattr(fla, "kernel", lambda name="chunk_kda": getattr(calls, version))
    outcome = judge(fla.fla, case, law(case))
    assert outcome.passed(), outcome
    assert (calls.seen[0]["cu_seqlens"] is not None) == bool(case.documents)


def test_short_calls_without_gradients_take_its_recurrence(monkeypatch: pytest.MonkeyPatch, calls: Calls) -> None:
    asked: list[str] = []

    def kernel(name: str = "chunk_kda") -> Any:
        asked.append(name)
        return None if len(asked) > 2 and "recurrent" in name else calls.now

    monkeypatch.setattr(fla, "kernel", kernel)
    inputs = draw(CASES[0])
    inputs.call(fla.fla, inputs.tensors)
    with torch.no_grad():
        inputs.call(fla.fla, inputs.tensors)
        inputs.call(fla.fla, inputs.tensors)  # a version without the recurrence
    assert asked == ["chunk_kda", "fused_recurrent_kda", "fused_recurrent_kda", "chunk_kda"]


def test_borders_are_where_the_number_changes() -> None:
    assert fla.borders(torch.tensor([[3, 3, 1, 1, 3]])).tolist() == [0, 2, 4, 5]


def on_gpu(dtype: torch.dtype, rows: int = 2, width: int = 128) -> Any:
    """As much of a tensor on a GPU as the choice looks at."""
    return SimpleNamespace(shape=(rows, 64, 4, width), dtype=dtype, is_cuda=True)


@pytest.mark.parametrize(
    ("choice", "q", "documents"),
    [
        ("fla", on_gpu(torch.bfloat16), None),
        ("fla", on_gpu(torch.float16, rows=1), torch.zeros(1, 64)),
        ("chunked", on_gpu(torch.bfloat16), torch.zeros(2, 64)),  # documents in several rows
        ("chunked", on_gpu(torch.float32), None),  # it rounds its factors
        ("chunked", on_gpu(torch.bfloat16, width=512), None),  # too wide
    ],
)
def test_it_is_chosen_on_a_gpu_where_it_fits(
    monkeypatch: pytest.MonkeyPatch, calls: Calls, choice: str, q: Any, documents: Tensor | None
) -> None:
    monkeypatch.setattr(fla, "kernel", lambda name="chunk_kda": calls.now)
    assert choose(q, q, on_gpu(torch.float32), documents) == choice
    monkeypatch.setattr(fla, "kernel", lambda name="chunk_kda": None)
    assert choose(q, q, on_gpu(torch.float32), documents) == "chunked"


def test_its_presence_changes_nothing_on_a_cpu(tmp_path: Path) -> None:
    # A package that fails at import, found before any other: it is not even imported.
    (tmp_path / "fla").mkdir()
    (tmp_path / "fla" / "__init__.py").write_text("raise SystemExit('imported')\n")
    program = (
        "import sys, torch; sys.path.insert(0, sys.argv[1])\n"
        "from moonlet.ops.delta import delta_rule\n"
        "from moonlet.ops.fla import available\n"
        "x = torch.rand(1, 40, 2, 8)\n"
        "delta_rule(x.bfloat16(), x.bfloat16(), x.bfloat16(), -x, x[..., 0])\n"
        "print(available())\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    if not torch.cuda.is_available():
        assert done.stdout.strip() == "no CUDA device"


def test_a_broken_package_on_a_gpu_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for broken in (None, ModuleType("fla")):  # None: the import fails
        monkeypatch.setitem(sys.modules, "fla", broken)  # type: ignore[arg-type]
        fla.kernel.cache_clear()
        assert fla.kernel() is None
        assert "pip install flash-linear-attention" in str(fla.available())


def test_forced_without_the_package_says_what_is_missing() -> None:
    inputs = draw(CASES[0])
    if not torch.cuda.is_available():
        with force("delta_rule", "fla"), pytest.raises(ValueError, match="no CUDA device"):
            inputs.call(delta_rule, inputs.tensors)
