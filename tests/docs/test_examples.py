"""Every Python example in README and docs runs as written, each file's examples in one fresh process."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", [p for p in PAGES if BLOCK.search(p.read_text())], ids=lambda p: str(p.relative_to(ROOT)))
def test_the_examples_of_a_page_run_as_written(page, tmp_path):
    code = "\n".join(BLOCK.findall(page.read_text()))
    script = tmp_path / "example.py"
    script.write_text(code)
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_API_KEY")}
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=50,
        env=environment | {"OPENRATH_HOME": str(tmp_path / ".openrath")}, check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "never read" not in done.stderr
    if page.name == "README.md":
        assert done.stdout.count("True run_session_loop True") == 3
        assert "It has six words." in done.stdout


def test_links_between_pages_lead_somewhere():
    dead = [
        f"{page.name}: {target}"
        for page in PAGES
        for target in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", page.read_text())
        if not (page.parent / target).exists()
    ]
    assert dead == []
