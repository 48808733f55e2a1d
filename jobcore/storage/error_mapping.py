"""Maps errors of SQLite to jobcore's exceptions."""

from __future__ import annotations

import os
import re
import sqlite3

from jobcore import lifecycle
from jobcore.errors import (
    DatabaseBusy,
    DatabaseCorrupt,
    DatabaseFull,
    NotAJobcoreDatabase,
    ReadOnlyDatabase,
    StoreError,
)

#: After this text the driver quotes what it read, which may be a secret.
NO_TEXT = "Could not decode to UTF-8"
#: SQLite tried for ten seconds to begin a read, and found a lock in its way each time.
LOCK_FAILED = "locking protocol"

_BY_MESSAGE: tuple[tuple[str, type[StoreError]], ...] = (
    # By text, because Python 3.10 does not expose the error code.
    ("is locked", DatabaseBusy),
    (LOCK_FAILED, DatabaseBusy),
    ("disk is full", DatabaseFull),
    ("SQLITE_IOERR_SHMSIZE", DatabaseFull),  # no room for the shared-memory file
    ("malformed", DatabaseCorrupt),
    # The next five: according to its schema version, the file has every object that our
    # statements use, and none of those that a migration would create.
    ("no such ", DatabaseCorrupt),
    ("has no column", DatabaseCorrupt),
    ("unsupported file format", DatabaseCorrupt),
    ("duplicate column", DatabaseCorrupt),
    ("already exists", DatabaseCorrupt),
    (NO_TEXT, DatabaseCorrupt),
    ("not a database", NotAJobcoreDatabase),
    ("readonly database", ReadOnlyDatabase),
)


def diagnose(error: BaseException, path: str) -> StoreError:
    """
    Return jobcore's exception for an error of the driver; a plain StoreError if it is unknown.

    Args:
        error: The driver's own error, not SQLAlchemy's wrapper.
        path: The path of the database.
    """
    before, found, _ = str(error).partition(NO_TEXT)
    message = before + found
    # Python 3.11 and later. It tells the many causes of "disk I/O error" apart.
    name = str(getattr(error, "sqlite_errorname", ""))
    if name.startswith("SQLITE_IOERR_"):
        message += f" ({name})"
    if "unable to open" in message and not os.access(os.path.dirname(path), os.W_OK):
        # Even for reading, SQLite must create a log and a shared-memory file here.
        return ReadOnlyDatabase(f"{path}: {message}, and its directory is read-only")
    if "malformed" in message and os.path.exists(f"{path}-wal"):
        message += (
            "; if it was restored beside the -wal and -shm of an earlier file, remove these and "
            "restore it again"
        )
    if isinstance(error, sqlite3.IntegrityError):
        # Our statements satisfy every constraint: the row or the constraint is damaged.
        return DatabaseCorrupt(f"{path}: {message}{_columns_of_rule(message)}")
    kind = next((kind for part, kind in _BY_MESSAGE if part in message), StoreError)
    return kind(f"{path}: {message}")


def _columns_of_rule(message: str) -> str:
    """Return, as text, the columns of a failed CHECK of `job`; "" for any other message."""
    _, failed, name = message.partition("CHECK constraint failed: ")
    rule = lifecycle.constraints().get(name) if failed else None
    if rule is None:
        return ""
    words = dict.fromkeys(re.findall(r"\b[a-z_]+\b", re.sub(r"'[^']*'", "", rule)))
    return f" (columns {', '.join(word for word in words if word != 'coalesce')})"
