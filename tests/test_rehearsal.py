"""tests/rehearse.py in a process of its own: torch fixes the number of its devices at the first backward pass."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real GPU to try it on")
@pytest.mark.parametrize("which", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_the_cuda_path_rehearsed_without_a_gpu(which: str):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", "tests/rehearse.py"]
    command += ["-m", which]
    rehearsed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert rehearsed.returncode == 0, rehearsed.stdout
