"""Which optimizer a parameter belongs to and whether it decays: one table, which every optimizer of this room reads.

| the name ends with | shape | optimizer | decays |
|---|---|---|---|
| embed_tokens.weight, lm_head.weight | [V, D] | AdamW: a row is a word, not part of a map between spaces | yes |
| conv1d.weight | [C, 1, width] | AdamW: a filter a channel, no matrix | yes |
| A_log, dt_bias | a number a head or channel | AdamW | never: they are logarithms of rates, whose zero means nothing |
| norm.weight | [D] | AdamW | if asked |
| bias | [D] | AdamW | never |
| any other with two dimensions or more | [..., out, in] | Muon | yes |
| any other | [D] | AdamW | never |

The first row that fits counts. A norm's gain starts at one, and decay pulls it to zero: at a rate of 2e-3 and a decay
of 0.1 by half in 3,500 steps, as long as a small model's whole training, where nothing needs it. Moonlight (arXiv
2502.16982 section 2.2), at a fifth of that rate and over trillions of tokens, found that decaying gains matters. Hence
a setting, `optim.decay_norms`, off.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from moonlet.config.sections import OptimSettings

_TABLE: tuple[tuple[tuple[str, ...], str], ...] = (
    (("embed_tokens.weight", "lm_head.weight"), "vocabulary"),
    (("conv1d.weight",), "filters"),
    (("A_log", "dt_bias"), "rates"),
    (("norm.weight",), "gains"),
    (("bias",), "biases"),
)
_DECAYED = frozenset({"vocabulary", "filters", "matrices"})


@dataclass(frozen=True)
class Group:
    """Parameters treated alike, in the model's order."""

    name: str
    parameters: dict[str, nn.Parameter]
    weight_decay: float


def parameter_groups(model: nn.Module, settings: OptimSettings) -> dict[str, Group]:
    """Put each trainable parameter of `model` into its one group: those of the table, "matrices" and "vectors".

    "matrices" is Muon's; all others are AdamW's, and where Muon is not chosen that one too.
    """
    names = [name for _, name in _TABLE] + ["matrices", "vectors"]
    members: dict[str, dict[str, nn.Parameter]] = {name: {} for name in names}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            members[group_of(name, parameter.dim())][name] = parameter
    decayed = _DECAYED | {"gains"} if settings.decay_norms else _DECAYED
    return {
        name: Group(name, parameters, settings.weight_decay if name in decayed else 0.0)
        for name, parameters in members.items()
    }


def group_of(name: str, dimensions: int) -> str:
    """Name of the one group that a parameter belongs to."""
    for endings, group in _TABLE:
        if name.endswith(endings):
            return group
    return "matrices" if dimensions > 1 else "vectors"
