"""Imports point down only: entries -> bench, deploy -> explain, run -> engine, pipeline -> ground.

So engine learns from any iterable of batches, and one file alone needs DALI. The rules are a function over sources;
it is tried on samples that break each, then on the project.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ENTRIES = ("train", "gradcam", "export", "audit", "predict")
MAY_IMPORT: dict[str, set[str]] = {
    "preflight": set(),
    "ground": {"ground"},
    "engine": {"engine", "ground"},
    "pipeline": {"pipeline", "ground"},
    "run": {"run", "engine", "pipeline", "ground"},
    "explain": {"explain", "engine", "pipeline", "ground"},
    "judge": {"judge", "explain", "engine", "pipeline", "ground"},
    # It measures the heatmaps too, and compares answers.
    "bench": {"bench", "judge", "explain", "run", "engine", "pipeline", "ground"},
    "deploy": {"deploy", "explain", "engine", "pipeline", "ground"},
    "examples": set(),  # they run without this project
}
MAY_IMPORT |= {entry: set(MAY_IMPORT) - {"examples"} for entry in ENTRIES}
ENTRY_LINES = 150


def violations(sources: dict[str, str]) -> Iterator[str]:
    """What breaks the rules in {path from the root, with slashes: source}, one line each."""
    for path, source in sources.items():
        tree = ast.parse(source, path)
        top = path.removesuffix(".py").split("/")[0]
        if Path(path).name == "utils.py":
            yield f"{path}: say what it holds, not utils"
        if top not in MAY_IMPORT:
            yield f"{path}: belongs to no layer"
            continue
        if top in ENTRIES and len(source.splitlines()) > ENTRY_LINES:
            yield f"{path}: {len(source.splitlines())} lines, an entry has at most {ENTRY_LINES}"
        # What is started with -m is an entry too: it may check the environment first.
        allowed = MAY_IMPORT[top] | ({"preflight"} if path.endswith("/__main__.py") else set())
        for node in ast.walk(tree):
            line = getattr(node, "lineno", 0)
            for module in imported(node, path):
                package = module.split(".")[0]
                if package in MAY_IMPORT and package not in allowed:
                    yield f"{path}:{line}: imports {module}"
                if package == "nvidia" and path != "pipeline/dali.py":
                    yield f"{path}:{line}: imports {module}; only pipeline/dali.py does"
                if top == "preflight" and package not in sys.stdlib_module_names:
                    yield f"{path}:{line}: imports {module}, not of the standard library"
            if isinstance(node, ast.Try) and hides_a_failed_import(node):
                yield f"{path}:{line}: an import that may fail in silence"


def imported(node: ast.AST, path: str) -> list[str]:
    """Modules that the node imports, relative ones resolved; `from a import b` counts as a.b, which may be a module."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        parents = path.split("/")[: -node.level] if node.level else []
        return [".".join([*parents, *filter(None, [node.module]), alias.name]) for alias in node.names]
    if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if function in ("import_module", "__import__"):
            return [str(node.args[0].value)]
    return []


def hides_a_failed_import(node: ast.Try) -> bool:
    caught = {
        name.id if isinstance(name, ast.Name) else "everything"
        for handler in node.handlers
        for name in (handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type])
    }
    imports = any(isinstance(inner, ast.Import | ast.ImportFrom) for part in node.body for inner in ast.walk(part))
    by_name = caught & {"ImportError", "ModuleNotFoundError"}
    return bool(by_name or (imports and caught & {"Exception", "BaseException", "everything"}))


def project() -> dict[str, str]:
    """Every Python file of ours; tests, hidden folders and environments apart."""
    files = list(ROOT.glob("*.py"))
    for folder in ROOT.iterdir():
        ours = folder.is_dir() and not folder.name.startswith(".") and folder.name != "tests"
        if ours and not (folder / "pyvenv.cfg").exists():
            files += folder.rglob("*.py")
    return {file.relative_to(ROOT).as_posix(): file.read_text(encoding="utf-8") for file in files}


def test_the_project_keeps_the_rules():
    sources = project()
    assert "preflight.py" in sources
    assert list(violations(sources)) == []


# A file: what it may not hold, each by itself.
BREACHES = {
    "engine/learner.py": [
        "import pipeline.plan",
        "from pipeline import plan",
        "def late():\n    from run.curves import draw",
        "import torch, bench",
        "from .. import pipeline",
        "from ..pipeline.plan import order",
        "import importlib\nplan = importlib.import_module('pipeline.plan')",
        "plan = __import__('pipeline.plan')",
        "import preflight",
        "try:\n    import apex\nexcept ImportError:\n    apex = None",
        "try:\n    x = 1\nexcept (OSError, ModuleNotFoundError):\n    pass",
        "try:\n    from a import b\nexcept Exception:\n    b = None",
        "try:\n    import a\nexcept:\n    a = None",
    ],
    "engine/deeper/learner.py": ["from ...explain import cam"],
    "pipeline/plan.py": ["from engine.config import Config", "import train", "import nvidia.dali"],
    "run/curves.py": ["import explain.cam", "from bench.core import clock"],
    "explain/cam.py": ["from run import curves", "import gradcam", "from deploy import formats"],
    "bench/core/clock.py": ["import preflight", "from nvidia.dali import fn"],
    "deploy/formats.py": ["from run import run"],
    "examples/classify.py": ["from engine import model"],
    "train.py": ["import gradcam", "pass\n" * 151],
    "gradcam.py": ["from train import main", "from nvidia import dali"],
    "preflight.py": ["import torch", "from engine import config"],
    "ground/files.py": ["from engine import config"],
    **dict.fromkeys(("engine/utils.py", "utils.py", "tools/x.py", "learn.py"), ("",)),
}


@pytest.mark.parametrize(("path", "source"), [(path, source) for path in BREACHES for source in BREACHES[path]])
def test_each_breach_is_found(path, source):
    assert len(list(violations({path: source}))) >= 1


def test_what_is_allowed_is_not_complained_of():
    allowed = {
        "engine/learner.py": "import torch\nfrom engine import model\nfrom . import device\nfrom .model import A",
        "pipeline/dali.py": "from nvidia.dali import fn\nimport numpy\nfrom pipeline.plan import order",
        "run/curves.py": "from engine import config\nimport pipeline.plan\nfrom run import reporter",
        "explain/cases.py": "from explain import cam\nfrom engine.model import A\nfrom pipeline import dali",
        "bench/__main__.py": "import preflight\nfrom bench.core import clock\nfrom engine import model",
        "train.py": "import preflight, bench, explain, run, engine, pipeline\n" + "pass\n" * 149,
        "preflight.py": "import importlib.util\nimport sys",
        "engine/checkpoint.py": "try:\n    import io\n    io.open('x')\nexcept OSError:\n    raise",
    }
    assert list(violations(allowed)) == []
