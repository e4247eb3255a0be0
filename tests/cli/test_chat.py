"""`moonlet chat`: turns are kept, commands do what they say, Ctrl-C stops an answer and not the chat."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from moonlet.cli.chat import _Terminal
from moonlet.cli.conversation import Conversation
from moonlet.cli.main import main
from moonlet.folder import save
from moonlet.generate import SamplingParams, complete, stream_ids
from moonlet.model.model import CausalLM
from moonlet.text import ByteTokenizer
from moonlet.text.chat import ChatForm, Delta, form_named, mark_ids, parse_ids, render, to_ids
from moonlet.text.chat.detect import trained_form

BYTES = ByteTokenizer()
K2 = form_named("k2-0905")
PARAMS = SamplingParams(max_new_tokens=12, seed=5)
Make = Callable[..., CausalLM]


@pytest.fixture(scope="module")
def model(tiny_model: Make) -> CausalLM:
    return tiny_model(vocab_size=BYTES.vocab_size)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, model: CausalLM) -> Path:
    path = tmp_path_factory.mktemp("model")
    save(model, BYTES, path)
    return path


def new(model: CausalLM, form: ChatForm | None = K2, **settings: Any) -> Conversation:
    return Conversation(model, BYTES, form, PARAMS, **settings)


def said(deltas: Iterator[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


def contents(conversation: Conversation) -> list[str]:
    return [message.content for message in conversation.messages]


def test_an_answer_is_what_the_model_draws_after_the_rendered_conversation(model: CausalLM) -> None:
    conversation = new(model, system="Be kind.")
    said(conversation.answer("one"))
    first = conversation.messages[1].content
    said(conversation.answer("two"))
    turns = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "two"},
    ]
    ids = to_ids(render(turns, K2), BYTES)
    drawn = list(stream_ids(model, BYTES, ids, {BYTES.eos_id, mark_ids(BYTES)["<|im_end|>"]}, PARAMS))
    assert conversation.messages[3].content == parse_ids(drawn, K2, BYTES).content
    assert contents(conversation)[::2] == ["one", "two"]


def test_a_model_without_a_form_continues_the_text(model: CausalLM) -> None:
    conversation = new(model, None)
    first = said(conversation.answer("Once "))
    assert first == complete(model, BYTES, ["Once "], PARAMS)[0].text
    second = said(conversation.answer(" and then "))
    assert second == complete(model, BYTES, [f"Once {first} and then "], PARAMS)[0].text


def test_a_retry_differs_and_is_the_same_again(model: CausalLM) -> None:
    one, other = new(model), new(model)
    answers = [[said(c.answer("hello")), said(c.retry()), said(c.retry())] for c in (one, other)]
    assert answers[0] == answers[1]
    assert len(set(answers[0])) == 3
    assert contents(one) == ["hello", answers[0][2]]


def test_undo_takes_back_a_turn_and_drop_the_oldest(model: CausalLM) -> None:
    conversation = new(model)
    for text in ("a", "b", "c"):
        said(conversation.answer(text))
    conversation.drop()
    assert conversation.undo().content == "c"
    assert contents(conversation)[::2] == ["b"]
    with pytest.raises(ValueError, match="2 turns cannot be dropped; the conversation has 1"):
        conversation.drop(2)
    conversation.reset()
    with pytest.raises(ValueError, match="nothing was said yet"):
        conversation.retry()


def test_a_saved_conversation_goes_on(model: CausalLM, tmp_path: Path) -> None:
    one, other = new(model, system="ä"), new(model)
    said(one.answer("first"))
    one.save(tmp_path / "chat.json")
    other.load(tmp_path / "chat.json")
    assert (other.messages, other.system) == (one.messages, "ä")
    assert said(other.answer("next")) == said(one.answer("next"))
    one.reset()
    one.save(tmp_path / "empty.json")
    other.load(tmp_path / "empty.json")
    assert other.messages == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no conversation that /save wrote"),
        ("[" * 100_000, "is no conversation"),
        ('{"format": "other"}', "is no conversation"),
        (json.dumps({"format": "moonlet chat 1", "system": 3, "messages": []}), "system is 3"),
        (
            json.dumps({"format": "moonlet chat 1", "messages": [{"role": "user", "content": "x"}]}),
            "not user and assistant in turn",
        ),
        (json.dumps({"format": "moonlet chat 1", "messages": [{"role": "nobody"}]}), "role is 'nobody'"),
    ],
)
def test_what_is_no_saved_conversation_is_refused_and_changes_nothing(
    model: CausalLM, tmp_path: Path, content: str, message: str
) -> None:
    conversation = new(model)
    said(conversation.answer("kept"))
    before = list(conversation.messages)
    file = tmp_path / "chat.json"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        conversation.load(file)
    assert conversation.messages == before


def test_an_answer_that_is_broken_off_is_kept_as_far_as_it_went(model: CausalLM) -> None:
    conversation = new(model)
    deltas = conversation.answer("hello")
    first = next(deltas).text
    deltas.close()  # type: ignore[attr-defined]
    assert contents(conversation)[0] == "hello"
    assert contents(conversation)[1].startswith(first)
    assert said(conversation.answer("go on"))


def test_a_conversation_that_outgrows_the_model_says_so_and_can_be_shortened(tiny_model: Make) -> None:
    small = tiny_model(vocab_size=BYTES.vocab_size, max_position_embeddings=160)
    conversation = new(small)
    said(conversation.answer("a" * 20))
    with pytest.raises(ValueError, match="tokens and the model reads 160: /drop old turns"):
        conversation.answer("b" * 120)
    assert len(conversation.messages) == 2
    conversation.drop()
    conversation.params = SamplingParams(max_new_tokens=5000, seed=1)
    said(conversation.answer("short"))
    assert conversation.last is not None
    assert conversation.last.read + conversation.last.drawn <= 160


def test_instructions_need_a_chat_form(model: CausalLM) -> None:
    with pytest.raises(ValueError, match="takes no instructions"):
        new(model, None, system="Be kind.")


def test_a_model_of_stories_has_no_form_unless_one_is_chosen(folder: Path) -> None:
    assert trained_form(folder, BYTES, None) is None
    chosen = trained_form(folder, BYTES, "k2")
    assert chosen is not None
    assert chosen.name == "k2"


# The terminal.


@pytest.fixture
def talk(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path
) -> Callable[..., tuple[int, str, str]]:
    """talk(lines, *arguments) -> exit code, stdout and stderr of `moonlet chat` fed from a pipe."""

    def run(lines: str, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["moonlet", "chat", str(folder), "--max-new-tokens", "9", *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0), *capsys.readouterr()

    return run


def test_in_a_pipe_answers_alone_are_on_stdout(talk: Callable[..., tuple[int, str, str]], model: CausalLM) -> None:
    code, out, err = talk("one\n\n//two\n", "--chat-form", "k2-0905", "--seed", "3")
    conversation = Conversation(model, BYTES, K2, SamplingParams(max_new_tokens=9, seed=3))
    want = "".join(said(conversation.answer(text)) + "\n" for text in ("one", "/two"))
    assert (code, err) == (0, "")
    assert out == "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in want)


def test_a_story_is_continued(talk: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = talk("Once\n", "--temperature", "0")
    assert (code, err) == (0, "")
    assert out.strip()


def test_commands_do_what_they_say(talk: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    file = tmp_path / "a chat.json"
    lines = ["/help", "/temperature 0", "/top-p 0.5", "/seed 4", "hi", "/retry", "/stats", "/system be kind"]
    lines += [f"/save {file}", "/undo", "/reset", f"/load {file}", "/drop", "/system", "/seed", "/exit", "never read"]
    code, out, err = talk("\n".join(lines), "--chat-form", "k2-0905")
    assert code == 0
    assert out == 2 * out[: len(out) // 2]  # greedy: the retry says the same
    for told in ("/retry ", "temperature is 0.0", "seed is 4", "1 turns", "taken back: hi", "a new conversation"):
        assert told in err
    assert json.loads(file.read_text(encoding="utf-8"))["system"] == "be kind"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/nonsense", "/nonsense is no command; /help lists them"),
        ("/temperature hot", "/temperature needs a number, not 'hot'"),
        ("/temperature -1", "temperature is -1.0; it must be at least 0"),
        ("/top-k 1.5", "/top-k needs a whole number, not '1.5'"),
        ("/retry", "nothing was said yet"),
        ("/drop", "1 turns cannot be dropped; the conversation has 0"),
        ("/save", "/save needs a file"),
        ("/load nowhere.json", "No such file or directory: nowhere.json"),
        ("x" * 600, "tokens and the model reads 512"),
    ],
)
def test_a_mistake_is_one_line_and_the_chat_goes_on(
    talk: Callable[..., tuple[int, str, str]], line: str, message: str
) -> None:
    code, out, err = talk(f"{line}\nhello\n", "--chat-form", "k2-0905", "--seed", "3")
    assert code == 0
    assert message in err
    assert err.count("\n") == 1
    assert out.strip("\n")


def test_ctrl_c_stops_the_answer_and_ctrl_d_leaves(
    model: CausalLM, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rich.console import Console

    conversation = new(model)
    real = conversation.answer

    def interrupted(text: str) -> Iterator[Delta]:
        deltas = real(text)

        def some() -> Iterator[Delta]:
            try:
                yield next(deltas)
                raise KeyboardInterrupt
            finally:
                deltas.close()  # type: ignore[attr-defined]

        return some()

    monkeypatch.setattr(conversation, "answer", interrupted)
    typed = iter(["hello", KeyboardInterrupt, "more", EOFError])

    def typing(prompt: str) -> str:
        line = next(typed)
        if not isinstance(line, str):
            raise line
        return line

    monkeypatch.setattr("builtins.input", typing)
    _Terminal(conversation, Console(force_terminal=False), interactive=True).run()
    out = capsys.readouterr().out
    assert out.count("(stopped)") == 2
    assert "/exit leaves" in out
    assert contents(conversation)[::2] == ["hello", "more"]


def test_what_steers_a_terminal_is_not_printed(model: CausalLM, capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    terminal = _Terminal(new(model), Console(force_terminal=False), interactive=False)
    terminal._show(iter([Delta("content", "a\x1b[2J\x07[bold]b[/bold]:smile:\n")]))
    assert capsys.readouterr().out == "a\ufffd[2J\ufffd[bold]b[/bold]:smile:\n\n"


def test_two_modes_at_once_are_refused(talk: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = talk("hi\n", "--story", "--chat-form", "k2")
    assert (code, out) == (2, "")
    assert "--story and --chat-form exclude each other" in err
