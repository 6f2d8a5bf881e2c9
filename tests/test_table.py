"""pipeline/table.py: what spreadsheets, pandas, R and people write is read right, or refused by its line."""

import csv
import io
import random
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest

from ground.mistake import Mistake
from pipeline import table
from pipeline.folder import table_inventory
from pipeline.table import Row, read_table

Rows = list[tuple[str, str, str]]


def written(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def rows_of(path: Path) -> Rows:
    return [tuple(row) for row in read_table(path)[0]]  # type: ignore[misc]


def by_csv(rows: list[list[str]], rng: random.Random, **how) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, **{"lineterminator": rng.choice(("\n", "\r\n"))} | how).writerows(rows)
    return text.getvalue()


def excel(rows: list[list[str]], rng: random.Random) -> tuple[str, str]:
    """CSV (of Europe with semicolons), CSV UTF-8, Unicode text, with Excel's hint or empty rows at the end."""
    ways = [*product(",;", ("cp1252", "utf-8-sig")), *product("\t", ("utf-16", "utf-16-le"))]
    separator, encoding = rng.choice(ways)
    text = by_csv(rows, rng, delimiter=separator, lineterminator=rng.choice(("\r\n", "\r\n", "\r")))
    end = text[-1:] if text.endswith("\r") else "\r\n"
    empty = (separator * (len(rows[0]) - 1) + end) * rng.randint(0, 3)
    hint = f"sep={separator}{end}" if rng.random() < 0.2 else ""
    return hint + text + empty, encoding


def libre_office(rows: list[list[str]], rng: random.Random) -> tuple[str, str]:
    """Any separator, all texts quoted or only those that need it."""
    quoting = rng.choice((csv.QUOTE_ALL, csv.QUOTE_MINIMAL))
    return by_csv(rows, rng, delimiter=rng.choice(",;\t| "), quoting=quoting), rng.choice(("utf-8", "utf-16", "cp1252"))


def pandas(rows: list[list[str]], rng: random.Random) -> tuple[str, str]:
    """to_csv with the index, which has no name, or without."""
    if rng.random() < 0.5:
        rows = [["", *rows[0]], *([str(i), *row] for i, row in enumerate(rows[1:]))]
    return by_csv(rows, rng, delimiter=rng.choice(",;\t|")), rng.choice(("utf-8", "utf-8-sig", "utf-16"))


def r_language(rows: list[list[str]], rng: random.Random) -> tuple[str, str]:
    """write.csv (names of rows, doubled marks), write.csv2, write.table (no heading for them, \\" for a mark)."""
    way = rng.choice(("csv", "csv2", "table", "tabs"))
    separator = {"csv": ",", "csv2": ";", "table": " ", "tabs": "\t"}[way]

    def quoted(text: str) -> str:
        return '"' + text.replace('"', '""' if way.startswith("csv") else '\\"') + '"'

    names = rng.random() < 0.6
    head = [quoted(""), *map(quoted, rows[0])] if names and way.startswith("csv") else [*map(quoted, rows[0])]
    body = [[*([quoted(str(i))] if names else []), *map(quoted, row)] for i, row in enumerate(rows[1:], 1)]
    return "".join(separator.join(row) + "\n" for row in [head, *body]), rng.choice(("utf-8", "cp1252"))


def by_hand(rows: list[list[str]], rng: random.Random) -> tuple[str, str]:
    """A space after each comma, at the ends, empty lines between."""
    clean = [[cell.replace(",", "_").replace('"', "_") for cell in row] for row in rows]
    return "\n\n".join(rng.choice((", ", " , ", ",")).join(row) + rng.choice(("", " ")) for row in clean), "utf-8"


DIALECTS: list[Callable[..., tuple[str, str]]] = [excel, libre_office, pandas, r_language, by_hand]
HEADS = [
    tuple(names.split(","))
    for names in (
        "path,label,split", "Path,Label,Set", "file_name,class,part", "image,Target,SPLIT", "File Name,category,subset",
        "filepath,class_name,split", "img_path,label,Split",
    )
]  # fmt: skip
SPLITS = {"train": "train", "Training": "train", "TEST": "test", "val": "validation", "Valid": "validation"}


@pytest.mark.parametrize("trials", [150, pytest.param(500, marks=pytest.mark.slow)])
def test_any_table_is_read_as_it_was_meant(tmp_path: Path, trials: int):
    rng = random.Random(trials)
    for trial in range(trials):
        head = list(rng.choice(HEADS)[: rng.choice((2, 3))])
        classes = rng.sample(["disc", "cercle étroit", "big cat", "it's", "a;b", "x|y", 'so "called"', "7", "Ünter"], 3)
        expected: Rows = []
        for i in range(rng.randint(2, 12)):
            name = rng.choice(["a/{}.png", "one, two/{}.png", "été/{} x.png", "d\\{}.png", 'the "{}".png', "{};1.jpg"])
            split = rng.choice(list(SPLITS)) if len(head) == 3 else ""
            expected.append((name.format(i), rng.choice(classes), split))
        extra = rng.choice([[], ["note"], ["width", "id"]])
        rows = [head + extra, *([*row[: len(head)], *("12" for _ in extra)] for row in expected)]
        order = rng.sample(range(len(rows[0])), len(rows[0]))
        rows = [[row[i] for i in order] for row in rows]
        dialect = DIALECTS[trial % len(DIALECTS)]
        text, encoding = dialect(rows, rng)
        if dialect is by_hand:
            expected = [tuple(cell.replace(",", "_").replace('"', "_") for cell in row) for row in expected]  # type: ignore
        path = written(tmp_path / "t.csv", text, encoding)
        meant = [(name, label, SPLITS.get(split, "")) for name, label, split in expected]
        assert rows_of(path) == meant, f"{dialect.__name__}, {encoding}\n{text}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("path,label\na, b.png,disc\nc.png,disc\n", "line 2: it has 3 columns and the first line 2: .* commas"),
        ("path;label\na.png;x\nb;c.png;x\n", "line 3: it has 3 columns .* semicolons"),
        ("picture_id,what\n1,2\n", "columns path and label; path is missing; it names picture_id, what"),
        ("file,what\n1,2\n", "label is missing; it names file, what"),
        ("path,label\na.png,\n", "line 2: it needs a path, a label"),
        ("path,label\n,disc\n", "line 2: it needs a path"),
        ("path,label\na\0b.png,x\nc.png,y\n", "line 2: it needs a path"),
        ("path,label\n\n\na.png\n", "line 4: it needs"),
        ("path,label,split\na.png,x,train\nb.png,x,later\n", "line 3: it needs .* a split: train, validation, test"),
        ('path,label\n"a.png,x\n' + "b.png,x\n" * 30_000, "field larger than field limit .*: save it .* marks closed"),
        ("path,label\n" + "x" * 200_000, "a line has 65,536 characters or more"),
        ("", "it names nothing"),
        ("path,label\na.png,x\nb.png,x\n", "it must have two labels or more"),
        ("path,label\n\udc81,x", "can't decode .*: save it as UTF-8"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, text: str, said: str):
    path = tmp_path / "t.csv"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(Mistake, match=f"--data is {path}: .*{said}") as caught:
        table_inventory(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_a_line_without_an_end_takes_no_memory(tmp_path: Path):
    path = tmp_path / "t.csv"
    with open(path, "wb") as file:
        file.write(b"path,label\n")
        file.truncate(3_000_000_000)  # zeros
    start = time.process_time()
    with pytest.raises(Mistake, match="characters or more"):
        read_table(path)
    assert time.process_time() - start < 5


def test_backslashes_are_slashes_unless_there_is_such_a_file(tmp_path: Path):
    (tmp_path / "a").mkdir()
    for name in ("a/1.png", "b\\2.png"):
        (tmp_path / name).touch()
    text = "path,label\na\\1.png,x\nb\\2.png,y\nc\\3.png,y\n"
    files = table_inventory(written(tmp_path / "t.csv", text)).files
    assert [file.name for file in files] == ["a/1.png", "b\\2.png", "c/3.png"]


def test_how_it_was_understood_is_said(tmp_path: Path):
    path = written(tmp_path / "t.csv", "Datei;File Name;Class\n1;a.png;cercle étroit\n2;b.png;carré\n", "cp1252")
    assert read_table(path) == (
        [Row("a.png", "cercle étroit", ""), Row("b.png", "carré", "")],
        "columns File Name, Class; semicolons, cp1252",
    )
    assert table.encoding_of(written(path, "path,label\n" + "a.png,disc\n" * 10**5 + "b.png,carré\n")) == "utf-8"
