"""Session logs: append-only files that survive their writer (``docs/log-format.md``)."""

from rath.core.lazy import lazy_exports

_HOME = "rath.session.persistence."

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "BlobStore": _HOME + "blobs",
        "CURRENT_SCHEMA_VERSION": _HOME + "format",
        "LogCollection": _HOME + "collection",
        "LogEntry": _HOME + "collection",
        "PersistedSession": _HOME + "reader",
        "PersistedSessionHeader": _HOME + "reader",
        "PersistedSessionMeta": _HOME + "manage",
        "PersistenceError": "rath.errors",
        "SESSIONS_DIR_NAME": _HOME + "paths",
        "SESSION_FILE_SUFFIX": _HOME + "paths",
        "SESSION_PARTIAL_SUFFIX": _HOME + "paths",
        "Salvage": _HOME + "salvaging",
        "SessionWriter": _HOME + "writer",
        "Verdict": _HOME + "verdict",
        "blob_directory": _HOME + "blobs",
        "collect_blobs": _HOME + "garbage",
        "delete_session": _HOME + "manage",
        "ensure_sessions_dir": _HOME + "paths",
        "export_session": _HOME + "salvaging",
        "list_persisted_sessions": _HOME + "manage",
        "load_session": _HOME + "reader",
        "open_dir": _HOME + "collection",
        "pin_session": _HOME + "prune",
        "prune_sessions": _HOME + "prune",
        "register_chunk_migration": _HOME + "migrations",
        "register_header_migration": _HOME + "migrations",
        "resume_session": _HOME + "resume",
        "salvage": _HOME + "salvaging",
        "session_file": _HOME + "paths",
        "session_partial_file": _HOME + "paths",
        "sessions_dir": _HOME + "paths",
        "unpin_session": _HOME + "prune",
        "verify": _HOME + "verdict",
    },
)
