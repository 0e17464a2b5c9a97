"""The documentation site: it builds without a warning, every link leads somewhere, and every public name is described once."""

import html.parser
import importlib
import os
import pathlib
import re
import runpy
import shutil
import subprocess
import sys
import types
import urllib.parse

import pytest

from tests.browser.chrome import Chrome

ROOT = pathlib.Path(__file__).parents[2]
DOCS = ROOT / "docs"
PUBLIC = [
    "rath", "rath.session", "rath.session.graph", "rath.session.persistence", "rath.flow", "rath.flow.tool", "rath.llm",
    "rath.backend", "rath.errors", "rath.testing", "rath.core.events",
]
# A page of each kind, for what is looked at in a browser.
SHOWN = ["index", "getting-started", "concepts/engine", "guides/sandboxes", "semantics", "api/session", "changes/index"]


def build(docs, out, builder="html"):
    """``sphinx-build`` as strict as it can be, without a network to speak of."""
    nowhere = {f"{scheme}_proxy": "http://127.0.0.1:9" for scheme in ("http", "https", "all")}
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-n", "-b", builder, "-d", f"{out}-read", str(docs), str(out)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=os.environ | nowhere)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    out = tmp_path_factory.mktemp("site") / "html"
    return build(DOCS, out), out


@pytest.fixture(scope="module")
def site(built):
    done, out = built
    assert (out / "index.html").exists(), done.stderr
    return out


class Links(html.parser.HTMLParser):
    """What a page refers to, what it loads, and the places on it."""

    def __init__(self, page):
        super().__init__()
        self.targets, self.loaded, self.places = [], [], set()
        self.feed(page.read_text())

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.places |= {given[key] for key in ("id", "name") if given.get(key)}
        if tag == "a" and given.get("href"):
            self.targets.append(given["href"])
        elif tag in ("script", "img", "iframe") and given.get("src"):
            self.loaded.append(given["src"])
        elif tag == "link" and given.get("rel") != "canonical" and given.get("href"):
            self.loaded.append(given["href"])


@pytest.mark.slow
@pytest.mark.timeout(360)
def test_the_site_builds_without_a_warning(built):
    done, _ = built
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
@pytest.mark.timeout(360)
def test_every_link_leads_to_a_page_and_a_place_on_it(site):
    pages = {path: Links(path) for path in site.rglob("*.html")}
    dead = []
    for path, links in pages.items():
        for target in [*links.targets, *links.loaded]:
            parts = urllib.parse.urlsplit(target)
            if parts.scheme in ("http", "https", "mailto"):
                continue
            found = (path.parent / urllib.parse.unquote(parts.path)).resolve() if parts.path else path
            if not found.exists():
                dead.append(f"{path.relative_to(site)}: {target}")
            elif parts.fragment and found in pages and urllib.parse.unquote(parts.fragment) not in pages[found].places:
                dead.append(f"{path.relative_to(site)}: {target} has no such place")
    assert dead == []
    assert len(pages) > 20


@pytest.mark.slow
@pytest.mark.timeout(360)
def test_no_page_loads_anything_from_elsewhere(site):
    loaded = {target for path in site.rglob("*.html") for target in Links(path).loaded}
    assert {target for target in loaded if urllib.parse.urlsplit(target).netloc} == set()
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*['\"]?(https?:)?//", sheet.read_text()), sheet


@pytest.mark.slow
@pytest.mark.timeout(360)
def test_every_public_name_is_described_once(site):
    from sphinx.util.inventory import InventoryFile

    inventory = InventoryFile.loads((site / "objects.inv").read_bytes(), uri="").data
    described = {name for kind, entries in inventory.items() if kind.startswith("py:") and kind != "py:module" for name in entries}
    modules = {name: importlib.import_module(name) for name in PUBLIC}
    wrong = {}
    for module in modules.values():
        for name in module.__all__:
            thing = getattr(module, name)
            if isinstance(thing, types.ModuleType):
                continue
            paths = {f"{other}.{name}" for other, holder in modules.items() if getattr(holder, name, None) is thing}
            if len(paths & described) != 1:
                wrong[f"{module.__name__}.{name}"] = paths & described
    assert wrong == {}


@pytest.mark.slow
@pytest.mark.timeout(360)
def test_a_public_name_that_no_page_lists_stops_the_build(tmp_path):
    docs = tmp_path / "docs"
    shutil.copytree(DOCS, docs, ignore=shutil.ignore_patterns("_build"))
    page = docs / "api" / "session.rst"
    page.write_text(page.read_text().replace("gather as_completed", "gather no_such_name"))
    done = build(docs, tmp_path / "out", "dummy")
    assert done.returncode != 0
    assert "rath.session.as_completed is listed 0 times" in done.stderr
    assert "rath.session does not offer no_such_name" in done.stderr


def test_the_drawn_figures_are_those_of_their_script():
    for path, content in runpy.run_path(str(DOCS / "figures" / "draw.py"))["files"]().items():
        assert path.read_text() == content, f"{path.name} is stale: python docs/figures/draw.py"


@pytest.fixture(scope="module")
def chrome():
    binary = shutil.which("chromium") or shutil.which("google-chrome")
    if binary is None:
        if os.environ.get("RATH_REQUIRE_BROWSER"):
            pytest.fail("chromium is not installed")
        pytest.skip("chromium is not installed")
    browser = Chrome(binary)
    yield browser
    browser.close()


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.timeout(360)
@pytest.mark.parametrize("width", [320, 768, 1600])
def test_pages_fit_the_screen(site, chrome, width):
    tab = chrome.tab(width=width, height=900)
    for name in SHOWN:
        tab.open(site / f"{name}.html")
        # Code and figures scroll in themselves; the page does not, and nor does its text.
        for scrolled in ("document.scrollingElement", "document.querySelector('.content')"):
            assert tab.js(f"{scrolled}.scrollWidth <= {scrolled}.clientWidth"), (name, scrolled)
        assert tab.failures == []
    assert [url for url in tab.requests if not url.startswith("file:")] == []


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.timeout(360)
def test_figures_follow_the_theme_that_is_chosen(site, chrome):
    ink = "getComputedStyle(document.querySelector('.drawn text')).fill"
    for system_is_dark in (False, True):
        tab = chrome.tab(dark=system_is_dark)
        tab.open(site / "concepts" / "engine.html")
        by_system = tab.js(ink)
        tab.js("document.body.dataset.theme = 'light'")
        light = tab.js(ink)
        tab.js("document.body.dataset.theme = 'dark'")
        dark = tab.js(ink)
        assert (light, dark) == ("rgb(28, 37, 48)", "rgb(230, 234, 240)")
        assert by_system == (dark if system_is_dark else light)
