"""Pipes, devices, folders and links in the place of files and folders."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pipeline.base.errors import InputError
from pipeline.base.safe_files import (
    _depth,
    content_of,
    json_of,
    parsed,
    refuse_link,
    refuse_outputs,
    refuse_to_write,
    remove,
)
from tests.making.cli import environment


def test_a_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_text('{"a": 1}')
    assert content_of(file, 8) == b'{"a": 1}'
    assert json_of(file) == {"a": 1}
    (tmp_path / "link").symlink_to(file)
    assert json_of(tmp_path / "link") == {"a": 1}


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(OSError, match="is not a file") as caught:
            content_of(path, 100)
        assert caught.value.filename == str(path)


def test_a_large_file_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "large"
    with file.open("wb") as opened:
        opened.truncate(2**40)
    with pytest.raises(OSError, match="is larger than 64 MiB"):
        json_of(file)


@pytest.mark.parametrize("content", [b"[" * 100_000, b"\xff", b"{", b"9" * 5000])
def test_what_is_no_json_is_a_value_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"."):
        json_of(tmp_path / "a.json")


def test_nothing_is_written_where_no_file_is(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refuse_to_write(tmp_path / "file")
    refuse_to_write(tmp_path / "new")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("pipe", "folder", "link", "dangling"):
        with pytest.raises(InputError, match=rf"{name}: is .*, so nothing is written there"):
            refuse_to_write(tmp_path / name)


def test_links_to_folders_are_refused(tmp_path: Path) -> None:
    refuse_link(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(InputError, match="link: is a link"):
        refuse_link(tmp_path / "link")


def test_a_link_is_removed_and_not_what_it_leads_to(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").touch()
    folder = tmp_path / "folder"
    folder.mkdir()
    for link in (tmp_path / "link", folder / "link"):
        link.symlink_to(kept)
    for path in (tmp_path / "link", folder, tmp_path / "never was"):
        remove(path)
        assert not os.path.lexists(path)
    assert (kept / "file").exists()


def test_deep_json_is_refused_where_a_library_lets_python_go_deeper(tmp_path: Path) -> None:
    """In a process of its own: it crashed otherwise."""
    deep = tmp_path / "deep.json"
    deep.write_bytes(b"[" * 1_000_000)
    told = (
        "import sys; from pathlib import Path; from pipeline.base.safe_files import json_of\n"
        "sys.setrecursionlimit(10**6)\n"
        "try:\n    json_of(Path(sys.argv[1]))\n"
        "except ValueError as error:\n    print(error, sys.getrecursionlimit())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", told, deep], env=environment(), capture_output=True, text=True
    )
    assert done.stdout == "is nested too deeply 1000000\n", done.stderr


def test_threads_read_json_without_changing_how_deep_calls_may_go(tmp_path: Path) -> None:
    """Of the whole process: what another thread sees meanwhile is what it was."""
    file = tmp_path / "large.json"
    file.write_text(json.dumps([{"a": ["b"] * 10}] * 2000))
    usual, limit, seen = sys.getrecursionlimit(), 20_000, set()
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            seen.add(sys.getrecursionlimit())

    sys.setrecursionlimit(limit)
    try:
        threads = [threading.Thread(target=look), *_readers(file, 4)]
        for thread in threads:
            thread.start()
        for thread in threads[1:]:
            thread.join()
        stop.set()
        threads[0].join()
        assert (seen, sys.getrecursionlimit()) == ({limit}, limit)
    finally:
        sys.setrecursionlimit(usual)


def _readers(file: Path, count: int) -> list[threading.Thread]:
    def read() -> None:
        for _ in range(20):
            json_of(file)

    return [threading.Thread(target=read) for _ in range(count)]


@pytest.mark.parametrize(
    ("text", "levels"),
    [
        ("[]", 1),
        ('{"a": [1, {"b": 2}]}', 3),
        ('["[[[[", "\\\\", "\\"[["]', 1),
        ('["[[', 1),
        ('["\\', 1),
        ("]]][", 0),
        ('"' + '\\"' * 100_000, 0),
    ],
)
def test_only_brackets_outside_of_strings_nest(text: str, levels: int) -> None:
    assert _depth(text) == levels


def test_nesting_is_refused_at_one_depth() -> None:
    assert parsed("[" * 200 + "]" * 200)
    with pytest.raises(ValueError, match="is nested too deeply"):
        parsed("[" * 201 + "]" * 201)


def test_outputs_are_refused_before_they_are_written(tmp_path: Path) -> None:
    (tmp_path / "link.csv").symlink_to(tmp_path / "outside.csv")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "away").symlink_to(tmp_path / "folder")
    refuse_outputs(files=[tmp_path / "new.csv", tmp_path / "file"], folders=[tmp_path / "folder"])
    for file, says in (
        ("link.csv", "is a link"),
        ("folder", "is no file"),
        ("nowhere/new.csv", "its folder is not there"),
        ("file/new.csv", "its folder is not there"),
    ):
        with pytest.raises(InputError, match=says):
            refuse_outputs(files=[tmp_path / "new.csv", tmp_path / file])
    for folder, says in (("away", "is a link"), ("file", "is no folder")):
        with pytest.raises(InputError, match=says):
            refuse_outputs(folders=[tmp_path / folder])
    assert {path.name for path in tmp_path.iterdir()} == {"link.csv", "folder", "file", "away"}
