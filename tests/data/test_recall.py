"""The recall tasks: every answer follows from what stands before it, and a sequence is a function of its place."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moonlet.config import recipe_from_dict
from moonlet.data.draws import Draws
from moonlet.data.recall import NO_TARGET, RecallLoader, RecallTask
from moonlet.text import load

TASKS = {
    "mqar": RecallTask("mqar", (1, 4, 8), 8),
    "gaps": RecallTask("mqar", (1, 4, 8), 8, gaps=True),
    "palindrome": RecallTask("palindrome", (1, 5, 16), 4),
    "stack": RecallTask("stack", (2, 7, 11), 6, 3),
    "one stack": RecallTask("stack", (9,), 6, 1),
}
T = 40
FROZEN = {
    "mqar": "K5 v3 k6 v6 k2 v6 k7 v2 ? K6 k5 k7 k2[PAD][PAD][PAD]",
    "gaps": "K5 v3 k6 v6 k2 v6 k7 v2 ? V0 v7 k6 v0 k5 v6 v6",
    "palindrome": "W2 w2 w1 w3 w2 | w2 w3 w1 w2[PAD][PAD][PAD][PAD][PAD][PAD]",
    "stack": "Push s1 e3 pop s1 e3 push s0 e0 pop s0 e0 push s1 e5 push",
    "one stack": "Push s0 e5 pop s0 e5 push s0 e4 pop s0 e4 push s0 e5 push",
}


def loader(task: RecallTask, batch_size: int = 12, seed: int = 0, **more: object) -> RecallLoader:
    return RecallLoader(task, seq_len=T, batch_size=batch_size, seed=seed, **more)


def texts(task: RecallTask, split: str = "train") -> list[tuple[list[str], dict[int, str]]]:
    """Words of each sequence, [BOS] and padding left out, and the answers by the place of the word before them."""
    tokenizer = task.tokenizer()
    inputs, targets = loader(task, 60, split=split).batch(0)
    out = []
    for row, wanted in zip(inputs, targets, strict=True):
        assert row[0] == tokenizer.bos_id
        words = [tokenizer.piece(i).decode() for i in row[1:] if i != tokenizer.pad_id]
        assert (row[1 + len(words) :] == tokenizer.pad_id).all()
        answers = {place - 1: tokenizer.piece(i).decode() for place, i in enumerate(wanted) if i != NO_TARGET}
        out.append((words, answers))
    return out


@pytest.mark.parametrize("name", ["mqar", "gaps"])
def test_each_key_is_asked_for_once_and_its_value_is_the_answer(name: str) -> None:
    for words, answers in texts(TASKS[name]):
        told = words[: words.index("?")]
        pairs = dict(zip(told[::2], told[1::2], strict=True))
        assert len(pairs) == len(told) // 2
        asked = [place for place, word in enumerate(words) if place > len(told) and word in pairs]
        assert sorted(words[place] for place in asked) == sorted(pairs)
        assert answers == {place: pairs[words[place]] for place in asked}
        rest = [word for place, word in enumerate(words) if place > len(told) and place not in asked]
        assert all(word.startswith("v") for word in rest)


def test_gaps_fill_the_row_and_come_in_all_places() -> None:
    rows = texts(TASKS["gaps"])
    assert {len(words) for words, _ in rows} == {T - 1}
    assert len({min(answers) - words.index("?") for words, answers in rows}) > 5
    assert all(len(words) == 3 * len(answers) + 1 for words, answers in texts(TASKS["mqar"]))


def test_the_second_half_of_a_palindrome_is_the_first_backwards() -> None:
    for words, answers in texts(TASKS["palindrome"]):
        middle = words.index("|")
        back = words[:middle][::-1]
        assert words[middle + 1 :] == back[:-1]
        assert answers == {middle + place: word for place, word in enumerate(back)}


@pytest.mark.parametrize("name", ["stack", "one stack"])
def test_a_pop_brings_up_what_was_pushed_last_on_its_stack(name: str) -> None:
    for words, answers in texts(TASKS[name]):
        stacks: dict[str, list[str]] = defaultdict(list)
        popped = {}
        # The last element is not read, only asked for.
        for place in range(0, len(words), 3):
            what, stack, *element = words[place : place + 3]
            if what == "push":
                stacks[stack] += element
            else:
                assert what == "pop"
                popped[place + 1] = stacks[stack].pop()
                assert element in ([], [popped[place + 1]])
        assert answers == popped
        assert popped


@pytest.mark.parametrize("name", TASKS)
def test_every_size_is_in_a_batch_equally_often(name: str) -> None:
    task = TASKS[name]
    count = {
        "mqar": lambda w: w.index("?") // 2,
        "palindrome": lambda w: w.index("|"),
        "stack": lambda w: (len(w) + 1) // 3,
    }
    sizes = [count[task.kind](words) for words, _ in texts(task)]
    assert sizes == [task.sizes[i % len(task.sizes)] for i in range(60)]


@pytest.mark.parametrize("name", TASKS)
def test_held_out_sequences_and_other_seeds_share_none_with_the_training(name: str) -> None:
    task = TASKS[name]
    long = RecallTask(task.kind, (max(task.sizes),), 64 if task.kind == "stack" else 16, task.stacks, task.gaps)
    drawn = [
        loader(long, 200, seed, split=split).batch(0)[0] for seed, split in ((0, "train"), (0, "valid"), (1, "train"))
    ]
    rows = [{row.tobytes() for row in batch} for batch in drawn]
    assert all(len(batch) == 200 for batch in rows)
    assert len(set.union(*rows)) == 600


@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(sorted(TASKS)), step=st.integers(0, 10**12), world=st.sampled_from([1, 2, 3]))
def test_a_batch_is_a_function_of_the_step_and_ranks_share_it(name: str, step: int, world: int) -> None:
    whole = loader(TASKS[name])
    inputs, targets = whole.batch(step)
    ranks = [loader(TASKS[name], rank=rank, world_size=world).batch(step) for rank in range(world)]
    assert np.array_equal(np.concatenate([rank[0] for rank in ranks]), inputs)
    assert np.array_equal(np.concatenate([rank[1] for rank in ranks]), targets)
    # Micro-batches of half the size are the halves of the step.
    halves = [loader(TASKS[name], 6).batch(2 * step + i)[0] for i in range(2)]
    assert np.array_equal(np.concatenate(halves), inputs)
    whole.load_state({"seed": 0, "position": 12 * step})
    assert np.array_equal(next(whole)[0], inputs)
    assert whole.state() == {"seed": 0, "position": 12 * (step + 1)}


def test_sequences_are_frozen() -> None:
    """These may never change: a run resumed by a later version must draw on in the same way."""
    shown = {name: task.tokenizer().decode(loader(task).batch(0)[0][1].tolist()[1:17]) for name, task in TASKS.items()}
    assert shown == FROZEN


def test_draws_are_uniform_and_independent() -> None:
    draws = Draws(0, "train", np.arange(2000))
    drawn = draws.below(10, 7)
    counts = np.stack([np.bincount(column, minlength=7) for column in drawn.T])
    assert ((counts - 2000 / 7) ** 2 / (2000 / 7)).sum(1).max() < 30  # 6 degrees of freedom: p = 4e-5
    assert np.abs(np.corrcoef(drawn.T) - np.eye(10)).max() < 0.09
    assert np.abs(np.corrcoef(drawn[:-1, 0], drawn[1:, 0])[0, 1]) < 0.09
    order = draws.distinct(5, 5)
    assert (np.sort(order, 1) == np.arange(5)).all()
    assert len({tuple(row) for row in order.tolist()}) == 120


@pytest.mark.parametrize("name", TASKS)
def test_texts_are_readable_and_encode_back(name: str, tmp_path: Path) -> None:
    task = TASKS[name]
    tokenizer = task.tokenizer()
    tokenizer.save(tmp_path)
    words, _ = texts(task)[2]
    text = " ".join(words)
    ids = load(tmp_path).encode(text)
    assert tokenizer.unk_id not in ids
    assert tokenizer.decode(ids).lower() == text
    assert re.fullmatch(r"([kvwes]\d+|push|pop|\?|\|)( ([kvwes]\d+|push|pop|\?|\|))*", text)


def recipe(**data: object) -> object:
    train = {"steps": 1, "seq_len": data.pop("seq_len", 64)}
    return recipe_from_dict({"train": train, "tokenizer": {"path": data.pop("path", "")}, "data": data})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"kind": "mqar", "sizes": [9], "words": 8}, "9 pairs and data.words gives 8 keys"),
        ({"kind": "mqar", "sizes": [21]}, "takes 65 tokens and train.seq_len is 64"),
        ({"kind": "palindrome", "sizes": [32]}, "takes 65 tokens and train.seq_len is 64; give train.seq_len=65"),
        ({"kind": "stack", "sizes": [22]}, "takes 66 tokens"),
        ({"kind": "stack", "sizes": [1]}, "each of 2 operations or more"),
        ({"kind": "stack", "sizes": [4], "stacks": 0}, "data.stacks is 0"),
        ({"kind": "mqar", "sizes": []}, "needs at least one"),
        ({"kind": "mqar", "sizes": [4, 4]}, "once"),
        ({"kind": "mqar", "words": 1, "sizes": [1]}, "data.words is 1"),
        ({"kind": "palindrome", "gaps": True}, "only mqar has gaps"),
        ({"kind": "mqar", "held_out": 0}, "data.held_out is 0"),
        ({"kind": "mqar", "path": "tok"}, "brings its own tokenizer"),
        ({"kind": "mqr"}, "valid: story, tinystories, text, mqar, palindrome, stack"),
    ],
)
def test_an_impossible_task_is_one_clear_line(data: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        recipe(**data)
    assert "\n" not in str(error.value)


def test_the_largest_task_that_fits_is_possible() -> None:
    recipe(kind="mqar", sizes=[21], seq_len=65)
    recipe(kind="palindrome", sizes=[32], seq_len=65)
    recipe(kind="stack", sizes=[22], seq_len=66)
    for kind, size, length in (("mqar", 21, 65), ("palindrome", 32, 65), ("stack", 22, 66)):
        task = RecallTask(kind, (size,), 64)
        inputs, targets = RecallLoader(task, seq_len=length, batch_size=1, seed=0).batch(0)
        assert targets[0, -1] != NO_TARGET
        assert task.tokenizer().pad_id not in inputs
        with pytest.raises(ValueError, match=f"takes {length} tokens"):
            RecallLoader(task, seq_len=length - 1, batch_size=1, seed=0)
