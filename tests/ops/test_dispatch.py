"""One place decides which implementation runs, and it can be told."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from moonlet.ops import attention as _attention  # noqa: F401  registers
from moonlet.ops import dispatch
from moonlet.ops import experts as _experts  # noqa: F401
from moonlet.ops import loss as _loss  # noqa: F401
from moonlet.ops.dispatch import force, implementation, names, register


def test_every_op_has_a_law_and_something_faster() -> None:
    for op in ("attention", "experts", "cross_entropy"):
        assert "reference" in names(op)
        assert len(names(op)) > 1


def test_force_overrides_the_choice_inside_its_block_only() -> None:
    law, other = implementation("attention", "reference"), implementation("attention", "sdpa")
    with force("attention", "reference"):
        assert implementation("attention", "sdpa") is law
        with force("attention", "sdpa"):
            assert implementation("attention", "reference") is other
        assert implementation("attention", "sdpa") is law
        assert implementation("experts", "sorted") is not law
    assert implementation("attention", "sdpa") is other


def test_force_ends_with_an_exception() -> None:
    with pytest.raises(RuntimeError), force("attention", "reference"):
        raise RuntimeError
    assert implementation("attention", "sdpa") is not implementation("attention", "reference")


def test_an_unknown_name_is_an_error_naming_the_valid_ones() -> None:
    message = "op 'attention' has no implementation 'flash9'; valid: .*reference"
    with pytest.raises(ValueError, match=message), force("attention", "flash9"):
        pass
    with pytest.raises(ValueError, match="valid: none"), force("novel", "reference"):
        pass


def test_a_registered_function_is_found() -> None:
    @register("test_dispatch", "reference")
    def law() -> int:
        return 1

    assert implementation("test_dispatch", "reference") is law
    assert names("test_dispatch") == ["reference"]


@pytest.mark.parametrize(
    ("value", "chosen"),
    [("attention=reference, experts=few", "reference few"), ("", "sdpa sorted"), ("attention=flash9", "ValueError")],
)
def test_the_environment_can_force(value: str, chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOONLET_OPS", value)
    monkeypatch.setattr(dispatch, "_forced", {})
    dispatch._read_environment()
    if chosen == "ValueError":
        with pytest.raises(ValueError, match=r"flash9.*valid:"):
            implementation("attention", "sdpa")
        return
    found = {"attention": implementation("attention", "sdpa"), "experts": implementation("experts", "sorted")}
    monkeypatch.setattr(dispatch, "_forced", {})
    assert found == {op: implementation(op, name) for op, name in zip(found, chosen.split(), strict=True)}


def test_the_environment_is_read_at_import() -> None:
    code = "from moonlet.ops import dispatch; print(dispatch._forced)"
    environment = os.environ | {"MOONLET_OPS": "attention=reference, experts=few"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == "{'attention': 'reference', 'experts': 'few'}"


def test_forcing_the_law_everywhere_changes_no_result() -> None:
    from moonlet.model.init import build

    model = build("k2-nano", seed=1)
    tokens = torch.randint(4096, (2, 33), generator=torch.Generator().manual_seed(0))
    fast = model.loss(tokens[:, :-1], tokens[:, 1:])
    with force("attention", "reference"), force("experts", "reference"), force("cross_entropy", "reference"):
        law = model.loss(tokens[:, :-1], tokens[:, 1:])
    assert fast.item() == pytest.approx(law.item(), rel=1e-6)


def test_uninitialised_memory_is_poisoned_here() -> None:
    assert torch.empty(8).isnan().all()  # see conftest.py
