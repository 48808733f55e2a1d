"""Damage: one row that cannot be read must not keep the others from being read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from jobcore.errors import DatabaseCorrupt

#: What the driver says of a text that is not UTF-8.
_NO_TEXT = "Could not decode to UTF-8"

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
    """Tell whether an error is about what is stored in a row."""
    return isinstance(error, DatabaseCorrupt) or _NO_TEXT in str(error)


def told(error: Exception) -> DatabaseCorrupt:
    """Return the error for the log: the driver quotes the text, which may be a secret."""
    return DatabaseCorrupt(_NO_TEXT if _NO_TEXT in str(error) else str(error))
