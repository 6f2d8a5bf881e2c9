"""README and docs: links lead somewhere, and the Python in them runs."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deploy.classifier import Classifier
from deploy.formats import to_safetensors
from engine import checkpoint
from engine.config import PRESETS
from engine.model import create
from pipeline.synthetic import generated

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    path.relative_to(ROOT).as_posix(): path for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
}


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str):
    text = PAGES[page].read_text()
    links = re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", text)
    links += [(target, "") for target in re.findall(r'(?:href|src)="([^"]*)"', text)]  # a picture with a width is HTML
    for target, anchor in links:
        path = (PAGES[page].parent / target).resolve() if target else PAGES[page]
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), f"{target}#{anchor}"


@pytest.mark.parametrize("page", [page for page, path in PAGES.items() if "```python" in path.read_text()])
def test_the_python_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = replace(PRESETS["smoke"], width=4, data="holiday", size=32)
    checkpoint.save_model(tmp_path / "model.pt", create(config, generated(64)), config, {})
    wide = Classifier(create(replace(config, width=64), generated(64)), 32)
    (tmp_path / "model.safetensors").write_bytes(
        to_safetensors(wide, {"classes": json.dumps(wide.net.classes), "stem": "small"})
    )
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    monkeypatch.chdir(tmp_path)
    for code in re.findall(r"```python\n(.*?)```", PAGES[page].read_text(), re.S):
        known: dict[str, object] = {}
        exec(code, known)
        assert np.allclose(np.asarray(known["probabilities"]).sum(-1), 1)
