"""`moonlet generate`: one text streams, several come in blocks, a mistake is one line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import moonlet
from moonlet.cli.main import main
from moonlet.folder import load, save
from moonlet.model.model import CausalLM
from moonlet.text import ByteTokenizer

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[..., CausalLM]) -> Path:
    path = tmp_path_factory.mktemp("model")
    save(tiny_model(vocab_size=ByteTokenizer().vocab_size), ByteTokenizer(), path)
    return path


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path) -> Cli:
    """cli(...) -> exit code, stdout and stderr of `moonlet generate FOLDER ...`."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["moonlet", "generate", str(folder), *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0), *capsys.readouterr()

    return run


def test_one_prompt_prints_prompt_and_continuation(cli: Cli, folder: Path) -> None:
    code, out, _ = cli("one", "--max-new-tokens", "9", "--seed", "3")
    assert code == 0
    assert out == moonlet.generate(*load(folder), "one", max_new_tokens=9, seed=3) + "\n"


def test_several_prompts_print_a_numbered_block_each(cli: Cli, folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("two\n\nthree\n", encoding="utf-8")
    code, out, _ = cli("one", "--file", str(file), "--samples", "2", "--max-new-tokens", "9", "--seed", "3")
    assert code == 0
    texts = moonlet.generate(*load(folder), ["one", "one", "two", "two", "three", "three"], max_new_tokens=9, seed=3)
    assert out == "".join(f"[{n}] {text}\n\n" for n, text in enumerate(texts, 1))


def test_stop_may_be_given_again(cli: Cli) -> None:
    _, whole, _ = cli("one", "--max-new-tokens", "30", "--seed", "3")
    text = whole[3:].rstrip("\n")
    stop = text[8:10]
    _, out, _ = cli("one", "--max-new-tokens", "30", "--seed", "3", "--stop", "never there", "--stop", stop)
    assert out == "one" + text[: text.index(stop)] + "\n"


def test_a_text_without_continuation_is_the_prompt(cli: Cli) -> None:
    _, whole, _ = cli("one", "--max-new-tokens", "30", "--seed", "3")
    assert cli("one", "--max-new-tokens", "30", "--seed", "3", "--stop", whole[3])[1] == "one\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--top-p", "3"], "top_p is 3.0"),
        (["one", "--max-new-tokens", "5000"], "512 positions"),
        (["--file", "nowhere.txt"], "nowhere.txt"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_else(cli: Cli, arguments: list[str], message: str) -> None:
    code, out, err = cli(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_a_configuration_alone_makes_no_chat_as_in_chat_and_serve(cli: Cli) -> None:
    code, out, err = cli("one", "--chat")
    assert (code, out) == (2, "")
    assert "was trained on no chats" in err
    assert cli("one", "--chat-form", "k2", "--max-new-tokens", "3")[0] == 0
