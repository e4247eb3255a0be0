"""Which chat form a model folder wants, from the files that say so.

Asked in this order: what the caller chose; the folder's chat template (its text tells the families apart without being
run); the special tokens; the config. Nothing is guessed: without a sign of the family the answer is an error that names
the forms to choose from.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from moonlet.config.json_file import read_json
from moonlet.text.chat.forms import END, FORMS, MIDDLE, THINK, ChatForm, form_named
from moonlet.text.tokenizer import Tokenizer

_TEMPLATE, _TOKENIZER, _CONFIG = "chat_template.jinja", "tokenizer_config.json", "config.json"
_DEFAULT = re.compile(r"<\|im_system\|>system<\|im_middle\|>([^<{]+)<\|im_end\|>")
_BOS, _END = 163584, 163586  # ids of [BOS] and <|im_end|> in every vocabulary of the family
_LARGEST_TEMPLATE = 1 << 20
_LARGEST_JSON = 1 << 26


def form_of(source: Path | str | Mapping[str, Any], choice: str | ChatForm | None = None) -> ChatForm:
    """The chat form of a model.

    Args:
        source: a model folder, or the content of a config.json.
        choice: a form or its name; it wins over everything found.

    Raises:
        ValueError: the choice is unknown, or nothing tells the form.
    """
    if choice is not None:
        return form_named(choice) if isinstance(choice, str) else choice
    if isinstance(source, Mapping):
        found, where = _by_config(source, frozenset()), "this config"
    else:
        folder = Path(source)
        if not folder.is_dir():
            raise ValueError(f"{folder} is not a folder; give a model folder or choose a chat form by name")
        where = str(folder)
        config, template = _object(folder / _CONFIG), template_of(folder)
        found = _by_template(template, config) if template else None
        found = found or _by_config(config, _specials(_object(folder / _TOKENIZER)))
    if found is None:
        raise ValueError(f"{where} does not say which chat form its model was trained with; choose one of {_names()}")
    return found


def trained_form(folder: Path, tokenizer: Tokenizer, choice: str | None = None) -> ChatForm | None:
    """The chat form of a model that was trained on chats, or the one chosen; None for one that only continues texts.

    A configuration alone proves nothing, since a model of stories has the same: the tokenizer must name the marks of
    chats, or the folder hold a template.

    Raises:
        ValueError: the choice is unknown, or a chat model does not say which form it has.
    """
    if choice is None and END not in tokenizer.specials and template_of(folder) is None:
        return None
    return form_of(folder, choice)


def template_of(folder: Path) -> str | None:
    """The text of a folder's chat template, from chat_template.jinja or tokenizer_config.json; None if it has none.

    Raises:
        ValueError: it is too large, or no UTF-8.
    """
    path = folder / _TEMPLATE
    if path.is_file():
        return _read(path, _LARGEST_TEMPLATE)
    template = _object(folder / _TOKENIZER).get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, Mapping)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _by_template(template: str, config: Mapping[str, Any]) -> ChatForm | None:
    if MIDDLE not in template:
        return None
    if "tools_ts_str" in template:
        if "last_non_tool_call_assistant_msg" not in template:
            return FORMS["k2.7-code"]
        return FORMS["k2.6" if "preserve_thinking" in template else "k2.5"]
    if THINK in template:
        name = "k2-thinking"
    elif "tool_declare" not in template:
        name = "moonlight"
    elif "loop.index0" in template:
        name = "k2"
    else:
        name = "kimi-linear" if config.get("model_type") == "kimi_linear" else "k2-0905"
    form = FORMS[name]
    default = _DEFAULT.search(template)
    return replace(form, default_system=default[1]) if default else form


def _by_config(config: Mapping[str, Any], specials: frozenset[str]) -> ChatForm | None:
    kind = config.get("model_type")
    if kind == "kimi_k25":
        return FORMS["k2.5"]
    if kind == "kimi_linear":
        return FORMS["kimi-linear"]
    if kind == "kimi_k3" or "<|end_of_msg|>" in specials:
        raise ValueError(f"Kimi K3 writes chats in a form of its own, which moonlet does not have; it has {_names()}")
    if THINK in specials and MIDDLE in specials:
        return FORMS["k2-thinking"]
    if kind not in ("kimi_k2", "deepseek_v3"):
        return None
    if kind == "deepseek_v3" and MIDDLE not in specials and config.get("bos_token_id") != _BOS:
        return None
    if config.get("q_lora_rank") is None:
        return FORMS["moonlight"]
    # Of the text-only models with a query latent, Thinking is the one whose turns end the text.
    return FORMS["k2-thinking" if config.get("eos_token_id") == _END else "k2-0905"]


def _specials(tokenizer: Mapping[str, Any]) -> frozenset[str]:
    added = tokenizer.get("added_tokens_decoder")
    entries = list(added.values()) if isinstance(added, Mapping) else []
    names = [entry.get("content") for entry in entries if isinstance(entry, Mapping)]
    extra = tokenizer.get("additional_special_tokens")
    names += extra if isinstance(extra, list) else []
    return frozenset(name for name in names if isinstance(name, str))


def _object(path: Path) -> dict[str, Any]:
    return read_json(path, _LARGEST_JSON) if path.is_file() else {}


def _read(path: Path, limit: int) -> str:
    size = path.stat().st_size
    if size > limit:
        raise ValueError(f"{path}: {size} bytes, more than the {limit} that are read")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 at byte {error.start}") from None


def _names() -> str:
    return ", ".join(FORMS)
