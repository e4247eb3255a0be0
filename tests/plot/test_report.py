"""The page: whole, escaped, small, and asking nothing of the network."""

from __future__ import annotations

import base64
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from moonlet.plot.history import read_history
from moonlet.plot.prompt import read_prompt
from moonlet.plot.report import render, write_report
from tests.plot.runs import add_model, make_run

VOID = {"meta", "input", "link", "br", "img", "hr"}


class Page(HTMLParser):
    """Tags in order, ids, texts by tag, and whether every tag is closed by its own."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.ids += [value for name, value in attrs if name == "id" and value]
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, (tag, self.getpos())

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert found
    data: dict[str, Any] = json.loads(found[1], parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    return data


@pytest.fixture
def page(tmp_path: Path) -> str:
    run = make_run(tmp_path / "run", sample="Once <script>alert(1)</script> & </blockquote>")
    add_model(run)
    history = read_history(run.path)
    return render(history, read_prompt(history, "</script><script>alert(2)</script>"))


def test_the_page_is_well_formed_and_has_every_section(page: str) -> None:
    parsed = Page(page)
    sections = {"learning", "experts", "prompt", "samples", "network", "recipe"}
    assert sections <= set(parsed.ids)
    assert len(set(parsed.ids)) == len(parsed.ids)
    links = {value for tag, name, value in parsed.attributes if tag == "a" and name == "href"}
    assert {f"#{section}" for section in sections} <= links


def test_text_of_a_run_is_never_markup(page: str) -> None:
    parsed = Page(page)
    assert parsed.tags.count("script") == 2  # the data and the page's own
    assert "alert(1)" not in "".join(parsed.texts["script"])
    told = "".join(parsed.texts["blockquote"])
    assert " <script>alert(1)</script> & </blockquote> 60" in told
    assert "<" in data_of(page)["reading"]["labels"]


def test_the_page_asks_nothing_of_the_network(page: str) -> None:
    parsed = Page(page)
    loading = {"src", "srcset", "action", "poster", "data", "background"}
    assert not [a for a in parsed.attributes if a[1] in loading]
    assert not [a for a in parsed.attributes if a[1].endswith("href") and not str(a[2]).startswith("#")]
    assert "link" not in parsed.tags
    assert "url(http" not in page
    assert "@import" not in page
    assert "default-src 'none'" in page  # and the browser holds it to that


def test_an_old_unfinished_run_has_a_page_too(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=3, old=True)
    run.facts_file.unlink()
    data = data_of(page := render(read_history(run.path), None))
    assert (data["load"], data["attention"], data["reading"]) == (None, None, None)
    assert not {"prompt", "samples"} & set(Page(page).ids)
    assert "max_over_mean" in data["charts"]
    assert "logits" not in data["charts"]


def test_the_largest_logit_of_each_layer_is_drawn(page: str) -> None:
    series = data_of(page)["charts"]["logits"]["series"]
    assert [s["name"] for s in series] == ["layer 0", "layer 1", "layer 2"]
    assert series[0]["values"][0] == 30  # the bound of head 1 at step 10, above what head 0 has
    assert series[0]["values"][-1] == 120  # of head 0 at step 60


def test_two_thousand_steps_stay_far_below_two_megabytes(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=2000, sample="Once there was a fox. " * 30)
    add_model(run)
    history = read_history(run.path)
    path = write_report(history, read_prompt(history, None), tmp_path / "report.html")
    assert path.stat().st_size < 500_000
    loss = data_of(path.read_text(encoding="utf-8"))["charts"]["loss"]
    assert all(len(series["steps"]) <= 510 for series in loss["series"])
    assert {series["steps"][-1] for series in loss["series"]} == {2000}


def test_maps_hold_what_was_measured(page: str, tmp_path: Path) -> None:
    data = data_of(page)
    assert data["load"]["layers"] == [1, 2]
    assert list(base64.b64decode(data["load"]["maps"][0])[:4]) == [200, 100, 100, 0]  # shares over the even quarter
    T = len(data["reading"]["labels"])
    maps = [base64.b64decode(m) for m in data["attention"]["maps"]]
    assert len(maps) == 3 * 2
    assert maps[0][0] == 255  # the first token has only itself to look at
    for m in maps:
        row = [(value / 255) ** 2 for value in m[-T:]]
        assert math.isclose(sum(row), 1, abs_tol=0.05)


def test_the_verdict_is_the_last_evaluation(tmp_path: Path) -> None:
    page = render(read_history(make_run(tmp_path / "run").path), None)
    assert "<strong>1.000</strong> <span>bits per byte of validation text at step 60</span>" in page
