"""Maps errors of SQLite to jobcore's exceptions, and reads around damaged rows."""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

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
_NO_TEXT = "Could not decode to UTF-8"
#: SQLite tried for ten seconds to begin a read, and found a lock in its way each time.
LOCK_REMAINS = "locking protocol"

_BY_MESSAGE: tuple[tuple[str, type[StoreError]], ...] = (
    # By text, because Python 3.10 does not expose the error code.
    ("is locked", DatabaseBusy),
    (LOCK_REMAINS, DatabaseBusy),
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
    (_NO_TEXT, DatabaseCorrupt),
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
    before, found, _ = str(error).partition(_NO_TEXT)
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


#: The remedy that error texts name when a row cannot be read or changed.
REMEDY = "`jobcore doctor` lists what is damaged; restore it from a backup"

_T = TypeVar("_T")


def readable(
    whole: Callable[[], Sequence[_T]],
    keys: Callable[[], Iterable[int]],
    one: Callable[[int], Sequence[_T]],
    failed: Callable[[int, Exception], None],
) -> list[_T]:
    """
    Return the rows that can be read, and report the others.

    Args:
        whole: Reads all rows with one statement. Usually this is the only one called.
        keys: Reads the keys of the rows, if `whole` meets damage.
        one: Reads the row with a key, if `whole` meets damage.
        failed: Called with the key of each row that cannot be read, and the reason.
    """
    try:
        return list(whole())
    except Exception as error:
        if not is_damage(error):
            raise
    rows: list[_T] = []
    for key in keys():
        try:
            rows += one(key)
        except Exception as error:
            if not is_damage(error):
                raise
            failed(key, told(error))
    return rows


def leave_out(_key: int, _error: Exception) -> None:
    """Ignore a row that cannot be read."""


def is_damage(error: Exception) -> bool:
    """Tell whether an error comes from damaged content: unreadable, or against a constraint."""
    if isinstance(getattr(error, "orig", error), sqlite3.IntegrityError):
        return True
    return isinstance(error, DatabaseCorrupt) or _NO_TEXT in str(error)


def told(error: Exception) -> DatabaseCorrupt:
    """Return an error that is safe to log, without stored text, which may be a secret."""
    return DatabaseCorrupt(_NO_TEXT if _NO_TEXT in str(error) else str(error))


def unchangeable(what: str, error: DatabaseCorrupt) -> DatabaseCorrupt:
    """Return the error of a write that met damage; it names the row, if known, and a remedy."""
    text = str(error)
    if what and what not in text:
        text = f"{what} cannot be changed: {text}"
    if REMEDY not in text:
        text += f"; {REMEDY}" + ("" if not what.startswith("job ") else ", or delete the job")
    return DatabaseCorrupt(text)
