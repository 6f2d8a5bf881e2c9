"""One phase of the work: a bar with the time left on a terminal's stderr, and the seconds it took."""

from time import perf_counter
from typing import Self

from rich.console import Console
from rich.progress import MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ground.terminal import bar


class Phase:
    """`with Phase("evaluation", 10_000) as phase: ... phase.advance(500)`; afterwards `phase.seconds`.

    Stdout stays free for results, and without a terminal nothing is shown.
    """

    def __init__(self, name: str, total: int) -> None:
        columns = (MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left:"), TimeRemainingColumn())
        self._progress = bar(Console(stderr=True), *columns)
        self._task = self._progress.add_task(f"{name:>16}", total=total)

    def __enter__(self) -> Self:
        self._progress.start()
        self._start = perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = perf_counter() - self._start
        self._progress.stop()

    def advance(self, steps: int = 1) -> None:
        self._progress.update(self._task, advance=steps, refresh=True)
