"""Every Python example in README and docs runs as written, each file's examples in one fresh process.

Blocks marked ``python docker`` need a Docker Engine: they run together, apart from the others.
"""

import os
import pathlib
import re
import subprocess
import sys

import pytest

from rath.backend.docker.engine import engine
from rath.errors import SandboxError

ROOT = pathlib.Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
DOCKER_BLOCK = re.compile(r"^```python docker\n(.*?)^```", re.MULTILINE | re.DOTALL)
IMAGE = "rath-test:dev"


@pytest.mark.parametrize("page", [p for p in PAGES if BLOCK.search(p.read_text())], ids=lambda p: str(p.relative_to(ROOT)))
def test_the_examples_of_a_page_run_as_written(page, tmp_path):
    done = run_blocks(BLOCK.findall(page.read_text()), tmp_path)
    assert "never read" not in done.stderr
    if page.name == "README.md":
        assert done.stdout.count("True run_session_loop True") == 3
        assert "It has six words." in done.stdout


@pytest.mark.docker
@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [p for p in PAGES if DOCKER_BLOCK.search(p.read_text())], ids=lambda p: str(p.relative_to(ROOT))
)
def test_the_examples_that_need_an_engine_run_as_written(page, tmp_path):
    try:
        engine().ask_blocking("look at an image", lambda client: client.inspect_image(IMAGE))
    except SandboxError as error:
        if os.environ.get("RATH_REQUIRE_DOCKER"):
            raise
        pytest.skip(str(error))
    run_blocks(DOCKER_BLOCK.findall(page.read_text()), tmp_path, RATH_SANDBOX_IMAGE=IMAGE)


def run_blocks(blocks, tmp_path, **extra):
    """Run the blocks as one program; what it said."""
    script = tmp_path / "example.py"
    script.write_text("\n".join(blocks))
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_API_KEY")}
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=50,
        env=environment | {"OPENRATH_HOME": str(tmp_path / ".openrath")} | extra, check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


def test_links_between_pages_lead_somewhere():
    dead = [
        f"{page.name}: {target}"
        for page in PAGES
        for target in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", page.read_text())
        if not (page.parent / target).exists()
    ]
    assert dead == []
