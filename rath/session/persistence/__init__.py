"""Session logs: append-only files that survive their writer (``docs/log-format.md``)."""

from rath.core.lazy import lazy_exports

_HOME = "rath.session.persistence."

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "CURRENT_SCHEMA_VERSION": _HOME + "format",
        "PersistedSession": _HOME + "reader",
        "PersistedSessionHeader": _HOME + "reader",
        "PersistedSessionMeta": _HOME + "manage",
        "PersistenceError": "rath.errors",
        "SESSIONS_DIR_NAME": _HOME + "paths",
        "SESSION_FILE_SUFFIX": _HOME + "paths",
        "SESSION_PARTIAL_SUFFIX": _HOME + "paths",
        "SessionWriter": _HOME + "writer",
        "delete_session": _HOME + "manage",
        "ensure_sessions_dir": _HOME + "paths",
        "list_persisted_sessions": _HOME + "manage",
        "load_session": _HOME + "reader",
        "prune_sessions": _HOME + "manage",
        "register_chunk_migration": _HOME + "migrations",
        "register_header_migration": _HOME + "migrations",
        "session_file": _HOME + "paths",
        "session_partial_file": _HOME + "paths",
        "sessions_dir": _HOME + "paths",
    },
)
