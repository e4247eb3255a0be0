"""report.html: a run on one page that asks nothing of the network.

Numbers go into the page as JSON, thinned to what a screen can show, and a small script draws them; facts, samples and
the recipe are plain HTML, so that they are there without it. Everything that comes from a run is escaped.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from moonlet import __version__
from moonlet.model.count import count
from moonlet.plot.canvas import PALETTE, spread
from moonlet.plot.experts import load_ratios
from moonlet.plot.history import History, thin
from moonlet.plot.logits import largest_logits
from moonlet.plot.loss import limits, smooth
from moonlet.plot.network import draw_network_svg
from moonlet.plot.prompt import Reading
from moonlet.text.atomic import atomic_write

_POINTS = 500
_SAMPLES = 40
# Cells of all heat maps together, a byte each.
_LOAD_CELLS = 150_000
_HEAT_MAPS = 16
_MAX_LAYERS, _MAX_HEADS = 12, 16


def write_report(history: History, reading: Reading | None, path: Path) -> Path:
    """Write the page.

    Args:
        reading: a prompt as the run's model reads it; None leaves that section out.
        path: of the file, replaced atomically.

    Returns:
        `path`.
    """
    atomic_write(path, render(history, reading))
    return path


def render(history: History, reading: Reading | None) -> str:
    """The page as text."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    page = resources.files("moonlet.plot") / "page"
    style, script, template = ((page / f"report.{end}").read_text(encoding="utf-8") for end in ("css", "js", "html"))
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    charts = {**_learning(history), **(balance := _balance(history))}
    network = draw_network_svg(history.recipe.model, history.recipe.name)
    maps = reading is not None and bool(reading.attention)
    present = {
        "learning": True,
        "experts": bool(balance or history.experts),
        "prompt": reading is not None,
        "samples": bool(history.samples),
        "network": True,
        "recipe": True,
    }
    names = {"prompt": "A text"}
    return environment.from_string(template).render(
        style=Markup(style),
        script=Markup(script),
        name=history.name,
        title=history.title,
        verdict=_verdict(history),
        facts=_facts(history),
        sections=[(key, names.get(key, key.capitalize())) for key, there in present.items() if there],
        learning=[key for key in charts if key not in balance],
        experts=list(balance),
        has_load=bool(history.experts),
        reading=reading,
        has_attention=maps,
        left_out=_left_out(reading),
        samples=_samples(history),
        network=Markup(network),
        recipe=history.run.recipe_file.read_text(encoding="utf-8"),
        version=__version__,
        data=_data(history, reading, charts),
    )


def _data(history: History, reading: Reading | None, charts: Mapping[str, Any]) -> dict[str, Any]:
    """What the script draws from; its names are those report.js reads."""
    steps = sorted({0, *(history.train[i]["step"] for i in spread(len(history.train), 200))})
    return {
        "tokens_per_step": history.tokens_per_step,
        "last_step": history.last_step,
        "clock": {"steps": steps, "seconds": [round(x, 2) for x in history.at(steps, "time")]},
        "charts": charts,
        "load": _loads(history),
        "attention": _attention(reading),
        "reading": None
        if reading is None
        else {
            "labels": reading.labels,
            "expected": [[[c.label, round(c.probability, 5)] for c in row] for row in reading.expected],
            # Which of the expected ones came; -1 for none of them.
            "came": [
                next((rank for rank, c in enumerate(row) if [c.token] == reading.ids[t + 1 : t + 2]), -1)
                for t, row in enumerate(reading.expected)
            ],
            "surprise": [round(bits, 3) for bits in reading.surprise],
        },
    }


def _learning(history: History) -> dict[str, Any]:
    """The curves of every run."""
    losses = history.columns("loss")
    charts = {
        "loss": _chart("Training loss, nats a token", _raw_and_smooth(*losses), limits(losses[1])),
    }
    if history.evals:
        steps, bits = history.bits()
        low = min([*bits, *([history.floor] if history.floor is not None else [])])
        title, unit = "Validation, bits per byte", "bits per byte"
        within = (0.9 * low, max(bits) + 0.05 * (max(bits) - low))
        if history.recalls:
            title, unit, within = "Held-out answers that are right", "share", (0.0, 1.05)
        charts["bits"] = _chart(title, [_series(unit, 1, steps, bits)], within, history.floor)
    for tone, (column, title) in enumerate(
        (("lr", "Learning rate"), ("grad_norm", "Gradient norm, before clipping"), ("tokens_per_s", "Tokens a second"))
    ):
        steps, values = history.columns(column)
        if len(steps) > 1:
            series = [_series("rate", 7, steps, values)] if column == "lr" else _raw_and_smooth(steps, values, tone + 2)
            # A single spike shall not press everything else to the floor.
            charts[column] = _chart(title, series, (0.0, 1.25 * sorted(values)[int(0.98 * (len(values) - 1))] or 1.0))
    if len(history.attention) > 1:
        records = [r | {"largest": largest_logits(r)} for r in history.attention]
        series = _by_layer(records, "largest", 1.0)
        high = max(max(s["values"]) for s in series)
        charts["logits"] = _chart("Largest attention logit", series, (0.0, 1.05 * high or 1.0))
    return charts


def _balance(history: History) -> dict[str, Any]:
    """The curves of a mixture of experts, as far as the run recorded them."""
    charts: dict[str, Any] = {}
    even = math.log(max(2, history.recipe.model.n_routed_experts))
    worst = history.columns("load_max")
    if history.experts:
        series = _by_layer(history.experts, "max_over_mean", 1.0)
    else:
        series = [_series("worst layer", 0, worst[0], smooth(worst[1]))] if len(worst[0]) > 1 else []
    if series:
        high = max(max(s["values"]) for s in series)
        charts["max_over_mean"] = _chart("Busiest expert / mean", series, (1.0, max(1.5, 1.03 * high)))
    for key, title, records in (
        ("load_entropy", "Evenness of the loads", history.experts),
        ("router_entropy", "Evenness of a router's scores", history.routers),
    ):
        if records:
            series = _by_layer(records, "entropy", even)
            low = min(min(s["values"]) for s in series)
            charts[key] = _chart(title, series, (low - 0.15 * (1 - low) - 1e-4, 1 + 0.05 * (1 - low) + 1e-4))
    return charts


def _by_layer(records: Sequence[Mapping[str, Any]], field: str, scale: float) -> list[dict[str, Any]]:
    layers, steps = records[0]["layers"], [r["step"] for r in records]
    shown = spread(len(layers), len(PALETTE))
    return [
        _series(f"layer {layers[place]}", tone, steps, [r[field][place] / scale for r in records])
        for tone, place in enumerate(shown)
    ]


def _chart(
    title: str, series: list[dict[str, Any]], bounds: tuple[float, float], floor: float | None = None
) -> dict[str, Any]:
    last = [f"{s['name']} {s['values'][-1]:.4g}" for s in series if not s["faint"]]
    low, high = bounds
    return {
        "title": title,
        "series": series,
        "range": [_short(low), _short(high if high > low else low + 1.0)],
        "summary": "At the end: " + ", ".join(last),
        "floor": None if floor is None else _short(floor),
        "floor_name": "entropy floor",
    }


def _raw_and_smooth(steps: list[int], values: list[float], tone: int = 0) -> list[dict[str, Any]]:
    return [_series("each step", tone, steps, values, faint=True), _series("smoothed", tone, steps, smooth(values))]


def _series(name: str, tone: int, steps: Sequence[int], values: Sequence[float], faint: bool = False) -> dict[str, Any]:
    xs, ys = thin(steps, values, _POINTS)
    return {
        "name": name,
        "tone": tone,
        "faint": faint,
        "steps": [int(x) for x in xs],
        "values": [_short(y) for y in ys],
    }


def _short(value: float) -> float:
    """Five digits: more cannot be seen and only make the page long."""
    return float(f"{value:.5g}")


def _loads(history: History) -> dict[str, Any] | None:
    """Share of each expert over the even share, in hundredths, a byte each; 255 is 2.55 or more."""
    if not history.experts:
        return None
    layers = history.experts[0]["layers"]
    experts = len(history.experts[0]["load"][0])
    shown = spread(len(layers), _HEAT_MAPS)
    times = spread(len(history.experts), max(2, min(200, _LOAD_CELLS // (experts * len(shown)))))
    maps = []
    for place in shown:
        ratios = load_ratios(history, place)
        maps.append(_bytes(100 * ratio for i in times for ratio in ratios[i]))
    return {
        "layers": [layers[place] for place in shown],
        "experts": experts,
        "steps": [history.experts[i]["step"] for i in times],
        "maps": maps,
    }


def _attention(reading: Reading | None) -> dict[str, Any] | None:
    """The square root of each probability, a byte each: [T, T] a head."""
    if reading is None or not reading.attention:
        return None
    layers, heads = _shown_heads(reading)
    maps = [_bytes((255 * reading.attention[i][h].sqrt()).flatten().tolist()) for i in layers for h in heads]
    return {"layers": layers, "heads": heads, "maps": maps}


def _shown_heads(reading: Reading) -> tuple[list[int], list[int]]:
    layers = sorted(reading.attention)
    heads = reading.attention[layers[0]].shape[0]
    return [layers[i] for i in spread(len(layers), _MAX_LAYERS)], spread(heads, _MAX_HEADS)


def _left_out(reading: Reading | None) -> str:
    if reading is None or not reading.attention:
        return ""
    layers, heads = _shown_heads(reading)
    all_layers, all_heads = len(reading.attention), reading.attention[layers[0]].shape[0]
    if (len(layers), len(heads)) == (all_layers, all_heads):
        return ""
    return f" {len(layers)} of {all_layers} layers and {len(heads)} of {all_heads} heads are shown."


def _bytes(values: Any) -> str:
    return base64.b64encode(bytes(min(255, max(0, round(value))) for value in values)).decode("ascii")


def _verdict(history: History) -> dict[str, str] | None:
    if not history.evals:
        return None
    last = history.evals[-1]
    if history.recalls:
        chance = f"a guess is right in 1 of {history.recipe.data.words}"
        return {
            "bits": f"{last['accuracy']:.1%}",
            "what": f"of held-out answers right at step {last['step']:,}; {chance}",
        }
    bits, floor = last["bits_per_byte"], history.floor
    what = f"bits per byte of validation text at step {last['step']:,}"
    if floor is not None:
        what += (
            f"; the entropy floor of this text, which no model can beat, is {floor:.3f}: "
            f"{100 * (bits / floor - 1):.1f}% above it"
        )
    return {"bits": f"{bits:.3f}", "what": what}


def _facts(history: History) -> list[tuple[str, str]]:
    """Terms and values of the header, those that are known."""
    facts, recipe = history.facts, history.recipe
    sizes, model = count(recipe.model), recipe.model
    machine = facts.get("machine") or {}
    versions = facts.get("versions") or {}
    shape = f"{model.num_hidden_layers} layers, width {model.hidden_size}, {model.num_attention_heads} heads"
    if sizes.routed_experts:
        shape += f"; {model.n_routed_experts} experts, {model.num_experts_per_tok} a token"
    where = [facts.get("compute_dtype"), facts.get("device"), machine.get("gpu") or machine.get("cpu")]
    read = history.last_step * history.tokens_per_step
    rate = read / history.seconds if history.seconds else 0.0
    out = [
        ("Parameters", f"{sizes.total:,}; {sizes.active_with_embedding:,} active a token"),
        ("Network", shape),
        ("Tokenizer", f"{recipe.tokenizer.kind}, {model.vocab_size:,} ids"),
        ("Trained", f"{history.last_step:,} steps, {read:,} tokens"),
        ("Time in steps", f"{_duration(history.seconds)} at {rate:,.0f} tokens a second"),
        ("Computed in", ", ".join(str(x) for x in where if x)),
        ("Machine", ", ".join(str(x) for x in (machine.get("system"), _cores(machine)) if x)),
        ("Started", str(facts.get("started", "")).replace("T", " ").replace("+00:00", " UTC")),
        ("Resumed", f"from step {facts['resumed_from']:,}" if facts.get("resumed_from") else ""),
        ("Steps skipped", f"{history.skipped}, not finite" if history.skipped else ""),
        ("Versions", ", ".join(f"{name} {value}" for name, value in versions.items())),
        ("Source", _commit(facts.get("git"))),
    ]
    return [(term, value) for term, value in out if value]


def _cores(machine: Mapping[str, Any]) -> str:
    return f"{machine['cores']} cores" if machine.get("cores") else ""


def _commit(git: object) -> str:
    if not isinstance(git, str):
        return ""
    return git[:12] + (" with changes" if git.endswith("-dirty") else "")


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.1f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def _samples(history: History) -> list[tuple[int, list[dict[str, str]]]]:
    """Steps and their samples; the prompt apart where the text begins with it."""
    steps: dict[int, list[dict[str, str]]] = {}
    for record in history.samples:
        prompt, text = str(record.get("prompt", "")), str(record.get("text", ""))
        prompt = prompt if text.startswith(prompt) else ""
        steps.setdefault(record["step"], []).append({"prompt": prompt, "rest": text[len(prompt) :]})
    order = sorted(steps)
    return [(order[i], steps[order[i]]) for i in spread(len(order), _SAMPLES)]
