"""Lower-case words and marks, put together again as a person would write them.

    once upon a time , lily said , " i don ' t know ! "   ->   Once upon a time, Lily said, "I don't know!"

Three questions are asked of each token, in the light of the two before it and the one after it:

- Is there a space before it? Two words always have one, so that the text can be cut into the same tokens again. A mark
  clings to the word before it, after it, both or none: `glue` says so, as counted in the training text. Straight
  quotes open and close in turn; an apostrophe joins what is one word (don't, the girls' hats); 3.5 and 1,000 and 7:30
  are numbers.
- Does it begin a sentence? After . ! ? and after a quote that opens behind a comma, a colon or another sentence.
- How is the word spelt elsewhere? `surfaces` holds the words that are mostly capitals inside a sentence (Lily, I, TV).

The rules are those of English; another language gets its own marks and names, for these two tables are learned.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

# "<": no space before the mark; ">": none after it. Used where the training text says nothing.
GLUE = dict.fromkeys(".,!?;:)]}%…”»’°", "<") | dict.fromkeys("([{“‘«$#@£€¿¡", ">") | dict.fromkeys("-/", "<>")
APOSTROPHES = ("'", "’")
# What an apostrophe joins to the word before it, and what begins with one.
_SUFFIXES = frozenset(["s", "t", "re", "ve", "ll", "d", "m", "clock", "am"])
_CLIPPED = frozenset(["em", "til", "till", "tis", "twas", "cause", "bout", "round"])
# "Stop!" said Tom: a sentence goes on behind these closing quotes when its teller speaks next.
_TELLING = frozenset(
    [
        *("said", "says", "say", "asked", "asks", "replied", "answered", "shouted", "shouts", "yelled", "cried"),
        *("called", "exclaimed", "whispered", "screamed", "laughed", "giggled", "thought", "added", "begged", "sang"),
        *("squeaked", "barked", "roared", "growled", "sighed", "smiled", "gasped", "cheered", "wondered"),
    ]
)
_LONGEST_QUOTE = 120  # tokens; a quote this long was never closed, so the next mark opens one
_WORD = re.compile(r"\w")


def is_mark(token: str) -> bool:
    """Whether the token is a single character that is no part of a word."""
    return len(token) == 1 and not _WORD.match(token)


class WordDetokenizer:
    """The readable text of one growing list of word-level ids. See `moonlet.text.detokenizer.Detokenizer`.

    One token is always held back: what follows decides on an apostrophe and on the capital behind a quote.

    Args:
        token: the token of an id; raises ValueError for one outside the vocabulary.
        specials: id -> name of each special token; it begins a new text.
        surfaces: word -> how it is spelt inside a sentence, where that is not in lower case.
        glue: mark -> "<", ">", "<>" or "", see GLUE.
        before: ids whose text is there already.
        skip_special: give special tokens no text.
    """

    def __init__(
        self,
        token: Callable[[int], str],
        specials: Mapping[int, str],
        surfaces: Mapping[str, str],
        glue: Mapping[str, str],
        before: Sequence[int] = (),
        skip_special: bool = False,
    ) -> None:
        self._token, self._specials, self._surfaces, self._skip_special = token, specials, surfaces, skip_special
        self._glue = {**GLUE, **glue}
        self._held: str | None = None
        self._reset()
        for index in before:
            self.push(index)
        self.finish()

    def push(self, index: int) -> str:
        """Add an id; return the text of the one before it."""
        if index in self._specials:
            text = self.finish() + ("" if self._skip_special else self._specials[index])
            self._reset()
            return text
        following = self._token(index)
        text = "" if self._held is None else self._write(self._held, following)
        self._held = following
        return text

    def finish(self) -> str:
        """The text of the last token."""
        text = "" if self._held is None else self._write(self._held, "")
        self._held = None
        return text

    def _reset(self) -> None:
        """A new text begins."""
        self._last, self._last_but_one = "", ""  # the two tokens written last
        self._clings = True  # no space after what was written last
        self._capital = True  # the next word begins a sentence
        self._letter_upper = False  # the word written last is all capitals
        self._after_quote = False  # the last mark closed a quote that ended in ! or ?
        self._quote: int | None = None  # tokens since an open " began
        self._single = False  # an open ' is there

    def _write(self, token: str, following: str) -> str:
        self._quote = None if self._quote is None else self._quote + 1
        if token == '"':
            left, right = self._double_quote()
        elif token in APOSTROPHES:
            left, right = self._apostrophe(token, following)
        elif is_mark(token):
            glue = self._glue.get(token, "")
            left, right = "<" in glue, ">" in glue
            if token in ".!?":
                # The second full stop of U.S. ends no sentence; that of Mr. does not either, but a name follows.
                chain = self._last_but_one == "." and len(self._last) == 1 and self._last.isalpha()
                self._capital = not (token == "." and chain)
            elif token in "“«":
                self._begin_quote()
            elif token in "”»":
                self._after_quote = self._last in ("!", "?")
        else:
            left, right = self._joins_a_mark(token), False
        space = "" if self._clings or left else " "
        shown = token if is_mark(token) else self._spell(token, following, glued=left and not space)
        self._clings = right
        self._last_but_one, self._last = self._last, token
        return space + shown

    def _double_quote(self) -> tuple[bool, bool]:
        closes = self._quote is not None and self._quote < _LONGEST_QUOTE
        # "Hi", said Tom, "go": the comma of a teller stands before a quote that opens, whatever was open.
        if self._last in (",", ":") and self._last_but_one in _TELLING:
            closes = False
        self._quote = None if closes else 0
        if closes:
            self._after_quote = self._last in ("!", "?")
            return True, False
        self._begin_quote()
        return False, True

    def _begin_quote(self) -> None:
        """What is said begins a sentence; a quoted word or name inside one does not."""
        self._capital = self._capital or self._last in (",", ":") or self._last in _TELLING

    def _apostrophe(self, token: str, following: str) -> tuple[bool, bool]:
        after_word = bool(self._last) and not is_mark(self._last) and not self._clings
        if after_word and following in _SUFFIXES:
            return True, True
        if not after_word and following in _CLIPPED:
            return False, True
        if token == "’":
            return True, False
        # The girls' hats: no quote is open, or it would have closed behind a mark.
        if self._single or (after_word and self._last.endswith(("s", "in"))):
            self._single = False
            return True, False
        self._single = True
        self._begin_quote()
        return False, True

    def _joins_a_mark(self, word: str) -> bool:
        """Whether `word` clings to the mark before it: 3.5, 1,000, 7:30, p.m."""
        mark, first = self._last, self._last_but_one
        if first.isdecimal() and word.isdecimal():
            return (
                mark == "." or (mark == "," and len(word) == 3 and len(first) <= 3) or (mark == ":" and len(word) == 2)
            )
        # "i" and "a" are words: so am I. A dog came.
        return mark == "." and len(word) == len(first) == 1 and first.isalpha() and word.isalpha() and word not in "ai"

    def _spell(self, word: str, following: str, *, glued: bool) -> str:
        begins = self._capital and not glued
        if glued and len(word) == 1:
            begins = self._letter_upper  # U.S., but p.m.
        if self._after_quote and (word in _TELLING or following in _TELLING):
            begins = False
        self._capital = self._after_quote = False
        if self._last in APOSTROPHES and self._clings and word in _SUFFIXES:
            return word
        shown = self._surfaces.get(word, word)
        if begins and shown == word:
            capital = word[0].upper() + word[1:]
            # Only where the way back is certain: not so for "ß", nor for a sigma, whose small form has two shapes.
            shown = capital if capital.lower() == word and capital[0] != "Σ" else word
        self._letter_upper = shown.isupper()
        return shown
