"""Where the data directory is, and whose it must be."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rath.core.home import home_was_found, openrath_home
from rath.errors import UsageError

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
STRANGER = 54321


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory two levels down, and a home elsewhere."""
    monkeypatch.delenv("OPENRATH_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    return tmp_path


@AS_ROOT
def test_a_directory_that_somebody_else_planted_is_passed_over(place: Path):
    planted = place / "a" / ".openrath"
    planted.mkdir()
    assert openrath_home() == planted
    os.chown(planted, STRANGER, STRANGER)
    assert openrath_home() == place / "user" / ".openrath"
    (place / ".openrath").mkdir()
    assert openrath_home() == place / ".openrath"


@AS_ROOT
def test_a_link_that_somebody_else_planted_is_passed_over(place: Path):
    (place / "mine").mkdir()
    link = place / "a" / ".openrath"
    link.symlink_to(place / "mine")
    assert openrath_home() == link
    os.lchown(link, STRANGER, STRANGER)
    assert openrath_home() == place / "user" / ".openrath"


@AS_ROOT
def test_a_user_without_any_home_is_told_what_to_set(place: Path):
    code = (
        "import os\n"
        "from rath.core.home import openrath_home\n"
        "from rath.errors import UsageError\n"
        f"os.setuid({STRANGER})\n"
        "try:\n    openrath_home()\n"
        "except UsageError as error:\n    print(error)"
    )
    environ = {name: value for name, value in os.environ.items() if name != "HOME"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environ, cwd="/", timeout=30)
    assert "set OPENRATH_HOME" in done.stdout, done.stderr


def test_a_named_home_of_nobody_is_a_usage_error(place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENRATH_HOME", "~nobody-has-this-name/x")
    with pytest.raises(UsageError, match="OPENRATH_HOME"):
        openrath_home()


def test_only_a_directory_that_was_met_on_the_way_up_counts_as_found(place: Path, monkeypatch: pytest.MonkeyPatch):
    assert not home_was_found()
    (place / "user" / ".openrath").mkdir(parents=True)
    monkeypatch.chdir(place / "user")
    assert (openrath_home(), home_was_found()) == (place / "user" / ".openrath", False)
    (place / ".openrath").mkdir()
    monkeypatch.chdir(place / "a")
    assert (openrath_home(), home_was_found()) == (place / ".openrath", True)
    monkeypatch.setenv("OPENRATH_HOME", str(place / ".openrath"))
    assert not home_was_found()
