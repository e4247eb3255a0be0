"""The stress suite passes what is right, catches what is known to go wrong, and says what it was asked in one line."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from torch import Tensor

from moonlet.ops.delta import reference
from moonlet.ops.delta_stress import Case, cases, judge, law, main

Result = tuple[Tensor, Tensor]


def decays_after_the_read(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, *, scale: float, state: Tensor | None = None
) -> Result:
    """The old state recalls, and then decays."""
    S = torch.zeros(*k.shape[:1], *k.shape[2:], v.shape[-1]) if state is None else state
    out = []
    for t in range(q.shape[1]):
        error = v[:, t] - torch.einsum("bhkv,bhk->bhv", S, k[:, t])
        S = S * g[:, t, :, :, None].exp() + (beta[:, t, :, None] * k[:, t])[..., None] * error[..., None, :]
        out.append(torch.einsum("bhkv,bhk->bhv", S, q[:, t] * scale))
    return torch.stack(out, 1), S


def forgets_beta(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, *, scale: float, state: Tensor | None = None
) -> Result:
    return reference(q, k, v, g, beta * 0 + 1, scale, state)


def divides_by_the_whole_chunks_decay(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, *, scale: float, state: Tensor | None = None
) -> Result:
    """The chunked form with all tokens in one chunk and e^(-G) over all of it: right until it overflows."""
    q, k, v, g, beta = (x.transpose(1, 2) for x in (q, k, v, g, beta))
    S = torch.zeros(*k.shape[:2], k.shape[-1], v.shape[-1]) if state is None else state
    G = g.cumsum(2)
    x, y, w = k * G.exp(), q * G.exp() * scale, beta[..., None] * k * (-G).exp()
    seen = (x @ w.mT).tril(-1) + torch.eye(k.shape[2])
    E = torch.linalg.solve_triangular(seen, v - x @ S, upper=False)
    o = y @ S + (y @ w.mT).tril() @ E
    return o.transpose(1, 2), G[:, :, -1, :, None].exp() * (S + w.mT @ E)


def loses_gradients_of_the_state(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, *, scale: float, state: Tensor | None = None
) -> Result:
    return reference(q, k, v, g, beta, scale, None if state is None else state.detach())


def reads_what_nobody_wrote(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, *, scale: float, state: Tensor | None = None
) -> Result:
    o, S = reference(q, k, v, g, beta, scale, state)
    return o + 0 * torch.empty(o.shape), S


def writes_to_its_inputs(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, *, scale: float, state: Tensor | None = None
) -> Result:
    found = reference(q, k, v, g, beta, scale, state)
    if state is not None:
        state.data.copy_(found[1].detach())
    return found


def follows_documents_by_their_number(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    *,
    scale: float,
    state: Tensor | None = None,
    documents: Tensor | None = None,
) -> Result:
    """A document that comes again goes on where it was."""
    if documents is None:
        return reference(q, k, v, g, beta, scale, state)
    return reference(q, k, v, g, beta, scale, state, documents.sort(1).values)


WRONG = [
    (decays_after_the_read, "17 tokens"),
    (forgets_beta, "17 tokens"),
    (divides_by_the_whole_chunks_decay, "decay e^-80 a tile"),
    (loses_gradients_of_the_state, "17 tokens"),
    (reads_what_nobody_wrote, "17 tokens"),
    (writes_to_its_inputs, "17 tokens"),
    (follows_documents_by_their_number, "documents, coming again"),
]


def case_called(name: str) -> Case:
    (found,) = (case for case in cases() if case.name == name)
    return found


@pytest.mark.parametrize(("rule", "name"), WRONG, ids=lambda x: x if isinstance(x, str) else x.__name__)
def test_what_is_known_to_go_wrong_is_caught(rule: object, name: str) -> None:
    case = case_called(name)
    assert not judge(rule, case, law(case)).passed()  # type: ignore[arg-type]


def test_a_chunk_that_does_not_overflow_is_right() -> None:
    # What is caught above is its overflow, not the form.
    case = case_called("identical keys, decay")
    assert judge(divides_by_the_whole_chunks_decay, case, law(case)).passed(1e-4)


def test_the_recurrence_itself_passes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--against", "reference", "--case", "17 tokens"]) == 0
    assert "passed" in capsys.readouterr().out


def test_a_failure_is_an_exit_code_and_a_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = ModuleType("theirs")
    theirs.rule = forgets_beta  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "theirs", theirs)
    arguments = ["--against", "theirs:rule", "--no-documents", "--no-gradients", "--dtype", "float32", "--case", "beta"]
    assert main(arguments) == 1
    out = capsys.readouterr().out
    assert "FAIL" in out
    assert "documents" not in out
    lines = {line.split("│")[1].strip(): line for line in out.splitlines() if line.startswith("│")}
    assert "pass" in lines["beta 1.0"]
    assert "FAIL" in lines["beta 0.0"]


def test_chunk_sizes_are_asked_for_where_a_function_takes_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--case", "15 tokens, no state"]) == 0
    rows = [line.split("│")[2].strip() for line in capsys.readouterr().out.splitlines() if "15 tokens" in line]
    assert rows == ["16", "32", "64"]
    assert main(["--case", "15 tokens, no state", "--chunk", "32"]) == 0
    assert capsys.readouterr().out.count("15 tokens") == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--against", "nothing"], "neither module:function nor one of moonlet's own (chunked"),
        (["--against", "nothing.there:rule"], "cannot import nothing.there"),
        (["--against", "moonlet.ops.delta:nothing"], "has no function nothing"),
        (["--case", "no such case"], "no case is called"),
        (["--device", "nowhere"], "nowhere"),
    ],
)
def test_what_cannot_run_is_told_in_one_line(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
