"""A folder's own files say which chat form it wants; a choice wins; nothing is guessed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from moonlet.text.chat import FORMS, form_of
from tests.text.chat import official

TURN = "<|im_system|>system<|im_middle|>{}<|im_end|>"


def folder(path: Path, template: str | None = None, config: Any = None, tokenizer: Any = None) -> Path:
    if template is not None:
        (path / "chat_template.jinja").write_text(template, encoding="utf-8")
    for name, content in (("config.json", config), ("tokenizer_config.json", tokenizer)):
        if content is not None:
            (path / name).write_text(json.dumps(content), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("tool_declare loop.index0 " + TURN.format("You are a helpful assistant"), "k2"),
        ("tool_declare " + TURN.format(FORMS["k2-0905"].default_system), "k2-0905"),
        ("tool_declare <think> " + TURN.format(FORMS["k2-0905"].default_system), "k2-thinking"),
        ("<|im_middle|> tools_ts_str last_non_tool_call_assistant_msg <think>", "k2.5"),
        ("<|im_middle|> tools_ts_str last_non_tool_call_assistant_msg preserve_thinking <think>", "k2.6"),
        ("<|im_middle|> tools_ts_str <think>", "k2.7-code"),
        (TURN.format(FORMS["moonlight"].default_system), "moonlight"),
    ],
)
def test_the_template_tells_the_form(tmp_path: Path, template: str, name: str) -> None:
    assert form_of(folder(tmp_path, template, {"model_type": "deepseek_v3"})) == FORMS[name]
    (tmp_path / "chat_template.jinja").unlink()
    for stored in (template, [{"name": "tool_use", "template": ""}, {"name": "default", "template": template}]):
        assert form_of(folder(tmp_path, tokenizer={"chat_template": stored})) == FORMS[name]


@pytest.mark.parametrize("name", official.FILES)
def test_the_official_templates_tell_their_forms(tmp_path: Path, name: str) -> None:
    source = official.template(name)
    if source is None:
        pytest.skip("MOONLET_CHAT_TEMPLATES names no folder of llama.cpp's templates")
    assert form_of(folder(tmp_path, source)) == FORMS[name]


def test_a_template_with_another_default_turn_keeps_it(tmp_path: Path) -> None:
    form = form_of(folder(tmp_path, "tool_declare" + TURN.format("Be moonlet."), {"model_type": "kimi_linear"}))
    assert (form.name, form.default_system) == ("kimi-linear", "Be moonlet.")


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"model_type": "kimi_k25", "text_config": {"model_type": "kimi_k2"}}, "k2.5"),
        ({"model_type": "kimi_linear"}, "kimi-linear"),
        ({"model_type": "kimi_k2", "q_lora_rank": 1536, "eos_token_id": 163585}, "k2-0905"),
        ({"model_type": "kimi_k2", "q_lora_rank": 1536, "eos_token_id": 163586}, "k2-thinking"),
        ({"model_type": "deepseek_v3", "q_lora_rank": None, "bos_token_id": 163584}, "moonlight"),
    ],
)
def test_the_config_tells_the_form(tmp_path: Path, config: dict[str, Any], name: str) -> None:
    assert form_of(config) == form_of(folder(tmp_path, config=config)) == FORMS[name]


def test_the_vocabulary_tells_thinking(tmp_path: Path) -> None:
    added = {str(i): {"content": name} for i, name in enumerate(["<|im_middle|>", "<think>", "</think>"])}
    config = {"model_type": "kimi_k2", "q_lora_rank": 1536, "eos_token_id": 163585}
    assert form_of(folder(tmp_path, config=config, tokenizer={"added_tokens_decoder": added})).name == "k2-thinking"


def test_a_choice_wins(tmp_path: Path) -> None:
    path = folder(tmp_path, config={"model_type": "kimi_k25"})
    assert form_of(path, "k2") == FORMS["k2"]
    assert form_of(path, FORMS["moonlight"]) == FORMS["moonlight"]
    with pytest.raises(ValueError, match="chat form 'k3' is unknown; the forms are"):
        form_of(path, "k3")


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({}, "does not say which chat form .* choose one of k2, k2-0905"),
        ({"config": {"model_type": "deepseek_v3", "q_lora_rank": 8}}, "does not say which chat form"),
        ({"template": "{{ messages }}", "config": {"model_type": "llama"}}, "does not say which chat form"),
        ({"config": {"model_type": "kimi_k3"}}, "Kimi K3 writes chats in a form of its own"),
        ({"config": []}, "holds list, expected a JSON object"),
        ({"template": "x" * ((1 << 20) + 1)}, "more than the 1048576 that are read"),
    ],
)
def test_no_sign_of_a_form_is_an_error(tmp_path: Path, files: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        form_of(folder(tmp_path, **files))


def test_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a folder"):
        form_of(tmp_path / "nowhere")
    for content, problem in (
        (b"{", "not valid JSON: .* line 1"),
        (b"\xff", "not UTF-8 at byte 0"),
        (b"[" * 99_999, "too deeply"),
    ):
        (tmp_path / "config.json").write_bytes(content)
        with pytest.raises(ValueError, match=problem):
            form_of(tmp_path)
