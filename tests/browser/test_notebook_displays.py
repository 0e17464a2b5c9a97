"""A notebook that shows every display, run in a real kernel, made into HTML by nbconvert, and opened in a browser."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.browser.chrome import Chrome
from tests.browser.harness import READ_ALL, Beacon

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
nbconvert = pytest.importorskip("nbconvert")
pytest.importorskip("anywidget")

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(240)]

CELLS = (
    "import rath\n"
    "from rath.backend.calls import WorkspaceDiff\n"
    "from rath.llm.scripted import ScriptedClient\n"
    "from rath.session.primitives import create_system_session, create_user_session\n"
    "evil = '<script>pwn(1)</script><img src=http://evil.example/rath-hit onerror=pwn(2)>'\n"
    "def answer(session, **script):\n"
    "    client = ScriptedClient([f'It is so. {evil}'], **script)\n"
    "    return rath.run_session_loop(session, create_system_session('You answer.'), agent_provider=client.as_provider())\n"
    "task = create_user_session(f'What is it? {evil}')\n"
    "loops = [answer(task.fork()) for _ in range(2)]\n"
    "merged = loops[0].merge(loops[1]).synchronize(20)",
    "merged",
    "merged.chunk_table",
    "rath.lineage([merged])",
    "rath.diff(loops[0], merged)",
    "WorkspaceDiff(f'--- a/x\\n+++ b/x\\n@@ -0,0 +1 @@\\n+{evil}\\n', (evil,))",
    "slow = answer(task, latency_s=2)\nwidget = rath.watch([slow, merged])\nwidget",
    "slow",
    "slow.synchronize(30)\nimport time\nuntil = time.monotonic() + 10\n"
    "while widget.state != 'every run has ended' and time.monotonic() < until: time.sleep(0.05)\nprint(widget.state)",
)


def test_every_display_of_a_notebook_is_in_its_html_and_obeys_nothing(chrome: Chrome, beacon: Beacon, tmp_path: Path) -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in CELLS])
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    shown = [output.get("data", {}) for cell in notebook.cells for output in cell.outputs]
    assert sum("text/html" in data for data in shown) == 7
    assert sum("text/vnd.mermaid" in data for data in shown) == 1
    assert sum("application/vnd.jupyter.widget-view+json" in data for data in shown) == 1
    assert notebook.cells[-1].outputs[-1].text == "every run has ended\n"
    # The widget's own machinery comes from a network, so without its state what it was when its cell ran is shown.
    notebook.metadata.pop("widgets", None)
    html, _ = nbconvert.HTMLExporter(template_name="lab").from_notebook_node(notebook)
    path = tmp_path / "notebook.html"
    path.write_text(html, encoding="utf-8")
    for width in (320, 1600):
        beacon.forget()
        tab = chrome.tab(width=width)
        tab.open(path)
        text = tab.js(READ_ALL, timeout_s=60)
        assert tab.ran() == []
        assert beacon.hits() == []
        assert not [url for url in tab.requests if "evil.example" in url]
        assert text.count("<script>pwn(1)</script>") > 8
        assert "As it was when this cell ran: runs go on." in text
        # Each display keeps within its cell.
        assert tab.js("[...document.querySelectorAll('.rath')].every(e => e.scrollWidth <= e.clientWidth + 1)")
        assert tab.js("getComputedStyle(document.querySelector('.rath')).backgroundColor") == "rgb(255, 255, 255)"
        tab.js("document.querySelector('.rg .graph label').click()")
        assert tab.js("[...document.querySelectorAll('.rg-e')].filter(e => e.offsetHeight).length") == 1
        tab.close()
