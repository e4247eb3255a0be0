"""Only what was read alike is taken over: other pieces have other last bits."""

from __future__ import annotations

from moonlet.generate.reading import PREFILL_CHUNK, Reading, shared_beginning


def test_what_the_model_read_in_pieces_is_told_from_the_rest_and_from_the_native() -> None:
    tokens = list(range(2 * PREFILL_CHUNK))
    native, short, long = Reading(600, False, 32), Reading(600, True, 32), Reading(700, True, 32)
    assert short.key(tokens, 480, 512) == long.key(tokens, 480, 512) != native.key(tokens, 480, 512)
    assert short.key(tokens, 512, 544) != long.key(tokens, 512, 544)  # of rests of 88 and of 188 tokens
    assert [short.joins(depth) for depth in (32, 512, 544, 600)] == [False, True, False, True]
    assert all(map(native.joins, range(1, 601)))
    assert [short.piece(at, 7, [600]) for at in (0, 512)] == [512, 88]
    assert [native.piece(at, 7, [4, 600]) for at in (0, 4, 598)] == [4, 7, 2]


def test_a_shared_beginning_is_counted() -> None:
    for a in range(12):
        for b in range(12):
            for parts in range(12):
                one, two = [7] * a, [7] * b
                one[parts:] = [8] * (a - parts)
                assert shared_beginning(one, two) == min(a, b, parts)
