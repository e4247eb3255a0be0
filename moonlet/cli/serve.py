"""`moonlet serve PATH ...`"""

from __future__ import annotations

import re
import sys
from collections import Counter
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer

from moonlet.serve.limits import Limits

if TYPE_CHECKING:
    from moonlet.generate.paged_step import Compile
    from moonlet.serve.plan import Served
    from moonlet.text.chat import ChatForm

_L = Limits()
_TOKENS_A_SLOT = 2048
_NEEDED = ("fastapi", "uvicorn", "llguidance")


def _limit(help: str) -> Any:
    return typer.Option(help=help, rich_help_panel="Limits")


_PATHS = typer.Argument(
    help="Run folders or model directories, each PATH or NAME=PATH.", metavar="PATH...", show_default=False
)
_KEY = typer.Option(
    help="What clients must know. Others on this machine see a command line: better a file, or the variable.",
    envvar="MOONLET_API_KEY",
    show_default=False,
)


def serve(
    context: typer.Context,
    paths: Annotated[list[str], _PATHS],
    host: Annotated[
        str, typer.Option(help="Address to listen on; the default is reached from here alone.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes any free one.", min=0, max=65535)] = 8000,
    api_key: Annotated[str | None, _KEY] = None,
    api_key_file: Annotated[Path | None, typer.Option(help="A file that holds the key.", show_default=False)] = None,
    slots: Annotated[int, typer.Option(help="Texts continued at once.", min=1, max=1024)] = 16,
    cache_tokens: Annotated[
        int | None, typer.Option(help="Tokens the cache holds, all texts together.", min=64, show_default="2048 a slot")
    ] = None,
    chat_form: Annotated[
        str | None, typer.Option(help="Chat form by name.", show_default="what the model's files say")
    ] = None,
    device: Annotated[str, typer.Option(help="Where the models lie.")] = "cpu",
    compile: Annotated[
        str, typer.Option(help="Compile the decode step: on, off, or auto: on a GPU, if that works.")
    ] = "auto",
    allowed_host: Annotated[list[str] | None, typer.Option(help="A name the server is called by.")] = None,
    allowed_origin: Annotated[list[str] | None, typer.Option(help="A web page that may use it.")] = None,
    max_body_bytes: Annotated[int, _limit("Size of a request.")] = _L.body_bytes,
    max_prompt_tokens: Annotated[int, _limit("Tokens of a prompt.")] = _L.prompt_tokens,
    max_tokens: Annotated[int, _limit("Tokens of an answer.")] = _L.max_tokens,
    max_n: Annotated[int, _limit("Answers to a prompt.")] = _L.n,
    max_prompts: Annotated[int, _limit("Prompts of a request.")] = _L.prompts,
    max_stop: Annotated[int, _limit("Stop texts.")] = _L.stop,
    max_stop_bytes: Annotated[int, _limit("Size of a stop text.")] = _L.stop_bytes,
    max_logit_bias: Annotated[int, _limit("Tokens whose logits are moved.")] = _L.logit_bias,
    max_logprobs: Annotated[int, _limit("Alternatives shown for a token.")] = _L.logprobs,
    max_tools: Annotated[int, _limit("Functions declared.")] = _L.tools,
    max_messages: Annotated[int, _limit("Messages of a chat.")] = _L.messages,
    max_view_tokens: Annotated[int, _limit("Tokens looked at at once.")] = _L.view_tokens,
    max_queue: Annotated[int, _limit("Answers that may wait for a slot.")] = _L.queue,
    max_live: Annotated[int, _limit("Requests under way at once.")] = _L.live,
    max_request_seconds: Annotated[float, _limit("For a whole answer.")] = _L.request_seconds,
    max_body_seconds: Annotated[float, _limit("For a request to arrive.")] = _L.body_seconds,
    max_unread: Annotated[int, _limit("Tokens kept for a slow reader.")] = _L.unread,
    max_drain_seconds: Annotated[float, _limit("For live requests when told to stop.")] = _L.drain_seconds,
) -> None:
    """Serve models behind the OpenAI interface.

    Example: `moonlet serve runs/quickstart`
    """
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise ValueError(f'serving needs {", ".join(missing)}; install with: pip install "moonlet[serve]"')
    given = context.params
    limits = Limits(**{f.name: given[f.name if f.name in given else f"max_{f.name}"] for f in fields(Limits)})
    _serve(
        paths,
        host,
        port,
        _key(api_key, api_key_file),
        slots,
        cache_tokens,
        chat_form,
        device,
        compile,
        limits,
        frozenset(allowed_host or ()),
        frozenset(allowed_origin or ()),
    )


def _serve(
    paths: list[str],
    host: str,
    port: int,
    key: str | None,
    slots: int,
    tokens: int | None,
    form: str | None,
    device: str,
    compile: str,
    limits: Limits,
    hosts: frozenset[str],
    origins: frozenset[str],
) -> None:
    from moonlet.generate.paged_step import Compile
    from moonlet.ops.allocator import keep_freed_memory
    from moonlet.serve.app import create_app
    from moonlet.serve.run import is_loopback, listen, run
    from moonlet.serve.security import Access

    if compile not in get_args(Compile):
        raise ValueError(f"--compile is {compile!r}; valid: {', '.join(get_args(Compile))}")
    compiled = cast("Compile", compile)
    access = Access(key, frozenset(name.lower() for name in (*hosts, host)), origins)
    if not is_loopback(host) and key is None:
        _say(f"anyone who reaches {host}:{port} can use this server; give it an --api-key-file, or leave out --host")
    keep_freed_memory()
    named = _named(paths)
    # Before the models, which take longer to load than anyone wants to wait for a port that is taken.
    with listen(host, port) as listening:
        models = [_load(name, path, slots, tokens, form, device, compiled, limits) for name, path in named.items()]

        def ready(address: str) -> None:
            bearer = " -H 'Authorization: Bearer KEY'" if key else ""
            print(f"serving {', '.join(named)} at {address}")
            print(
                f"  curl {address}/v1/completions{bearer} -H 'Content-Type: application/json' "
                f"""-d '{{"model": "{models[0].name}", "prompt": "Once upon a time", "max_tokens": 64}}'""",
                flush=True,
            )

        run(create_app(models, limits, access), listening, ready)


def _load(
    name: str,
    path: Path,
    slots: int,
    tokens: int | None,
    form: str | None,
    device: str,
    compile: Compile,
    limits: Limits,
) -> Served:
    from moonlet.folder import load, model_folder
    from moonlet.generate import lay_out
    from moonlet.generate.batch import Engine
    from moonlet.serve.models import serve_model
    from moonlet.text.chat import mark_ids
    from moonlet.text.chat.detect import trained_form

    folder = model_folder(path)
    model, tokenizer = load(path, device, notice=_say)
    lay_out(model)
    chosen: ChatForm | None = None
    try:
        chosen = trained_form(folder, tokenizer, form)
        if form is None and chosen is not None and set(chosen.marks) - set(mark_ids(tokenizer)):
            chosen = None
    except ValueError:
        if form is not None:
            raise
        # A model that only continues texts.
    longest = model.config.context_limit
    # By default one text may be several times as long as the mean of all that are live.
    room = tokens or max(slots * min(longest, _TOKENS_A_SLOT), min(longest, 4 * _TOKENS_A_SLOT))
    return serve_model(
        name,
        model,
        tokenizer,
        lambda: Engine(model, tokenizer, slots=slots, tokens=room, compile=compile, notice=_say),
        slots=slots,
        limits=limits,
        room=room,
        form=chosen,
        created=int((folder / "config.json").stat().st_mtime),
    )


def _named(paths: list[str]) -> dict[str, Path]:
    """Name -> folder, in the order given; a name is what was given, or what the folder is called."""
    found = []
    for text in paths:
        name, equals, path = text.partition("=")
        if equals and "/" not in name and not Path(text).exists():
            found.append((name, Path(path)))
        else:
            found.append((_name(Path(text).resolve()), Path(text)))
    twice = [name for name, count in Counter(name for name, _ in found).items() if count > 1]
    if twice:
        raise ValueError(f"two models are called {twice[0]}; name them: {twice[0]}-a=PATH {twice[0]}-b=PATH")
    return dict(found)


def _name(path: Path) -> str:
    """runs/x -> x, runs/x/model -> x, runs/x/checkpoints/step-200 -> x@step-200"""
    name = path.name
    if path.name == "model" and path.parent.name:
        name = path.parent.name
    elif path.parent.name == "checkpoints":
        name = f"{path.parent.parent.name}@{path.name}"
    return re.sub(r"[^A-Za-z0-9._@+-]+", "-", name).lstrip("-._@+") or "model"


def _key(key: str | None, file: Path | None) -> str | None:
    """The key itself; it is never printed, not even where it is wrong."""
    if file is None:
        return key
    if key is not None:
        raise ValueError("there are two API keys, of --api-key or MOONLET_API_KEY and of --api-key-file; give one")
    try:
        written = file.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError:
        raise ValueError(f"{file} is not UTF-8; write the key into it as plain text") from None
    if not written:
        raise ValueError(f"{file} is empty; write the key into it")
    return written


def _say(line: str) -> None:
    print(f"moonlet: {line}", file=sys.stderr)
