"""A session that is placed on the host, in a directory of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rath.session.session import Session


@pytest.fixture
def placed(tmp_path: Path) -> Iterator[Session]:
    """A session whose workspace is ``tmp_path``."""
    session = Session.from_user_message("work").to("local", spec=str(tmp_path))
    yield session
    session.close_sandbox()
