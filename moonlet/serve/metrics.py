"""What a server counts, in the text that Prometheus reads (exposition format 0.0.4).

    counter      only grows            moonlet_requests_total{route="/v1/completions",status="200"} 12
    gauge        is what it is now     moonlet_free_slots{model="nano"} 3
    histogram    how many were within  moonlet_first_token_seconds_bucket{le="0.1"} 9

Labels come from a fixed set (routes of the app, names of the models), never from what a client sent.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass

from moonlet.serve.plan import Served

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class Histogram:
    """How many values were at most each bound."""

    def __init__(self, bounds: Sequence[float] = _BOUNDS) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def lines(self, name: str) -> Iterable[str]:
        """Its samples."""
        total = 0
        for bound, count in zip((*map(repr, self._bounds), "+Inf"), self._counts, strict=True):
            total += count
            yield f'{name}_bucket{{le="{bound}"}} {total}'
        yield f"{name}_sum {self._sum:.6f}"
        yield f"{name}_count {total}"


class Metrics:
    """Everything counted since the server started; used on the event loop alone."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()
        self.prompt_tokens = self.reused_tokens = self.generated_tokens = self.disconnects = 0
        self.first_token = Histogram()
        self.duration = Histogram()

    def text(self, models: Sequence[Served]) -> str:
        """All of it."""
        lines: list[str] = []
        _head(lines, "moonlet_requests_total", "counter", "Requests answered, by route and status.")
        for (route, status), count in sorted(self.requests.items()):
            lines.append(_sample("moonlet_requests_total", {"route": route, "status": str(status)}, count))
        for name, about, value in (
            ("moonlet_prompt_tokens_total", "Tokens of prompts.", self.prompt_tokens),
            ("moonlet_reused_tokens_total", "Tokens of prompts that were not read again.", self.reused_tokens),
            ("moonlet_generated_tokens_total", "Tokens drawn.", self.generated_tokens),
            ("moonlet_disconnects_total", "Clients who went before their answer ended.", self.disconnects),
        ):
            _head(lines, name, "counter", about)
            lines.append(f"{name} {value}")
        for name, about, histogram in (
            ("moonlet_first_token_seconds", "From a request's arrival to its first token.", self.first_token),
            ("moonlet_request_seconds", "From a request's arrival to the end of its answer.", self.duration),
        ):
            _head(lines, name, "histogram", about)
            lines += histogram.lines(name)
        lines += _engines(models)
        return "\n".join(lines) + "\n"


def _engines(models: Sequence[Served]) -> list[str]:
    """Gauges of each model's engine: whether it works, what is open, and every number it counts itself."""
    found: dict[str, list[tuple[str, float]]] = {"moonlet_up": [], "moonlet_open_answers": []}
    for model in models:
        found["moonlet_up"].append((model.name, float(model.driver.failure is None)))
        found["moonlet_open_answers"].append((model.name, model.driver.open))
        stats = model.driver.stats()
        if is_dataclass(stats):
            for field in fields(stats):
                value = getattr(stats, field.name)
                if isinstance(value, int | float):
                    found.setdefault(f"moonlet_engine_{field.name}", []).append((model.name, float(value)))
    lines: list[str] = []
    for name, values in found.items():
        _head(lines, name, "gauge", "1 while the engine works." if name == "moonlet_up" else _about(name))
        lines += [_sample(name, {"model": model}, value) for model, value in values]
    return lines


def _about(name: str) -> str:
    return name.removeprefix("moonlet_").replace("_", " ").capitalize() + "."


def _head(lines: list[str], name: str, kind: str, about: str) -> None:
    lines += [f"# HELP {name} {about}", f"# TYPE {name} {kind}"]


def _sample(name: str, labels: Mapping[str, str], value: float) -> str:
    inner = ",".join(f'{key}="{_escaped(label)}"' for key, label in labels.items())
    return f"{name}{{{inner}}} {value:.15g}"


def _escaped(label: str) -> str:
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
