"""Running out of memory, and what glibc does with memory that is freed."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

from ground.mistake import Mistake

# In what DALI's, oneDNN's, CUDA's and the CPU's allocators say, in small letters.
OUT_OF_MEMORY = (
    "out of memory", "allocate memory", "bad_alloc", "could not create a primitive", "unable to resize file",
    "resource temporarily unavailable",
)  # fmt: skip
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc's malloc.h


def out_of_memory(error: BaseException) -> bool:
    """Whether it says so, whoever's it is."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(words in text for words in OUT_OF_MEMORY)


@contextmanager
def memory_advice(batch_size: int, place: object, evaluated_at: int = 0) -> Iterator[None]:
    """Turn running out of memory at `place`, a device, into a Mistake that says what to try.

    Args:
        batch_size: of training; a smaller one does not help an evaluation, of images of `evaluated_at` pixels.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        what, advice = f"with --batch-size {batch_size}", f"--batch-size {max(2, batch_size // 2)}"
        if evaluated_at:
            what, advice = f"while evaluating at {evaluated_at} px", "smaller --resolutions or --size, or --width"
        raise Mistake(f"out of memory on {place} {what}: try {advice}") from error


def keep_freed_memory() -> None:
    """Have glibc keep large freed blocks for the next step, instead of faulting in new pages: a step of width 64 at
    32 pixels and batch 256 runs 1.27 times as fast, width 32 at 20 pixels 1.03 times."""
    _libc("mallopt", M_MMAP_MAX, 0)  # no block is a mapping of its own
    _libc("mallopt", M_TRIM_THRESHOLD, -1)  # the heap's end is never given back


def map_large_blocks() -> None:
    """Have glibc map each large block by itself again, where `configure` had it keep them together on the heap.

    For code that leaves small blocks between the large ones, as torch.profiler does: the large ones then find no
    gap on the heap, which grew by 0.9 GB a step (width 32 at 32 pixels, batch 256), and a step took three times as
    long (2 cores, Xeon without AMX, 2026-11-27). Mapped, it takes 1.25 times as long and the memory stays.
    """
    _libc("mallopt", M_MMAP_MAX, 1 << 16)  # as it is by default


def release_freed_memory() -> None:
    """Give back what `configure` has glibc keep, so that what the process holds is what it needs."""
    _libc("malloc_trim", 0)


def _libc(function: str, *arguments: int) -> None:
    """Call a function of glibc's; nothing with another libc."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, function):
        getattr(libc, function)(*arguments)
