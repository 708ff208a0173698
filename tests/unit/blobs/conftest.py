"""Worlds for the tests of blobs: what they are made of says world.py."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from trio.testing import MockClock

from tests.unit.blobs.world import Worlds


@pytest.fixture
def worlds(tmp_path: Path) -> Iterator[Worlds]:
    worlds = Worlds(tmp_path)
    yield worlds
    worlds.close()


@pytest.fixture
def clock() -> MockClock:
    return MockClock()
