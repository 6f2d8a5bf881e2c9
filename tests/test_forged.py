"""Every field of a checkpoint and of a state: taken at its bounds, exactly, and refused beyond them."""

from pathlib import Path

import pytest
import torch

from engine import checkpoint
from run import resume
from tests.forged import FIELDS, Field, earlier, equal, learner, put, rewritten, write_model, write_state

KINDS = {"model": checkpoint.MODEL, "state": resume.RESUME}
CASES = [(kind, field) for kind, fields in FIELDS.items() for field in fields]


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> dict[str, bytes]:
    place = tmp_path_factory.mktemp("written")
    write_model(place / "model")
    write_state(place / "state")
    return {kind: (place / kind).read_bytes() for kind in KINDS}


def use(path: Path, kind: str) -> None:
    if kind == "model":
        checkpoint.load(path)
    else:
        state = resume.find(str(path), "")
        resume.restore(learner(state.config), state, state.config, state.data)


@pytest.mark.parametrize(("kind", "field"), CASES, ids=lambda case: str(getattr(case, "path", case))[:50])
def test_a_field_is_taken_at_its_bounds_and_refused_beyond_them(kind, field: Field, written, tmp_path):
    path = tmp_path / "forged.pt"
    for place, value in enumerate([*field.right, *field.wrong]):
        path.write_bytes(written[kind])
        rewritten(path, lambda content, value=value: put(content, field.path, value))
        if place < len(field.right):
            content = torch.load(path, weights_only=True)
            forged = {key: content[key] for key in content if key not in ("format", "version", "sha256")}
            assert equal(checkpoint.read(path, KINDS[kind]), forged), value
            use(path, kind)
            continue
        with pytest.raises(ValueError, match=r"forged\.pt") as caught:
            use(path, kind)
            raise AssertionError(f"taken: {value!r:.100}")
        assert "\n" not in str(caught.value)
        assert isinstance(caught.value, checkpoint.DamagedError) == (field.path == "sha256"), value


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("stride", "stem"), [(1, "small"), (2, "strided")])
def test_the_stride_of_an_earlier_version_is_read(kind, stride, stem, written, tmp_path):
    path = tmp_path / "earlier.pt"
    path.write_bytes(written[kind])
    rewritten(path, lambda content: content.update(config=earlier(content["config"], stride)))
    assert checkpoint.read(path, KINDS[kind])["config"].stem == stem
    use(path, kind)
