"""Batches read ahead are the batches that would have been read, and so are errors."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from moonlet.data.loader import Batch
from moonlet.data.prefetch import Prefetch


class Source:
    """Batch `step` holds the step; notes who read what, and fails at 7."""

    batch_size = 3

    def __init__(self, seconds: float = 0.0) -> None:
        self.read: list[int] = []
        self.threads: set[int] = set()
        self.seconds = seconds

    def batch(self, step: int) -> Batch:
        if step == 7:
            raise OSError("the disk is gone")
        time.sleep(self.seconds)
        self.read.append(step)
        self.threads.add(threading.get_ident())
        return np.full((3, 2), step), np.full((3, 2), step + 1)


def test_any_order_of_steps_gives_the_batches_of_the_source() -> None:
    with Prefetch(Source()) as ahead:
        assert ahead.batch_size == 3
        for step in (0, 1, 2, 3, 20, 21, 5, 5, 4, 100):
            inputs, targets = ahead.batch(step)
            assert (inputs == step).all()
            assert (targets == step + 1).all()


def test_reads_a_few_ahead_and_no_more_and_never_twice() -> None:
    source = Source()
    with Prefetch(source, ahead=2) as ahead:
        for step in range(4):
            ahead.batch(step)
        ahead.batch(4)
        deadline = time.monotonic() + 5
        while len(source.read) < 7 and time.monotonic() < deadline:
            time.sleep(0.001)
        assert source.read == list(range(7))
    assert len(source.threads) == 1
    assert threading.get_ident() not in source.threads


def test_a_batch_that_had_the_time_is_not_waited_for() -> None:
    with Prefetch(Source(seconds=0.02)) as ahead:
        ahead.batch(0)
        before = ahead.waited
        assert before >= 0.02
        time.sleep(0.2)
        ahead.batch(1)
        assert ahead.waited - before < 0.01


def test_an_error_is_raised_where_its_batch_is_asked_for_and_nowhere_else() -> None:
    with Prefetch(Source()) as ahead:
        for step in (4, 5, 6):  # 7 is read ahead meanwhile
            ahead.batch(step)
        for _ in range(2):
            with pytest.raises(OSError, match="the disk is gone"):
                ahead.batch(7)
        assert (ahead.batch(8)[0] == 8).all()


def test_the_thread_ends_with_the_block_and_begins_anew_when_asked() -> None:
    before = threading.active_count()
    ahead = Prefetch(Source())
    assert threading.active_count() == before
    for step in (0, 1):
        with ahead:
            ahead.batch(step)
        assert threading.active_count() == before
