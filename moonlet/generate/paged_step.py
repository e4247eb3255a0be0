"""Which step decodes a paged cache, and whether it is compiled.

| compile | on a CPU | on a GPU |
|---|---|---|
| `auto` | native, else static | static, compiled and recorded; as it is written where that fails, and a line says so |
| `on` | static, compiled | the same, or an error |
| `off` | native, else static | static, as it is written |

Not compiled, `Step` takes one text after the other on a CPU with few slots, where eight rows cost more, and
wherever a product's rows are not all treated alike.
"""

from __future__ import annotations

from typing import Literal, get_args

from moonlet.generate.decoding import is_native
from moonlet.generate.native_step import NativeStep
from moonlet.generate.static_step import StaticStep
from moonlet.generate.step import Step
from moonlet.model.model import CausalLM
from moonlet.model.paged_cache import PagedCache
from moonlet.train.compile import PAYS, why_not

Compile = Literal["auto", "on", "off"]
_FEW = 4  # texts that the static step takes on as fast as `Step` does: at one it is a third as fast, at 16 three times
_BACKEND = "inductor"
PagedStep = NativeStep | StaticStep | Step


def new_paged_step(model: CausalLM, cache: PagedCache, compile: Compile = "auto") -> tuple[PagedStep, str]:
    """The step of a model over a cache that holds nothing yet, and a line on what it is not; empty: nothing to say.

    Raises:
        ValueError: not one of the three words, or `compile` is "on" and this machine cannot.
    """
    if compile not in get_args(Compile):
        raise ValueError(f"compile is {compile!r}; valid: {', '.join(get_args(Compile))}")
    if compile != "on" and is_native(model):
        return NativeStep(model), ""
    told = ""
    if compile == "on" or (compile == "auto" and PAYS.get(model.device.type, False)):
        step, problem = _compiled(model, cache)
        if step is not None:
            return step, ""
        if compile == "on":
            raise ValueError(f'compile is "on" and the step cannot be compiled here: {problem}; try compile="auto"')
        told = f"decoding is not compiled: {problem}"
    if model.device.type == "cpu" and len(cache.tables) < _FEW:
        return Step(model), told
    plain = StaticStep(model, cache)
    if plain.treats_rows_alike():
        return plain, told
    return Step(model), "texts are decoded one after another: this machine's matrix products treat rows by their place"


def _compiled(model: CausalLM, cache: PagedCache) -> tuple[StaticStep | None, str]:
    """A compiled step that has run once, or None and why not."""
    problem = why_not(model.device)
    if problem:
        return None, problem
    try:
        step = StaticStep(model, cache, _BACKEND)
        alike = step.treats_rows_alike()
        step.prepare(1)
    except Exception as error:  # whatever a compiler, its headers or a driver can raise
        first = next((line for line in str(error).splitlines() if line.strip()), "no message")
        return None, f"{type(error).__name__}: {first.strip()}"[:200]
    return (step, "") if alike else (None, "what was compiled treats rows by their place")
