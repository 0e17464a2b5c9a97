"""Headless Chromium for the tests: skipped where there is none, unless ``RATH_REQUIRE_BROWSER=1`` says that it has to be."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest

from tests.browser.chrome import Chrome
from tests.browser.harness import Beacon


@pytest.fixture(scope="session")
def beacon() -> Iterator[Beacon]:
    found = Beacon()
    yield found
    found.close()


@pytest.fixture(scope="session")
def chrome(beacon: Beacon) -> Iterator[Chrome]:
    """One Chromium for all tests; each opens tabs of its own. Every host name leads to :func:`beacon`."""
    binary = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if binary is None:
        if os.environ.get("RATH_REQUIRE_BROWSER") == "1":
            pytest.fail("no Chromium on the path, and RATH_REQUIRE_BROWSER=1")
        pytest.skip("no Chromium on the path (RATH_REQUIRE_BROWSER=1 makes this a failure)")
    found = Chrome(binary, every_host_is=beacon.address)
    yield found
    found.close()
