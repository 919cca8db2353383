"""Commands, as many together as one entry of the log may hold."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def batches(items: Iterable[T], size_of: Callable[[T], int], most: int, most_bytes: int) -> Iterator[list[T]]:
    """The items in order, up to `most` and `most_bytes` in a batch; one that is larger goes alone."""
    batch: list[T] = []
    room = most_bytes
    for item in items:
        size = size_of(item)
        if batch and (len(batch) >= most or size > room):
            yield batch
            batch, room = [], most_bytes
        batch.append(item)
        room -= size
    if batch:
        yield batch
