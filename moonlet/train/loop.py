"""The training loop: steps, and at their times checkpoints, evaluations and samples.

What the loop shows, measures and draws comes from outside as hooks, so that it depends on nothing but the step. A
checkpoint is written before its step is evaluated: a crash in an evaluation loses nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moonlet.config import Recipe
from moonlet.data.loader import Batches
from moonlet.data.prefetch import Prefetch
from moonlet.hub.write import write_model
from moonlet.model.model import CausalLM
from moonlet.model.observe import router_entropy
from moonlet.optim.balance import bias_speed, describe_loads
from moonlet.optim.optimizer import Optimizer
from moonlet.optim.qk_clip import describe_logits, summarise_logits
from moonlet.optim.schedule import decay_start, learning_rate, warmup_steps
from moonlet.text.tokenizer import Tokenizer
from moonlet.train.alarm import collapses
from moonlet.train.checkpoint import prune, save_checkpoint
from moonlet.train.compile import Compiler
from moonlet.train.footprint import Footprint, footprint, page_faults
from moonlet.train.metrics import Metrics, keep_until, read_metrics
from moonlet.train.run import Run
from moonlet.train.signals import StopRequest
from moonlet.train.state import Progress, write_state
from moonlet.train.step import StepResult, train_step

MAX_SKIPPED = 3
# Every so many lines of kind "train" comes one of kind "experts", which is as long as a layer has experts, and one of
# kind "attention", as long as a layer has heads.
EXPERTS_EVERY = 10


class TrainingStopped(RuntimeError):
    """Training cannot go on; the message says why and what is safe."""


@dataclass(frozen=True)
class Hooks:
    """What the loop calls outward. Each may do nothing."""

    evaluate: Callable[[CausalLM], dict[str, float]] = lambda model: {}
    sample: Callable[[CausalLM], list[dict[str, str]]] = lambda model: []
    redraw: Callable[[], None] = lambda: None
    show: Callable[[Progress, dict[str, Any]], None] = lambda progress, record: None
    message: Callable[[str], None] = lambda text: None
    record: Callable[[Mapping[str, Any]], None] = lambda record: None  # told every line of metrics.jsonl
    around: Callable[[], AbstractContextManager[None]] = nullcontext  # entered for each step
    # Validation text, int64 [B, T], on which the routers' entropy is measured beside each evaluation; the same text
    # every time, so that a curve shows the routers change and not the text.
    probe: Tensor | None = None


class Trainer:
    """One run in one process: model, optimizer, loader and counters, and the loop over them."""

    def __init__(
        self,
        recipe: Recipe,
        run: Run,
        model: CausalLM,
        optimizer: Optimizer,
        loader: Batches,
        tokenizer: Tokenizer,
        progress: Progress | None = None,
        hooks: Hooks | None = None,
        compiler: Compiler | None = None,
    ) -> None:
        self.recipe, self.run, self.model, self.optimizer = recipe, run, model, optimizer
        self.loader, self.tokenizer = Prefetch(loader), tokenizer
        self.progress = progress or Progress()
        self.hooks = hooks or Hooks()
        self.compiler = compiler
        self.accumulate = recipe.train.batch_size // loader.batch_size
        self._saved: int | None = self.progress.step or None
        self._faults: list[int] = []  # page faults of each step
        if recipe.train.steps:
            # From the recipe even on a resume: somebody may have made the run longer.
            self.progress.total = recipe.train.steps
            self.progress.decay_start = decay_start(recipe.optim, recipe.train.steps)

    def train(self) -> Progress:
        """Run to the end, or until SIGINT or SIGTERM; either way the last step is saved.

        Raises:
            TrainingStopped: three steps in a row were not finite.
        """
        keep_until(self.run.metrics_file, self.progress.step)
        before = self.progress.elapsed
        begin = time.perf_counter()
        self.metrics = Metrics(self.run.metrics_file, self.hooks.record)
        try:
            with StopRequest() as stop:
                self._catch_up()
                while not self._finished() and not stop.requested:
                    self._plan()
                    with self.hooks.around():
                        self._step()
                    self.progress.elapsed = before + time.perf_counter() - begin
                    self._after_step()
                if stop.requested:
                    self.hooks.message(f"stopping at step {self.progress.step}, as asked")
                self.save()
            if self._faults:
                self.metrics.write("memory", self.progress.step, **self.footprint().figures())
        finally:
            self.loader.close()
            self.metrics.close()
        return self.progress

    def footprint(self) -> Footprint:
        """The memory that training took until now."""
        return footprint(self.model.device, self._faults)

    def _finished(self) -> bool:
        return self.progress.total is not None and self.progress.step >= self.progress.total

    def _plan(self) -> None:
        """Fix the length of a run that has a time budget, once it is time for the rate to fall."""
        p, o = self.progress, self.recipe.optim
        if p.total is not None or p.step <= o.warmup_steps:
            return
        budget = self.recipe.train.minutes * 60
        falls = o.schedule == "wsd" and o.decay_fraction > 0
        if p.elapsed >= budget * (1 - o.decay_fraction if falls else 1):
            # From here the length is fixed in steps: what follows no longer depends on the clock.
            p.decay_start = p.step
            p.total = p.step + max(1, int((budget - p.elapsed) / (p.elapsed / p.step)))

    def _step(self) -> None:
        p, t, o = self.progress, self.recipe.train, self.recipe.optim
        lr = learning_rate(o, p.step, p.total, p.decay_start)
        faults, waited = page_faults(), self.loader.waited
        begin = time.perf_counter()
        result = train_step(
            self.model,
            self.optimizer,
            self._micro_batches(),
            count=self.accumulate,
            lr=lr,
            grad_clip=t.grad_clip,
            bias_update_speed=bias_speed(o, p.step, p.total),
            zero_mean=o.balance == "zero-mean",
            aux_loss_alpha=o.aux_loss_alpha,
            bos_id=self.tokenizer.bos_id if t.separate_documents else None,
            qk_clip_tau=o.clip_tau,
            # What is written down now and then is exact for every head, for little as it is now and then.
            every_logit=self.recipe.log.max_logits or (o.clip_tau is not None and self._is_detailed(p.step + 1)),
            compiler=self.compiler,
        )
        p.step += 1
        seconds = time.perf_counter() - begin
        self._faults.append((page_faults() or 0) - (faults or 0))
        self._record(result, lr, seconds, self.loader.waited - waited)

    def _micro_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        for i in range(self.accumulate):
            inputs, targets = self.loader.batch(self.progress.step * self.accumulate + i)
            yield (
                torch.from_numpy(inputs).to(self.model.device, non_blocking=True),
                torch.from_numpy(targets).to(self.model.device, non_blocking=True),
            )

    def _record(self, result: StepResult, lr: float, seconds: float, waited: float) -> None:
        p, t = self.progress, self.recipe.train
        if result.problem:
            p.skipped += 1
            self.metrics.write("skip", p.step, problem=result.problem)
            self.hooks.message(f"step {p.step} was skipped, the weights are unchanged: {result.problem}")
            if p.skipped >= MAX_SKIPPED:
                self.metrics.sync()
                raise TrainingStopped(
                    f"{MAX_SKIPPED} steps in a row were not finite ({result.problem}); the last checkpoint is step "
                    f"{self._saved or 0}; a smaller optim.lr may help"
                )
            return
        p.skipped = 0
        record = {
            "loss": result.loss,
            "lr": lr,
            "grad_norm": result.grad_norm,
            "tokens_per_s": t.batch_size * t.seq_len / seconds,
            "data_wait": round(waited, 6),
            **{name: value for name, value in result.balance.items() if name != "loads"},
            **summarise_logits(result.logits),
        }
        if result.aux_loss is not None:
            record["aux_loss"] = result.aux_loss
        if p.step % t.log_every == 0 or self._finished():
            self.metrics.write("train", p.step, **record)
        self._record_experts(result.balance)
        self._watch_experts(result.balance)
        if result.logits and self._is_detailed(p.step):
            self.metrics.write("attention", p.step, **describe_logits(result.logits))
        self.hooks.show(p, record)

    def _record_experts(self, balance: Mapping[str, Any]) -> None:
        """Now and then, how the tokens of the step were spread over each layer's experts."""
        step = self.progress.step
        if balance and self._is_detailed(step):
            self.metrics.write("experts", step, layers=self._moe_layers(), **describe_loads(balance["loads"]))

    def _is_detailed(self, step: int) -> bool:
        """Whether a line for each expert and head is written after `step` steps."""
        t = self.recipe.train
        return _due(step, EXPERTS_EVERY * t.log_every) or _due(step, t.eval_every) or step == self.progress.total

    def _watch_experts(self, balance: Mapping[str, Any]) -> None:
        """Say it when a layer's tokens have crowded the same experts for long."""
        p, o = self.progress, self.recipe.optim
        # While the rate warms up a router has hardly moved from where it began.
        if not balance or p.step <= warmup_steps(o, p.total):
            return
        for c in collapses(p.collapsed, balance["loads"], self.model.config.num_experts_per_tok):
            layer = self._moe_layers()[c.router]
            text = c.describe(layer, o)
            self.metrics.write("alarm", p.step, layer=layer, crowd=c.crowd, dead=c.dead, experts=c.experts, text=text)
            self.hooks.message(f"step {p.step}: {text}")

    def _moe_layers(self) -> list[int]:
        config = self.model.config
        return [layer for layer in range(config.num_hidden_layers) if config.is_moe(layer)]

    def _after_step(self) -> None:
        step, t = self.progress.step, self.recipe.train
        last = self._finished()
        if last or _due(step, t.save_every):
            self.save()
        if not last and _due(step, t.eval_every):
            self._evaluate()
        if last:
            self._probe_routers()  # the evaluation itself is made by whoever ends the run
        if _due(step, t.sample_every) or last:
            self._sample()

    def _catch_up(self) -> None:
        """After a resume: what was due at the checkpoint's step and was not done before the kill."""
        step, t = self.progress.step, self.recipe.train
        if not step or self._finished():
            return
        done = {r["kind"] for r in read_metrics(self.run.metrics_file) if r["step"] == step}
        if _due(step, t.eval_every) and "eval" not in done:
            self._evaluate()
        if _due(step, t.sample_every) and "sample" not in done:
            self._sample()

    def _evaluate(self) -> None:
        result = self.hooks.evaluate(self.model)
        if result:
            self.metrics.write("eval", self.progress.step, **result)
        self._probe_routers()
        self.hooks.redraw()

    def _probe_routers(self) -> None:
        if self.hooks.probe is None:
            return
        entropy = router_entropy(self.model, self.hooks.probe.to(self.model.device))
        if entropy:
            values = [round(value, 5) for value in entropy.values()]
            self.metrics.write("routers", self.progress.step, layers=list(entropy), entropy=values)

    def record_evaluation(self, result: dict[str, float]) -> None:
        """Append the evaluation that ends a run, unless an earlier start of it did."""
        step = self.progress.step
        if any(r["step"] == step for r in read_metrics(self.run.metrics_file, "eval")):
            return
        metrics = Metrics(self.run.metrics_file, self.hooks.record)
        metrics.write("eval", step, **result)
        metrics.close()

    def _sample(self) -> None:
        for sample in self.hooks.sample(self.model):
            self.metrics.write("sample", self.progress.step, **sample)
        self.hooks.redraw()

    def save(self) -> Path | None:
        """Write a checkpoint of the current step, unless it is there already; then remove the oldest."""
        p = self.progress
        if self._saved == p.step:
            return None
        self.metrics.sync()
        path = save_checkpoint(self.run.checkpoints, p.step, self._fill)
        self._saved = p.step
        self.metrics.write("checkpoint", p.step, path=path.name)
        prune(self.run.checkpoints, self.recipe.train.keep_last)
        return path

    def _fill(self, folder: Path) -> None:
        write_model(self.model, folder)
        self.tokenizer.save(folder)
        position = self.progress.step * self.recipe.train.batch_size
        loader = {"seed": self.recipe.train.seed, "position": position}
        write_state(folder, self.progress, loader, self.optimizer)


def _due(step: int, every: int) -> bool:
    return every > 0 and step > 0 and step % every == 0
