"""TinyStories from a local stand-in for the hub: only what is needed, resumed, checked, and one line when it fails."""

from __future__ import annotations

import hashlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from moonlet.cli.data import app
from moonlet.config.sections import DataSettings
from moonlet.data.corpus import Corpus, read_documents
from moonlet.data.open import open_corpus
from moonlet.data.prepare import prepare
from moonlet.data.tinystories import FILES, TinyStoriesCorpus
from moonlet.text import ByteTokenizer
from tests.data.hub_server import STORIES, Hub, git_sha1, serve

TRAIN = [f"Story {i}. The \u201cfox\u201d went home.\n\n{'It slept. ' * (40 + i % 90)}".strip() for i in range(4000)]
VALID = [f"Other story {i}." for i in range(50)]


def packed(stories: list[str]) -> bytes:
    return "".join(f"{story}\n<|endoftext|>\n" for story in stories).encode()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    monkeypatch.setenv("MOONLET_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("moonlet.data.download._WAIT", 0.001)
    with serve(Hub({FILES["train"]: packed(TRAIN), FILES["valid"]: packed(VALID)})) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


@pytest.fixture
def train(tmp_path: Path) -> Path:
    """Where the training file lies once it is whole."""
    return tmp_path / "cache" / "tinystories" / FILES["train"]


def part(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def test_all_stories_come_checked_and_are_asked_for_once(hub: Hub, train: Path) -> None:
    corpus = TinyStoriesCorpus()
    assert isinstance(corpus, Corpus)
    assert list(corpus.documents("train")) == TRAIN
    assert list(corpus.documents("valid")) == VALID
    assert train.read_bytes() == packed(TRAIN)
    assert not part(train).exists()
    asked = len(hub.asked)
    hub.status = 500
    again = TinyStoriesCorpus()
    assert list(again.documents("train")) == TRAIN
    assert again.describe() == corpus.describe()
    assert again.describe()["train"]["sha256"] == hashlib.sha256(packed(TRAIN)).hexdigest()  # type: ignore[index]
    assert len(hub.asked) == asked


def test_the_first_stories_need_only_the_beginning_and_more_go_on_from_there(hub: Hub, train: Path) -> None:
    corpus = TinyStoriesCorpus(stories=100)
    assert list(corpus.documents("train")) == TRAIN[:100]
    first = part(train).stat().st_size
    assert first < len(packed(TRAIN)) / 4
    assert list(TinyStoriesCorpus(stories=2000).documents("train")) == TRAIN[:2000]
    assert hub.asked[-1] == ("GET", f"/cdn/{FILES['train']}", f"bytes={first}-")
    assert list(TinyStoriesCorpus().documents("train")) == TRAIN
    assert train.read_bytes() == packed(TRAIN)


def test_stories_that_are_there_need_no_network(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = TinyStoriesCorpus(stories=100, valid_stories=10).describe()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    corpus = TinyStoriesCorpus(stories=100, valid_stories=10)
    assert list(corpus.documents("train")) == TRAIN[:100]
    assert corpus.describe() == facts
    with pytest.raises(ValueError, match=r"HF_HUB_OFFLINE is set.*data\.kind=story.*data\.path=FILE"):
        TinyStoriesCorpus(stories=3900).documents("train")


def test_a_cut_connection_goes_on_at_the_byte_where_it_broke(hub: Hub, train: Path) -> None:
    hub.cuts, hub.cut_after = 3, 300_000
    assert list(TinyStoriesCorpus().documents("train")) == TRAIN
    starts = [asked for method, path, asked in hub.asked if method == "GET" and path.startswith("/cdn/")]
    assert starts == ["", "bytes=300000-", "bytes=600000-", "bytes=900000-"]
    assert hub.sent == len(packed(TRAIN))


def test_a_download_that_was_given_up_is_kept_for_the_next(hub: Hub, train: Path) -> None:
    hub.cuts, hub.cut_after = 99, 0
    content = packed(TRAIN)
    with pytest.raises(ValueError, match=r"4 times in a row after 0 bytes, which are kept.*data\.kind=story"):
        TinyStoriesCorpus().documents("train")
    part(train).write_bytes(content[:500_000])
    hub.cuts, hub.sent = 0, 0
    assert list(TinyStoriesCorpus().documents("train")) == TRAIN
    assert hub.sent == len(content) - 500_000


def test_a_server_without_ranges_still_gives_the_file(hub: Hub) -> None:
    hub.ranges, hub.cuts, hub.cut_after = False, 1, 300_000
    assert list(TinyStoriesCorpus().documents("train")) == TRAIN
    assert hub.sent == 300_000 + len(packed(TRAIN))


def test_a_file_that_is_not_what_the_hub_says_is_refused_and_removed(hub: Hub, train: Path) -> None:
    hub.digest = "ab" * 32
    with pytest.raises(ValueError, match=r"sha256 \w{12}, but the hub says .* with abababababab; .* removed"):
        TinyStoriesCorpus().documents("train")
    assert not part(train).exists()
    assert not train.exists()
    hub.digest = ""
    assert list(TinyStoriesCorpus().documents("train")) == TRAIN


def test_a_damaged_part_is_not_gone_on_with(hub: Hub, train: Path) -> None:
    list(TinyStoriesCorpus(stories=100).documents("train"))
    content = bytearray(part(train).read_bytes())
    content[10] ^= 1
    part(train).write_bytes(bytes(content))
    assert list(TinyStoriesCorpus(stories=100).documents("train")) == TRAIN[:100]


def test_another_version_on_the_hub_replaces_the_part(hub: Hub) -> None:
    list(TinyStoriesCorpus(stories=10).documents("train"))
    new = [story.replace("fox", "cat") for story in TRAIN]
    hub.files[FILES["train"]] = packed(new)
    assert list(TinyStoriesCorpus().documents("train")) == new


def test_a_part_longer_than_the_file_is_downloaded_anew(hub: Hub, train: Path) -> None:
    hub.redirect = False
    train.parent.mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        # A server that does not say how long the file is lets only the 416 tell.
        from moonlet.data import download
        from moonlet.data import hub as module

        look_up = module.look_up
        patch.setattr(download, "look_up", lambda url: module.Remote(url, None, look_up(url).digest, ""))
        hub.cuts, hub.cut_after = 99, 0
        remote = module.Remote(hub.url + STORIES + FILES["train"], None, git_sha1(packed(TRAIN)), "")
        facts = {"remote": vars(remote), "bytes": 0, "sha256": hashlib.sha256().hexdigest()}
        train.with_name(train.name + ".json").write_text(json.dumps(facts))
        part(train).write_bytes(packed(TRAIN) + b"more")
        hub.cuts = 0
        assert list(TinyStoriesCorpus().documents("train")) == TRAIN
    assert [asked for _, _, asked in hub.asked if asked] == [f"bytes={len(packed(TRAIN)) + 4}-"]


def test_a_file_that_the_hub_itself_sends_is_checked_by_its_git_hash(hub: Hub, train: Path) -> None:
    hub.redirect = False
    assert list(TinyStoriesCorpus(stories=5, valid_stories=5).documents("valid")) == VALID[:5]
    assert list(TinyStoriesCorpus().documents("train")) == TRAIN
    record = json.loads(train.with_name(train.name + ".json").read_text())
    assert record["remote"]["digest"] == git_sha1(packed(TRAIN))


@pytest.mark.parametrize(
    ("status", "problem"),
    [
        (404, r"TinyStoriesV2-GPT4-train\.txt: 404 Not Found"),
        (401, "401 Unauthorized; set HF_TOKEN"),
        (403, "403 Forbidden; set HF_TOKEN"),
        (416, "416"),
        (503, r"cannot be fetched from http://127\.0\.0\.1:\d+: the server answers 503 .*data\.kind=story"),
    ],
)
def test_a_refusal_is_one_clear_line(hub: Hub, status: int, problem: str) -> None:
    hub.status = status
    with pytest.raises(ValueError, match=problem) as caught:
        TinyStoriesCorpus().documents("train")
    assert "\n" not in str(caught.value)


def test_the_token_goes_to_the_hub_and_to_no_other_host(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    TinyStoriesCorpus(stories=5).documents("train")
    assert {token for path, token in hub.tokens if path.startswith(STORIES)} == {"Bearer hf_secret"}
    assert {token for path, token in hub.tokens if path.startswith("/cdn/")} == {""}


def test_without_a_network_it_fails_at_once_naming_the_alternatives(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{unused.getsockname()[1]}")
        with pytest.raises(ValueError, match=r"refused; without .*\(data\.kind=story\).*\(data\.path=FILE\)") as caught:
            TinyStoriesCorpus().describe()
    assert "\n" not in str(caught.value)


def test_a_network_that_never_answers_is_given_up_soon(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hang = threading.Event()
    monkeypatch.setattr("moonlet.data.hub.FIRST_ANSWER", 0.2)
    monkeypatch.setattr("moonlet.data.hub._head", lambda url: hang.wait(20))
    began = time.monotonic()
    with pytest.raises(ValueError, match=r"no answer within 0\.2 seconds"):
        TinyStoriesCorpus().describe()
    assert time.monotonic() - began < 5
    hang.set()


def test_progress_tells_bytes_and_what_is_wanted(hub: Hub) -> None:
    told: list[tuple[str, int, int | None]] = []
    corpus = TinyStoriesCorpus(stories=1500, progress=lambda *at: told.append(at))
    list(corpus.documents("train"))
    wanted = len(packed(TRAIN[:1500]))
    assert {name for name, _, _ in told} == {FILES["train"]}
    assert [size for _, size, _ in told] == sorted({size for _, size, _ in told})
    assert told[-1][2] == pytest.approx(wanted, rel=0.05)
    assert corpus.expected_bytes("train") == pytest.approx(wanted, rel=0.1)


def test_a_recipe_names_it_and_it_prepares(hub: Hub, tmp_path: Path) -> None:
    corpus = open_corpus(DataSettings(kind="tinystories", stories=20))
    manifest = prepare(corpus, ByteTokenizer(), tmp_path / "out")
    assert (manifest.splits["train"].documents, manifest.splits["valid"].documents) == (20, 50)
    assert manifest.corpus["repository"] == "roneneldan/TinyStories"


def test_the_verb_writes_the_stories(hub: Hub, tmp_path: Path) -> None:
    for split, stories in (("train", TRAIN), ("valid", VALID)):
        out = tmp_path / f"{split}.txt"
        made = CliRunner().invoke(app, ["tinystories", "--out", str(out), "--stories", "30", "--split", split])
        assert made.exit_code == 0, made.output
        assert list(read_documents(out)) == stories[:30]
        assert "30" in made.stdout
        assert "sha256" in made.stdout


def test_impossible_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="-1 train stories"):
        TinyStoriesCorpus(-1)
    with pytest.raises(ValueError, match="unknown split 'test'"):
        TinyStoriesCorpus().documents("test")
