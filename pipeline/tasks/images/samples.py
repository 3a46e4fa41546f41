"""What a WebDataset shard holds: samples, each an image and what says its class.

A sample are the members side by side whose names are the same up to the first dot of the last part,
as webdataset itself has it: `cats/1.jpg` and `cats/1.cls`. What follows is their kind, of which the
part behind the last dot counts, in lower case: `1.left.JPG` is a .jpg.
"""

from __future__ import annotations

import os
import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.base.safe_files import open_file, parsed
from pipeline.tasks.images.files import LINKS, extensions, is_passed_over, is_picture
from pipeline.tasks.images.stored import state_of
from pipeline.tasks.images.tar import Member, Read, TarError, members, reader

CLS, FOLDER, JSON = "cls", "folder", "json:"
"""What says the class of an image: a member, its folder, a field of a member."""
_MOST_LABEL, _MOST_JSON = 1000, 2**20
_MOST_LINES, _MOST_MEMBERS = 10, 1000
_OWN = re.compile(rb"__[^/]*__(?:/|$)")
"""Names that webdataset keeps to itself."""
_SIDE_BY_SIDE = (
    "members of a sample lie side by side and have one name up to the first dot, such as 1.jpg and "
    "1.cls; write the shards so"
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Samples:
    """Images of S shards and their labels, as the headers say.

    Attributes:
        shards: names of the shards.
        states: int64 [S, STATE], as they were when they were read.
        counts: int64 [S], images of each.
        offsets: int64 [N], where an image begins in its shard.
        sizes: int64 [N], bytes of it.
        labels: int64 [N], which of `texts` is its label; -1 where none is asked for.
        texts: the labels.
        names: of all images, one after the other.
        lengths: int64 [N], of these.
        passed: what is passed over in each shard: how many of each suffix, and one of them.
    """

    shards: tuple[str, ...]
    states: NDArray[np.int64]
    counts: NDArray[np.int64]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    labels: NDArray[np.int64]
    texts: tuple[str, ...]
    names: bytes
    lengths: NDArray[np.int64]
    passed: tuple[dict[str, tuple[int, str]], ...]

    def shard(self, number: int) -> Samples:
        """Those of one shard."""
        begin = int(self.counts[:number].sum())
        rows = slice(begin, begin + int(self.counts[number]))
        start = int(self.lengths[:begin].sum())
        return Samples(
            shards=(self.shards[number],),
            states=self.states[number : number + 1],
            counts=self.counts[number : number + 1],
            offsets=self.offsets[rows],
            sizes=self.sizes[rows],
            labels=self.labels[rows],
            texts=self.texts,
            names=self.names[start : start + int(self.lengths[rows].sum())],
            lengths=self.lengths[rows],
            passed=(self.passed[number],),
        )


def joined(parts: list[Samples]) -> Samples:
    """Samples of several shards, in their order."""
    number: dict[str, int] = {}
    labels = []
    for part in parts:
        used = np.unique(part.labels[part.labels >= 0])
        codes = np.full(len(part.texts) + 1, -1, np.int64)  # the last one, for -1
        for code in used.tolist():
            codes[code] = number.setdefault(part.texts[code], len(number))
        labels.append(codes[part.labels])
    return Samples(
        shards=tuple(name for part in parts for name in part.shards),
        states=np.concatenate([part.states for part in parts]),
        counts=np.concatenate([part.counts for part in parts]),
        offsets=np.concatenate([part.offsets for part in parts]),
        sizes=np.concatenate([part.sizes for part in parts]),
        labels=np.concatenate(labels),
        texts=tuple(number),
        names=b"".join(part.names for part in parts),
        lengths=np.concatenate([part.lengths for part in parts]),
        passed=tuple(passed for part in parts for passed in part.passed),
    )


@dataclass
class Problems:
    """What is wrong with the shards of a set: whole ones, and kinds of samples by number.

    Attributes:
        key: of the recipe.
        lines: about whole shards.
        samples: by what is wrong and what to do: how many, and one of them.
    """

    key: str
    lines: list[str] = field(default_factory=list)
    samples: dict[tuple[str, str], tuple[int, str]] = field(default_factory=dict)

    def note(self, kind: tuple[str, str], where: str) -> None:
        """Count a sample."""
        count, first = self.samples.get(kind, (0, where))
        self.samples[kind] = (count + 1, first)

    def told(self) -> list[str]:
        """A line for each kind of samples, and for each of the first ten shards."""
        lines = self.lines[:_MOST_LINES]
        if more := len(self.lines) - len(lines):
            lines.append(f"... and {more} more shards")
        return [f"{self.key}: {line}" for line in lines] + [
            f"{self.key}: {count} {'sample' if count == 1 else 'samples'} {what} (such as "
            f"{first}); {fix}"
            for (what, fix), (count, first) in self.samples.items()
        ]


def read_shard(path: Path, label: str | None, problems: Problems) -> Samples | None:
    """The samples of a shard; None where something is wrong with it, which is noted.

    Args:
        path: of the shard.
        label: what says the class of an image, as of a recipe; None where it has none.
        problems: of the set.
    """
    shard = _Shard(path, label, problems)
    before = len(problems.lines), sum(count for count, _ in problems.samples.values())
    try:
        with open_file(path) as file:
            found = os.fstat(file.fileno())
            read = reader(file.fileno())
            for key, sample in _samples(members(read, found.st_size)):
                shard.take(key, sample, read)
    except TarError as error:
        problems.lines.append(f"{path}: {error}")
    except OSError as error:
        problems.lines.append(f"{path}: cannot be read ({error.strerror or error})")
    if before != (len(problems.lines), sum(count for count, _ in problems.samples.values())):
        return None
    return shard.samples(state_of(found))


Sample = list[tuple[str, Member]]
"""Members with their suffixes: `.jpg`."""


def _samples(found: Iterator[Member]) -> Iterator[tuple[bytes, Sample]]:
    """The samples of a shard, each with what its members' names have in common.

    Raises:
        TarError: as of `members`; or a sample has very many of them.
    """

    def named() -> Iterator[tuple[bytes, str, Member]]:
        for member in found:
            folder, slash, last = member.name.rpartition(b"/")
            stem, dot, kind = last.partition(b".")
            # Of a name without a dot there is no kind; hidden files have nothing before theirs.
            if stem and dot and not _is_hidden(folder) and not _OWN.match(member.name):
                suffix = "." + os.fsdecode(kind.rpartition(b".")[2]).lower()
                yield folder + slash + stem, suffix, member

    for key, group in groupby(named(), key=lambda one: one[0]):
        sample = [(suffix, member) for _, suffix, member in islice(group, _MOST_MEMBERS + 1)]
        if len(sample) > _MOST_MEMBERS:
            raise TarError(
                f"sample {os.fsdecode(key[-200:])!r} has more than {_MOST_MEMBERS} members; what "
                "follows the first dot of a name is a member's kind: take another sign in names"
            )
        yield key, sample


def _is_hidden(folder: bytes) -> bool:
    """Whether a folder is none of the user's: hidden, or what tar made of attributes."""
    return (b"." in folder or b"PaxHeader" in folder) and any(
        (part.startswith(b".") and part.strip(b".")) or part.startswith(b"PaxHeader")
        for part in folder.split(b"/")
    )


class _Shard:
    """A shard that is being read."""

    def __init__(self, path: Path, label: str | None, problems: Problems) -> None:
        self._path, self._label, self._problems = path, label, problems
        self._images = frozenset(extensions())
        self._offsets, self._sizes = array("q"), array("q")
        self._labels, self._lengths = array("q"), array("q")
        self._texts: dict[str, int] = {}
        self._names = bytearray()
        self._passed: dict[str, tuple[int, str]] = {}
        self._suffix = {None: "", FOLDER: "", CLS: ".cls"}.get(label, ".json")

    def take(self, key: bytes, sample: Sample, read: Read) -> None:
        """Keep the image of a sample and its label, or note what is wrong."""
        images = [one for suffix, one in sample if suffix in self._images and one.is_file]
        if len(images) == 1:
            text = self._label_of(key, sample, read)
            if text is not None:
                self._add(images[0], self._texts.setdefault(text, len(self._texts)))
            elif self._label is None:
                self._add(images[0], -1)
        elif images:
            names = ", ".join(os.fsdecode(one.name) for one in images[:3])
            self._note("with more than one image", "keep one image in a sample", key, names)
        elif self._suffix and self._is_of_a_lost_image(sample):
            self._note("with a label and without an image", _SIDE_BY_SIDE, key)
        else:
            self._pass_over(sample)

    def samples(self, state: tuple[int, ...]) -> Samples:
        """All that were kept."""
        return Samples(
            shards=(self._path.name,),
            states=np.array([state], np.int64),
            counts=np.array([len(self._offsets)], np.int64),
            offsets=np.array(self._offsets, np.int64),
            sizes=np.array(self._sizes, np.int64),
            labels=np.array(self._labels, np.int64),
            texts=tuple(self._texts),
            names=bytes(self._names),
            lengths=np.array(self._lengths, np.int64),
            passed=(self._passed,),
        )

    def _add(self, image: Member, label: int) -> None:
        self._offsets.append(image.offset)
        self._sizes.append(image.size)
        self._labels.append(label)
        self._lengths.append(len(image.name))
        self._names += image.name

    def _note(self, what: str, fix: str, key: bytes, detail: str = "") -> None:
        where = f"{self._path}/{os.fsdecode(key)}" + (f": {detail}" if detail else "")
        self._problems.note((what, fix), where)

    def _is_of_a_lost_image(self, sample: Sample) -> bool:
        """Whether a sample without an image has a label, and no picture of another kind."""
        suffixes = [suffix for suffix, _ in sample]
        return self._suffix in suffixes and not any(is_picture(Path(f"x{s}")) for s in suffixes)

    def _pass_over(self, sample: Sample) -> None:
        for suffix, member in sample:
            name = f"{self._path}/{os.fsdecode(member.name)}"
            if suffix in self._images:
                suffix = LINKS
            elif not is_passed_over(Path(name)):
                continue
            count, first = self._passed.get(suffix, (0, name))
            self._passed[suffix] = (count + 1, first)

    def _label_of(self, key: bytes, sample: Sample, read: Read) -> str | None:
        """The label of an image; None where there is none, or none is asked for."""
        if self._label is None:
            return None
        if self._label == FOLDER:
            folder = key.rpartition(b"/")[0].rpartition(b"/")[2]
            if not folder.strip(b"."):
                fix = "names are CLASS/NAME.jpg where data.label is folder; write the shards so"
                self._note("in no folder", fix, key)
                return None
            return self._checked(folder, key)
        said = [one for suffix, one in sample if suffix == self._suffix and one.is_file]
        if len(said) != 1:
            what = f"without a {self._suffix} member" if not said else "with more than one label"
            others = f"{_SIDE_BY_SIDE}, or say data.label: folder or json:FIELD"
            self._note(what, others if not said else "keep one label in a sample", key)
            return None
        if self._label == CLS:
            return self._checked(read(min(said[0].size, _MOST_LABEL + 1), said[0].offset), key)
        return self._field(said[0], key, read)

    def _field(self, member: Member, key: bytes, read: Read) -> str | None:
        name = str(self._label).removeprefix(JSON)
        found = None
        if member.size <= _MOST_JSON:
            try:
                content = parsed(read(member.size, member.offset).decode("utf-8-sig"))
                found = content.get(name) if isinstance(content, dict) else None
            except ValueError:
                pass
        if isinstance(found, str) or type(found) is int:
            return self._checked(str(found).encode("utf-8", "surrogatepass"), key)
        self._note(
            f"whose .json member gives {name!r} no text and no whole number",
            f"write {{{name!r}: 3}} there, or correct data.label",
            key,
        )
        return None

    def _checked(self, content: bytes, key: bytes) -> str | None:
        """A label as text; None where it is none."""
        try:
            text = content.decode("utf-8-sig").strip()
        except UnicodeDecodeError:
            text = ""
        if text and text.isprintable() and len(content) <= _MOST_LABEL:
            return text
        self._note(
            "whose label is no whole number and no name",
            "a label is a line of text in UTF-8; write the shards so",
            key,
            repr(content[:40])[1:],
        )
        return None
