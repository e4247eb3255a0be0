"""The sections of a recipe, the model's apart: what each setting means, and its value where none is given."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TokenizerSettings:
    """Which tokenizer the run trains or reads."""

    kind: str = "bpe"  # "bpe", "byte", "word", or "sentencepiece" (extra)
    vocab_size: int = 4096  # ids at most, specials included (not byte)
    path: str = ""  # a tokenizer folder, or a SentencePiece .model file, to use instead of training one
    train_megabytes: float = 8.0  # how much of the training text the tokenizer is trained on


@dataclass(frozen=True)
class DataSettings:
    """What the run reads."""

    # "story", the built-in synthetic world; "tinystories", from the hub; "text"; or a synthetic recall task, "mqar",
    # "palindrome", "stack", which brings its own tokenizer
    kind: str = "story"
    path: str = ""  # text: a file, folder or glob of .txt, .jsonl or .parquet; for "tinystories": instead of the hub
    valid: str = ""  # text: validation file; empty: `valid_fraction` of `path`
    valid_fraction: float = 0.1
    field: str = "text"  # text: field of a .jsonl line, column of a .parquet file
    split_by: str = "separator"  # text: a .txt file's documents lie between <|endoftext|> lines, or "file": it is one
    stories: int = 0  # text, tinystories: read so many documents of the training text; 0: all
    megabytes: float = 10.0  # story: size of the training text
    valid_stories: int = 500  # story
    questions: bool = False  # story: each story is followed by its questions and their answers
    sizes: tuple[int, ...] = (8,)  # mqar: pairs; palindrome: words; stack: operations; several: each as often
    words: int = 64  # mqar: keys, and as many values; palindrome: words; stack: elements
    stacks: int = 4  # stack
    gaps: bool = False  # mqar: the room left in a sequence is spread between the queries, as random values
    held_out: int = 512  # mqar, palindrome, stack: sequences evaluated, drawn anew
    seed: int = 0
    cache: str = ""  # where prepared shards lie; empty: inside the run folder


@dataclass(frozen=True)
class TrainSettings:
    """The loop. A step is one change of the weights; a batch is counted in sequences of `seq_len` tokens."""

    steps: int = 0  # how many; 0: as many as fit into `minutes`
    minutes: float = 0.0  # time budget; the schedule starts to decay in time to end with it
    seq_len: int = 256
    batch_size: int = 32  # sequences a step
    micro_batch_size: int = 0  # sequences at once (gradient accumulation); 0: batch_size
    separate_documents: bool = True  # packed documents do not see each other
    grad_clip: float = 1.0  # largest global gradient norm; 0: off
    seed: int = 0
    init: str = ""  # a run folder or model directory to start from: its weights, tokenizer and architecture
    device: str = "auto"
    dtype: str = "auto"  # compute dtype; "auto": probed
    compile: str = "auto"  # torch.compile: "on", "off"; "auto": where it pays and the run is long (train/compile.py)
    threads: int = 0  # CPU threads; 0: all cores
    log_every: int = 1
    eval_every: int = 100  # steps; 0: only at the end
    eval_bytes: int = 60_000  # validation text read at each evaluation, evenly drawn (0: all); the last one reads all
    sample_every: int = 100  # steps; 0: only at the end
    sample_tokens: int = 120
    save_every: int = 100  # steps; 0: only at the end
    keep_last: int = 2  # checkpoints kept


@dataclass(frozen=True)
class OptimSettings:
    """The optimizer and its schedule."""

    kind: str = "muonclip"  # "muon": matrices by Muon, the rest by AdamW; "muonclip": so, with QK-Clip; "adamw"
    qk_clip_tau: float | None = None  # no attention logit stays above it; null: 100 with "muonclip", else no clip
    lr: float = 2e-3  # peak
    min_lr: float = 0.0  # at the end, as a fraction of the peak
    warmup_steps: int = 20  # where a recipe file gives none: 20, or a fifth of a shorter run
    schedule: str = "wsd"  # "wsd": constant, then decay; "cosine"; "constant"; "k2", "moonlight": as published
    decay_fraction: float = 0.4  # wsd: the last part of the run, over which the rate falls
    decay_shape: str = "linear"  # wsd: "linear", "1-sqrt" or "cosine"
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    momentum: float = 0.95  # muon
    ns_steps: int = 5  # muon: Newton-Schulz iterations
    muon_per_head: bool = False  # muon: each head's rows of the query, key and value projections by themselves
    weight_decay: float = 0.1
    decay_norms: bool = False  # weight decay on norm gains too, as Moonlight has it
    balance: str = "sign"  # step of e_score_correction_bias: "sign"; "zero-mean", Moonlight's; "off"
    bias_update_speed: float = 1e-3  # its size
    bias_freeze_fraction: float = 0.0  # the last part of the run, over which the bias stays put; DeepSeek-V3: 0.034
    aux_loss_alpha: float = 0.0  # weight of the sequence-level balance loss, beside the bias; 0: off

    @property
    def clip_tau(self) -> float | None:
        """QK-Clip's threshold in force; None: no clip."""
        published = 100.0 if self.kind == "muonclip" else None
        return published if self.qk_clip_tau is None else self.qk_clip_tau


@dataclass(frozen=True)
class SampleSettings:
    """How the samples that a run shows while it learns are drawn; see `moonlet generate --help`."""

    temperature: float = 0.7
    top_k: int = 0
    top_p: float = 0.95
    min_p: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class LogSettings:
    """Where the metrics go besides metrics.jsonl."""

    tensorboard: bool = False  # event files in the run folder (extra)
    max_logits: bool = False  # each head's largest attention logit exactly at every step; else as the clip needs
    wandb: str = "off"  # Weights & Biases (extra): "offline" keeps its files in the run folder, "online" sends them
    project: str = "moonlet"  # wandb


SECTIONS: dict[str, type] = {
    "tokenizer": TokenizerSettings,
    "data": DataSettings,
    "train": TrainSettings,
    "optim": OptimSettings,
    "sample": SampleSettings,
    "log": LogSettings,
}
