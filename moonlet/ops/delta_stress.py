"""A stress suite for the gated delta rule: hand it an implementation, and it tells where it leaves the recurrence.

    python -m moonlet.ops.delta_stress [--against module:function] [--no-documents] [--no-gradients] [--dtype float32]

The function has the signature of `moonlet.ops.delta.delta_rule`, (q, k, v, g, beta, *, scale, state, documents) ->
(o, state), axes [B, T, H, ...]; state and documents are given only where a case has them. moonlet's own go by their
names (`chunked`, `reference`). One that takes a keyword `chunk` runs with chunks of 16, 32 and 64 tokens. Every case
runs the function and, in fp64 from the same rounded numbers, the recurrence, while fresh memory holds NaN, and compares
the output, the last state and the gradients of a loss on both.

An error is the largest difference over the tensor's size: its largest number, or 1e-3 of the largest gradient of the
case if that is more (a decay to nothing leaves g no gradient at all). What passes, by the dtype of q, k and v:

    float64    1e-12   g, beta and states are fp64 too
    float32    1e-5    fp32 sums over some hundred terms, and states that carry their rounding on
    float16    2e-3    two roundings of the dtype: products may take rounded factors, and results are rounded
    bfloat16   1.6e-2  likewise

Exit codes: 0 all passed, 1 some failed, 2 the suite could not run.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from moonlet.ops.delta import reference
from moonlet.ops.dispatch import implementation, names

Rule = Callable[..., tuple[Tensor, Tensor]]

TENSORS = ("o", "state", "dq", "dk", "dv", "dg", "dbeta", "dstate")
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in TOLERANCE}
LENGTHS = (1, 2, 15, 16, 17, 63, 64, 65, 100, 1000)
CHUNKS = (16, 32, 64)
_TILE = 16


@dataclass(frozen=True)
class Case:
    """What is drawn."""

    name: str
    T: int = 65
    decay: str = "usual"  # a key of DECAYS
    beta: float | None = None  # None: between 0 and 1
    keys: str = "random"  # or "identical"
    state: bool = True
    documents: str = ""  # a key of DOCUMENTS; "": none
    dtype: torch.dtype = torch.float32
    shape: tuple[int, int, int, int] = (2, 2, 24, 16)  # B, H, K, V
    views: bool = False  # inputs are parts of a wider tensor
    scale: float | None = None


# How much each channel of each token forgets, [B, T, H, K] of -g from uniform numbers of that shape.
DECAYS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda u: 0 * u,
    "usual": lambda u: 0.2 * u,
    "e^-16 a tile": lambda u: 16 / _TILE * (u / 2 + 0.75),
    "e^-48 a tile": lambda u: 48 / _TILE * (u / 2 + 0.75),
    "e^-80 a tile": lambda u: 80 / _TILE * (u / 2 + 0.75),
    "e^-80 a tile, evenly": lambda u: torch.full_like(u, 80 / _TILE),
    "e^-80 at one token": lambda u: torch.where((torch.arange(u.shape[1]) % 11 == 7)[:, None, None], 80.0, 0.01 * u),
    "e^-1000 a token": lambda u: 1000 + u,
    "to nothing": lambda u: torch.where(u > 0.9, torch.inf, u),
    "mixed by channel": lambda u: 80 / _TILE * u * torch.linspace(0, 1, u.shape[-1], dtype=u.dtype) ** 4,
    "mixed by token": lambda u: 300 * u**30,
}

# Which document a token belongs to, [B, T] from B and T.
DOCUMENTS: dict[str, Callable[[int, int], Tensor]] = {
    "random": lambda B, T: torch.randint(0, 3, (B, T), generator=torch.Generator().manual_seed(T)).cumsum(1) // 12,
    "every token": lambda B, T: torch.arange(T).expand(B, T),
    "at tile borders": lambda B, T: (torch.arange(T) // _TILE).expand(B, T),
    "coming again": lambda B, T: (torch.arange(T) // 5 % 2).expand(B, T),
    "others in each row": lambda B, T: torch.arange(T) // torch.arange(9, 9 + 7 * B, 7)[:, None],
    "long": lambda B, T: (torch.arange(T) // 300).expand(B, T),
}


def cases() -> list[Case]:
    """All of them."""
    found = [Case(f"{T} tokens", T, decay="mixed by channel") for T in LENGTHS]
    found += [Case(f"{T} tokens, no state", T, state=False) for T in LENGTHS[:-1]]
    found += [Case(f"decay {name}", 100, name) for name in DECAYS]
    found += [Case(f"beta {beta}", beta=beta) for beta in (0.0, 1.0)]
    found += [Case(f"identical keys, beta {beta}", 100, "none", beta, "identical") for beta in (0.0, 0.5, 1.0)]
    found += [Case("identical keys, decay", 100, "usual", 1.0, "identical")]
    found += [Case(f"documents, {name}", 100, documents=name) for name in DOCUMENTS if name != "long"]
    found += [
        Case("documents, decay e^-80 a tile", 100, "e^-80 a tile", documents="random"),
        Case("documents, no state", 100, state=False, documents="random"),
        Case("documents, 1000 tokens", 1000, "mixed by channel", documents="long"),
        Case("one wide, one narrow", shape=(1, 3, 5, 33)),
        Case("one head of one row", shape=(1, 1, 64, 64)),
        Case("parts of wider tensors", views=True),
        Case("scale 1", scale=1.0),
    ]
    for name, dtype in DTYPES.items():
        if dtype != torch.float32:
            found += [
                Case(name, 100, dtype=dtype),
                Case(f"{name}, decay e^-80 a tile", 100, "e^-80 a tile", dtype=dtype),
                Case(f"{name}, documents", 100, "mixed by channel", documents="random", dtype=dtype),
            ]
    return found


@dataclass
class Inputs:
    """What an implementation is called with."""

    tensors: list[Tensor]  # q, k, v, g, beta and, where there is one, the state
    documents: Tensor | None
    scale: float
    weights: tuple[Tensor, Tensor]  # of the output and the last state in the loss; exact in every dtype

    def call(self, rule: Rule, tensors: Sequence[Tensor], **more: object) -> tuple[Tensor, Tensor]:
        if self.documents is not None:
            more["documents"] = self.documents
        if len(tensors) == 6:
            more["state"] = tensors[5]
        return rule(*tensors[:5], scale=self.scale, **more)


def draw(case: Case, device: str = "cpu") -> Inputs:
    """The case's inputs; the same at every call."""
    B, H, K, V = case.shape
    gen = torch.Generator().manual_seed(case.T)
    wide = torch.float64 if case.dtype == torch.float64 else torch.float32

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=gen, dtype=torch.float64)

    q, k, v = normal(B, case.T, H, K), normal(B, case.T, H, K), normal(B, case.T, H, V)
    if case.keys == "identical":
        k = k[:, :1].expand_as(k)
    g = -DECAYS[case.decay](torch.rand(B, case.T, H, K, generator=gen, dtype=torch.float64))
    beta = torch.rand(B, case.T, H, generator=gen, dtype=torch.float64)
    if case.beta is not None:
        beta.fill_(case.beta)
    narrow = [x.to(device, case.dtype) for x in (F.normalize(q, dim=-1), F.normalize(k, dim=-1), v)]
    tensors = [*narrow, *(x.to(device, wide) for x in (g, beta))]
    if case.views:
        tensors = [torch.cat([x, x + 1], -1)[..., : x.shape[-1]] for x in tensors]
    if case.state:
        tensors.append(normal(B, H, K, V).to(device, wide))
    documents = DOCUMENTS[case.documents](B, case.T).to(device) if case.documents else None
    # Multiples of 1/8 below 8 lose nothing in any dtype, so that rounded gradients of the output are no excuse.
    weights = [(normal(*shape) * 8).round().clamp(-63, 63) / 8 for shape in ((B, case.T, H, V), (B, H, K, V))]
    return Inputs(tensors, documents, K**-0.5 if case.scale is None else case.scale, (weights[0], weights[1]))


def results(rule: Rule, inputs: Inputs, dtype: torch.dtype | None, gradients: bool, **more: object) -> list[Tensor]:
    """Output, last state and, with gradients, theirs, in the order of TENSORS; computed in dtype, None: as they are."""
    leaves = [x if dtype is None else x.to(dtype) for x in inputs.tensors]
    if gradients:
        leaves = [x.detach().requires_grad_() for x in leaves]
    o, state = inputs.call(rule, leaves, **more)
    if not gradients:
        return [o, state]
    weights = (w.to(x) for w, x in zip(inputs.weights, (o, state), strict=True))
    found = torch.autograd.grad([o, state], leaves, list(weights), allow_unused=True)
    # One that is missing is one that is zero.
    grads = [torch.zeros_like(x) if d is None else d for d, x in zip(found, leaves, strict=True)]
    return [o.detach(), state.detach(), *grads]


def law(case: Case, gradients: bool = True) -> list[Tensor]:
    """What is right, in fp64."""

    def rule(*tensors: Tensor, scale: float, state: Tensor | None = None, documents: Tensor | None = None) -> object:
        return reference(*tensors, scale, state, documents)  # type: ignore[call-arg, arg-type]

    return results(rule, draw(case), torch.float64, gradients)  # type: ignore[arg-type]


@dataclass
class Outcome:
    """How far an implementation is from the law, by name of the tensor."""

    case: Case
    chunk: int | None
    errors: dict[str, float] = field(default_factory=dict)
    note: str = ""  # why it failed whatever its errors

    def passed(self, tolerance: float | None = None) -> bool:
        limit = TOLERANCE[self.case.dtype] if tolerance is None else tolerance
        return not self.note and all(error <= limit for error in self.errors.values())  # NaN is not


def judge(rule: Rule, case: Case, right: list[Tensor], chunk: int | None = None, device: str = "cpu") -> Outcome:
    """Run one case; right is its `law`, with gradients or without."""
    outcome = Outcome(case, chunk)
    inputs = draw(case, device)
    before = [x.clone() for x in inputs.tensors]
    more = {} if chunk is None else {"chunk": chunk}
    try:
        with poisoned():
            found = results(rule, inputs, None, len(right) > 2, **more)
    except Exception as error:  # whatever somebody's implementation raises is a line of the table
        outcome.note = f"{type(error).__name__}: {error}".splitlines()[0]
        return outcome
    gradients = [x.abs().max().item() for x in right[2:]]
    for name, x, exact in zip(TENSORS, found, right, strict=False):
        if x.shape != exact.shape:
            outcome.note = f"{name} is {list(x.shape)}, not {list(exact.shape)}"
            return outcome
        size = max([exact.abs().max().item()] + [1e-3 * s for s in gradients if name.startswith("d")])
        difference = (x.cpu().double() - exact).abs().max().item()
        outcome.errors[name] = difference / size if size else difference
    if not all(torch.equal(x, y) for x, y in zip(inputs.tensors, before, strict=True)):
        outcome.note = "it changed its inputs"
    elif found[0].dtype != case.dtype:
        outcome.note = f"o is {found[0].dtype}, not {case.dtype}".replace("torch.", "")
    return outcome


def gradcheck(rule: Rule, chunk: int | None = None, device: str = "cpu") -> Outcome:
    """torch.autograd.gradcheck in fp64: gradients against differences of the implementation's own values."""
    case = Case("gradcheck", 18, "usual", shape=(1, 1, 3, 2), dtype=torch.float64)
    inputs = draw(case, device)
    more = {} if chunk is None else {"chunk": chunk}
    outcome = Outcome(case, chunk)
    try:
        # Off the edge, so that the differences stay where g is negative.
        leaves = [x.requires_grad_() for x in (*inputs.tensors[:3], inputs.tensors[3] - 0.01, *inputs.tensors[4:])]
        leaves = [x.detach().requires_grad_() for x in leaves]
        torch.autograd.gradcheck(lambda *x: inputs.call(rule, x, **more), leaves)
    except Exception as error:
        outcome.note = f"{type(error).__name__}: {error}".splitlines()[0]
    return outcome


@contextmanager
def poisoned() -> Iterator[None]:
    """Memory that nothing was written to holds NaN."""
    before, only_warn = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    # For implementations that get memory past torch.empty: what the allocator hands out next was full of NaN.
    blocks = [torch.full((1 << size,), torch.nan) for size in range(6, 20) for _ in range(4)]
    del blocks
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.use_deterministic_algorithms(True, warn_only=True)  # among other things, fills what torch.empty returns
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before, warn_only=only_warn)


def find(against: str) -> Rule:
    """The function that `module:function`, or a name of moonlet's own, means. Raises ValueError."""
    module, _, name = against.partition(":")
    if not name:
        if against not in names("delta_rule"):
            known = ", ".join(names("delta_rule"))
            raise ValueError(f"--against {against}: neither module:function nor one of moonlet's own ({known})")
        return implementation("delta_rule", against)
    try:
        function = getattr(importlib.import_module(module), name, None)
    except ImportError as error:
        raise ValueError(f"--against {against}: cannot import {module}: {error}") from error
    if not callable(function):
        raise ValueError(f"--against {against}: {module} has no function {name}")
    return function  # type: ignore[no-any-return]


def chunks_of(rule: Rule) -> list[int | None]:
    """Chunk sizes a function can be asked for; [None] where it takes none."""
    try:
        return list(CHUNKS) if "chunk" in inspect.signature(rule).parameters else [None]
    except (TypeError, ValueError):  # something compiled that does not say
        return [None]


def run(rule: Rule, chosen: list[Case], options: argparse.Namespace) -> Iterator[Outcome]:
    """Every case with every chunk size."""
    sizes = chunks_of(rule) if options.chunk is None else [options.chunk]
    for case in chosen:
        right = law(case, options.gradients)
        yield from (judge(rule, case, right, chunk, options.device) for chunk in sizes)
    if options.gradients and options.case in "gradcheck" and (not options.dtype or "float64" in options.dtype):
        yield from (gradcheck(rule, chunk, options.device) for chunk in sizes)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m moonlet.ops.delta_stress",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--against", default="chunked", help="module:function, or a name of moonlet's own")
    parser.add_argument("--no-documents", dest="documents", action="store_false", help="it knows no documents")
    parser.add_argument("--no-gradients", dest="gradients", action="store_false", help="values only")
    parser.add_argument("--dtype", action="append", choices=list(DTYPES), help="only these dtypes; may be repeated")
    parser.add_argument("--chunk", type=int, help="only this chunk size, given as the keyword `chunk`")
    parser.add_argument("--case", default="", help="only cases whose name contains this")
    parser.add_argument("--tolerance", type=float, help="instead of the dtype's own")
    parser.add_argument("--device", default="cpu")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    try:
        rule = find(options.against)
        torch.empty(0, device=options.device)
    except (ValueError, RuntimeError) as error:
        print(str(error).splitlines()[0], file=sys.stderr)
        return 2
    chosen = [case for case in cases() if options.case in case.name and (options.documents or not case.documents)]
    chosen = [case for case in chosen if not options.dtype or str(case.dtype).removeprefix("torch.") in options.dtype]
    outcomes = list(run(rule, chosen, options))
    if not outcomes:
        print(f"no case is called anything with {options.case!r} in these dtypes", file=sys.stderr)
        return 2
    failed = [o for o in outcomes if not o.passed(options.tolerance)]
    Console(width=max(150, Console().width)).print(table(outcomes, options))
    print(f"{len(outcomes) - len(failed)} of {len(outcomes)} passed")
    return 1 if failed else 0


def table(outcomes: list[Outcome], options: argparse.Namespace) -> Table:
    """A line a case and chunk size, with the worst error of each tensor."""
    found = Table(title=f"{options.against} against the recurrence in fp64")
    found.add_column("case")
    for column in ("chunk", *TENSORS):
        found.add_column(column, justify="right")
    found.add_column("")
    for o in outcomes:
        limit = TOLERANCE[o.case.dtype] if options.tolerance is None else options.tolerance
        errors = [o.errors.get(name) for name in TENSORS]
        cells = ["" if e is None else f"{e:.0e}" if e <= limit else f"[bold red]{e:.0e}[/]" for e in errors]
        verdict = "pass" if o.passed(options.tolerance) else f"[bold red]FAIL[/] {o.note}"
        found.add_row(o.case.name, "" if o.chunk is None else str(o.chunk), *cells, verdict)
    return found


if __name__ == "__main__":
    sys.exit(main())
