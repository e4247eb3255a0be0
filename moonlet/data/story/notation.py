"""The notation stories are written in, read into plain data.

A block of text holds *tables* (words to draw from) and *rules* (ways to say one thing). A table is one line::

    colour: red, blue, green                 three rows, equally likely
    gender (he, him): girl/she/her, boy/he/him   the first part of a row is its surface, the rest are named fields
    girl.kind: girl*9, +animal               a row may weigh more, and a table may take in another

A rule is a header and one alternative a bullet, all equally likely unless a bullet starts with a weight (``3:``)::

    Hero:
    - Once there was ~<trait> fox named <name=h>.
    - <name=h> was ~[very |]<trait> fox.

Inside an alternative ``[a|b]`` chooses, ``<table>`` draws and prints, ``<table=x>`` also remembers it as x (its fields
as x.field), ``<table=x!>`` remembers without printing, ``<table-y=x>`` never draws what y is, ``<$p.table>`` draws from
the table whose name starts with the value of p, ``<Rule>`` tells a rule, ``{x}`` prints what is remembered, ``~`` is a
or an, ``^`` makes the next letter a capital, and `` / `` starts a paragraph.
"""

import re
from dataclasses import dataclass

ARTICLE, CAPITAL = 1, 2  # marks waiting for the next letter; both may wait at once


@dataclass(frozen=True)
class Text:
    """Literal text."""

    text: str


@dataclass(frozen=True)
class Recall:
    """Prints a remembered value."""

    name: str


@dataclass(frozen=True)
class Mark:
    """Asks the next letter for an article or a capital."""

    mark: int


@dataclass(frozen=True)
class Inline:
    """A choice written in place: (weight, sequence) an option."""

    options: "tuple[tuple[float, Sequence], ...]"


@dataclass(frozen=True)
class Slot:
    """A draw from a table or the telling of a rule; `prefix` is the remembered value its name starts with, if any."""

    prefix: str
    name: str
    bind: str
    silent: bool
    exclude: tuple[str, ...]


Part = Text | Recall | Mark | Inline | Slot
Sequence = tuple[Part, ...]


@dataclass(frozen=True)
class Row:
    """One row of a table: surface text, fields (name, value), weight."""

    surface: str
    fields: tuple[tuple[str, str], ...]
    weight: float


@dataclass(frozen=True)
class Book:
    """Everything some blocks define: tables and rules by name."""

    tables: dict[str, tuple[Row, ...]]
    rules: dict[str, tuple[tuple[float, Sequence], ...]]


_HEADER = re.compile(r"([\w.]+)(?: \(([\w, ]+)\))?:(?:\s+(.*))?$")
_SLOT = re.compile(r"(?:\$([\w.]+)\.(\w+)|([\w.]+))((?:-[\w.]+)*)(?:=([\w.]+)(!?))?$")
_SPECIAL = re.compile(r"[\[\]|{}<>~^]")


def read_blocks(*blocks: str) -> Book:
    """Read blocks of notation into a Book. A ValueError names what is malformed or defined twice."""
    tables: dict[str, tuple[Row, ...]] = {}
    rules: dict[str, tuple[tuple[float, Sequence], ...]] = {}
    for name, fields, body in (entry for block in blocks for entry in _entries(block)):
        if name in tables or name in rules:
            raise ValueError(f"story notation: {name!r} is defined twice; rename one")
        if body.startswith("- "):
            options = [_weighed(option.strip()) for option in ("\n" + body).split("\n- ")[1:]]
            rules[name] = tuple((weight, read_sequence(" ".join(text.split()))) for weight, text in options)
        else:
            tables[name] = tuple(_rows(name, fields, body, tables))
    return Book(tables, rules)


def read_sequence(text: str) -> Sequence:
    """Read one alternative."""
    return _sequence(re.sub(r" ?/ ?", "\n", text), 0, closers="")[0]


def _entries(block: str) -> list[tuple[str, tuple[str, ...], str]]:
    """Split a block into (name, fields, body); lines that do not start an entry continue the one before."""
    entries: list[tuple[str, tuple[str, ...], str]] = []
    for line in block.strip().splitlines():
        header = None if line.startswith(("-", " ")) else _HEADER.match(line)
        if header:
            fields = tuple(field.strip() for field in (header[2] or "").split(",") if field.strip())
            entries.append((header[1], fields, header[3] or ""))
        elif line.strip():
            if not entries:
                raise ValueError(f"story notation: {line!r} belongs to no table or rule")
            name, fields, body = entries[-1]
            entries[-1] = (name, fields, f"{body}\n{line}".strip())
    return entries


def _weighed(text: str) -> tuple[float, str]:
    weight = re.match(r"(\d+):", text)
    return (float(weight[1]), text[weight.end() :]) if weight else (1.0, text)


def _rows(name: str, fields: tuple[str, ...], body: str, tables: dict[str, tuple[Row, ...]]) -> list[Row]:
    rows: list[Row] = []
    for item in " ".join(body.split()).split(","):
        entry = item.strip()
        if entry.startswith("+"):
            rows.extend(tables[entry[1:]])
            continue
        entry, _, weight = entry.partition("*")
        surface, *values = entry.split("/")
        if len(values) != len(fields):
            raise ValueError(
                f"story table {name!r}: row {entry!r} has {len(values)} fields, the header names {len(fields)}"
            )
        rows.append(Row(surface, tuple(zip(fields, values, strict=True)), float(weight or 1)))
    surfaces = [row.surface for row in rows]
    if len(set(surfaces)) != len(surfaces) or "" in surfaces:
        raise ValueError(f"story table {name!r}: rows must differ and not be empty")
    return rows


def _sequence(text: str, at: int, closers: str) -> tuple[Sequence, int]:
    """Read parts from `at` until one of `closers` or the end."""
    parts: list[Part] = []
    while at < len(text) and text[at] not in closers:
        sign = text[at]
        if sign == "[":
            part, at = _inline(text, at + 1)
            parts.append(part)
        elif sign in "{<":
            end = text.index("}" if sign == "{" else ">", at)
            parts.append(Recall(text[at + 1 : end]) if sign == "{" else _slot(text[at + 1 : end]))
            at = end + 1
        elif sign in "~^":
            parts.append(Mark(ARTICLE if sign == "~" else CAPITAL))
            at += 1
        elif sign in "]|}>":
            raise ValueError(f"story notation: stray {sign!r} in {text!r}")
        else:
            special = _SPECIAL.search(text, at)
            end = special.start() if special else len(text)
            parts.append(Text(text[at:end]))
            at = end
    return tuple(parts), at


def _inline(text: str, at: int) -> tuple[Inline, int]:
    options: list[tuple[float, Sequence]] = []
    while True:
        weight = re.compile(r"(\d+):").match(text, at)
        parts, end = _sequence(text, weight.end() if weight else at, closers="|]")
        if end == len(text):
            raise ValueError(f"story notation: '[' is never closed in {text!r}")
        options.append((float(weight[1]) if weight else 1.0, parts))
        at = end + 1
        if text[end] == "]":
            break
    if len(options) < 2 or len({sequence for _, sequence in options}) != len(options):
        raise ValueError(f"story notation: options of one choice must be two or more and differ, in {text!r}")
    return Inline(tuple(options)), at


def _slot(text: str) -> Slot:
    match = _SLOT.match(text)
    if not match:
        raise ValueError(f"story notation: cannot read <{text}>")
    prefix, suffix, name, exclude, bind, silent = match.groups()
    return Slot(prefix or "", suffix or name, bind or "", bool(silent), tuple(exclude.split("-")[1:]))
