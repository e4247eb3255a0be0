"""How much one client may ask of a server: every limit with its default, and the one way in which it is refused.

    400  asks for more than is given here       (tokens, choices, stop texts, tools, ...)
    408  takes longer than is waited for        (sending the request, the answer)
    413  is larger than is read                 (the body)
    429  finds every place taken                (slots and the queue before them); comes with Retry-After

A refusal comes before anything is computed, and names the limit, the value that was given, and the option that moves
the limit. A limit counts what is allowed: exactly that much passes.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from moonlet.serve.errors import ApiError


@dataclass(frozen=True)
class Limits:
    """All limits of a server. Times are in seconds, sizes in bytes."""

    body_bytes: int = 1 << 20
    """Size of a request."""
    prompt_tokens: int = 32768
    """Tokens of a prompt; never more than the model has positions for."""
    max_tokens: int = 8192
    """Tokens a client may ask for, and the most a chat answer has when it asks for no number."""
    n: int = 8
    """Answers to one prompt."""
    prompts: int = 32
    """Prompts in one request."""
    stop: int = 16
    """Stop texts."""
    stop_bytes: int = 256
    """Length of a stop text, in UTF-8."""
    logit_bias: int = 300
    """Tokens whose logits are moved."""
    logprobs: int = 20
    """Alternatives shown for each token."""
    tools: int = 128
    """Functions declared."""
    messages: int = 2048
    """Messages of a conversation."""
    view_tokens: int = 512
    """Tokens looked at under the microscope at once."""
    queue: int = 64
    """Answers that may wait for a slot."""
    live: int = 256
    """Requests under way at once, the waiting ones too."""
    request_seconds: float = 600.0
    """From a request's arrival to the end of its answer, its reader's slowness included."""
    body_seconds: float = 20.0
    """For the whole of a request to arrive."""
    unread: int = 16384
    """Tokens that are kept for a reader who does not take them; then its request is ended."""
    drain_seconds: float = 20.0
    """What live requests have left when the server is told to stop."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name in ("queue", "drain_seconds", "logprobs", "logit_bias", "stop", "tools") else 1
            if isinstance(field.default, int) and (isinstance(value, bool) or not isinstance(value, int)):
                raise ValueError(f"the limit {field.name} is {value!r}; it must be a whole number")
            if not least <= value < float("inf"):
                raise ValueError(f"the limit {field.name} is {value}; it must be at least {least}")

    def check(self, limit: str, given: int, what: str, param: str | None = None) -> None:
        """Refuse `given` where it is over a limit.

        Args:
            limit: name of the limit.
            given: what was asked for.
            what: how a person calls it: "max_tokens", "the request's size in bytes".
            param: the field of the request.

        Raises:
            ApiError: 413 for the size of the body, else 400.
        """
        most = getattr(self, limit)
        if given <= most:
            return
        raise ApiError(
            413 if limit == "body_bytes" else 400,
            f"{what} is {_short(given)}, and this server's limit is {most}; ask for less, or start the server with "
            f"{option(limit)}",
            param=param,
            code=f"{limit}_limit",
        )


def option(limit: str) -> str:
    """The option of `moonlet serve` that sets a limit."""
    return "--" + (limit if limit.startswith("max_") else f"max_{limit}").replace("_", "-")


def _short(number: int) -> str:
    """A number that stays readable whatever was sent."""
    text = str(number)
    return text if len(text) <= 20 else f"a number of {len(text)} digits"
