"""What an error of SQLite means for the file or a row, and which exception stands for it."""

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
    if isinstance(error, sqlite3.IntegrityError):
        # Our statements keep all rules: either the row breaks one, or a rule is damaged.
        return DatabaseCorrupt(f"{path}: {message}{_columns_of_rule(message)}")
    kind = next((kind for part, kind in _BY_MESSAGE if part in message), StoreError)
    return kind(f"{path}: {message}")


def _columns_of_rule(message: str) -> str:
    """Return the columns of the job that a rule compares, in words; "": it is no such rule."""
    _, failed, name = message.partition("CHECK constraint failed: ")
    rule = lifecycle.constraints().get(name) if failed else None
    if rule is None:
        return ""
    words = dict.fromkeys(re.findall(r"\b[a-z_]+\b", re.sub(r"'[^']*'", "", rule)))
    return f" (columns {', '.join(word for word in words if word != 'coalesce')})"


#: What helps where a row cannot be read or changed.
REMEDY = "`jobcore doctor` lists what is damaged; restore it from a backup"

_T = TypeVar("_T")


def readable(
    whole: Callable[[], Sequence[_T]],
    keys: Callable[[], Iterable[int]],
    one: Callable[[int], Sequence[_T]],
    failed: Callable[[int, Exception], None],
) -> list[_T]:
    """
    Return the rows that can be read.

    Args:
        whole: Reads all of them, by one statement. Only if that meets damage:
        keys: Reads their keys, which are numbers.
        one: Reads the row of a key.
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
    """Say nothing of a row that cannot be read."""


def is_damage(error: Exception) -> bool:
    """Tell whether an error is about what is stored in a row, or breaks a rule for it."""
    if isinstance(getattr(error, "orig", error), sqlite3.IntegrityError):
        return True
    return isinstance(error, DatabaseCorrupt) or _NO_TEXT in str(error)


def told(error: Exception) -> DatabaseCorrupt:
    """Return the error for the log: the driver quotes the text, which may be a secret."""
    return DatabaseCorrupt(_NO_TEXT if _NO_TEXT in str(error) else str(error))


def unchangeable(what: str, error: DatabaseCorrupt) -> DatabaseCorrupt:
    """Return the error of a write that has met damage: it names the row, if known, and a remedy."""
    text = str(error)
    if what and what not in text:
        text = f"{what} cannot be changed: {text}"
    if REMEDY not in text:
        text += f"; {REMEDY}" + ("" if not what.startswith("job ") else ", or delete the job")
    return DatabaseCorrupt(text)
