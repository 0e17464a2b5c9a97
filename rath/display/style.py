"""The style sheets of pages, notebook cells and drawings: inline, for light and dark, readable in every colour vision."""

from __future__ import annotations

__all__ = ["DRAWING_STYLE", "STYLE"]


def _sheet(text: str) -> str:
    return text.replace("\n", "")


# Everything is scoped to `.rath`, because a notebook puts cells of many origins on one page.
STYLE = _sheet("""
.rath{--bg:#fff;--panel:#f6f8fa;--ink:#1b1f24;--soft:#57606a;--line:#d0d7de;--link:#0072b2;--ok:#00684a;
--bad:#a33f00;--run:#00578a;--add:#e3f4ec;--del:#fbe9df;--hunk:#e8f1f8;color:var(--ink);background:var(--bg);
font:14px/1.5 system-ui,-apple-system,"Segoe UI","DejaVu Sans",sans-serif;overflow-wrap:anywhere}
.rath *{box-sizing:border-box}
.rath h1{font-size:23px;line-height:1.25;margin:0 0 6px}
.rath h2{font-size:17px;margin:34px 0 10px}
.rath h3{font-size:15px;margin:0;display:inline}
.rath p{margin:5px 0;max-width:78ch}
.rath .soft{color:var(--soft)}
.rath a{color:var(--link)}
.rath nav{display:flex;flex-wrap:wrap;gap:4px 18px;margin:12px 0 0;padding:8px 0;border-bottom:1px solid var(--line)}
.rath pre,.rath code{font:12.5px/1.5 ui-monospace,Menlo,Consolas,"DejaVu Sans Mono",monospace}
.rath pre{margin:6px 0;padding:8px 10px;background:var(--panel);border:1px solid var(--line);border-radius:6px;
white-space:pre-wrap;overflow:auto;max-height:520px}
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
.rath pre.diff{padding:0;max-height:none}
.rath .diff span{display:block;padding:0 10px;min-height:1.5em}
.rath .d-file{font-weight:600;color:var(--soft)}
.rath .d-hunk{background:var(--hunk);color:var(--soft)}
.rath .d-note{color:var(--soft)}
.rath .d-added{background:var(--add)}
.rath .d-removed{background:var(--del)}
@media (prefers-color-scheme:dark){
.rath{--bg:#14181d;--panel:#1c2128;--ink:#e6edf3;--soft:#a8b3bf;--line:#3d444d;--link:#6cc0f0;--ok:#4fd3a7;
--bad:#ff9a5c;--run:#6cc0f0;--add:#0e3528;--del:#43230f;--hunk:#15293a}
}
@media (max-width:640px){.rath .row{grid-template-columns:minmax(0,1fr);gap:2px}
.rath dl.facts{grid-template-columns:minmax(0,1fr);gap:0}
}
""")

# Hues of Okabe and Ito's palette, which people of every colour vision tell apart; text keeps a contrast above 7:1.
DRAWING_STYLE = _sheet("""
.rl{color-scheme:light dark;--ink:#1b1f24;--soft:#57606a;--edge:#8c959f;
font:600 12.5px system-ui,-apple-system,"Segoe UI","DejaVu Sans",sans-serif}
.rl .b{fill:#f3f4f6;stroke:#8c959f;stroke-width:1.4}
.rl .loop .b{fill:#e1eff8;stroke:#0072b2}
.rl .fork .b{fill:#fcf1d9;stroke:#b87d00}
.rl .merge .b{fill:#dff3ec;stroke:#00805c}
.rl .custom .b{fill:#f6e6f0;stroke:#a8517f}
.rl .pending .b,.rl .unknown .b{stroke-dasharray:5 4}
.rl .failed .b{stroke:#b84a00;stroke-width:2.6}
.rl .marked .b{stroke-width:3.2}
.rl text{fill:var(--ink)}
.rl .s{fill:var(--soft);font-weight:400;font-size:10.8px}
.rl .m{font-family:ui-monospace,Menlo,Consolas,"DejaVu Sans Mono",monospace}
.rl .e{fill:none;stroke:var(--edge);stroke-width:1.5}
.rl .a{stroke-dasharray:4 4}
.rl .h{fill:var(--edge)}
.rl .i{fill:#00805c}
.rl .failed .i{fill:#b84a00}
.rl .cancelled .i{fill:#57606a}
.rl .running .i{fill:#0072b2}
.rl .g{fill:none;stroke:#fff;stroke-width:2;stroke-linecap:round;stroke-linejoin:round}
.rl .o{fill:none;stroke:var(--soft);stroke-width:1.6}
@media (prefers-color-scheme:dark){
.rl{--ink:#e6edf3;--soft:#a8b3bf;--edge:#768390}
.rl .b{fill:#22272e;stroke:#768390}
.rl .loop .b{fill:#0d2b40;stroke:#56b4e9}
.rl .fork .b{fill:#362a0c;stroke:#e69f00}
.rl .merge .b{fill:#0b2f25;stroke:#2fc296}
.rl .custom .b{fill:#36202d;stroke:#cc79a7}
.rl .failed .b{stroke:#ff8a3d}
.rl .i{fill:#1f9d77}
.rl .failed .i{fill:#d55e00}
.rl .cancelled .i{fill:#768390}
.rl .running .i{fill:#56b4e9}
}
""")
