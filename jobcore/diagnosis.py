"""Diagnosis: what an error of SQLite's says of the file, and which exception stands for it."""

from __future__ import annotations

import os

from jobcore.errors import (
    DatabaseBusy,
    DatabaseCorrupt,
    DatabaseFull,
    NotAJobcoreDatabase,
    ReadOnlyDatabase,
    StoreError,
)

#: Behind this the driver quotes what it has read, which may be a secret.
_NO_TEXT = "Could not decode to UTF-8"
#: SQLite has tried for ten seconds to begin a read, and each time found a lock in its way.
LOCK_REMAINS = "locking protocol"

_BY_MESSAGE: tuple[tuple[str, type[StoreError]], ...] = (
    # By text, because Python 3.10 does not tell the code.
    ("is locked", DatabaseBusy),
    (LOCK_REMAINS, DatabaseBusy),
    ("disk is full", DatabaseFull),
    ("SQLITE_IOERR_SHMSIZE", DatabaseFull),  # no room for the memory that connections share
    ("malformed", DatabaseCorrupt),
    # All that our statements name is there, and nothing that a migration makes, by the
    # version that the file says it has.
    ("no such ", DatabaseCorrupt),
    ("has no column", DatabaseCorrupt),
    ("constraint failed", DatabaseCorrupt),  # what our statements keep, other rows do not
    ("unsupported file format", DatabaseCorrupt),
    ("duplicate column", DatabaseCorrupt),
    ("already exists", DatabaseCorrupt),
    (_NO_TEXT, DatabaseCorrupt),
    ("not a database", NotAJobcoreDatabase),
    ("readonly database", ReadOnlyDatabase),
)


def diagnose(error: BaseException, path: str) -> StoreError:
    """
    Return what stands for an error of the driver's; a bare StoreError: nothing is known of it.

    Args:
        error: The driver's own, not what SQLAlchemy has wrapped it in.
        path: Of the database.
    """
    before, found, _ = str(error).partition(_NO_TEXT)
    message = before + found
    # Since Python 3.11. It says which of many things "disk I/O error" stands for.
    name = str(getattr(error, "sqlite_errorname", ""))
    if name.startswith("SQLITE_IOERR_"):
        message += f" ({name})"
    if "unable to open" in message and not os.access(os.path.dirname(path), os.W_OK):
        # Even to read, SQLite needs a log and shared memory: there are none to be made.
        return ReadOnlyDatabase(f"{path}: {message}, and its directory is read-only")
    if "malformed" in message and os.path.exists(f"{path}-wal"):
        message += (
            "; if it was restored beside the -wal and -shm of an earlier file, remove these and "
            "restore it again"
        )
    kind = next((kind for part, kind in _BY_MESSAGE if part in message), StoreError)
    return kind(f"{path}: {message}")
