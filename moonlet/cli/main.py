"""`moonlet VERB`: the table of verbs, and what happens to errors.

Verb modules import nothing heavy at their top, so that help is instant.
"""

from __future__ import annotations

import os
import sys

import typer

from moonlet.cli import (
    chat,
    convert,
    data,
    doctor,
    evaluate,
    generate,
    inspect,
    plot,
    quickstart,
    resume,
    serve,
    tokenizer,
    train,
    verify,
)
from moonlet.cli.errors import one_line

app = typer.Typer(
    name="moonlet",
    help="A small, whole Kimi: train, resume, evaluate and talk to Kimi models, from raw text on.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(quickstart.quickstart)
app.add_typer(data.app, name="data")
app.add_typer(tokenizer.app, name="tokenizer")
app.command()(train.train)
app.command()(resume.resume)
app.command()(generate.generate)
app.command()(chat.chat)
app.command()(serve.serve)
app.command(name="eval")(evaluate.evaluate)
app.command()(inspect.inspect)
app.command()(convert.convert)
app.command()(verify.verify)
app.command()(plot.plot)
app.command()(doctor.doctor)

# typer carries its own copy of click or imports the real one, by version; this base class is whichever it raises.
_UsageError = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")

# What a user's input, disk or machine can cause. Anything else is a bug and keeps its traceback.
_EXPECTED = (ValueError, OSError)


def main() -> None:
    """Run the command line; an expected error is one line on stderr and exit code 2."""
    try:
        code = app(standalone_mode=False)
    except typer.Abort:
        _fail("stopped", 130)
    except KeyboardInterrupt:
        _fail("stopped", 130)
    except BrokenPipeError:
        # The reader of our output has gone, as in `moonlet ... | head`; nothing is left to say.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except _UsageError as error:  # type: ignore[misc]
        _fail(" ".join(error.format_message().split()), 2)  # type: ignore[attr-defined]
    except _EXPECTED as error:
        if os.environ.get("MOONLET_DEBUG"):
            raise
        _fail(one_line(error), 2)
    except RuntimeError as error:
        from moonlet.train.loop import TrainingStopped

        if not isinstance(error, TrainingStopped) or os.environ.get("MOONLET_DEBUG"):
            raise
        _fail(one_line(error), 1)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(text: str, code: int) -> None:
    print(f"moonlet: {text}", file=sys.stderr)
    sys.exit(code)
