"""A phone for each test, where this machine can have one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.making.phones import Phone, Phones, missing, phones


@pytest.fixture
def network(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Phones]:
    """A network without a phone; `adb` is the one in it."""
    if (why := missing()) is not None:
        pytest.skip(why)
    with phones(tmp_path_factory.mktemp("phones")) as found:
        monkeypatch.setenv("PATH", found.path)
        yield found


@pytest.fixture
def phone(network: Phones) -> Phone:
    return network.start()
