"""Headers of tar archives: the members that tarfile finds, and archives that are none."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.base.errors import InputError
from pipeline.recipe.data import WebDatasetData
from pipeline.recipe.input_shape import square
from pipeline.tasks.images.load import load_dataset
from pipeline.tasks.images.shard_scan import scan_shards
from pipeline.tasks.images.tar import BLOCK, Member, TarError, members
from tests.making.photos import make_folders
from tests.making.shards import samples_of, write_shard

FORMS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
KINDS = (tarfile.REGTYPE, tarfile.CONTTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE,
         tarfile.CHRTYPE, tarfile.FIFOTYPE)  # fmt: skip


def found(content: bytes) -> list[Member]:
    return list(members(lambda size, offset: content[offset : offset + size], len(content)))


def archive(*given: tuple[str, bytes], form: int = tarfile.USTAR_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as made:
        for name, content in given:
            one = tarfile.TarInfo(name)
            one.size = len(content)
            made.addfile(one, io.BytesIO(content))
    return out.getvalue()


letters = st.text(st.characters(codec="utf-8", exclude_characters="\0\n"), min_size=1, max_size=60)
names = st.lists(letters, min_size=1, max_size=6).map("/".join)


@given(
    given=st.lists(st.tuples(names, st.binary(max_size=1500), st.sampled_from(KINDS)), max_size=6),
    form=st.sampled_from(FORMS),
)
@settings(max_examples=150, deadline=None)
def test_members_are_those_that_tarfile_finds(
    given: list[tuple[str, bytes, bytes]], form: int
) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as made:
        for name, content, kind in given:
            one = tarfile.TarInfo(name)
            one.type, one.linkname = kind, "elsewhere"
            one.size = len(content) if one.isreg() else 0
            try:
                made.addfile(one, io.BytesIO(content) if one.isreg() else None)
            except ValueError:  # a name that this form cannot hold
                continue
    content = out.getvalue()
    with tarfile.open(fileobj=io.BytesIO(content)) as read:
        expected = [
            (os.fsencode(one.name), one.offset_data, one.size, one.isreg())
            for one in read
            if not one.isdir()
        ]
    got = [(one.name.rstrip(b"/"), *one[1:]) for one in found(content)]
    assert got == [(one[0].rstrip(b"/"), *one[1:]) for one in expected]


def test_sizes_that_octal_digits_do_not_hold() -> None:
    header = tarfile.TarInfo("big.jpg")
    header.size = 2**35
    block = header.tobuf(tarfile.GNU_FORMAT)
    with pytest.raises(TarError, match=r"'big\.jpg' at byte 0 has 34359738368 bytes, but the arch"):
        found(block + bytes(1024))
    block = header.tobuf(tarfile.PAX_FORMAT)
    with pytest.raises(TarError, match=r"has 34359738368 bytes, but the archive ends at byte"):
        found(block + bytes(1024))
    header.size = 3
    small = signed(header.tobuf(tarfile.GNU_FORMAT), 124, b"\x80" + bytes(10) + b"\x03")
    assert found(small + bytes(1536)) == [Member(b"big.jpg", 512, 3, True)]


def signed(block: bytes, place: int, field: bytes) -> bytes:
    """A header with another field and the checksum of it."""
    block = block[:place] + field + block[place + len(field) :]
    total = sum(block[:148]) + 8 * 32 + sum(block[156:BLOCK])
    return block[:148] + b"%06o\0 " % total + block[156:]


WHOLE = archive(("a/1.jpg", b"x" * 700), ("a/1.cls", b"1"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "holds 0 bytes and is no tar archive"),
        (b"x" * 100, "holds 100 bytes and is no tar archive"),
        (b"x" * 2000, "^is no tar archive$"),
        (WHOLE[:700], r"'a/1\.jpg' at byte 0 has 700 bytes, but the archive ends at byte 700"),
        (WHOLE[:1536], "ends at byte 1536 without the block of zeros"),
        (WHOLE[:1800], "ends at byte 1800 without the block of zeros"),
        (WHOLE[:1536] + b"\1" + WHOLE[1537:], "the header at byte 1536 is damaged"),
        (WHOLE + WHOLE, "goes on after its end at byte 2560"),
        (gzip.compress(WHOLE) + bytes(BLOCK), r"is compressed \(gzip\)"),
        (signed(WHOLE, 124, b"-0000000001\0"), "says no size"),
        (signed(WHOLE, 124, b"\xff" * 12), "says no size"),
        (signed(WHOLE, 124, b"0o000000001\0"), "says no size"),
        (signed(WHOLE, 156, b"S"), "is sparse"),
        (signed(WHOLE, 156, b"x"), "the extended header at byte 512 is damaged"),
        (signed(archive(("n", b"10 size=7\n")), 156, b"x"), "ends behind an extended header"),
        (
            signed(archive(("n", b"12 size=-70\n")), 156, b"x")[:1024] + WHOLE,
            r"says no size \(b'-70'\)",
        ),
        (signed(archive(("n", bytes(2**20 + 1))), 156, b"L"), "has 1048577 bytes; at most 1048576"),
    ],
)
def test_archives_that_are_not_whole(content: bytes, words: str) -> None:
    with pytest.raises(TarError, match=words):
        found(content)


def test_sparse_members_of_pax_are_refused() -> None:
    text = b"22 GNU.sparse.major=1\n"
    with pytest.raises(TarError, match=r"'a/1\.jpg' at byte 1024 is sparse"):
        found(signed(archive(("n", text)), 156, b"x")[:1024] + WHOLE)


def test_names_lead_nowhere(tmp_path: Path) -> None:
    """Whatever a name says, it stands in messages alone: nothing is written, nothing opened."""
    make_folders(tmp_path / "photos")
    samples = samples_of(tmp_path / "photos" / "day")
    names = ("/etc/passwd.png", "../../out.jpg", "C:\\x.png", "a/../b.png", "\x1b[31m.png", "é.jpg")
    given = [
        (name.rpartition(".")[0] + suffix, content)
        for name, sample in zip(names, samples, strict=True)
        for suffix, (_, content) in zip((name[-4:], ".cls"), sample, strict=True)
    ]
    write_shard(tmp_path / "s" / "a.tar", given)
    before = sorted(tmp_path.rglob("*"))
    config = WebDatasetData(train=tmp_path / "s", test={"t": tmp_path / "s"}, calibration_images=1)
    found_all = load_dataset(config, square(32)).tests["t"]
    assert len(found_all) == 6
    assert sorted(tmp_path.rglob("*")) == before
    scan = scan_shards("data.train", tmp_path / "s", "cls", None)
    assert str(scan.images.path(0)) == f"{tmp_path}/s/a.tar/etc/passwd.png"
    assert str(scan.images.path(1)) == f"{tmp_path}/s/a.tar/../../out.jpg"


def test_all_shards_that_are_wrong_are_named_at_once(tmp_path: Path) -> None:
    place = tmp_path / "s"
    whole = write_shard(place / "a.tar", [("1.jpg", b"x" * 700), ("1.cls", b"1")]).read_bytes()
    (place / "b.tar").write_bytes(whole[:700])
    (place / "c.tar").write_bytes(b"")
    (place / "d.tar").mkdir()
    os.mkfifo(place / "e.tar")
    (place / "f.tar").symlink_to("nowhere")
    (tmp_path / "z").mkdir()
    (tmp_path / "z" / "a.tar.gz").write_bytes(b"")
    tests = {
        "compressed": tmp_path / "z",
        "gone": tmp_path / "gone",
        "many": tmp_path / "x-{000..123}.tar",
        "none": tmp_path / "s" / "g*.tar",
        "page": Path(__file__),
    }
    config = WebDatasetData(train=place, test=tests, calibration_images=1)
    with pytest.raises(InputError) as caught:
        load_dataset(config, square(32))
    allowed = "give a folder of .tar files, one .tar file, or several by a * in their name"
    assert str(caught.value).splitlines() == [
        f"data.train: {place}/f.tar: cannot be read (No such file or directory)",
        f"data.train: {place}/b.tar: '1.jpg' at byte 0 has 700 bytes, but the archive ends at byte "
        "700: a part is missing; copy or write it again",
        f"data.train: {place}/c.tar: holds 0 bytes and is no tar archive",
        f"data.train: {place}/d.tar: cannot be read (is not a file)",
        f"data.train: {place}/e.tar: cannot be read (is not a file)",
        f"data.test.compressed: {tmp_path}/z: a.tar.gz: compressed, so that no member can be read "
        "by itself; decompress them, images hardly become smaller",
        f"data.test.gone: {tmp_path}/gone does not exist; {allowed}",
        f"data.test.many: {tmp_path}/x-{{000..123}}.tar does not exist; {allowed}",
        f"data.test.none: {place}/g*.tar holds no .tar file; {allowed}",
        f"data.test.page: {__file__} holds no .tar file (test_tar.py); {allowed}",
    ]


@given(
    changes=st.lists(
        st.tuples(st.integers(0, len(WHOLE) - 1), st.binary(min_size=1, max_size=16)), max_size=4
    ),
    sign=st.booleans(),
    form=st.sampled_from(FORMS),
    end=st.integers(0, 6000),
)
@settings(max_examples=400, deadline=None)
def test_any_bytes_end_in_a_scan_or_in_words(
    module_folder: Path,
    changes: list[tuple[int, bytes]],
    sign: bool,
    form: int,
    end: int,
) -> None:
    deep = "é" * (20 if form == tarfile.USTAR_FORMAT else 60)
    name = f"{'a' * 99}/{deep}/1"
    content = archive((f"{name}.jpg", b"x" * 700), (f"{name}.cls", b"1"), form=form)
    for place, text in changes:
        content = content[:place] + text + content[place + len(text) :]
    if sign:
        content = signed(content, 0, b"")
    if end < 5000:
        content = content[:end]
    place = module_folder / "any"
    place.mkdir(exist_ok=True)
    (place / "a.tar").write_bytes(content)
    for label in ("cls", "folder", "json:x", None):
        scan = scan_shards("data.train", place, label, None)
        assert scan.problems or len(scan.images) <= 2
        for row in range(len(scan.images)):
            assert scan.images.path(row)
            scan.images.content(row)
