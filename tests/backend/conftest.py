from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.backend.memory import MemoryBackend, fresh_memory


@pytest.fixture
def memory() -> Iterator[MemoryBackend]:
    with fresh_memory() as backend:
        yield backend
