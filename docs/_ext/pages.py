"""Two conveniences of the pages: drawn figures follow the theme, and change fragments make one page."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform

_MARK = "<!-- fragments -->"


class DrawnFigures(SphinxPostTransform):
    """Images from ``figures/`` go into the page itself, so that they take its colours when its theme is switched."""

    default_priority = 10
    formats = ("html",)

    def run(self, **kwargs: Any) -> None:
        for image in list(self.document.findall(nodes.image)):
            uri = image["uri"]
            if not (uri.startswith("figures/") and uri.endswith(".svg")):
                continue
            svg = Path(self.env.srcdir, uri).read_text()
            figure = nodes.raw("", f'<div class="rath-figure" tabindex="0">{svg}</div>', format="html")
            parent = image.parent
            if isinstance(parent, nodes.paragraph) and len(parent) == 1:
                parent.replace_self(figure)
            else:
                image.replace_self(figure)


def collect_fragments(app: Sphinx, docname: str, source: list[str]) -> None:
    """Put the fragments of ``changes/``, newest first, where the mark stands."""
    if docname != "changes/index":
        return
    parts = []
    for path in sorted(Path(app.srcdir, "changes").glob("[0-9]*.md"), reverse=True):
        number, _, name = path.stem.partition("-")
        parts.append(f"## {int(number)}. {name.replace('-', ' ').capitalize()}\n\n{path.read_text().strip()}\n")
        app.env.note_dependency(str(path))
    source[0] = re.sub(re.escape(_MARK), lambda _: "\n".join(parts), source[0])


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_post_transform(DrawnFigures)
    app.connect("source-read", collect_fragments)
    return {"parallel_read_safe": True}
