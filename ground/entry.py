"""How every command ends: with 0, with one line about what the user can mend, or by a signal."""

import errno
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from ground.interrupt import Stopped
from ground.memory import out_of_memory
from ground.mistake import Mistake
from ground.terminal import printable

STREAM_ERRORS = (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EIO)  # of what is printed to


def execute(main: Callable[[Sequence[str]], None], entry: str) -> NoReturn:
    """Run `main` on the command line's words and exit.

    Exit codes: 0; 2 after one line about a Mistake, about a file (an OSError that names one), or about memory; 128 and
    the signal's number after one that stopped it (130 for Ctrl-C). Any other exception is a defect: its traceback is
    shown, and the exit code is 1.
    """
    try:
        if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:  # so preflight leaves it for the time of the imports
            signal.signal(signal.SIGINT, signal.default_int_handler)
        main(sys.argv[1:])
        sys.stdout.flush()
    except KeyboardInterrupt:
        print(f"{entry}: interrupted", file=sys.stderr)
        sys.exit(130)
    except Stopped as stop:
        print(f"{entry}: {stop}", file=sys.stderr)
        sys.exit(128 + stop.signum)
    except (Mistake, OSError, RuntimeError, MemoryError) as error:
        if isinstance(error, RuntimeError | MemoryError):
            if not out_of_memory(error):
                raise
            error = Mistake("out of memory: a narrower network or smaller batches need less; or end other programs")
        elif isinstance(error, OSError) and not error.filename:
            if error.errno not in STREAM_ERRORS:
                raise
            error.filename = "stdout"
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python flushes it once more
        print(f"{entry}: {describe(error)}", file=sys.stderr)
        sys.exit(2)
    sys.exit(0)


def describe(error: Exception) -> str:
    """An error in one line, the file first where it has one, without control characters."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = (f"{error.filename}: " if error.filename else "") + error.strerror
    return printable(" ".join(text.split()))
