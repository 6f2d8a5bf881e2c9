"""Stop signals: the first asks a run to stop between two steps, one that comes later ends the process at once.

    kill -TERM PID              # or Ctrl-C, or closing the terminal: exit code 128 + the signal's number
"""

import ctypes
import os
import signal
import threading
from types import FrameType
from typing import Any, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
TOGETHER = 1.0  # seconds within which several signals are one wish: a scheduler may send two


class Stopped(Exception):
    """A run that was asked to stop did so; the text says where, and how to go on."""

    def __init__(self, signum: int, text: str) -> None:
        super().__init__(text)
        self.signum = signum


class StopSignals:
    """In its `with`, `received` is the number of the first stop signal that came, 0 before.

    A signal that was ignored before (nohup, a background job's SIGINT) stays ignored.
    """

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[signal.Signals, Any] = {}
        self._later = threading.Timer(TOGETHER, self._let_end)
        self._later.daemon = True

    def __enter__(self) -> Self:
        for signum in SIGNALS:
            if signal.getsignal(signum) != signal.SIG_IGN:
                self._before[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        self._later.cancel()
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.received:
            return
        self.received = signum
        self._later.start()
        # Not print: the signal may have come in the middle of one.
        os.write(2, b"\nstopping after this step; once more to stop at once\n")

    def _let_end(self) -> None:
        """From now on the system ends the process, also inside a long operation. (Python's own function for this
        works in the main thread alone, which may be in that operation.)"""
        for signum in self._before:
            ctypes.CDLL(None).signal(int(signum), 0)  # SIG_DFL
