"""The command line: ``rath``. The one place that reads the environment and prints."""

from rath.core.lazy import lazy_exports

# Each command's module is loaded when it is first used: `rath --version` pays for none of them.
_here = __name__
__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        name: f"{_here}.{name}:"
        for name in (
            *("demo", "docker_probe", "doctor", "graph", "run", "sandbox", "sandbox_shell"),
            *("sessions", "sessions_check", "sessions_diff", "sessions_keep"),
            *("sessions_resume", "sessions_show", "sessions_tail"),
        )
    },
)
