"""``.. public:: module`` with names below it: a table of them, then the description of each that has its home there.

Public modules are lazy tables, so a thing's ``__module__`` is not where people import it from. The table of
``public.py`` says where it is shown; references to any other path of it lead there. When the reading is done, a
public name that no page lists, or that two do, is a warning.
"""

from __future__ import annotations

import ast
import enum
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from typing import Any

import public
from docutils import nodes
from docutils.statemachine import StringList
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.pycode import ModuleAnalyzer
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

# Shown by these names in signatures, and not by what they are short for.
_ALIASES = (
    "rath.core.ports.Middleware",
    "rath.core.ports.Runner",
    "rath.llm.ChatClientFactory",
    "rath.llm.RathLLMFinishReason",
    "rath.llm.RathLLMRole",
    "rath.session.OnEventCb",
)

logger = logging.getLogger(__name__)


class Public(SphinxDirective):
    """Names of one public module, in the order given."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        module, *listed = self.arguments[0].split()
        offered = set(public.names(module))
        for name in listed:
            if name not in offered:
                logger.warning("%s does not offer %s", module, name, location=self.get_location())
        listed = [name for name in listed if name in offered]
        here = self.env.rath_listed.setdefault(self.env.docname, [])  # type: ignore[attr-defined]
        here += [(module, name) for name in listed]
        lines = list(_table(module, listed))
        for name in listed:
            if public.home(module, name) == module:
                lines += _entry(module, name)
        box = nodes.Element()
        self.state.nested_parse(StringList(lines, source=f"<public names of {module}>"), self.content_offset, box)
        return box.children


def _table(module: str, listed: list[str]) -> Iterator[str]:
    yield from (".. list-table::", "   :class: rath-names", "   :widths: auto", "")
    for name in listed:
        yield f"   * - :py:obj:`{name} <{public.home(module, name)}.{name}>`"
        yield f"     - {_first_sentence(module, name)}"
    yield ""


def _entry(module: str, name: str) -> Iterator[str]:
    thing = getattr(importlib.import_module(module), name)
    path = f"{module}.{name}"
    if inspect.isclass(thing):
        yield f".. {'autoexception' if issubclass(thing, BaseException) else 'autoclass'}:: {path}"
        if thing.__name__ == name:
            yield "   :members:"
            # What the docstring says about them stands in their place.
            yield f"   :exclude-members: {', '.join(_told_attributes(thing))}"
            # autodoc asks issubclass() of each inherited member's class, which a protocol with attributes refuses.
            if not getattr(thing, "_is_protocol", False):
                yield f"   :inherited-members: {', '.join(_not_repeated(thing))}"
            if issubclass(thing, enum.Enum):
                yield "   :undoc-members:"
    elif callable(thing) and hasattr(thing, "__code__"):
        yield f".. autofunction:: {path}"
    else:
        # Constants are in capitals, aliases of types are not.
        yield f".. py:{'data' if name.isupper() else 'type'}:: {name}"
        yield f"   :module: {module}"
        if isinstance(thing, (int, str)) and name.isupper():
            yield f"   :value: {thing!r}"
        yield from ("", *(f"   {line}" for line in _comment(module, name)))
    yield ""


def _told_attributes(thing: type) -> Iterator[str]:
    """The attributes that the section of that name in a class's docstring tells of."""
    section = re.search(r"^Attributes:\n((?:(?: .*)?\n?)*)", inspect.cleandoc(thing.__doc__ or ""), re.MULTILINE)
    for names in re.findall(r"^    (\w+(?:, \w+)*):", section.group(1) if section else "", re.MULTILINE):
        yield from names.split(", ")


def _not_repeated(thing: type) -> Iterator[str]:
    """Bases that are described elsewhere, here or in other libraries: their members are not listed again."""
    for base in thing.__mro__[1:]:
        if f"{base.__module__}.{base.__qualname__}" in public.reachable() or not base.__module__.startswith("rath."):
            yield base.__name__


def _comment(module: str, name: str) -> list[str]:
    """What stands beside the definition of something that can have no docstring."""
    defining = _defining(module, name)
    found = ModuleAnalyzer.for_module(defining).find_attr_docs().get(("", name))
    if not found:
        logger.warning("%s.%s says nothing about itself; a text below it in %s would", module, name, defining)
    return [line for line in found or [] if line]


def _defining(module: str, name: str) -> str:
    """The module that a lazy table has ``name`` from; ``module`` itself if it has no such table."""
    getter = vars(importlib.import_module(module)).get("__getattr__")
    table = inspect.getclosurevars(getter).nonlocals.get("table", {}) if getter else {}
    return str(table.get(name, module)).partition(":")[0]


def _first_sentence(module: str, name: str) -> str:
    thing = getattr(importlib.import_module(module), name)
    if inspect.isclass(thing) or inspect.isroutine(thing):
        text = inspect.cleandoc(thing.__doc__ or "")
        if not text:
            logger.warning("%s.%s has no docstring", module, name)
    else:
        text = " ".join(_comment(module, name))
    first = " ".join(text.partition("\n\n")[0].split())
    return re.sub(r":\w+:`~?([^`]+)`", r"``\1``", re.split(r"(?<=[.!?])\s", first)[0])


def say_other_paths(app: Sphinx, what: str, path: str, thing: Any, options: Any, lines: list[str]) -> None:
    """One line below a description: where else the name can be imported from."""
    module, _, name = path.rpartition(".")
    if module not in public.MODULES or name not in public.names(module):
        return
    also = public.others(module, name)
    if also:
        lines += ["", ".. container:: rath-also", "", f"   Also {', '.join(f'``{other}``' for other in also)}.", ""]


def keep_whole(app: Sphinx, what: str, path: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Napoleon takes what stands before a colon in an attribute's first line for its type: give it an empty comment."""
    if what in ("attribute", "data", "property"):
        lines[:0] = ["..", ""]


def import_types() -> None:
    """Make signatures whole: run the imports that are made for type checkers only, and let aliases stand for themselves."""
    stand_ins = {path.rpartition(".")[2]: _stand_in(path) for path in _ALIASES}
    for module in [m for name, m in sorted(sys.modules.items()) if name.split(".")[0] == "rath" and m is not None]:
        if not (module.__file__ or "").endswith(".py"):
            continue
        for node in ast.parse(inspect.getsource(module)).body:
            if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
                imports = [part for part in node.body if isinstance(part, (ast.Import, ast.ImportFrom))]
                exec(compile(ast.Module(imports, []), module.__file__ or "", "exec"), vars(module))
        if module.__name__ in public.MODULES:
            continue
        vars(module).update({name: alias for name, alias in stand_ins.items() if name in vars(module)})


def _stand_in(path: str) -> type:
    module, _, name = path.rpartition(".")
    return type(name, (), {"__module__": module})


def lead_home(
    app: Sphinx, env: BuildEnvironment, node: addnodes.pending_xref, content: nodes.TextElement
) -> nodes.Node | None:
    """A reference to any path of a public thing, or of a member of it, leads to its description."""
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"]
    head, tail = target, ""
    while head:
        path = public.reachable().get(head)
        if path is not None:
            target = path + tail
            break
        head, _, last = head.rpartition(".")
        tail = f".{last}{tail}"
    # As any object: an annotation refers to a class, and what it names may be an alias.
    return env.get_domain("py").resolve_xref(env, node["refdoc"], app.builder, "obj", target, node, content)


def prepare(app: Sphinx) -> None:
    public.reachable()  # imports everything public
    import_types()
    if not hasattr(app.env, "rath_listed"):
        app.env.rath_listed = {}  # type: ignore[attr-defined]


def forget(app: Sphinx, env: BuildEnvironment, docname: str) -> None:
    env.rath_listed.pop(docname, None)  # type: ignore[attr-defined]


def check(app: Sphinx, env: BuildEnvironment) -> None:
    """Every public name is listed once for each module that offers it."""
    listed = [entry for entries in env.rath_listed.values() for entry in entries]  # type: ignore[attr-defined]
    for module in public.MODULES:
        for name in public.names(module):
            count = listed.count((module, name))
            if count != 1:
                logger.warning("%s.%s is listed %d times in docs/api", module, name, count)


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("public", Public)
    app.connect("builder-inited", prepare)
    app.connect("env-purge-doc", forget)
    app.connect("env-check-consistency", check)
    app.connect("missing-reference", lead_home)
    app.connect("autodoc-process-docstring", say_other_paths)
    app.connect("autodoc-process-docstring", keep_whole, priority=400)  # before napoleon
    return {"parallel_read_safe": False}
