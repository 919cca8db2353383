"""The sorted collection under the queue and the deadlines."""

from __future__ import annotations

import random

import pytest

from statemachine import ordered
from statemachine.ordered import Ordered


@pytest.mark.parametrize("split", [4, 1024])
def test_it_is_a_sorted_set_whatever_is_added_and_discarded(monkeypatch, split):
    monkeypatch.setattr(ordered, "_SPLIT", split)
    rng = random.Random(7)
    kept: set[tuple[int, str]] = set()
    collection: Ordered[tuple[int, str]] = Ordered()
    for _ in range(4_000):
        key = (rng.randrange(60), rng.choice("abc"))
        if key in kept and rng.random() < 0.9:
            kept.remove(key)
            collection.discard(key)
        elif key not in kept and rng.random() < 0.5:
            kept.add(key)
            collection.add(key)
        else:
            collection.discard((key[0], "zz"))
        assert len(collection) == len(kept)
        assert collection.first() == (min(kept) if kept else None)
    assert list(collection) == sorted(kept)
    assert list(reversed(collection)) == sorted(kept, reverse=True)
    for key in sorted(kept):
        collection.discard(key)
    assert (list(collection), collection.first()) == ([], None)


def test_discarding_from_nothing_or_before_everything_is_nothing():
    collection: Ordered[tuple[int]] = Ordered()
    collection.discard((1,))
    collection.add((5,))
    collection.discard((1,))
    collection.discard((9,))
    assert list(collection) == [(5,)]
