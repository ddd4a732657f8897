"""Whose turn it is, where there is not enough for everybody."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

T = TypeVar("T")


class Rotation:
    """Remembers who was served when. Forgetting somebody costs nothing but a turn too early."""

    def __init__(self, size: int) -> None:
        """Remember so many."""
        self._size = size
        self._served: OrderedDict[str, int] = OrderedDict()
        self._count = 0

    def order(self, items: Iterable[T], key: Callable[[T], str]) -> Sequence[T]:
        """Sort: never served first, then who was served longest ago."""
        return sorted(items, key=lambda item: self._served.get(key(item), -1))

    def served(self, key: str) -> None:
        """It had its turn."""
        self._count += 1
        self._served[key] = self._count
        self._served.move_to_end(key)
        if len(self._served) > self._size:
            self._served.popitem(last=False)

    def forget(self, key: str) -> None:
        """It will not come again."""
        self._served.pop(key, None)
