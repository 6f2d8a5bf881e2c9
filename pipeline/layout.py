"""How a folder of pictures is meant: which of its folders are classes, which are parts.

    holiday/beach/1.jpg                      classes
    holiday/train/beach/1.jpg                parts, with the classes in each; or the other way about
    archive/seg_train/seg_train/beach/...    a level that holds one folder alone says nothing

The folders that hold pictures decide, by the names of those in them and by their own. Where two
readings are possible, a person has to say which: `--layout`.
"""

import os
import stat
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from heapq import heappop, heappush
from pathlib import Path
from typing import Literal

from ground.mistake import Mistake
from ground.terminal import printable
from pipeline import table
from pipeline.labels import PARTS, name_list, one_spelling, part_name
from pipeline.listing import Inventory, LeftOut, Source
from pipeline.pictures import looks_like_a_picture

Layout = Literal["auto", "classes", "parts"]
SYSTEM_FOLDER = "__MACOSX"  # which programs leave, beside the hidden ones
DEEPEST = 100  # folders in one another


@dataclass(eq=False)
class Folder:
    """A folder and what lies in it, hidden things apart. Names are paths below the root."""

    name: str
    files: list[str] = field(default_factory=list)  # those that look like pictures
    tables: list[str] = field(default_factory=list)
    folders: list["Folder"] = field(default_factory=list)

    @property
    def label(self) -> str:
        return os.path.basename(self.name)

    @cached_property
    def live(self) -> list["Folder"]:
        """The folders in it that hold pictures, somewhere below."""
        return [inner for inner in self.folders if inner.files or inner.live]

    @property
    def inner(self) -> "Folder":
        """It, or the folder far below that it holds alone."""
        alone = len(self.live) == 1 and (not self.files or self.live[0].live)
        return self.live[0].inner if alone else self

    def below(self) -> Iterator[str]:
        """The pictures in it and in all below."""
        yield from self.files
        for inner in self.live:
            yield from inner.below()


@dataclass(frozen=True)
class Reading:
    """One way to understand a folder."""

    folders: list[tuple[Folder, str, str]]  # those of one class and part, with its label and its part
    unread: list[tuple[Folder, str]]  # those that are neither, each with the reason
    words: str


def folder_inventory(root: Path, layout: Layout) -> Inventory:
    """Every file below a folder, with its class and part or the reason why it is not used.

    Raises Mistake where it has not two classes, or can be read in two ways.
    """
    tree, left_out = walk(root)
    top = tree
    while len(top.live) == 1 and top.live[0].live and part_name(top.live[0].label) != ("train", ()):
        top = top.live[0]
    reading = choose(root, top, layout)
    notes = [f"the classes lie in {top.name}"] if top.name else []
    members = [(name, label, part) for folder, label, part in reading.folders for name in folder.below()]
    for folder, reason in reading.unread:
        part, labels, source = (part_name(folder.label) or ("",))[0], dict[str, str](), ""
        if part in PARTS:
            labels, source = annotations(root, folder, {label for _, label, _ in reading.folders})
        if source:
            notes.append(f"the classes of {folder.name} are those of {source}")
            reason = f"{source} names no class of it"
        for name in folder.below():
            if label := labels.get(os.path.basename(name), ""):
                members.append((name, label, part))
            else:
                left_out.append(LeftOut(name, reason))
    classes, one_class = one_spelling(label for _, label, _ in members)
    order = sorted(set(classes.values()))
    bare = name_list(printable(folder.label) for folder in top.folders if folder not in top.live)
    if len(order) < 2:
        raise Mistake(
            f"--data is {root}: it must have two folders or more, one for each class, or train and test with these in "
            f"each; it has {', '.join(order) or 'none'}{f' (without pictures: {bare})' if bare else ''}"
        )
    accounted = {name for name, _, _ in members} | {file.name for file in left_out}
    left_out += [LeftOut(name, "not in the folder of a class") for name in tree.below() if name not in accounted]
    number = {label: order.index(name) for label, name in classes.items()}
    files = tuple(Source(name, number[label], part) for name, label, part in members)
    notes += one_class + [f"folders without a picture: {bare}"] * bool(bare)
    return Inventory(tuple(order), files, tuple(left_out), tuple(notes))


def walk(root: Path) -> tuple[Folder, list[LeftOut]]:
    """The tree of the pictures below a folder, and the other files.

    Links are followed, after all that lies there by itself, and each folder is entered once.
    """
    left_out, visited, tree = list[LeftOut](), set[tuple[int, int]](), Folder("")
    folders, links = [(tree, False)], list[tuple[int, str, Folder]]()

    def entered(status: os.stat_result) -> bool:
        """Whether a folder was entered before; it is now."""
        before = len(visited)
        visited.add((status.st_dev, status.st_ino))
        return len(visited) == before

    for above in (root.resolve(), *root.resolve().parents):
        entered(os.stat(above))
    while folders or links:
        if not folders:
            _, name, folder = heappop(links)  # what holds another's folder first
            if entered(os.stat(root / name)):
                left_out.append(LeftOut(name, "a link to a folder that is here already, or holds this one"))
                continue
            folders.append((Folder(name), False))
            folder.folders.append(folders[0][0])
        folder, hidden = folders.pop()
        try:
            with os.scandir(root / folder.name) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError as error:
            if folder is tree:
                raise
            left_out.append(LeftOut(folder.name, f"cannot be read: {error.strerror}"))
            continue
        for entry in entries:
            name = os.path.join(folder.name, entry.name)
            aside = hidden or entry.name.startswith(".") or entry.name == SYSTEM_FOLDER
            if entry.is_dir(follow_symlinks=False):
                inner = Folder(name)
                if name.count(os.sep) >= DEEPEST or entered(entry.stat(follow_symlinks=False)):
                    left_out.append(LeftOut(name, f"a folder that is here already, or lies below {DEEPEST} others"))
                    continue
                folders.append((inner, aside))
                if not aside:
                    folder.folders.append(inner)
            elif aside:
                left_out.append(LeftOut(name, "hidden"))
            elif entry.is_symlink() and os.path.isdir(entry.path):
                heappush(links, (os.path.realpath(entry.path).count(os.sep), name, folder))
            elif reason := unusable(entry):
                left_out.append(LeftOut(name, reason))
                if entry.name.lower().endswith(table.SUFFIXES):
                    folder.tables.append(name)
            else:
                folder.files.append(name)
    return tree, left_out


def unusable(entry: os.DirEntry[str]) -> str:
    """Why a file cannot be a picture, or ""."""
    try:
        if not entry.is_file(follow_symlinks=False) and not stat.S_ISREG(entry.stat().st_mode):
            return "not a regular file"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if looks_like_a_picture(entry.path):
        return ""
    return f"no picture, {os.path.splitext(entry.name)[1].lower() or 'no suffix'}"


def choose(root: Path, top: Folder, layout: Layout) -> Reading:
    """The reading that `layout` asks for, or the only possible one."""
    names = [printable(folder.label) for folder in top.live]
    classes = Reading([(folder, folder.label, "") for folder in top.live], [], _words(names) + " with all below each")
    parts, sure = parts_reading(top)
    if layout == "classes" or (layout == "auto" and not parts and not _one_family(top.live)):
        return classes
    if parts and (sure or layout == "parts"):
        return parts
    if parts:
        both = f"{classes.words}; or {parts.words}: say which by --layout classes or --layout parts"
        raise Mistake(f"--data is {root}: it can be read in two ways: {both}")
    raise Mistake(
        f"--data is {root}: as parts, {name_list(names)} do not hold two folders or more, one for each class: make "
        "these, or say --layout classes if they are the classes"
    )


def parts_reading(top: Folder) -> tuple[Reading | None, bool]:
    """Parts with classes in them, or the other way about; and whether it is the only reading."""
    family = _family(top.live)
    training = {c.label for folder, part in family.items() if part == "train" for c in folder.inner.live}
    if len(training) > 1:
        members = {folder: _class_folders(folder, training) for folder, part in family.items() if part in PARTS}
        shared = [set.intersection(training, (c.label for c in inner)) for inner in members.values() if inner]
        transposed = all(len(f.inner.live) > 1 and _one_family(f.inner.live) for f in top.live)
        sure = (len(family) == len(top.live) or len(shared) > 1) and not transposed
        return _reading(top, members, family), sure
    if len(top.live) > 1 and all(_one_family(folder.live) for folder in top.live):  # CLASS/PART
        halves = [(inner, folder.label, part) for folder in top.live for inner, part in _family(folder.live).items()]
        if any(part == "train" for _, _, part in halves):
            names = [printable(folder.label) for folder in top.live]
            unread = [(inner, _no_classes(inner)) for inner, _, part in halves if part not in PARTS]
            return Reading([half for half in halves if half[2] in PARTS], unread, _words(names) + " with parts"), True
    alike: dict[frozenset[str], list[Folder]] = defaultdict(list)
    for folder in top.live:
        if not folder.inner.files and len(folder.inner.live) > 1:
            alike[frozenset(inner.label for inner in folder.inner.live)].append(folder)
    largest = max(alike.values(), key=len, default=[])
    if len(largest) < 2:
        return None, False
    training = {inner.label for inner in largest[0].inner.live}
    members = {folder: _class_folders(folder, training) for folder in top.live}
    parts = _family(top.live) if _one_family(top.live) else {}
    return _reading(top, members, {folder: parts.get(folder, "") for folder in members}), False


def _reading(top: Folder, members: dict[Folder, list[Folder]], parts: dict[Folder, str]) -> Reading:
    """Parts with classes in them: {folder of a part: folders of classes}."""
    folders = [(inner, inner.label, parts[part]) for part, classes in members.items() for inner in classes]
    unread = [(folder, _no_classes(folder)) for folder in top.live if not members.get(folder)]
    names = sorted({printable(label) for _, label, _ in folders})
    within = name_list(printable(folder.label) for folder, classes in members.items() if classes)
    return Reading(folders, unread, f"{_words(names)} in each of {within}")


def _no_classes(folder: Folder) -> str:
    return f"in {printable(folder.label)}, which has no folder of a class"


def _words(names: list[str]) -> str:
    return f"{len(names):,} classes ({name_list(names)})"


def _family(folders: list[Folder]) -> dict[Folder, str]:
    """Those that name a part in the way that "train" of them, or else the first, does; with the part."""
    meant = {folder: part for folder in folders if (part := part_name(folder.label))}
    ways = [rest for part, rest in meant.values() if part == "train"] or [rest for _, rest in meant.values()]
    return {folder: part for folder, (part, rest) in meant.items() if rest == ways[0]}


def _one_family(folders: list[Folder]) -> bool:
    """Whether all of some folders are parts by their names."""
    family = _family(folders)
    return len(folders) > 0 and len(family) == len(folders) and bool(set(family.values()) & set(PARTS))


def _class_folders(folder: Folder, names: set[str]) -> list[Folder]:
    """The folders in one of a part, however deep, if some have these names of classes."""

    def holds_classes(folder: Folder) -> bool:
        return not {name.casefold() for name in names}.isdisjoint(inner.label.casefold() for inner in folder.live)

    while len(folder.live) == 1 and (holds_classes(folder.live[0]) or not holds_classes(folder)):
        folder = folder.live[0]
    return folder.live if holds_classes(folder) else []


def annotations(root: Path, folder: Folder, classes: set[str]) -> tuple[dict[str, str], str]:
    """{file name: class} by a table in a folder without folders of classes, and the table's name."""
    names = {os.path.basename(name) for name in folder.below()}
    inside = {*folder.tables, *folder.inner.tables}
    labels = {name: table.annotations(root / name, names, classes) for name in sorted(inside)}
    best = max(labels, key=lambda name: len(labels[name]), default="")
    return (labels[best], best) if best and labels[best] else ({}, "")
