"""The documentation site: ``sphinx-build -W -b html docs docs/_build``. Nothing is fetched from the network."""

import sys
from pathlib import Path

from pygments.lexers.data import JsonLexer
from sphinx.highlighting import lexers

import rath

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

lexers["jsonl"] = JsonLexer()

project = "rath"
version = release = rath.__version__
author = "the rath authors"
project_copyright = author
language = "en"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "reference", "pages"]
exclude_patterns = ["_build", "changes/[0-9]*.md"]
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
suppress_warnings = ["config.cache"]

# References: everything of rath's resolves. Other libraries' names stay text, since their inventories are on the network.
nitpicky = True
# In signatures stand also type variables and a few types that nobody outside has to do with.
nitpick_ignore_regex = [
    (r"py:.*", r"(?!rath\b)[a-z_]+\d*\..*"),
    (r"py:class", r"(rath\.[a-z_.]+\.)?[A-Z]|UUID"),
    (r"py:class", r"rath\..+\.(_\w+|Cell|CompletionStream|EventStream|LogPlace|Prefix|Recorded|Reservation|Source)"),
]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_class_signature = "mixed"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 100
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"
add_module_names = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = False
napoleon_attr_annotations = False  # signatures have them
napoleon_use_rtype = False

html_theme = "furo"
html_title = f"rath {release}"
html_static_path = ["_static"]
html_css_files = ["figures.css", "rath.css"]
html_favicon = html_logo = "_static/mark.svg"
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
html_theme_options = {
    "light_css_variables": {
        "color-brand-primary": "#0b5cad",
        "color-brand-content": "#0b5cad",
        "color-brand-visited": "#0b5cad",
        "sidebar-item-font-size": "80%",
        "font-stack--monospace": "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace",
    },
    "dark_css_variables": {
        "color-brand-primary": "#7cb8f2",
        "color-brand-content": "#7cb8f2",
        "color-brand-visited": "#7cb8f2",
    },
    "sidebar_hide_name": False,
}
