"""What a mixture of experts is worth per second: bits per byte at equal wall-clock, and time to a fixed bits per byte.

    python benchmarks/wallclock.py --data train.txt --valid valid.txt --minutes 10 --threads 2 --out runs/wallclock
    python benchmarks/wallclock.py --measure --threads 1 ...      # tokens/s first, then runs of as many steps as fit
    python benchmarks/wallclock.py --contenders mine.toml ...     # others than the built-in ones
    python benchmarks/wallclock.py --quick --out /tmp/trial       # the same code in seconds

moonlet against a dense GPT of equally many active parameters (`dense_gpt.py`) with AdamW and with Muon. All are trained
by the same loop, on the same batches of the same tokens, with the same schedule; each has the learning rate that was
best for it (and the best of whatever else its "sweep" lists), found on a seed that no comparison uses.

1. Sweep: every value at `--tune-fraction` of the time. A grid of rates whose best lies at its edge is prolonged.
2. At the best settings, `--seeds` runs of every contender, in turn.
3. Those that are not dense again in shorter runs (`--lengths`), each with a whole schedule of its own, because inside a
   long run the rate has not fallen yet: the time to the dense models' best is read off between two lengths.

The clock counts training steps alone, loading and metrics included, evaluation and start not. Two ways to keep it:

- as it runs (the default): each run ends when its own steps have taken the time. Needs a quiet machine throughout.
- by rates (`--measure`, `--rates FILE`): the tokens a second of every contender are measured first, in alternating
  rounds, with all cores; a run then takes the steps that fit into the time at that rate, however long they take here.
  A dense model's rate is the better of eager and, with `--compile`, compiled (whose compilation is not counted).

Without --data the text is TinyStories from the hub; where that cannot be had, the built-in story world (synthetic).

A file of contenders has a table each; `recipe` is read for its [model], [train], [optim] and [tokenizer], single
sections change it, `dense` makes it a dense GPT with the active parameters of that model, `sweep` lists values:

    ["moonlet"]
    recipe = "recipes/speedrun.toml"
    lrs = [4e-3, 8e-3]
    ["dense, Muon"]
    recipe = "recipes/speedrun.toml"
    dense = { head_width = 64, dropout = 0.0 }        # and every field of DenseConfig
    optim = { kind = "muon" }
    lrs = [4e-3, 8e-3]
    sweep = { "train.batch_size" = [16, 32] }
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from dense_gpt import DenseGPT, equal_active
from muon_vs_adamw import crossing, tune
from small_runs import ANY_MODEL, Laboratory, Taken, add_options, merged, table
from steps import machine, speeds, training_step

from moonlet.config import Recipe
from moonlet.config.sections import DataSettings
from moonlet.data.open import open_corpus
from moonlet.model.count import count
from moonlet.model.model import CausalLM
from moonlet.optim.optimizer import build_optimizer
from moonlet.plot.canvas import FLOOR, INK, MUTED, PALETTE, label, legend, margins, new_figure, plain, save
from moonlet.text.atomic import atomic_write
from moonlet.train.loop import Trainer

Changes = dict[str, dict[str, Any]]
SECTIONS = ("model", "train", "optim", "tokenizer")
NANO: Changes = {
    "model": {"preset": "k2-nano", "num_hidden_layers": 6},
    "train": {"seq_len": 256, "batch_size": 32},
    "optim": {"schedule": "wsd", "decay_fraction": 0.6, "warmup_steps": 20},
}
TUNE_SEED = 1000
_PROLONG = 3


@dataclass(frozen=True)
class Contender:
    """A name, what its runs change in the common recipe, and what is tried."""

    name: str
    changes: Changes
    lrs: Sequence[float]
    sweep: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    @property
    def dense(self) -> bool:
        """Whether it is the peer."""
        return "dense" in self.changes.get("benchmark", {})

    def variants(self) -> Iterator[Changes]:
        """Its changes with every combination of the values of its sweep, learning rates apart."""
        for values in itertools.product(*self.sweep.values()):
            tables: list[Changes] = []
            for name, value in zip(self.sweep, values, strict=True):
                section, _, key = name.partition(".")
                tables.append({"benchmark": {"dense": {key: value}}} if section == "dense" else {section: {key: value}})
            yield _deep(self.changes, *tables)


def built_in() -> list[Contender]:
    """The nano Kimi K2 and its dense peers."""
    dense = {"benchmark": {"dense": {}}}
    return [
        Contender("moonlet", merged(NANO, {"optim": {"kind": "muonclip"}}), (4e-3, 8e-3)),
        Contender("dense GPT, AdamW", merged(NANO, dense, {"optim": {"kind": "adamw"}}), (1e-3, 2e-3, 4e-3)),
        Contender("dense GPT, Muon", merged(NANO, dense, {"optim": {"kind": "muon"}}), (4e-3, 8e-3)),
    ]


def read_contenders(file: Path) -> list[Contender]:
    """A contender a table of a TOML file; see above.

    Raises:
        ValueError: not TOML, or a table that says something unknown.
    """
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not valid TOML: {error}") from None
    known = {"recipe", "dense", "lrs", "sweep", *SECTIONS}
    found = []
    for name, given in tables.items():
        if odd := sorted(set(given) - known):
            raise ValueError(f"{file}, {name}: {odd[0]!r} is unknown; valid: {', '.join(sorted(known))}")
        changes: Changes = NANO
        if "recipe" in given:
            recipe = tomllib.loads(Path(given["recipe"]).read_text(encoding="utf-8"))
            changes = {section: recipe[section] for section in SECTIONS if section in recipe}
        changes = merged(changes, {section: given[section] for section in SECTIONS if section in given})
        if "dense" in given:
            changes = merged(changes, {"benchmark": {"dense": given["dense"]}})
        lrs = given.get("lrs", [changes.get("optim", {}).get("lr", 4e-3)])
        found.append(Contender(name, changes, lrs, given.get("sweep", {})))
    return found


class Timed(Trainer):
    """Counts the time of its steps alone, evaluates at even parts of it, and keeps no checkpoints."""

    evaluations = 10

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.spent = 0.0
        self.notes: list[dict[str, Any]] = []
        self._evaluated = 0

    def train(self) -> Any:
        """As the loop does, and how long it took."""
        progress = super().train()
        self._note()
        return progress

    def save(self) -> None:
        """Nothing: a benchmark's weights are of no use, and a dense model's have no official names."""

    def _plan(self) -> None:
        self.progress.elapsed = self.spent
        super()._plan()

    def _step(self) -> None:
        begin = time.perf_counter()
        super()._step()
        self.spent += time.perf_counter() - begin

    def _after_step(self) -> None:
        t = self.recipe.train
        done = self.progress.step / t.steps if t.steps else self.spent / (60 * t.minutes)
        if not self._finished() and done * self.evaluations >= self._evaluated + 1:
            self._evaluated = int(done * self.evaluations)
            self._evaluate()
            self._note()

    def _note(self) -> None:
        self.notes.append({"kind": "clock", "step": self.progress.step, "seconds": round(self.spent, 2)})


class Clocked(Laboratory):
    """Runs of any model, dense ones too, by a clock."""

    common = ANY_MODEL
    trainer = Timed
    tokenizer_bytes = 8_000_000

    def model_of(self, recipe: Recipe, benchmark: Mapping[str, Any]) -> CausalLM:
        """A dense GPT where the contender is one."""
        if "dense" not in benchmark:
            return super().model_of(recipe, benchmark)
        return dense_of(recipe, benchmark["dense"])


def dense_of(recipe: Recipe, settings: Mapping[str, Any], compiled: bool = False) -> Any:
    """The dense GPT with the active parameters of a recipe's model."""
    defaults = {"head_width": min(64, recipe.model.hidden_size), "attention": "products"}
    return DenseGPT(equal_active(recipe.model, **(defaults | dict(settings))), recipe.train.seed, compiled)


class Race:
    """The contenders, their clock, and the runs."""

    def __init__(self, given: argparse.Namespace, contenders: Sequence[Contender], base: Changes) -> None:
        self.given, self.contenders, self._base = given, contenders, base
        self._labs: dict[str, Clocked] = {}
        self.rates: dict[str, dict[str, float]] | None = None
        if given.rates or given.measure:
            file = given.rates or given.out / "rates.json"
            known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
            self.rates = self._measured(file, known)

    def lab(self, changes: Changes) -> Clocked:
        """The data as this run's tokenizer cuts it."""
        settings = changes.get("tokenizer", {})
        key = json.dumps(settings, sort_keys=True)
        if key not in self._labs:
            base = merged(self._base, {"tokenizer": {"vocab_size": settings.get("vocab_size", 4096)}})
            self._labs[key] = Clocked(self.given.out, "runs.jsonl", base)
        return self._labs[key]

    def rate(self, changes: Changes) -> float | None:
        """Tokens a second that were measured for such runs; None where the clock runs along."""
        return None if self.rates is None else max(self.rates[speed_key(changes)].values())

    def take(self, name: str, changes: Changes, lr: float, seed: int, length: float = 1.0) -> Taken:
        """One run of `length` times the time."""
        lab = self.lab(changes)
        rest = _deep(changes, {"optim": {"lr": lr}, "train": {"seed": seed, **self._budget(changes, length)}})
        rest = {section: values for section, values in rest.items() if section != "tokenizer"}
        text = f"{name} at {lr:g}, seed {seed}, {length * self.given.minutes:g} minutes"
        if changed := {k: v for k, v in rest["optim"].items() if k == "warmup_steps"}:
            steps = rest["train"].get("steps", 0)
            if steps:  # a short trial must not be all warm-up
                rest["optim"]["warmup_steps"] = min(changed["warmup_steps"], max(1, steps // 5))
        return lab.run(rest, text)

    def _budget(self, changes: Changes, length: float) -> dict[str, Any]:
        rate = self.rate(changes)
        seconds = 60 * self.given.minutes * length
        if rate is None:
            return {"steps": 0, "minutes": seconds / 60}
        return {"minutes": 0.0, "steps": max(2, round(seconds * rate / tokens_per_step(changes, self._base)))}

    def _measured(self, file: Path, known: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
        """The rates in `file`, and those of kinds of run that it lacks, measured now in turn and added."""
        missing = {speed_key(v): v for c in self.contenders for v in c.variants() if speed_key(v) not in known}
        if not missing:
            return known
        if not self.given.measure:
            raise ValueError(f"{file} lacks the rates of {len(missing)} kinds of run; add --measure to take them")
        steps: dict[str, Callable[[], object]] = {}
        tokens: dict[str, int] = {}
        for key, changes in missing.items():
            plain_changes = {s: v for s, v in changes.items() if s not in ("benchmark", "tokenizer")}
            recipe = self.lab(changes).recipe(merged(plain_changes, {"train": {"steps": 1000}}))
            dense = changes.get("benchmark", {}).get("dense")
            for how in ("eager", "compiled") if dense is not None and self.given.compile else ("eager",):
                model = dense_of(recipe, dense, how == "compiled") if dense is not None else None
                model = model or self.lab(changes).model_of(recipe, {})
                model.compute_dtype = getattr(torch, recipe.train.dtype)
                loader = self.lab(changes).loader_of(recipe)
                optimizer = build_optimizer(model, recipe.optim)
                steps[f"{key}\n{how}"] = training_step(model, optimizer, recipe, loader, self.lab(changes).tokenizer)
                tokens[f"{key}\n{how}"] = tokens_per_step(changes, self._base)
        threads = torch.get_num_threads()
        torch.set_num_threads(self.given.rate_threads or threads)
        print(f"measuring {len(steps)} rates, {self.given.rounds} rounds", file=sys.stderr, flush=True)
        measured = speeds(steps, tokens, self.given.rounds, self.given.steps)
        torch.set_num_threads(threads)
        for name, values in measured.items():
            key, _, how = name.partition("\n")
            known.setdefault(key, {})[how] = statistics.median(values)
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(file, json.dumps(known, indent=2) + "\n")
        return known


def speed_key(changes: Changes) -> str:
    """What a run's speed depends on, as one line."""
    train = ("seq_len", "batch_size", "micro_batch_size", "separate_documents", "compile")
    parts = {
        **{section: changes[section] for section in ("model", "benchmark", "tokenizer") if section in changes},
        "train": {name: value for name, value in changes.get("train", {}).items() if name in train},
        "optim": {n: v for n, v in changes.get("optim", {}).items() if n in ("kind", "ns_steps", "muon_per_head")},
    }
    return json.dumps(parts, sort_keys=True)


def tokens_per_step(changes: Changes, base: Changes) -> int:
    """What a step reads."""
    train = merged(ANY_MODEL, base, changes)["train"]
    return int(train["seq_len"] * train["batch_size"])


def _deep(*tables: Changes) -> Changes:
    """As `merged`, the settings of a dense model too."""
    out = merged(*tables)
    dense = [t["benchmark"]["dense"] for t in tables if "dense" in t.get("benchmark", {})]
    if dense:
        out["benchmark"] = out["benchmark"] | {"dense": {k: v for settings in dense for k, v in settings.items()}}
    return out


@dataclass(frozen=True)
class Settled:
    """A contender at its best: the settings, the rate, and how every value that was tried did."""

    contender: Contender
    changes: Changes
    lr: float
    tried: dict[str, float]  # what, and bits per byte


@dataclass
class Found:
    """Everything that is reported. Lengths are fractions of the time."""

    settled: dict[str, Settled]
    full: dict[str, list[Taken]]  # by contender, a run a seed
    shorter: dict[str, dict[float, list[Taken]]]
    target: float


def settle(race: Race, contender: Contender) -> Settled:
    """Every value of its sweep at every rate, on a seed of its own."""
    given = race.given
    tried: dict[str, float] = {}
    best: tuple[float, Changes, float] | None = None
    single = len(contender.lrs) == 1 and not contender.sweep
    for changes in contender.variants():
        what = ", ".join(f"{n.partition('.')[2]} {_value(changes, n)}" for n in contender.sweep)
        if single:
            return Settled(contender, changes, contender.lrs[0], tried)

        def take(lr: float, changes: Changes = changes) -> Taken:
            return race.take(contender.name, changes, lr, TUNE_SEED, given.tune_fraction)

        for lr, run in tune(take, contender.lrs, 0 if given.quick else _PROLONG).items():
            tried[f"{what + ', ' if what else ''}{lr:g}"] = run.bits
            if best is None or run.bits < best[0]:
                best = run.bits, changes, lr
    assert best is not None
    return Settled(contender, best[1], best[2], tried)


def _value(changes: Changes, name: str) -> Any:
    section, _, key = name.partition(".")
    return changes["benchmark"]["dense"][key] if section == "dense" else changes[section][key]


def compare(race: Race) -> Found:
    """Take all runs."""
    given = race.given
    settled = {c.name: settle(race, c) for c in race.contenders}
    full: dict[str, list[Taken]] = {name: [] for name in settled}
    for seed in range(given.seeds):
        for name, s in settled.items():
            full[name].append(race.take(name, s.changes, s.lr, seed))
    dense = [statistics.median(r.bits for r in full[c.name]) for c in race.contenders if c.dense]
    target = given.target or (min(dense) if dense else min(r.bits for runs in full.values() for r in runs))
    shorter: dict[str, dict[float, list[Taken]]] = {}
    for length in sorted(given.lengths):
        for name, s in settled.items():
            if not s.contender.dense:
                runs = [race.take(name, s.changes, s.lr, seed, length) for seed in range(given.seeds)]
                shorter.setdefault(name, {})[length] = runs
    return Found(settled, full, shorter, target)


def seconds_of(race: Race, s: Settled, run: Taken) -> list[float]:
    """The clock at each evaluation of a run."""
    rate = race.rate(s.changes)
    if rate is not None:
        return [step * tokens_per_step(s.changes, race._base) / rate for step in run.curve[0]]
    clock = {line["step"]: line["seconds"] for line in run.of("clock")}
    return [clock[step] for step in run.curve[0]]


def time_to(found: Found, name: str) -> list[float]:
    """Fractions of the time in which a contender reaches the target, by seed, between whole runs; infinite: not at all."""
    runs = {1.0: found.full[name], **found.shorter.get(name, {})}
    out = []
    for seed in range(len(found.full[name])):
        losses = {length: taken[seed].bits for length, taken in runs.items()}
        at = crossing(losses, found.target) if len(losses) > 1 else None
        if at is None:
            reached = losses[1.0] <= found.target
            # Even the shortest reaches it: no longer than that. Or the longest is all there is.
            at = min(losses) if reached and max(losses.values()) <= found.target else 1.0 if reached else math.inf
        out.append(at)
    return out


def report(race: Race, found: Found) -> str:
    """The table, and what stands behind it."""
    minutes = race.given.minutes
    rows = [["", "parameters, active / all", "tokens/s", "tokens read", "learning rate",
             "bits per byte, median", "min - max", f"minutes to {found.target:.4f}", "share"]]  # fmt: skip
    for name, s in found.settled.items():
        runs = found.full[name]
        per_step = tokens_per_step(s.changes, race._base)
        steps = statistics.median(run.curve[0][-1] if run.curve[0] else 0 for run in runs)
        rate = race.rate(s.changes)
        seconds = [seconds_of(race, s, run)[-1] for run in runs if run.curve[0]]
        rate = rate or (steps * per_step / statistics.median(seconds) if seconds else math.nan)
        bits = [run.bits for run in runs]
        part = statistics.median(time_to(found, name))
        rows.append([
            name, _sizes(race, s), f"{rate:,.0f}", f"{steps * per_step:,.0f}", f"{s.lr:g}",
            f"{statistics.median(bits):.4f}", f"{min(bits):.4f} - {max(bits):.4f}",
            f"{minutes * part:.2f}" if math.isfinite(part) else "not reached",
            f"{part:.2f}" if math.isfinite(part) else "",
        ])  # fmt: skip
    tried = [
        f"- {name}: " + ", ".join(f"{what}: {bits:.4f}" for what, bits in s.tried.items())
        for name, s in found.settled.items()
        if s.tried
    ]
    clock = "as it ran" if race.rates is None else "by rates measured in turn beforehand"
    lengths = [
        f"- {name}: " + ", ".join(
            f"{minutes * length:g} minutes {statistics.median(r.bits for r in runs):.4f}"
            for length, runs in sorted(by.items())
        )
        for name, by in found.shorter.items()
    ]  # fmt: skip
    text = [
        f"{minutes:g} minutes of training steps on {race.given.what}, {race.given.seeds} seeds; clock {clock}; {machine()}",
        table(rows),
        "Bits per byte of all of the validation text. The value to reach is the best dense model's median.",
    ]
    if lengths:
        text.append("Shorter whole runs, median:\n" + "\n".join(lengths))
    if tried:
        text.append(f"Tried, at {race.given.tune_fraction:g} of the time (bits per byte):\n" + "\n".join(tried))
    return "\n\n".join(text)


def _sizes(race: Race, s: Settled) -> str:
    changes = {section: v for section, v in s.changes.items() if section not in ("benchmark", "tokenizer")}
    recipe = race.lab(s.changes).recipe(merged(changes, {"train": {"steps": 100}}))
    if not s.contender.dense:
        sizes = count(recipe.model)
        return f"{sizes.active / 1e6:.2f} / {sizes.total / 1e6:.2f} M"
    model = dense_of(recipe, s.changes["benchmark"]["dense"])
    return f"{model.config.active / 1e6:.2f} / {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M"


def draw(race: Race, found: Found, picture: Path) -> None:
    """Bits per byte by seconds, median line and band of the seeds; dots: ends of shorter whole runs."""
    figure = new_figure(8.4, 4.4, f"Bits per byte by time of training: {race.given.what}")
    axes = figure.subplots()
    margins(figure, left=0.62, right=0.3, top=0.62)
    label(axes, "", "seconds of training steps")
    shown: list[float] = []
    floor = None
    for colour, (name, s) in zip(itertools.cycle(PALETTE), found.settled.items()):
        floor = race.lab(s.changes).dataset.manifest.floor
        runs = [run for run in found.full[name] if not run.diverged]
        if not runs:
            continue
        columns = list(zip(*(run.curve[1] for run in runs), strict=False))
        clocks = list(zip(*(seconds_of(race, s, run) for run in runs), strict=False))
        xs, middle = [statistics.median(c) for c in clocks], [statistics.median(c) for c in columns]
        axes.fill_between(
            xs, [min(c) for c in columns], [max(c) for c in columns], color=colour, alpha=0.2, linewidth=0
        )
        axes.plot(xs, middle, color=colour, marker="o", markersize=3, linewidth=1.6,
                  label=plain(f"{name}: {middle[-1]:.3f}"))  # fmt: skip
        shown += middle[len(middle) // 3 :]
        ends = [(60 * race.given.minutes * length, statistics.median(r.bits for r in taken))
                for length, taken in sorted(found.shorter.get(name, {}).items())]  # fmt: skip
        if ends:
            axes.plot(*zip(*ends, strict=True), color=colour, marker="D", markersize=5, linewidth=1, linestyle=":",
                      label=plain(f"{name}, ends of shorter runs"))  # fmt: skip
            shown += [bits for _, bits in ends]
    axes.axhline(found.target, color=MUTED, linewidth=1, linestyle="--")
    axes.annotate(f"{found.target:.3f}", (0.004, found.target), xycoords=("axes fraction", "data"),
                  textcoords="offset points", xytext=(0, 3), fontsize=8, color=INK)  # fmt: skip
    finite = [bits for bits in shown if math.isfinite(bits)]
    if finite:
        low, high = min(finite), max(finite)
        axes.set_ylim(low - 0.08 * (high - low) - 1e-3, high + 0.1 * (high - low) + 1e-3)
    if floor is not None:
        axes.axhline(floor, color=FLOOR, linewidth=1, linestyle="--")
    axes.set_xlim(0, 1.03 * 60 * race.given.minutes)
    axes.set_ylabel("validation, bits per byte", fontsize=8)
    legend(axes, loc="upper right")
    save(figure, picture)


def data_of(given: argparse.Namespace) -> dict[str, Any]:
    """The [data] section, and into `given.what` the text's name."""
    if given.data is not None:
        given.what = f"{given.data.name} (real text)" if given.text != "story" else given.data.name
        return {"kind": "text", "path": str(given.data), "valid": str(given.valid or "")}
    story = {"kind": "story", "megabytes": given.megabytes, "valid_stories": 3 if given.quick else 300}
    if given.text == "tinystories" and not given.quick:
        wanted = {"kind": "tinystories", "stories": given.stories}
        try:
            next(iter(open_corpus(DataSettings(**wanted)).documents("train")))
        except (OSError, ValueError) as error:
            print(f"no TinyStories from the hub ({error}); the built-in story world instead", file=sys.stderr)
        else:
            given.what = "TinyStories (real text)"
            return wanted
    given.what = "the story world (synthetic)"
    return story


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_options(parser, "runs/wallclock", 4)
    parser.add_argument("--data", type=Path, help="a text file, folder or glob to train on")
    parser.add_argument("--valid", type=Path, help="its validation file; else a tenth of it")
    parser.add_argument("--text", choices=("tinystories", "story"), default="tinystories", help="without --data")
    parser.add_argument("--stories", type=int, default=20_000, help="of TinyStories from the hub")
    parser.add_argument("--megabytes", type=float, default=30.0, help="of the story world")
    parser.add_argument("--minutes", type=float, default=10.0, help="of training steps")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--contenders", type=Path, help="a TOML file; see the head of this file")
    parser.add_argument("--tune-fraction", type=float, default=1.0, help="of the time, for the runs of a sweep")
    parser.add_argument("--lengths", type=float, nargs="*", default=[0.25, 0.5], help="shorter runs, parts of the time")
    parser.add_argument("--target", type=float, default=0.0, help="bits per byte to reach; 0: the best dense model's")
    parser.add_argument("--evaluations", type=int, default=10, help="of a run")
    parser.add_argument("--measure", action="store_true", help="measure the rates that the file of rates lacks")
    parser.add_argument("--rates", type=Path, help="file of measured rates (with --measure: OUT/rates.json)")
    parser.add_argument("--rate-threads", type=int, default=0, help="threads of that measurement; 0: as --threads")
    parser.add_argument("--rounds", type=int, default=5, help="of that measurement; --steps each")
    parser.add_argument("--compile", action="store_true", help="let dense models be compiled in that measurement")
    given = parser.parse_args(arguments)
    if given.quick:
        given.minutes, given.seeds, given.rounds, given.steps = min(given.minutes, 0.02), min(given.seeds, 2), 2, 1
        given.megabytes, given.evaluations = 0.05, 2
        given.lengths = given.lengths[-1:]
    return given


QUICK: Changes = {
    "model": {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
        "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8,
        "intermediate_size": 48, "moe_intermediate_size": 16,
    },
    "train": {"seq_len": 32, "batch_size": 4},
    "optim": {"warmup_steps": 1},
    "tokenizer": {"vocab_size": 300},
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Take the runs, print, draw."""
    given = parse(arguments)
    torch.set_num_threads(given.threads)
    Timed.evaluations = given.evaluations
    contenders = read_contenders(given.contenders) if given.contenders else built_in()
    if given.quick:
        contenders = [Contender(c.name, _deep(c.changes, QUICK), c.lrs[:2], c.sweep) for c in contenders]
    base: Changes = {
        "data": data_of(given),
        "train": {"threads": given.threads, "dtype": given.dtype, "log_every": 20, "eval_every": 0, "sample_every": 0},
    }
    race = Race(given, contenders, base)
    found = compare(race)
    text = report(race, found)
    print(text)
    atomic_write(given.out / "wallclock.md", text + "\n")
    picture = given.out / "wallclock.png"
    draw(race, found, picture)
    print(f"\nwritten: {given.out / 'wallclock.md'}, {picture}")


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
