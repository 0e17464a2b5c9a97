"""Power cuts on a real ext4: each durability level loses what it may lose, and nothing else. See ``powercut.py``."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CUTS = 100
IN_OWN_NAMESPACE = ["unshare", "--mount", "--propagation", "private"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module", autouse=True)
def loop_device(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Needs the right to make, mount and shut down a file system."""
    probe = tmp_path_factory.mktemp("probe")
    commands = "truncate -s 16M disk && mkfs.ext4 -q -F disk && mkdir at && mount -o loop disk at && umount at"
    done = subprocess.run([*IN_OWN_NAMESPACE, "sh", "-c", commands], cwd=probe, capture_output=True, text=True, check=False)
    if done.returncode:
        why = f"cannot mount an ext4 on a loop device here: {done.stderr.strip()[:300]}"
        if os.environ.get("RATH_REQUIRE_POWERCUT"):
            pytest.fail(why)
        pytest.skip(why)


@pytest.mark.parametrize("level", ["process", "turn", "record"])
def test_a_power_cut_loses_what_the_level_allows_and_nothing_else(tmp_path: Path, level: str) -> None:
    seed = random.randrange(1 << 30)
    command = [sys.executable, "-m", "tests.crash.powercut", level, str(CUTS), str(tmp_path), str(seed)]
    done = subprocess.run([*IN_OWN_NAMESPACE, *command], cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["wrong"] == []
    assert found["cuts"] == CUTS
    # The cuts struck while there was something to lose.
    assert found["seen"]["rows lost that were not"] > 0
    assert found["seen"].get("open", 0) + found["seen"].get("torn", 0) > (0 if level == "process" else CUTS // 4)
    if level != "process":  # which promises nothing of a power cut
        assert found["seen"]["with rows in another"] > 0
        assert found["seen"]["rows acknowledged"] > 5 * CUTS
