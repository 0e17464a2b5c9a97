"""Every Python example in README and docs runs as written, each file's examples in one fresh process.

Blocks marked ``python docker`` need a Docker Engine: they run together, apart from the others. Examples with ``>>>``, on pages
and in docstrings, say what they say they do.
"""

import ast
import doctest
import os
import pathlib
import re
import subprocess
import sys

import pytest

from rath.backend.docker.engine import engine
from rath.errors import SandboxError

ROOT = pathlib.Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted(p for p in (ROOT / "docs").rglob("*.md") if "_build" not in p.parts)]
PROMPTED = [p for p in [*PAGES, *sorted((ROOT / "rath").rglob("*.py"))] if re.search(r"^\s*>>> ", p.read_text(), re.MULTILINE)]
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


@pytest.mark.parametrize("path", PROMPTED, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_prompts_of_a_page_or_module_answer_as_written(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert wrong_prompts(path) == ""


def test_a_prompt_that_answers_otherwise_is_found(tmp_path):
    module = tmp_path / "wrong.py"
    module.write_text('def f():\n    """It adds.\n\n    >>> 1 + 1\n    3\n    """\n')
    assert "Expected:\n    3\nGot:\n    2" in wrong_prompts(module)


def wrong_prompts(path):
    """What the examples with ``>>>`` of a page, or of each docstring of a module, answer otherwise than written."""
    text = path.read_text()
    texts = [text]
    if path.suffix == ".py":
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        texts = [ast.get_docstring(node) or "" for node in ast.walk(ast.parse(text)) if isinstance(node, documented)]
    said = []
    for number, examples in enumerate(texts):
        test = doctest.DocTestParser().get_doctest(examples, {}, f"{path.name} ({number})", str(path), 0)
        doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=said.append)
    return "".join(said)


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
