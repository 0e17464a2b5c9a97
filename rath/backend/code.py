"""How a program given as text is run in a fresh process, in every backend."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["command_for"]

# Reads the program from stdin (an argument may have at most 128 KiB), runs it as `__main__`, and writes the value of a last
# expression to a pipe of its own. Tracebacks show the program's lines and none of this. `import` finds the workspace's
# modules, as `python -c` puts the current directory first. 0x400 is ast.PyCF_ONLY_AST: importing `ast` would cost 4 ms.
_PYTHON = """\
def boot():
    import _ast, os, sys
    del globals()["boot"]
    pipe, name, source = int(sys.argv.pop()), "<code>", sys.stdin.buffer.read()
    os.set_inheritable(pipe, False)
    def show(kind, error, trace):
        import linecache, traceback
        text = source.decode("utf-8", "replace")
        linecache.cache[name] = len(text), None, text.splitlines(True), name
        while trace is not None and trace.tb_frame.f_code.co_filename != name:
            trace = trace.tb_next
        traceback.print_exception(kind, error, trace)
    sys.excepthook = show
    tree = compile(source, name, "exec", 0x400, True)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], _ast.Expr) else None
    exec(compile(tree, name, "exec", 0, True), globals())
    if last is not None:
        value = eval(compile(_ast.Expression(last.value), name, "eval", 0, True), globals())
        if value is not None:
            with open(pipe, "w", encoding="utf-8", errors="backslashreplace") as out:
                out.write(repr(value))
boot()
"""


def command_for(language: str, code: str, python: str) -> tuple[Sequence[str], bytes | None, bool] | None:
    """Command, stdin, and whether it gets an extra pipe for its value; ``None`` for a language that is not known.

    The number of that pipe is to be added to the command as its last argument. ``python``: the interpreter.
    """
    if language in ("python", "python3", "python-script"):
        # -u: a program that is killed for its time has its output so far in the pipe, not in a buffer.
        return [python, "-u", "-c", _PYTHON], code.encode("utf-8", "surrogatepass"), True
    if language in ("sh", "shell"):
        return ["/bin/sh", "-c", code], None, False
    return None
