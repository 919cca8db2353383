"""A sorted collection of tuples that stays fast at a million items."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from typing import Generic, TypeVar

K = TypeVar("K", bound=tuple[object, ...])

_SPLIT = 1024


class Ordered(Generic[K]):
    """Distinct tuples in ascending order: O(log n + block) to add and discard, lazy to iterate."""

    __slots__ = ("_blocks", "_firsts", "_size")

    def __init__(self) -> None:
        self._blocks: list[list[K]] = []
        self._firsts: list[K] = []
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[K]:
        for block in self._blocks:
            yield from block

    def __reversed__(self) -> Iterator[K]:
        for block in reversed(self._blocks):
            yield from reversed(block)

    def first(self) -> K | None:
        return self._firsts[0] if self._firsts else None

    def add(self, key: K) -> None:
        """Insert `key`, which must not be in the collection."""
        self._size += 1
        if not self._blocks:
            self._blocks.append([key])
            self._firsts.append(key)
            return
        block = self._blocks[-1]
        if key > block[-1]:
            # Most keys are the newest.
            at = len(self._blocks) - 1
            block.append(key)
        else:
            at = max(bisect_right(self._firsts, key) - 1, 0)
            block = self._blocks[at]
            insort(block, key)
            self._firsts[at] = block[0]
        if len(block) > _SPLIT:
            half = block[_SPLIT // 2 :]
            del block[_SPLIT // 2 :]
            self._blocks.insert(at + 1, half)
            self._firsts.insert(at + 1, half[0])

    def discard(self, key: K) -> None:
        """Remove `key` if it is in the collection."""
        at = bisect_right(self._firsts, key) - 1
        if at < 0:
            return
        block = self._blocks[at]
        i = bisect_left(block, key)
        if i == len(block) or block[i] != key:
            return
        del block[i]
        self._size -= 1
        if block:
            self._firsts[at] = block[0]
        else:
            del self._blocks[at]
            del self._firsts[at]
