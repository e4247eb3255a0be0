"""The prompt box in a notebook, without one: buttons are clicked and widgets read."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from moonlet.generate import SamplingParams, generate
from moonlet.model.model import CausalLM
from moonlet.text import ByteTokenizer
from moonlet.widgets import PromptBox, prompt_box

BYTES = ByteTokenizer()
Make = Callable[..., CausalLM]


@pytest.fixture(scope="module")
def model(tiny_model: Make) -> CausalLM:
    return tiny_model(vocab_size=BYTES.vocab_size)


@pytest.fixture
def box(model: CausalLM) -> PromptBox:
    pytest.importorskip("ipywidgets")
    return prompt_box(model, BYTES, "Once ", params=SamplingParams(max_new_tokens=20, seed=3))


def test_a_click_continues_the_prompt_with_the_settings_of_the_controls(model: CausalLM, box: PromptBox) -> None:
    box.temperature.value, box.top_p.value, box.top_k.value, box.seed.value = 0.5, 0.9, 30, "7"
    box.start.click()
    box.wait()
    want = generate(model, BYTES, "Once ", max_new_tokens=20, temperature=0.5, top_p=0.9, top_k=30, seed=7)
    assert "Once " + box.text == want
    assert box.status.value == "done"
    assert (box.start.disabled, box.stop.disabled) == (False, True)


def test_settings_without_a_control_stay(model: CausalLM, box: PromptBox) -> None:
    params = SamplingParams(presence_penalty=1.5, logit_bias={40: 2.0}, stop=("x",), max_new_tokens=9, seed=1)
    assert prompt_box(model, BYTES, params=params).settings() == params


def test_stop_ends_the_text(model: CausalLM, box: PromptBox, monkeypatch: pytest.MonkeyPatch) -> None:
    held, begun = threading.Event(), threading.Event()

    def endless(prompt: str, params: SamplingParams) -> object:
        while True:
            yield "a"
            begun.set()
            held.wait(10)

    monkeypatch.setattr(box, "_pieces", endless)
    box.start.click()
    assert begun.wait(10)
    assert box.start.disabled
    box.start.click()  # a second text does not begin beside the first
    box.stop.click()
    held.set()
    box.wait()
    assert box.status.value == "stopped"
    assert box.text == "aa"
    assert not box.start.disabled


def test_what_is_written_never_becomes_part_of_the_page(box: PromptBox, monkeypatch: pytest.MonkeyPatch) -> None:
    box.prompt.value = "<b>&"
    monkeypatch.setattr(box, "_pieces", lambda prompt, params: (piece for piece in ["<script>", "x</div>"]))
    box.start.click()
    box.wait()
    assert "<b>&lt;b&gt;&amp;</b>&lt;script&gt;x&lt;/div&gt;</div>" in box.page.value


def test_a_message_is_answered_in_a_chat_form(model: CausalLM, box: PromptBox) -> None:
    chat = prompt_box(model, BYTES, "hello", form="k2-0905", params=SamplingParams(max_new_tokens=15, seed=2))
    chat.start.click()
    chat.wait()
    assert chat.status.value == "done"
    assert chat.text
    assert "hello" not in chat.page.value


@pytest.mark.parametrize(
    ("prompt", "seed", "message"), [("a", "x", "the seed is 'x'"), ("a" * 600, "", "512 positions")]
)
def test_a_mistake_is_a_line_beside_the_buttons(box: PromptBox, prompt: str, seed: str, message: str) -> None:
    box.prompt.value, box.seed.value = prompt, seed
    box.start.click()
    box.wait()
    assert message in box.status.value
    assert not box.start.disabled


def test_a_notebook_can_show_it(box: PromptBox) -> None:
    shown = box._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in (shown[0] if isinstance(shown, tuple) else shown)


def test_without_the_package_the_error_says_how_to_install_it(model: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    with pytest.raises(ValueError, match=r'pip install "moonlet\[notebook\]"'):
        prompt_box(model, BYTES)


def test_the_room_is_found_from_the_package() -> None:
    code = "import sys, moonlet; assert 'torch' not in sys.modules; moonlet.widgets.prompt_box; print('found')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "found\n", done.stderr


def test_what_breaks_off_is_not_called_done(box: PromptBox, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(prompt: str, params: SamplingParams) -> Iterator[str]:
        yield "a"
        raise RuntimeError("out of memory")

    monkeypatch.setattr(box, "_pieces", broken)
    box.start.click()
    box.wait()
    assert (box.text, box.status.value) == ("a", "failed: RuntimeError: out of memory")
    assert not box.start.disabled
