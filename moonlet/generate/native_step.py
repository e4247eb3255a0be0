"""The decode step in C++: one call a token for the whole model, `ops/native/decode.cpp`.

What `step.py` computes, without an operation's overhead: for small models that is nearly all of a step's time, and
large ones are bound by reading their weights, which the kernel does near the speed of memory. The weights stay where
and as they are; their places are written down once (`native_plan.py`).

A row is one token of one text, so a call may decode some texts and read others, any part of each. Attention's memory is
read block by block: a paged cache has a table of blocks for each text, a contiguous one is a single block a row.

Activations are fp32 whatever the compute dtype, so in bf16 a step is nearer to the truth than one that rounds after
each operation; weights and cache are what the model holds. A row's logits are, to the bit, the same alone and in any
batch, on any number of threads.
"""

from __future__ import annotations

import ctypes
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from moonlet.generate.native_plan import KINDS, Plan, Weights, fields
from moonlet.model.cache import Cache, DeltaCache, KeyValueCache, LatentCache, LayerCache
from moonlet.model.model import CausalLM
from moonlet.model.packed import packed_scheme
from moonlet.model.paged_cache import PagedCache
from moonlet.ops.native import library, why_not

_LIBRARY = "decode"
READ_UP_TO = 8192  # tokens of a text; of longer ones attention is most, for which the model has the faster kernel
_ROWS_AT_ONCE = 256  # bounds the buffers
_BYTES_A_THREAD = 1 << 18  # of weights times rows; for less, waiting for one more thread costs more than it does


def why_not_native(model: CausalLM) -> str:
    """Why `model` does not decode by the native step, in one line; empty where it does."""
    if model.device.type != "cpu":
        return f"the model is on {model.device.type}"
    if model.dtype not in (torch.float32, torch.bfloat16):
        return f"the compute dtype is {str(model.dtype).removeprefix('torch.')}"
    scheme = packed_scheme(model)
    if scheme is not None and scheme not in KINDS:
        return f"its experts are packed as {scheme}"
    return why_not(_LIBRARY)


class _Memory(ctypes.Structure):
    _fields_ = (
        ("entries", ctypes.c_void_p),
        *fields(ctypes.c_int64, "row_stride kind_stride group_stride"),
        ("inputs", ctypes.c_void_p),
        ("inputs_stride", ctypes.c_int64),
    )


class _Call(ctypes.Structure):
    _fields_ = (
        *fields(ctypes.c_void_p, "tokens positions texts tables wanted"),
        *fields(ctypes.c_int64, "table_stride block rows logits_rows is_bf16 threads longest"),
        ("memory", ctypes.POINTER(_Memory)),
        *fields(ctypes.c_void_p, "cos sin turns scratch logits"),
    )


class NativeStep:
    """A model's decode step, as `Step`; `why_not_native(model)` must be empty.

    Holds views of the model's weights, so it is made anew after they were moved or cast. One thread may call it at a
    time.
    """

    exact = True
    """Whether a row's logits do not depend on the other rows: always."""

    def __init__(self, model: CausalLM) -> None:
        kernels = library(_LIBRARY)
        assert kernels is not None, "ask why_not_native first"
        self._kernels = kernels
        kernels.decode_scratch.restype = ctypes.c_int64
        self._dtype, self._rope, self._vocabulary = model.dtype, model._rope, model.config.vocab_size
        plan = Plan(model)
        self._model: Weights = plan.weights
        self._kept, self._bytes = plan.kept, plan.bytes_read
        self._call = _Call(is_bf16=self._dtype == torch.bfloat16)
        self._both = ctypes.byref(self._model), ctypes.byref(self._call)
        self._scratch = torch.empty(0)
        self._room = self._asked = (0, 0, 0)  # rows, positions, threads: there is room for, were asked for last
        self._turns: tuple[Tensor, Tensor] | None = None
        self._layers: object = None
        self._numbers = torch.arange(16)

    def __call__(self, tokens: Tensor, cache: Cache) -> Tensor:
        """Logits after one more token in each row.

        Args:
            tokens: int64 [B], in the vocabulary, on the CPU.
            cache: of B rows; the tokens follow those it holds, and it then holds them too.

        Returns:
            fp32 [B, vocab_size].

        Raises:
            ValueError: a row of the cache is full, or a token not in the vocabulary.
        """
        longest = max(cache.lengths.tolist()) + 1
        if longest > cache.max_len:
            cache.check_room(1)
        rows = self._counted(len(tokens))
        logits = self._run(tokens, cache.lengths, rows, rows, cache, longest)
        cache.advance(1)
        return logits

    def reads(self, tokens: int) -> bool:
        """Whether a text of so many tokens is better read by `read` than by the model."""
        return tokens <= READ_UP_TO and (self._rope is None or self._rope.reaches(tokens))

    def read(self, texts: Sequence[Sequence[int]], cache: Cache) -> Tensor:
        """Logits after each text, read from its beginning; to the bit what one token after the other gives.

        Args:
            texts: B lists of tokens, each at least one, for which `reads` holds.
            cache: of B empty rows, which then hold the texts.

        Returns:
            fp32 [B, vocab_size].

        Raises:
            ValueError: as a call.
        """
        assert not cache.lengths.any()
        if max(map(len, texts)) > cache.max_len:
            cache.check_room(max(map(len, texts)))
        tokens = [token for text in texts for token in text]
        positions = [n for text in texts for n in range(len(text))]
        places = [i for i, text in enumerate(texts) for _ in text]
        logits = self.feed(tokens, positions, places, [end - 1 for end in accumulate(map(len, texts))], cache)
        cache.lengths.copy_(torch.tensor([len(text) for text in texts]))
        return logits

    def feed(
        self,
        tokens: list[int],
        positions: list[int],
        texts: list[int],
        wanted: Sequence[int],
        cache: Cache | PagedCache,
    ) -> Tensor:
        """Take N tokens in anywhere, any number of any texts.

        Args:
            tokens: in the vocabulary.
            positions: where each stands in its text.
            texts: which row of the cache each belongs to. Those of one text follow one another, from the first position
                that its row does not hold yet; what rows hold is counted by the caller.
            wanted: which of the N logits are asked for, ascending.

        Returns:
            fp32 [wanted, vocab_size].
        """
        logits, asked, many = [], 0, torch.tensor(tokens + positions + texts).view(3, -1)
        for first in range(0, len(tokens), _ROWS_AT_ONCE):
            end = min(first + _ROWS_AT_ONCE, len(tokens))
            last = bisect_left(wanted, end, asked)
            own = torch.tensor([i - first for i in wanted[asked:last]], dtype=torch.int64)
            asked = last
            ids, at, places = many[:, first:end]
            logits.append(self._run(ids, at, places, own, cache, max(positions[first:end]) + 1))
        return logits[0] if len(logits) == 1 else torch.cat(logits)

    def _counted(self, n: int) -> Tensor:
        """0 .. n - 1"""
        if len(self._numbers) < n:
            self._numbers = torch.arange(2 * n)
        return self._numbers[:n]

    def _run(
        self,
        tokens: Tensor,
        positions: Tensor,
        texts: Tensor,
        wanted: Tensor,
        cache: Cache | PagedCache,
        longest: int,
    ) -> Tensor:
        """A token a row, each int64 [N]: where it stands in which row of the cache. -> logits of the wanted rows."""
        assert tokens.shape == positions.shape == texts.shape
        tokens = tokens.to(torch.int64).contiguous()
        call, N = self._call, len(tokens)
        if cache.layers is not self._layers:
            self._places = (_Memory * len(cache.layers))(*map(self._place, cache.layers))
            self._layers, call.memory = cache.layers, self._places
        self._ask_for((N, cache.max_len, torch.get_num_threads()))
        call.tokens, call.positions, call.texts = tokens.data_ptr(), positions.data_ptr(), texts.data_ptr()
        call.wanted, call.rows, call.logits_rows, call.longest = wanted.data_ptr(), N, len(wanted), longest
        tables = cache.tables if isinstance(cache, PagedCache) else self._counted(cache.batch)
        call.tables, call.table_stride, call.block = tables.data_ptr(), tables.stride(0), cache.block
        turned = self._turn(positions, longest)  # held until the call is over
        logits = torch.empty(len(wanted), self._vocabulary)
        call.logits = logits.data_ptr()
        if self._kernels.decode_step(*self._both):
            wrong = next(t for t in tokens.tolist() if not 0 <= t < self._vocabulary)
            raise ValueError(f"token {wrong} is not in the vocabulary of {self._vocabulary}")
        del turned
        return logits

    def _ask_for(self, sizes: tuple[int, int, int]) -> None:
        """Have buffers for so many rows and positions, and as many threads as there is work for."""
        if sizes == self._asked:
            return
        N, positions, threads = sizes
        call, have = self._call, self._room
        call.threads = max(1, min(threads, self._bytes * N // _BYTES_A_THREAD))
        self._room = max(N, have[0]), max(positions, have[1]), max(threads, have[2])
        if self._room != have:
            size = self._kernels.decode_scratch(self._both[0], *map(ctypes.c_int64, self._room))
            self._scratch = torch.empty(size)
            call.scratch = self._scratch.data_ptr()
        self._asked = sizes

    def _turn(self, positions: Tensor, longest: int) -> object:
        """Tell the call where each row's rotation is; what must live until it is over."""
        rope, call = self._rope, self._call
        if rope is None:
            return None
        if rope.reaches(longest):
            if self._turns is None or self._turns[0].shape[0] < longest:
                size = max(256, 1 << (longest - 1).bit_length())
                cos, sin = rope(0, size if rope.reaches(size) else rope.trained, torch.device("cpu"))
                self._turns = cos.contiguous(), sin.contiguous()
            cos, sin = self._turns
            call.cos, call.sin, call.turns = cos.data_ptr(), sin.data_ptr(), call.positions
            return None
        # Each row's length decides, so no table holds it.
        N = len(positions)
        cos, sin = (t.reshape(N, -1).contiguous() for t in rope(positions, 1, torch.device("cpu")))
        rows = self._counted(N)
        call.cos, call.sin, call.turns = cos.data_ptr(), sin.data_ptr(), rows.data_ptr()
        return cos, sin, rows

    def _place(self, layer: LayerCache) -> _Memory:
        """Where a layer's memory lies."""
        if isinstance(layer, DeltaCache):
            state, inputs = layer.state, layer.inputs
            assert (state.dtype, inputs.dtype) == (torch.float32, self._dtype)
            assert all(t[0].is_contiguous() for t in (state, inputs))
            return _Memory(
                entries=state.data_ptr(),
                row_stride=state.stride(0),
                inputs=inputs.data_ptr(),
                inputs_stride=inputs.stride(0),
            )
        assert isinstance(layer, LatentCache | KeyValueCache)
        entries = layer.entries
        assert entries.dtype == self._dtype
        if isinstance(layer, LatentCache):
            assert entries[0].is_contiguous()
            return _Memory(entries=entries.data_ptr(), row_stride=entries.stride(0))
        assert entries[0, 0].is_contiguous()
        kind, row, group = entries.stride()[:3]
        return _Memory(entries=entries.data_ptr(), row_stride=row, kind_stride=kind, group_stride=group)
