"""A prompt, the controls of sampling, and the text as it appears: `prompt_box(model, tokenizer)` in a notebook's cell.

The text is made in a thread of its own, so that the notebook stays awake and Stop is heard. Everything shown is text:
what a model writes is escaped and never becomes part of the page.
"""

from __future__ import annotations

import html
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

from moonlet.generate.engine import stream, stream_ids
from moonlet.generate.sample import SamplingParams
from moonlet.model.model import CausalLM
from moonlet.text import Tokenizer
from moonlet.text.chat import ChatForm, Parser, form_named, mark_ids, render, to_ids

# Seconds between two looks of the page: each sends the whole text.
_PAUSE = 0.05
_PAGE = '<div style="white-space: pre-wrap; line-height: 1.5; max-width: 46em">{}</div>'


def prompt_box(
    model: CausalLM,
    tokenizer: Tokenizer,
    prompt: str = "Once upon a time",
    *,
    form: ChatForm | str | None = None,
    params: SamplingParams | None = None,
) -> PromptBox:
    """A box to show at the end of a cell.

    Args:
        prompt: what the box begins with.
        form: a chat form or its name: the prompt is then a message, which is answered. None: it is a text, which goes
            on.
        params: where the controls stand at first; what has no control here stays as it is.

    Raises:
        ValueError: the package ipywidgets is missing, or there is no such form.
    """
    return PromptBox(model, tokenizer, prompt, form_named(form) if isinstance(form, str) else form, params)


class PromptBox:
    """The box; see `prompt_box`. Its parts are widgets and can be read and set.

    Attributes:
        prompt, temperature, top_k, top_p, min_p, repetition_penalty, max_new_tokens, seed: the controls; an empty seed
            draws a fresh one each time.
        start, stop: the buttons.
        page, status: the text, and a line about it.
        text: what was generated so far, as it is.
    """

    def __init__(
        self,
        model: CausalLM,
        tokenizer: Tokenizer,
        prompt: str,
        form: ChatForm | None = None,
        params: SamplingParams | None = None,
    ) -> None:
        ui = _library()
        self._model, self._tokenizer, self._form = model, tokenizer, form
        self._params = params = params or SamplingParams()
        self._thread: threading.Thread | None = None
        self._stopped = threading.Event()
        self.text = ""
        wide, narrow = ui.Layout(width="46em"), {"description_width": "9em"}
        most = max(1, min(4096, model.config.context_limit - 1))

        def slider(name: str, value: float, low: float, high: float) -> Any:
            return ui.FloatSlider(
                value, min=low, max=high, step=0.01, description=name, style=narrow, continuous_update=False
            )

        self.prompt = ui.Textarea(prompt, placeholder="a message" if form else "the beginning of a text", layout=wide)
        self.temperature = slider("temperature", params.temperature, 0.0, 2.0)
        self.top_p = slider("top-p", params.top_p, 0.01, 1.0)
        self.min_p = slider("min-p", params.min_p, 0.0, 1.0)
        self.repetition_penalty = slider("repetition penalty", params.repetition_penalty, 0.5, 2.0)
        self.top_k = ui.BoundedIntText(
            params.top_k, min=0, max=model.config.vocab_size, description="top-k (0: all)", style=narrow
        )
        self.max_new_tokens = ui.BoundedIntText(
            min(params.max_new_tokens, most), min=1, max=most, description="tokens at most", style=narrow
        )
        seed = "" if params.seed is None else str(params.seed)
        self.seed = ui.Text(seed, placeholder="a fresh one each time", description="seed", style=narrow)
        self.start = ui.Button(description="Generate", button_style="primary")
        self.stop = ui.Button(description="Stop", disabled=True)
        self.page, self.status = ui.HTML(), ui.Label()
        self.start.on_click(lambda button: self._begin())
        self.stop.on_click(lambda button: self._stopped.set())
        controls = [self.temperature, self.top_p, self.top_k, self.min_p, self.repetition_penalty]
        controls += [self.max_new_tokens, self.seed]
        grid = ui.GridBox(controls, layout=ui.Layout(grid_template_columns="repeat(auto-fit, minmax(22em, 1fr))"))
        buttons = ui.HBox([self.start, self.stop, self.status])
        self.box = ui.VBox([self.prompt, grid, buttons, self.page])

    def _repr_mimebundle_(self, **settings: Any) -> Any:
        """What a notebook shows."""
        return self.box._repr_mimebundle_(**settings)

    def settings(self) -> SamplingParams:
        """Where the controls stand.

        Raises:
            ValueError: the seed is no whole number.
        """
        seed = self.seed.value.strip()
        try:
            chosen = int(seed) if seed else None
        except ValueError:
            raise ValueError(f"the seed is {seed!r}; it must be a whole number, or empty") from None
        own = {name: getattr(self, name).value for name in _CONTROLS}
        return SamplingParams(**{**vars(self._params), **own, "seed": chosen})

    def wait(self) -> None:
        """Until the text that is being made is whole."""
        if self._thread is not None:
            self._thread.join()

    def _begin(self) -> None:
        if self._thread is not None and self._thread.is_alive():
            return
        try:
            pieces = self._pieces(self.prompt.value, self.settings())
        except ValueError as error:
            self.status.value = " ".join(str(error).split())
            return
        self.text = ""
        self._stopped.clear()
        self.start.disabled, self.stop.disabled, self.status.value = True, False, ""
        self._thread = threading.Thread(target=self._make, args=(self.prompt.value, pieces), daemon=True)
        self._thread.start()

    def _make(self, prompt: str, pieces: Iterator[str]) -> None:
        """Show pieces until there are none or Stop was pressed; in the thread."""
        shown, ended = 0.0, "done"
        try:
            with closing(pieces):  # type: ignore[type-var]
                for piece in pieces:
                    self.text += piece
                    if time.monotonic() - shown > _PAUSE:
                        self._show(prompt)
                        shown = time.monotonic()
                    if self._stopped.is_set():
                        ended = "stopped"
                        break
        except ValueError as error:
            ended = " ".join(str(error).split())
        except Exception as error:  # there is nobody behind this thread to whom it could be raised
            ended = " ".join(f"failed: {type(error).__name__}: {error}".split())
        finally:
            self._show(prompt)
            self.status.value = ended
            self.start.disabled, self.stop.disabled = False, True

    def _show(self, prompt: str) -> None:
        before = "" if self._form is not None else f"<b>{html.escape(prompt)}</b>"
        self.page.value = _PAGE.format(before + html.escape(self.text))

    def _pieces(self, prompt: str, params: SamplingParams) -> Iterator[str]:
        """The answer or continuation; whatever is wrong shows before the first piece."""
        if self._form is None:
            return (piece for _, piece in stream(self._model, self._tokenizer, prompt, params))
        ids = to_ids(render([{"role": "user", "content": prompt}], self._form), self._tokenizer)
        ends = {self._tokenizer.eos_id, mark_ids(self._tokenizer)["<|im_end|>"]}
        parser = Parser(self._form, tokenizer=self._tokenizer)
        drawn = stream_ids(self._model, self._tokenizer, ids, ends, params)
        return _read(parser, drawn)


_CONTROLS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_new_tokens")


def _read(parser: Parser, drawn: Iterator[int]) -> Iterator[str]:
    for token in drawn:
        yield "".join(delta.text for delta in parser.feed_ids([token]))
    yield "".join(delta.text for delta in parser.finish())


def _library() -> Any:
    try:
        import ipywidgets
    except ImportError:
        raise ValueError('the prompt box needs the package ipywidgets: pip install "moonlet[notebook]"') from None
    return ipywidgets
