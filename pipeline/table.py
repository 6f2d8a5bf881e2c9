"""A table that names pictures: what spreadsheets, pandas and R write, and what people type.

The first line names the columns, of which one is the path, from where the table is, one the label and, if
one likes, one the part; under their usual names. The usual separators and encodings are understood.
"""

import codecs
import csv
import io
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from ground.files import open_regular
from ground.mistake import Mistake
from ground.terminal import printable
from pipeline.labels import PARTS, name_list, part_name

SUFFIXES = (".csv", ".tsv", ".txt")
COLUMNS = {
    "path": "path file filename filepath image imagepath imagefile imagename img imgpath picture".split(),
    "label": "label class target category classname labelname".split(),
    "split": "split part set subset".split(),
}
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars", " ": "spaces"}
LONGEST_LINE = 1 << 16  # characters
NO_TABLE = f"a line has {LONGEST_LINE:,} characters or more: it is no table"
ENCODINGS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


class Row(NamedTuple):
    path: str
    label: str
    part: str  # of labels.PARTS, or "" where the table has no such column


def read_table(table: Path, labelled: bool = True) -> tuple[list[Row], str]:
    """The rows, and how they were understood; labels may be missing, "", unless they must be `labelled`.

    Raises Mistake where a column or a line lacks something.
    """
    what = f"--data is {table}" if labelled else str(table)
    try:
        encoding = encoding_of(table)
        with open_regular(table) as file, io.TextIOWrapper(file, encoding, newline="") as text:
            lines, before = _lines(text), 1
            while (head := next(lines, "")) and (not head.strip() or re.fullmatch("sep=.[\r\n]+", head)):
                before += 1  # Excel's own hint about the separator
            needed = {"path", "label"} if labelled else {"path"}
            separator, columns, width = _columns(head, needed)
            rows = list(_rows(lines, separator, columns, width, before, needed))
    except (UnicodeError, csv.Error) as error:
        raise Mistake(f"{what}: {error}: save it as UTF-8, with quotation marks closed") from None
    except Mistake as error:
        raise Mistake(f"{what}: {error}") from None
    names = ", ".join(printable(name) for name, _ in columns.values())
    return rows, f"columns {names}; {SEPARATORS[separator]}, {encoding.removesuffix('-sig')}"


def encoding_of(table: Path) -> str:
    """By its first bytes; else UTF-8 where all of it is; else cp1252, which spreadsheets write."""
    with open_regular(table) as file:
        head = file.read(1000)
        for mark, encoding in ENCODINGS:
            if head.startswith(mark):
                return encoding
        zeros = [head[start::2].count(0) > len(head) / 4 for start in (0, 1)]
        if zeros[0] != zeros[1]:
            return "utf-16-be" if zeros[0] else "utf-16-le"
        decoder = codecs.getincrementaldecoder("utf-8")()
        try:
            for block in chain([head], iter(lambda: file.read(1 << 20), b"")):
                decoder.decode(block)
                if len(block) > LONGEST_LINE and b"\n" not in block and b"\r" not in block:
                    raise Mistake(NO_TABLE)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return "cp1252"
    return "utf-8"


def _lines(text: io.TextIOWrapper) -> Iterator[str]:
    while line := text.readline(LONGEST_LINE):
        if len(line) == LONGEST_LINE:
            raise Mistake(NO_TABLE)
        # R writes a quotation mark within quotation marks as \"
        yield re.sub(r'\\"(?!\s*(?:[,;\t| ]|$))', '""', line) if '\\"' in line else line


def _columns(head: str, needed: set[str]) -> tuple[str, dict[str, tuple[str, int]], int]:
    """The separator, {"path": (its name, its index) ...} and how many columns the first line names."""
    most, found = list[str](), dict[str, tuple[str, int]]()
    for separator in SEPARATORS:
        names = next(csv.reader([head], delimiter=separator, skipinitialspace=True), [])
        plain = [re.sub(r"[\W_]", "", name).lower() for name in names]
        columns = {}
        for column, known in COLUMNS.items():
            for i in [plain.index(name) for name in known if name in plain][:1]:
                columns[column] = names[i].strip(), i
        if needed <= columns.keys():
            return separator, columns, len(names)
        if len(names) > len(most):
            most, found = names, columns
    missing = "label" if "path" in found else "path"
    raise Mistake(
        f"its first line must name the column{'s path and label' if 'label' in needed else ' path'}; {missing} is "
        "missing; it names "
        + (name_list(printable(name.strip()) for name in most) or "nothing")
    )


def _rows(
    lines: Iterator[str],
    separator: str,
    columns: dict[str, tuple[str, int]],
    width: int,
    before: int,
    needed: set[str],
) -> Iterator[Row]:
    reader, shift, started = csv.reader(lines, delimiter=separator, skipinitialspace=True), 0, False
    for fields in reader:
        while len(fields) > width + shift and not fields[-1].strip():
            fields.pop()
        if not any(field.strip() for field in fields):
            continue
        if not started:  # R names the rows and not the column of their names
            started, shift = True, int(len(fields) == width + 1 and fields[0] == "1")
        line = reader.line_num + before
        if len(fields) > width + shift:
            raise Mistake(
                f"line {line}: it has {len(fields)} columns and the first line {width}: put what holds one of the "
                f"{SEPARATORS[separator]} that separate them in quotation marks"
            )
        values = {name: "".join(fields[i + shift : i + shift + 1]).strip() for name, (_, i) in columns.items()}
        values = {"label": "", **values}
        part = part_name(values["split"]) if "split" in columns else ("", ())
        if part and part[0] == "unlabelled":
            part = None if "label" in needed else ("", ())
        if not all(values[name] for name in needed) or "\0" in values["path"] or not part:
            raise Mistake(f"line {line}: it needs a path, a label and, if any does, a split: {', '.join(PARTS)}")
        yield Row(values["path"], values["label"], part[0])


def annotations(table: Path, names: set[str], classes: set[str]) -> dict[str, str]:
    """{name of a file: class} of a list, with or without a heading, whose first columns are these."""
    labels: dict[str, str] = {}
    try:
        with open_regular(table) as file, io.TextIOWrapper(file, encoding_of(table)) as text:
            for line in _lines(text):
                fields = [field.strip().strip('"') for field in re.split(r"[\t,; ]+", line.strip())]
                if len(fields) > 1 and fields[0].rpartition("/")[2] in names and fields[1] in classes:
                    labels[fields[0].rpartition("/")[2]] = fields[1]
    except (OSError, ValueError):
        return {}
    return labels
