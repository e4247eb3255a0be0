"""The mechanism: stated probabilities are drawn, a text has one telling, and bits are its information content."""

import math
import random
from collections import Counter

import pytest

from moonlet.data.story import StoryWorld
from moonlet.data.story.grammar import Choice, Grammar
from moonlet.data.story.notation import read_blocks
from moonlet.data.story.world import story_grammar

# Weights, fields, silent draws, exclusion, conditional tables, nesting, articles and capitals: all the mechanism has.
TINY = """
size: big*3, old
kind (sound): cat/meow, dog/woof*2, owl/hoo
cat.place: sofa, roof
dog.place: yard
owl.place: oak*3, elm, roof
Start:
- 3:^~<size> <kind=k> sat in ~<$k.place=p>.[| "{k.sound}!"]
- <kind=k!>"{k.sound}!" said ~<kind-k=j>. <Ending>
Ending:
- It [left|ran [off|home]].
- 2:The {j} [2:saw|met] <kind-k-j>s.
"""


def test_tiny_grammar_probabilities_sum_to_one_and_texts_are_unique():
    tellings = list(Grammar(read_blocks(TINY), "Start").tellings())
    texts = [telling.text for telling in tellings]
    assert len(set(texts)) == len(texts) > 30
    assert math.fsum(2**-telling.bits for telling in tellings) == pytest.approx(1, abs=1e-12)
    assert "An old owl sat in an oak." in texts
    assert "A big cat sat in a sofa." in texts


def test_floor_equals_an_independent_count_on_the_tiny_grammar():
    """Entropy of the texts, counted by hand-written loops over the same world, against the mechanism's mean bits."""
    counted: Counter[str] = Counter()
    sizes, kinds = {"big": 3 / 4, "old": 1 / 4}, {"cat": 1 / 4, "dog": 1 / 2, "owl": 1 / 4}
    sounds = {"cat": "meow", "dog": "woof", "owl": "hoo"}
    places = {
        "cat": {"sofa": 1 / 2, "roof": 1 / 2},
        "dog": {"yard": 1},
        "owl": {"oak": 3 / 5, "elm": 1 / 5, "roof": 1 / 5},
    }
    for size, ps in sizes.items():
        for kind, pk in kinds.items():
            for place, pp in places[kind].items():
                article = "An" if size == "old" else "A"
                told = f"{article} {size} {kind} sat in {'an' if place[0] in 'oe' else 'a'} {place}."
                counted[told] += 3 / 4 * ps * pk * pp / 2
                counted[f'{told} "{sounds[kind]}!"'] += 3 / 4 * ps * pk * pp / 2
    for kind, pk in kinds.items():
        for other in kinds.keys() - {kind}:
            po = kinds[other] / (1 - pk)
            start = f'"{sounds[kind]}!" said {"an" if other == "owl" else "a"} {other}. '
            for ending, pe in (("It left.", 1 / 6), ("It ran off.", 1 / 12), ("It ran home.", 1 / 12)):
                counted[start + ending] += 1 / 4 * pk * po * pe
            (third,) = kinds.keys() - {kind, other}
            for verb, pv in (("saw", 2 / 3), ("met", 1 / 3)):
                counted[start + f"The {other} {verb} {third}s."] += 1 / 4 * pk * po * 2 / 3 * pv
    entropy = -math.fsum(p * math.log2(p) for p in counted.values())

    grammar = Grammar(read_blocks(TINY), "Start")
    told = {telling.text: telling.bits for telling in grammar.tellings()}
    assert told.keys() == counted.keys()
    for text, bits in told.items():
        assert bits == pytest.approx(-math.log2(counted[text]), abs=1e-9), text
    assert math.fsum(2**-bits * bits for bits in told.values()) == pytest.approx(entropy, abs=1e-9)

    draw = random.Random(0).random
    samples = [grammar.tell(draw) for _ in range(20_000)]
    assert sum(sample.bits for sample in samples) / len(samples) == pytest.approx(entropy, abs=0.05)
    frequency = Counter(sample.text for sample in samples)
    chi_square = sum((frequency[text] - 20_000 * p) ** 2 / (20_000 * p) for text, p in counted.items())
    freedom = len(counted) - 1
    assert chi_square < freedom + 4 * math.sqrt(2 * freedom)


def test_an_ambiguous_grammar_is_found_out():
    grammar = Grammar(read_blocks("Start:\n- a [b|b c]\n- a b[| c]"), "Start")
    assert [len(list(grammar.tellings(text))) for text in ("a b", "a b c", "a c")] == [2, 2, 0]


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ("t: a, a", "must differ"),
        ("t (f): a", "0 fields"),
        ("S:\n- [a|a]", "differ"),
        ("S:\n- [a|b", "never closed"),
        ("S:\n- <nobody>", "neither a table nor a rule"),
        ("S:\n- x\nS:\n- y", "defined twice"),
        ("S:\n- a ] b", "stray"),
    ],
)
def test_malformed_notation_is_refused_with_its_place(block, words):
    with pytest.raises(ValueError, match=words):
        Grammar(read_blocks(block), "S")


def test_every_story_has_one_derivation_which_has_its_bits_and_choices():
    world = StoryWorld(seed=0)
    for story in world.stories(400, split="valid"):
        (derivation,) = world.derivations(story.text)
        assert derivation.text == story.text
        assert derivation.bits == story.bits
        assert derivation.choices == story.choices


def test_text_outside_the_world_has_no_derivation():
    world = StoryWorld(seed=0)
    text = world.story(0).text
    for wrong in ("", text[:-1], text + " ", text.replace(" the ", " teh ", 1), "Once upon a time."):
        assert world.derivations(wrong) == []


def replayed(story):
    """Bits and facts of a story from its recorded choices and the options' bounds alone."""
    taken, facts, bits = iter(story.choices), {}, 0.0
    rest = list(story_grammar().start)
    while rest:
        node = rest.pop(0)
        if isinstance(node, Choice):
            fork, index = node.at(facts), next(taken)
            edges = [0.0, *(fork.bounds or [(i + 1) / fork.count for i in range(fork.count - 1)]), 1.0]
            bits -= math.log2(edges[index + 1] - edges[index])
            facts |= fork.branches[index].binds or {}
            rest = [*fork.branches[index].nodes, *rest]
    assert next(taken, None) is None
    return bits, facts


def test_bits_are_the_odds_of_each_choice_taken():
    for story in StoryWorld(seed=1).stories(100):
        bits, facts = replayed(story)
        assert bits == pytest.approx(story.bits, abs=1e-6)
        assert facts == story.facts


@pytest.fixture(scope="module")
def told():
    """What the world knows in each of 5,000 stories."""
    return [story.facts for story in StoryWorld(seed=5).stories(5000)]


@pytest.mark.parametrize(
    ("fact", "table", "given"),
    [
        ("plot", "plot", {}),
        ("h.sex", "gender", {}),
        ("h.kind", "girl.kind", {"h.sex": "girl"}),
        ("p", "place", {"plot": "Fear"}),
    ],
)
def test_options_are_drawn_as_often_as_stated(told, fact, table, given):
    """Plots, genders, kinds and places over many stories against their stated weights, by chi-square."""
    seen = Counter(facts[fact] for facts in told if given.items() <= facts.items())
    rows = story_grammar().book.tables[table]
    share = sum(seen.values()) / sum(row.weight for row in rows)
    assert seen.keys() == {row.surface for row in rows}
    chi_square = sum((seen[row.surface] - share * row.weight) ** 2 / (share * row.weight) for row in rows)
    freedom = len(rows) - 1
    assert chi_square < freedom + 4 * math.sqrt(2 * freedom)
