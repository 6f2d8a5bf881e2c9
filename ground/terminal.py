"""The terminal: one console, one kind of bar."""

import sys

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn


def printable(text: str) -> str:
    """The text with what is not printed but moves the cursor, or is no Unicode, as escapes: "\\x1b", "\\udcff"."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def stdout_console() -> Console:
    """A console on stdout. In a pipe it is wide enough for any table, and has no control characters (FORCE_COLOR)."""
    live = sys.stdout.isatty()
    return Console(force_terminal=live, highlight=False, width=None if live else 140)


def bar(console: Console, *columns: ProgressColumn) -> Progress:
    """A description, a bar and these columns in one line, which is gone at the end; nothing where there is no terminal.

    It is drawn when it is told to (`refresh`). A thread that redraws it would take the interpreter from the work that
    it shows.
    """
    description = TextColumn("{task.description}", markup=False)
    return Progress(
        description,
        BarColumn(bar_width=None),
        *columns,
        console=console,
        auto_refresh=False,
        transient=True,
        expand=True,
        disable=not console.is_terminal,
    )
