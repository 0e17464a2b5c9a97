"""The style sheets of pages, notebook cells and drawings: inline, for light and dark, readable in every colour vision."""

from __future__ import annotations

__all__ = ["AS_IT_STANDS", "DRAWING_STYLE", "GRAPH_STYLE", "STYLE"]

AS_IT_STANDS = "tex2jax_ignore mathjax_ignore"
"""Classes that keep MathJax away, which makes formulas of what stands between two dollars in a notebook's outputs: those of
nbconvert's version and of JupyterLab's. (The class ``tocSkip`` keeps a heading out of a notebook's table of contents.)"""

# Who says that it is light or dark, before what the system prefers: JupyterLab and nbconvert, VS Code, Colab, docs.
_LIGHT_FRONTS = ('[data-jp-theme-light="true"]', ".vscode-light", '[data-theme="light"]', '[theme="light"]')
_DARK_FRONTS = (
    *('[data-jp-theme-light="false"]', ".vscode-dark", ".vscode-high-contrast:not(.vscode-high-contrast-light)"),
    *('[data-theme="dark"]', '[theme="dark"]'),
)


def _sheet(text: str) -> str:
    return text.replace("\n", "")


def _themed(scope: str, light: str, dark: str) -> str:
    """The rules that give ``scope`` the variables ``light`` or ``dark``, by the front end's theme, else the system's."""
    return (
        f"{scope}{{{light}}}@media (prefers-color-scheme:dark){{{scope}{{{dark}}}}}"
        f"{','.join(f'{front} {scope}' for front in _LIGHT_FRONTS)}{{{light}}}"
        f"{','.join(f'{front} {scope}' for front in _DARK_FRONTS)}{{{dark}}}"
    )


_LIGHT = _sheet("""
--ground:#fff;--panel:#f6f8fa;--type:#1b1f24;--soft:#57606a;--line:#d0d7de;--link:#0072b2;--ok:#00684a;--bad:#a33f00;
--run:#00578a;--add:#e3f4ec;--del:#fbe9df;--hunk:#e8f1f8;--gone:#a33f00;--came:#00578a
""")
_DARK = _sheet("""
--ground:#14181d;--panel:#1c2128;--type:#e6edf3;--soft:#a8b3bf;--line:#3d444d;--link:#6cc0f0;--ok:#4fd3a7;--bad:#ff9a5c;
--run:#6cc0f0;--add:#0e3528;--del:#43230f;--hunk:#15293a;--gone:#ff9a5c;--came:#6cc0f0
""")

# Everything is scoped to `.rath`, because a notebook puts cells of many origins on one page.
# `.rath.rath` outweighs what JupyterLab says of every `pre` of an output: no frame, and words broken anywhere.
# Ground and text are the front end's, where it names them; the rest has contrast with any light, or any dark, ground.
STYLE = _sheet(_themed(".rath", _LIGHT, _DARK) + """
.rath{--bg:var(--jp-layout-color0,var(--jp-layout-color1,var(--vscode-editor-background,var(--ground))));
--ink:var(--jp-content-font-color1,var(--vscode-editor-foreground,var(--type)));color:var(--ink);background:var(--bg);
font:14px/1.5 system-ui,-apple-system,"Segoe UI","DejaVu Sans",sans-serif;overflow-wrap:anywhere}
.rath *{box-sizing:border-box}
.rath h1{font-size:23px;line-height:1.25;margin:0 0 6px}
.rath h2{font-size:17px;margin:34px 0 10px}
.rath h3{font-size:15px;font-weight:600;margin:0;display:inline}
.rath p{margin:5px 0;max-width:78ch}
.rath .soft{color:var(--soft)}
.rath a{color:var(--link)}
.rath nav{display:flex;flex-wrap:wrap;gap:4px 18px;margin:12px 0 0;padding:8px 0;border-bottom:1px solid var(--line)}
.rath pre,.rath code{font:12.5px/1.5 ui-monospace,Menlo,Consolas,"DejaVu Sans Mono",monospace}
.rath.rath pre{margin:6px 0;padding:8px 10px;background:var(--panel);border:1px solid var(--line);border-radius:6px;
white-space:pre-wrap;word-break:normal;overflow:auto;max-height:520px}
.rath code{background:var(--panel);padding:1px 4px;border-radius:4px}
.rath .graph{overflow:auto;border:1px solid var(--line);border-radius:8px;padding:6px;text-align:center}
.rath .graph svg{max-width:100%;height:auto}
.rath dl.facts{display:grid;grid-template-columns:max-content minmax(0,1fr);gap:3px 18px;margin:12px 0}
.rath dt{color:var(--soft)}
.rath dd{margin:0}
.rath section.session{border:1px solid var(--line);border-radius:8px;padding:12px 16px;margin:14px 0}
.rath .head{display:flex;flex-wrap:wrap;gap:4px 12px;align-items:baseline;margin-bottom:8px}
.rath .badge{font-size:12px;font-weight:600;border:1.5px solid;border-radius:99px;padding:0 9px;white-space:nowrap}
.rath .completed{color:var(--ok)}
.rath .failed{color:var(--bad)}
.rath .cancelled,.rath .pending,.rath .unknown{color:var(--soft)}
.rath .running{color:var(--run)}
.rath .pending.badge{border-style:dashed}
.rath .error{border-left:4px solid var(--bad);padding:4px 10px;background:var(--panel);margin:8px 0}
.rath .row{display:grid;grid-template-columns:84px minmax(0,1fr);gap:10px;padding:7px 0;
border-top:1px solid var(--line)}
.rath .row.gap{display:block;text-align:center;color:var(--soft);border-top-style:dashed}
.rath .role{font-size:12px;font-weight:600;color:var(--soft)}
.rath .user .role{color:var(--run)}
.rath .assistant .role{color:var(--ink)}
.rath .said{white-space:pre-wrap}
.rath details{margin:2px 0}
.rath summary{cursor:pointer}
.rath summary code{white-space:pre-wrap}
.rath .name{font-weight:600}
.rath .part{font-size:12px;color:var(--soft);margin-top:4px}
.rath.rath pre.diff{padding:0;max-height:none}
.rath .diff span{display:block;padding:0 10px;min-height:1.5em}
.rath .diff br{display:none}
.rath .d-file{font-weight:600;color:var(--soft)}
.rath .d-hunk{background:var(--hunk);color:var(--soft)}
.rath .d-note{color:var(--soft)}
.rath .d-added{background:var(--add)}
.rath .d-removed{background:var(--del)}
@media (max-width:640px){.rath .row{grid-template-columns:minmax(0,1fr);gap:2px}
.rath dl.facts{grid-template-columns:minmax(0,1fr);gap:0}
}
""")

# Hues of Okabe and Ito's palette, which people of every colour vision tell apart; text keeps a contrast above 7:1. The
# kinds differ in their signs and the states in their icons too, so nothing is said by colour alone.
_LIGHT_DRAWING = _sheet("""
--type:#1b1f24;--soft:#57606a;--edge:#8c959f;--leaf:#f3f4f6;--leaf-l:#8c959f;--loop:#e1eff8;--loop-l:#0072b2;
--fork:#fcf1d9;--fork-l:#b87d00;--merge:#dff3ec;--merge-l:#00805c;--own:#f6e6f0;--own-l:#a8517f;--bad:#b84a00;
--yes:#00805c;--no:#b84a00;--off:#57606a;--run:#0072b2
""")
_DARK_DRAWING = _sheet("""
--type:#e6edf3;--soft:#a8b3bf;--edge:#768390;--leaf:#22272e;--leaf-l:#768390;--loop:#0d2b40;--loop-l:#56b4e9;
--fork:#362a0c;--fork-l:#e69f00;--merge:#0b2f25;--merge-l:#2fc296;--own:#36202d;--own-l:#cc79a7;--bad:#ff8a3d;
--yes:#1f9d77;--no:#d55e00;--off:#768390;--run:#56b4e9
""")
DRAWING_STYLE = _sheet(_themed(".rl", _LIGHT_DRAWING, _DARK_DRAWING) + """
.rl{font:600 12.5px system-ui,-apple-system,"Segoe UI","DejaVu Sans",sans-serif}
.rl .b{fill:var(--leaf);stroke:var(--leaf-l);stroke-width:1.4}
.rl .k{fill:none;stroke:var(--leaf-l);stroke-width:1.5;stroke-linecap:round;stroke-linejoin:round}
.rl .loop .b{fill:var(--loop);stroke:var(--loop-l)}
.rl .fork .b{fill:var(--fork);stroke:var(--fork-l)}
.rl .merge .b{fill:var(--merge);stroke:var(--merge-l)}
.rl .custom .b{fill:var(--own);stroke:var(--own-l)}
.rl .loop .k{stroke:var(--loop-l)}
.rl .fork .k{stroke:var(--fork-l)}
.rl .merge .k{stroke:var(--merge-l)}
.rl .custom .k{stroke:var(--own-l)}
.rl .pending .b,.rl .unknown .b{stroke-dasharray:5 4}
.rl .failed .b{stroke:var(--bad);stroke-width:2.6}
.rl .marked .b{stroke-width:3.2}
.rl text{fill:var(--type)}
.rl .s{fill:var(--soft);font-weight:400;font-size:10.8px}
.rl .e{fill:none;stroke:var(--edge);stroke-width:1.5}
.rl .sys{stroke-dasharray:.1 4;stroke-linecap:round;stroke-width:2}
.rl .mrg{stroke-dasharray:7 4}
.rl .h{fill:var(--edge);stroke:none}
.rl .i{fill:var(--yes)}
.rl .failed .i{fill:var(--no)}
.rl .cancelled .i{fill:var(--off)}
.rl .running .i{fill:var(--run)}
.rl .g{fill:none;stroke:#fff;stroke-width:2;stroke-linecap:round;stroke-linejoin:round}
.rl .o{fill:none;stroke:var(--soft);stroke-width:1.6}
.rl label{display:block;width:100%;height:100%;cursor:pointer;border-radius:9px}
.rl label:hover{outline:2px solid var(--loop-l);outline-offset:1px}
""")

# A front end that does not trust a notebook takes this sheet away, and the drawing with it: then `.rg-live` hides itself,
# and `.rg-plain` stands in its place.
# A graph in a cell: the drawing scrolls in a box of its own; a session's panel shows when its button is chosen, which the
# labels in the drawing do. `::details-content` opens its transcript as well; where that is not known, a click does.
GRAPH_STYLE = _sheet("""
.rath.rg{padding:8px 10px;position:relative}
.rath.rg .graph{max-height:min(80vh,760px);margin:8px 0}
.rath .rg-pick{position:absolute;opacity:0;width:1px;height:1px;margin:0;pointer-events:none}
.rath .rg-e{display:none}
.rath .rg-pick:checked+.rg-e,.rath .rg-all:checked~.rg-e{display:block}
.rath .rg-pick:focus-visible+.rg-e,.rath .rg-all:focus-visible+label{outline:2px solid var(--link)}
.rath .rg label{cursor:pointer}
.rath .rg-live{display:block!important}
.rath .rg-plain{display:none}
.rath label.rg-b{cursor:pointer;color:var(--link);text-decoration:underline;text-underline-offset:2px}
.rath .rg-key{display:flex;flex-wrap:wrap;gap:2px 18px;font-size:12.5px}
.rath .rg-key svg{vertical-align:middle;margin-right:5px}
.rath .head .rg-b{margin-left:auto}
@supports selector(::details-content){
.rath .rg-pick:checked+.rg-e>.rg-t::details-content{content-visibility:visible}
.rath .rg-pick:checked+.rg-e>.rg-t>summary{list-style:none;pointer-events:none}
}
""")
