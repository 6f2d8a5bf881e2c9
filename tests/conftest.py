"""Skips what this machine cannot run, with the reason, and keeps torch to one thread.

The tests' networks are so small that a second thread only waits for the first: many times slower on a busy machine.
"""

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported, here and in the processes that tests start


def pytest_collection_modifyitems(items):
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not on_gpu:
        return
    import torch  # 2 s, which a run without GPU tests need not pay

    if not torch.cuda.is_available():
        for item in on_gpu:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU, and torch finds none"))
