"""The pictures: all that a run recorded is drawn, what it did not record is left out."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from moonlet.plot.canvas import spread
from moonlet.plot.gallery import draw_comparison, draw_run
from moonlet.plot.history import AXES, read_history
from moonlet.plot.prompt import read_prompt, token_label, visible
from moonlet.text import ByteTokenizer
from tests.plot.runs import add_model, make_run

CURVES = ["gradient_norm.png", "learning_rate.png", "loss.png", "tokens_per_second.png"]


def sizes(folder: Path) -> dict[str, tuple[int, int]]:
    """Width and height of each PNG, from its header."""
    return {p.name: struct.unpack(">II", p.read_bytes()[16:24]) for p in sorted(folder.iterdir())}  # type: ignore[misc]


def test_a_run_has_all_its_pictures(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", name=r"a $\nope$")  # a formula with an error, if nobody took care
    add_model(run)
    history = read_history(run.path)
    made = draw_run(history, read_prompt(history, "a $x$ b\n"), tmp_path / "plots")
    found = sizes(tmp_path / "plots")
    assert sorted(found) == sorted(
        [*CURVES, "attention.png", "attention_logits.png", "candidates.png", "expert_balance.png", "expert_load.png"]
    )
    assert sorted(path.name for path in made) == sorted(found)
    assert all(400 < width < 2600 and 250 < height < 2600 for width, height in found.values())


def test_an_old_run_is_drawn_as_far_as_it_goes(tmp_path: Path) -> None:
    history = read_history(make_run(tmp_path / "run", old=True).path)
    draw_run(history, None, tmp_path / "plots")
    assert sorted(sizes(tmp_path / "plots")) == sorted([*CURVES, "expert_balance.png"])


@pytest.mark.parametrize("by", AXES)
def test_several_runs_share_their_pictures_along_each_axis(tmp_path: Path, by: str) -> None:
    runs = [read_history(make_run(tmp_path / name, steps=n).path) for name, n in (("a", 60), ("b", 30), ("c", 3))]
    draw_comparison(runs, tmp_path / "plots", by)
    assert sorted(sizes(tmp_path / "plots")) == CURVES


def test_a_reading_says_what_the_model_expects(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    add_model(run)
    history = read_history(run.path)
    reading = read_prompt(history, "ab")
    assert reading.labels == ["[BOS]", "a", "b"]
    log_p = reading.seen.logits.log_softmax(-1)
    assert reading.surprise == pytest.approx([-log_p[t, reading.ids[t + 1]].item() / 0.6931472 for t in (0, 1)])
    assert [row[0].token for row in reading.expected] == log_p.argmax(-1).tolist()
    assert reading.expected[0][0].probability == pytest.approx(log_p[0].exp().max().item())
    assert "".join(read_prompt(history, None).labels[1:]) == "Once·it·was·60"  # the newest sample
    with pytest.raises(ValueError, match="prompt is empty"):
        read_prompt(history, "")


def test_a_long_prompt_is_cut_and_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    add_model(run)
    reading = read_prompt(read_history(run.path), "x" * 50)
    assert len(reading.labels) == 32
    assert reading.cut


def test_labels_show_what_cannot_be_seen() -> None:
    tokenizer = ByteTokenizer()
    labels = [token_label(tokenizer, i) for i in tokenizer.encode("a \n\té")]
    assert labels == ["a", "·", "↵", "→", "\\xc3", "\\xa9"]
    assert visible("\x07") == "\\u0007"
    assert visible("") == "∅"


def test_spread_takes_first_last_and_no_more_than_asked() -> None:
    assert spread(3, 8) == [0, 1, 2]
    assert spread(61, 4) == [0, 20, 40, 60]
    assert all(len(spread(n, 7)) == min(n, 7) for n in range(1, 100))
