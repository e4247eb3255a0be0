"""Read a tokenizer folder back.

The pipeline is rebuilt from the merges and the pattern and compared with the file, section by section: a pipeline that
moonlet would run differently from Hugging Face is refused, not guessed at.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from moonlet.text.bpe import BPETokenizer
from moonlet.text.byte import ByteTokenizer
from moonlet.text.pipeline import CONFIG_FILE, PIPELINE_FILE, tokenizer_json
from moonlet.text.tokenizer import Tokenizer


def load(folder: Path) -> Tokenizer:
    """Read the tokenizer that `Tokenizer.save` wrote.

    Raises:
        FileNotFoundError: the folder or one of the two files is missing.
        ValueError: a file is malformed, or holds a pipeline that moonlet cannot run exactly; names file and problem.
    """
    folder = Path(folder)
    config_path, pipeline_path = folder / CONFIG_FILE, folder / PIPELINE_FILE
    config, pipeline = _read_json(config_path), _read_json(pipeline_path)
    about = config.get("moonlet")
    if not isinstance(about, dict) or about.get("kind") not in ("byte", "bpe"):
        kind = about.get("kind") if isinstance(about, dict) else None
        raise ValueError(
            f"{config_path}: moonlet.kind is {kind!r}, not 'byte' or 'bpe'; was this tokenizer saved by moonlet?"
        )
    tokenizer = ByteTokenizer() if about["kind"] == "byte" else _read_bpe(pipeline, pipeline_path)
    _check_pipeline(tokenizer, pipeline, pipeline_path)
    found = tokenizer.content_hash()
    if about.get("content_hash") != found:
        raise ValueError(
            f"{config_path}: content_hash {str(about.get('content_hash'))[:12]} does not fit {PIPELINE_FILE} "
            f"({found[:12]}); the two files are not from one tokenizer"
        )
    return tokenizer


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path}: no such file; a tokenizer folder holds {PIPELINE_FILE} and {CONFIG_FILE}"
        ) from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not valid JSON, line {error.lineno} column {error.colno}: {error.msg}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a JSON {type(content).__name__}, not an object")
    return content


def _read_bpe(pipeline: dict[str, Any], path: Path) -> BPETokenizer:
    try:
        merges = _merges(pipeline)
        pattern = pipeline["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
        if not isinstance(pattern, str):
            raise TypeError("the pattern is a string")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise ValueError(
            f"{path}: no BPE model with merges behind a regular-expression split; not a tokenizer saved by moonlet"
        ) from None
    try:
        return BPETokenizer(merges, pattern)
    except Exception as error:
        # The library raises a bare Exception for a regular expression it cannot compile.
        raise ValueError(f"{path}: {str(error).splitlines()[0]}") from None


def _merges(pipeline: dict[str, Any]) -> list[tuple[str, str]]:
    # Older versions of the library write "a b" where newer ones write ["a", "b"].
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in pipeline["model"]["merges"]]
    if not all(len(merge) == 2 and isinstance(merge[0], str) and isinstance(merge[1], str) for merge in merges):
        raise TypeError("a merge is two strings")
    return [(merge[0], merge[1]) for merge in merges]


def _check_pipeline(tokenizer: Tokenizer, pipeline: dict[str, Any], path: Path) -> None:
    """Refuse a file that says anything else than what this tokenizer does.

    The post_processor is not compared: it is what Hugging Face adds around a text on request, and never changes how
    the text itself is encoded.
    """
    if isinstance(tokenizer, BPETokenizer):
        expected = tokenizer_json(tokenizer.specials, tokenizer.tokens, tokenizer.merges, tokenizer.pattern)
        pipeline["model"]["merges"] = [list(merge) for merge in _merges(pipeline)]
    else:
        expected = tokenizer_json(tokenizer.specials, [], [], None)
    for section in ("added_tokens", "normalizer", "pre_tokenizer", "decoder", "model"):
        want, have = expected[section], pipeline.get(section)
        if want == have:
            continue
        detail = ""
        if isinstance(want, dict) and isinstance(have, dict):
            detail = " (in " + ", ".join(key for key in {**want, **have} if want.get(key) != have.get(key)) + ")"
        raise ValueError(f"{path}: section {section!r}{detail} is not what a moonlet {tokenizer.kind} tokenizer writes")
