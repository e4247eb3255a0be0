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

`contenders.py` says how a file of contenders is written.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from contenders import (
    Changes,
    Contender,
    built_in,
    combined,
    dense_of,
    read_contenders,
    speed_key,
    tokens_per_step,
    value_of,
)
from muon_vs_adamw import tune
from small_runs import ANY_MODEL, Laboratory, Taken, add_options, merged
from steps import compiler_of, machine, speeds, training_step
from wallclock_report import Entry, Found, draw, report

from moonlet.config import Recipe, preset
from moonlet.config.sections import DataSettings
from moonlet.data.open import open_corpus
from moonlet.model.count import count
from moonlet.model.model import CausalLM
from moonlet.optim.optimizer import build_optimizer
from moonlet.text.atomic import atomic_write
from moonlet.train.loop import Trainer

TUNE_SEED = 1000
_PROLONG = 3


class Timed(Trainer):
    """Counts the time of its steps alone, evaluates at even parts of it, and keeps no checkpoints."""

    evaluations = 10

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.compiler = compiler_of(self.recipe)
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
        # Once the length is fixed in steps a slow spell may take the clock beyond the budget.
        done = self.progress.step / t.steps if t.steps else min(self.spent / (60 * t.minutes), 0.999)
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


class Race:
    """The contenders, their clock, and the runs."""

    def __init__(self, given: argparse.Namespace, contenders: Sequence[Contender], base: Changes) -> None:
        self.given, self.contenders, self.base = given, contenders, base
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
            base = merged(self.base, {"tokenizer": {"vocab_size": settings.get("vocab_size", 4096)}})
            self._labs[key] = Clocked(self.given.out, "runs.jsonl", base)
        return self._labs[key]

    def rate(self, changes: Changes) -> float | None:
        """Tokens a second that were measured for such runs; None where the clock runs along."""
        return None if self.rates is None else max(self.rates[speed_key(changes)].values())

    def take(self, name: str, changes: Changes, lr: float, seed: int, length: float = 1.0) -> Taken:
        """One run of `length` times the time."""
        lab = self.lab(changes)
        rest = combined(changes, {"optim": {"lr": lr}, "train": {"seed": seed, **self._budget(changes, length)}})
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
        return {"minutes": 0.0, "steps": max(2, round(seconds * rate / tokens_per_step(changes, self.base)))}

    def plain(self, changes: Changes) -> Recipe:
        """The recipe behind `changes`, of no particular length."""
        sections = {name: values for name, values in changes.items() if name not in ("benchmark", "tokenizer")}
        return self.lab(changes).recipe(merged(sections, {"train": {"steps": 1000, "minutes": 0.0}}))

    def sizes(self, changes: Changes) -> tuple[int, int]:
        """Active and all parameters."""
        recipe, dense = self.plain(changes), changes.get("benchmark", {}).get("dense")
        if dense is None:
            sizes = count(recipe.model)
            return sizes.active, sizes.total
        model = dense_of(recipe, dense)
        return model.config.active, sum(p.numel() for p in model.parameters())

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
            recipe = self.plain(changes)
            dense = changes.get("benchmark", {}).get("dense")
            for how in ("eager", "compiled") if dense is not None and self.given.compile else ("eager",):
                model = dense_of(recipe, dense, how == "compiled") if dense is not None else None
                model = model or self.lab(changes).model_of(recipe, {})
                model.compute_dtype = getattr(torch, recipe.train.dtype)
                loader = self.lab(changes).loader_of(recipe)
                optimizer = build_optimizer(model, recipe.optim)
                steps[f"{key}\n{how}"] = training_step(model, optimizer, recipe, loader, self.lab(changes).tokenizer)
                tokens[f"{key}\n{how}"] = tokens_per_step(changes, self.base)
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


def settle(race: Race, contender: Contender) -> Entry:
    """Every value of its sweep at every rate, on a seed of its own; what was best stays."""
    given = race.given
    tried: dict[str, float] = {}
    best: tuple[float, Changes, float] | None = None
    for changes in contender.variants():
        what = "".join(f"{name.partition('.')[2]} {value_of(changes, name)}, " for name in contender.sweep)
        if len(contender.lrs) == 1 and not contender.sweep:
            best = 0.0, changes, contender.lrs[0]
            break

        def take(lr: float, changes: Changes = changes) -> Taken:
            return race.take(contender.name, changes, lr, TUNE_SEED, given.tune_fraction)

        for lr, run in tune(take, contender.lrs, 0 if given.quick else _PROLONG).items():
            tried[f"{what}{lr:g}"] = run.bits
            if best is None or run.bits < best[0]:
                best = run.bits, changes, lr
    assert best is not None
    _, changes, lr = best
    active, total = race.sizes(changes)
    return Entry(contender.name, contender.dense, changes, lr, tried, active, total,
                 tokens_per_step(changes, race.base), race.rate(changes))  # fmt: skip


def compare(race: Race) -> Found:
    """Take all runs."""
    given = race.given
    entries = [settle(race, contender) for contender in race.contenders]
    for seed in range(given.seeds):
        for entry in entries:
            entry.full.append(race.take(entry.name, entry.changes, entry.lr, seed))
    for length in sorted(given.lengths):
        for entry in entries:
            if not entry.dense:
                runs = [race.take(entry.name, entry.changes, entry.lr, seed, length) for seed in range(given.seeds)]
                entry.shorter[length] = runs
    dense = [entry.bits for entry in entries if entry.dense] or [entry.bits for entry in entries]
    clock = "as it ran" if race.rates is None else "by rates measured in turn beforehand"
    return Found(entries, given.target or min(dense), given.minutes, given.tune_fraction,
                 given.what, clock, race.lab(entries[0].changes).dataset.manifest.floor)  # fmt: skip


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
QUICK_LINEAR: Changes = {
    "model": {"linear_attn_config": {"head_dim": 8, "num_heads": 2, "kda_layers": [1], "short_conv_kernel_size": 4}}
}


def quick(contender: Contender) -> Contender:
    """The same contender with a few weights and no more than two rates."""
    changes = combined(contender.changes, QUICK)
    if preset(changes["model"].get("preset", "k2-nano")).num_kda_layers:
        changes = combined(changes, QUICK_LINEAR)
    return Contender(contender.name, changes, contender.lrs[:2], contender.sweep)


def main(arguments: Sequence[str] | None = None) -> None:
    """Take the runs, print, draw."""
    given = parse(arguments)
    torch.set_num_threads(given.threads)
    Timed.evaluations = given.evaluations
    contenders = read_contenders(given.contenders) if given.contenders else built_in()
    if given.quick:
        contenders = [quick(contender) for contender in contenders]
    base: Changes = {
        "data": data_of(given),
        "train": {"threads": given.threads, "dtype": given.dtype, "log_every": 20, "eval_every": 0, "sample_every": 0},
    }
    found = compare(Race(given, contenders, base))
    text = f"{report(found)}\n\n{machine()}"
    print(text)
    atomic_write(given.out / "wallclock.md", text + "\n")
    picture = given.out / "wallclock.png"
    draw(found, picture)
    print(f"\nwritten: {given.out / 'wallclock.md'}, {picture}")


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
