"""What every session of tests has."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.making import shared

# A run trains with two threads; where each has no core of its own, the one that waits for the other
# by spinning makes both slower, tenfold on a busy machine. Read when torch loads, in children too.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

# An example takes as long as the machine lets it.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")

SLOW_FILE = re.compile(r"^pytestmark = .*pytest\.mark\.slow\b", re.M)
"""A file that is slow as a whole is not even imported for the quick tests: that, too, costs."""
LEFT_OUT = ("slow", "alone", "networks")
LONG_FILES = (
    "tests/whole/test_end_to_end_again.py",
    "tests/whole/test_docs.py",
    "tests/whole/test_soak.py",
    "tests/whole/test_fuzz.py",
    "tests/commands/test_peers.py",
    # They read what the first has made, and would wait for it beside it.
    "tests/whole/test_end_to_end_use.py",
    "tests/whole/test_end_to_end.py",
    "tests/whole/test_end_to_end_pruning.py",
)
"""What takes longest begins first, so that no process is left alone with it at the end."""


@pytest.fixture(scope="module")
def module_folder(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A folder for the examples of one module: Hypothesis takes no fixture of a single test."""
    return tmp_path_factory.mktemp(request.module.__name__.rpartition(".")[2])


@pytest.fixture(autouse=True)
def _threads_as_asked_for() -> Iterator[None]:
    """A run takes as many threads as its recipe says; the tests after it are to have their own."""
    yield
    asked = int(os.environ.get("OMP_NUM_THREADS", 0))
    if asked and "torch" in sys.modules and sys.modules["torch"].get_num_threads() != asked:
        sys.modules["torch"].set_num_threads(asked)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--quick", action="store_true", help=f"leave out what is marked {' or '.join(LEFT_OUT)}"
    )


def pytest_configure(config: pytest.Config) -> None:
    """The first process makes the folder that all of them share; pytest-xdist starts the others."""
    if (made := shared.begin()) is not None:
        config.add_cleanup(lambda: shared.end(made))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    if not config.getoption("--quick") or collection_path.suffix != ".py":
        return None
    return SLOW_FILE.search(collection_path.read_text(encoding="utf-8")) is not None or None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--quick"):
        left_out = [item for item in items if any(map(item.get_closest_marker, LEFT_OUT))]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
    first = {name: place for place, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: first.get(item.nodeid.partition("::")[0], len(first)))
