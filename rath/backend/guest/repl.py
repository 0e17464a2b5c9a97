"""The interpreter that keeps its state: ``python3 -u -c SOURCE`` inside a sandbox, fed with cells by the guest server.

A cell comes on fd 0: length (u32) and source. Its answer goes to fd 3: length (u32) and a field list, each field behind
its own length: text (``repr`` of the last expression's value), flags (``v`` has a value, ``e`` failed), error (the
traceback, without frames of this file), then a PNG for each figure that matplotlib has open at the end. What the cell
prints goes to fd 1 and 2 as with any program.

Both descriptors are moved out of the way first: a cell that reads its standard input finds it empty, and programs that it
starts inherit neither. A cell that is so minded can still find the other end of fd 3; it can only answer for itself.
"""

from __future__ import annotations

import _ast
import linecache
import os
import sys
import traceback
import warnings

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from types import CodeType, TracebackType

REQUESTS, ANSWERS = 250, 251  # numbers that no program expects
MAX_REPR = 1 << 20
MAX_ERROR = 1 << 18
MAX_FIGURES = 20
MAX_FIGURE_BYTES = 4 << 20
ONLY_AST, TOP_LEVEL_AWAIT, COROUTINE = 0x400, 0x2000, 0x80


def read_exactly(size: int) -> bytes:
    """So many bytes of requests; exits at their end."""
    parts = []
    while size:
        data = os.read(REQUESTS, min(size, 1 << 20))
        if not data:
            os._exit(0)
        parts.append(data)
        size -= len(data)
    return b"".join(parts)


def answer(fields: list[bytes]) -> None:
    """Send an answer."""
    payload = b"".join(len(field).to_bytes(4, "big") + field for field in fields)
    view = memoryview(len(payload).to_bytes(4, "big") + payload)
    while view:
        view = view[os.write(ANSWERS, view) :]


class Interpreter:
    """The namespace that cells share, and how they are run in it."""

    def __init__(self) -> None:
        main = type(sys)("__main__")
        main.__dict__["__builtins__"] = __builtins__
        self._own = sys.modules["__main__"]  # kept: our functions live in it
        sys.modules["__main__"] = main
        self._names = main.__dict__
        self._count = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._directory = ""

    def run(self, source: bytes) -> list[bytes]:
        """A cell's answer."""
        self._count += 1
        name = f"<cell {self._count}>"
        shown = source.decode("utf-8", "replace")
        linecache.cache[name] = len(shown), None, shown.splitlines(True), name
        text, flags, error = "", "", ""
        try:
            os.chdir(self._directory)  # the workspace may have been mounted anew since: ours is then the old one
        except OSError:  # none yet, or it is gone
            pass
        try:
            value = self._execute(source, name)
            if value is not None:
                text, flags = self._repr(value), "v"
        except BaseException as problem:
            text, flags, error = "", "e", self._explain(problem)
        try:
            self._directory = os.getcwd()
        except OSError:
            self._directory = ""
        figures: list[bytes] = []
        try:
            figures = self._figures()
        except Exception as problem:
            flags = flags if "e" in flags else flags + "e"
            error += self._explain(problem)
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except Exception:  # replaced or closed by the cell
                pass
        return [*(part.encode("utf-8", "backslashreplace") for part in (text, flags, error)), *figures]

    def _execute(self, source: bytes, name: str) -> object:
        tree = compile(source, name, "exec", ONLY_AST | TOP_LEVEL_AWAIT, True)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], _ast.Expr) else None
        self._evaluate(compile(tree, name, "exec", TOP_LEVEL_AWAIT, True))
        if last is None:
            return None
        return self._evaluate(compile(_ast.Expression(last.value), name, "eval", TOP_LEVEL_AWAIT, True))

    def _evaluate(self, code: CodeType) -> object:
        value = eval(code, self._names)
        if not code.co_flags & COROUTINE:
            return value
        import asyncio  # noqa: PLC0415  (30 ms, and small Pythons lack it: only for cells that await)

        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            asyncio.set_event_loop(self._loop)
        return self._loop.run_until_complete(value)

    @staticmethod
    def _repr(value: object) -> str:
        text = repr(value)
        if len(text) > MAX_REPR:
            raise ValueError(
                f"the value of the last expression has a repr of {len(text):,} characters; at most {MAX_REPR:,} are shown. "
                "Print a part of it"
            )
        return text

    @staticmethod
    def _explain(problem: BaseException) -> str:
        try:
            text = "".join(traceback.format_exception(type(problem), problem, _first_of_a_cell(problem.__traceback__)))
        except BaseException as worse:  # its str() raises, or recursion is at its end
            text = f"{type(problem).__name__}: (its description failed: {type(worse).__name__})\n"
        if len(text) > MAX_ERROR:
            text = text[: MAX_ERROR // 2] + "\n[...]\n" + text[-MAX_ERROR // 2 :]
        return text

    @staticmethod
    def _figures() -> list[bytes]:
        pyplot = sys.modules.get("matplotlib.pyplot")
        if pyplot is None:
            return []
        import io  # noqa: PLC0415

        pictures: list[bytes] = []
        size = 0
        try:
            for number in pyplot.get_fignums()[:MAX_FIGURES]:
                file = io.BytesIO()
                pyplot.figure(number).savefig(file, format="png", bbox_inches="tight")
                size += len(file.getvalue())
                if size > MAX_FIGURE_BYTES:
                    raise ValueError(f"the figures have more than {MAX_FIGURE_BYTES:,} bytes. Draw fewer, or save them")
                pictures.append(file.getvalue())
        finally:
            pyplot.close("all")
        return pictures


def _first_of_a_cell(trace: TracebackType | None) -> TracebackType | None:
    """Where a cell's own code begins; below what we called to run it, asyncio for one."""
    while trace is not None and not trace.tb_frame.f_code.co_filename.startswith("<cell "):
        trace = trace.tb_next
    return trace


def main() -> None:
    """Answer cells until there are no more."""
    os.dup2(0, REQUESTS, inheritable=False)
    os.dup2(3, ANSWERS, inheritable=False)
    os.close(3)
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.environ.setdefault("MPLBACKEND", "Agg")
    warnings.filterwarnings("ignore", message=".*non-interactive, and thus cannot be shown")
    sys.argv = [""]
    interpreter = Interpreter()
    pid = os.getpid()
    while True:
        source = read_exactly(int.from_bytes(read_exactly(4), "big"))
        fields = interpreter.run(source)
        if os.getpid() != pid:  # a cell forked, and this is the child: one answer is enough
            os._exit(0)
        answer(fields)


if __name__ == "__main__":
    main()
