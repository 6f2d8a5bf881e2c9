"""Names of classes and of parts, in the spellings that people and programs give them."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable

from ground.terminal import printable

PART_NAMES = {
    "train": ("train", "training", "trn", "trainval"),
    "validation": ("validation", "validate", "val", "valid", "dev"),
    "test": ("test", "testing", "tst", "eval", "evaluation", "holdout"),
    "unlabelled": ("unlabelled", "unlabeled", "pred", "predict", "prediction", "predictions", "inference"),
}
PARTS = ("train", "validation", "test")  # in the order of their pictures
BESIDE = r"(?:sets?|data|datasets?|images?|imgs?|pictures?|pics|photos|files|folder|split|part|samples)"
PART_WORDS = {word: part for part, words in PART_NAMES.items() for word in words}


def part_name(name: str) -> tuple[str, tuple[str, ...]] | None:
    """What part a name means, and its other words: "seg_train" is ("train", ("seg",)).

    None where it names no part, or two. Words such as "images" or "set", and numbers, do not count.
    """
    parts, rest = [], []
    for word in re.findall(r"[^\W\d_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)):
        word = word.lower()
        if part := PART_WORDS.get(word) or PART_WORDS.get(re.sub(f"{BESIDE}$", "", word)):
            parts.append(part)
        elif not re.fullmatch(BESIDE, word):
            rest.append(word)
    return (parts[0], tuple(rest)) if len(parts) == 1 else None


def one_spelling(names: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """{label: its class}, spelled as most are, and a line for every two labels that are one.

    Labels are one where they differ by spaces, by letters' case (but for labels of one letter), by
    characters that are not seen, or by the form in which Unicode writes a letter.
    """
    counts = Counter(names)
    groups: dict[str, list[str]] = defaultdict(list)
    for name in sorted(counts):
        plain = _plain(name)
        groups[plain.casefold() if len(plain) > 1 else plain].append(name)
    meant: dict[str, str] = {}
    notes = []
    for spellings in groups.values():
        label = _plain(max(spellings, key=lambda name: counts[name]))
        meant |= dict.fromkeys(spellings, printable(label or repr(spellings[0])))
        if len(spellings) > 1:
            notes.append(f"{', '.join(printable(repr(name)) for name in spellings)} are one class")
    return meant, notes


def _plain(name: str) -> str:
    seen = (c for c in unicodedata.normalize("NFC", name) if unicodedata.category(c) != "Cf")
    return " ".join("".join(seen).split())


def name_list(names: Iterable[str], most: int = 6) -> str:
    """Some names, and how many there are beside them."""
    every = list(names)
    return ", ".join(every[:most]) + (f" and {len(every) - most:,} more" if len(every) > most else "")
