"""Where a run's time goes: seconds by kind, carried over a stop by the resume state."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from time import perf_counter
from typing import TypeVar

T = TypeVar("T")


class Stopwatch:
    """Adds up seconds by kind, from what an earlier part of the run had spent.

    Kinds may run inside one another; each then counts the whole of its time.
    """

    def __init__(self, seconds: Mapping[str, float]) -> None:
        self._spent = dict(seconds)
        self._since: dict[str, float] = {}

    @contextmanager
    def on(self, kind: str) -> Iterator[None]:
        self._since[kind] = perf_counter()
        try:
            yield
        finally:
            self._spent[kind] = self[kind]
            del self._since[kind]

    def waiting(self, kind: str, items: Iterable[T]) -> Iterator[T]:
        """The items, with the time until each arrives."""
        items = iter(items)
        while True:
            with self.on(kind):
                item = next(items, None)
            if item is None:
                return
            yield item

    def __getitem__(self, kind: str) -> float:
        """Seconds of a kind so far, also while it runs."""
        running = perf_counter() - self._since[kind] if kind in self._since else 0.0
        return self._spent.get(kind, 0.0) + running

    def raise_to(self, kind: str, seconds: float) -> None:
        """Set a kind that is not running to what another rank has spent on it."""
        self._spent[kind] = seconds

    def seconds(self) -> dict[str, float]:
        return {kind: self[kind] for kind in self._spent | self._since}
