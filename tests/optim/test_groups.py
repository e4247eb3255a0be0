"""Every parameter has one group, and the table says which."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from moonlet.config.presets import preset_names
from moonlet.config.sections import OptimSettings
from moonlet.model.init import build
from moonlet.optim.groups import parameter_groups
from moonlet.optim.optimizer import build_optimizer


def group_names(model: nn.Module, settings: OptimSettings | None = None) -> dict[str, str]:
    groups = parameter_groups(model, settings or OptimSettings())
    found = {name: group.name for group in groups.values() for name in group.parameters}
    assert len(found) == sum(len(group.parameters) for group in groups.values())  # no parameter in two
    return found


@pytest.mark.parametrize("preset", preset_names())
def test_each_parameter_of_each_preset_has_one_group(preset: str) -> None:
    model = build(preset, "meta")
    found = group_names(model)
    assert set(found) == {name for name, _ in model.named_parameters()}
    for name, p in model.named_parameters():
        if name.startswith(("model.embed_tokens", "lm_head")):
            expected = "vocabulary"
        elif name.endswith(("A_log", "dt_bias")):
            expected = "rates"
        elif "conv1d" in name:
            expected = "filters"
        else:
            expected = "gains" if p.dim() == 1 else "matrices"
        assert found[name] == expected, name


class Odd(nn.Module):
    """Names and shapes that come with linear attention and with biases."""

    def __init__(self) -> None:
        super().__init__()
        self.A_log = nn.Parameter(torch.zeros(3))
        self.dt_bias = nn.Parameter(torch.zeros(12))
        self.q_conv1d = nn.Conv1d(12, 12, 4, groups=12, bias=False)
        self.f_a_proj = nn.Linear(4, 2)
        self.o_norm = nn.RMSNorm(4)
        self.odd = nn.Parameter(torch.zeros(5))
        self.frozen = nn.Parameter(torch.zeros(5, 5), requires_grad=False)


@pytest.mark.parametrize("norms", [False, True])
def test_the_table_says_what_is_whose_and_what_decays(norms: bool) -> None:
    model, settings = Odd(), OptimSettings(weight_decay=0.1, decay_norms=norms)
    assert group_names(model, settings) == {
        "A_log": "rates",
        "dt_bias": "rates",
        "q_conv1d.weight": "filters",
        "f_a_proj.weight": "matrices",
        "f_a_proj.bias": "biases",
        "o_norm.weight": "gains",
        "odd": "vectors",
    }
    decayed = {name for name, group in parameter_groups(model, settings).items() if group.weight_decay}
    assert decayed == {"vocabulary", "filters", "matrices"} | ({"gains"} if norms else set())


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_what_never_decays_stays_under_a_zero_gradient(kind: str) -> None:
    model = Odd()
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(1.0)
    optimizer = build_optimizer(model, OptimSettings(kind=kind, weight_decay=0.1))
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step(0.5)
    shrunk = {name for name, p in model.named_parameters() if not torch.equal(p, torch.ones_like(p))}
    assert shrunk == {"q_conv1d.weight", "f_a_proj.weight"}
