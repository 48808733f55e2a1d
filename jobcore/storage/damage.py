"""Reads around damaged rows, so that one of them does not hide the others, and names them."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy import (
    Column,
    Connection,
    Integer,
    Row,
    Select,
    Table,
    bindparam,
    func,
    literal_column,
    select,
)

from jobcore.errors import DatabaseCorrupt
from jobcore.storage.error_mapping import NO_TEXT
from jobcore.storage.tables import job, pipeline, workspace

T = TypeVar("T")

#: Called with the key of each row that cannot be read, its number or its rowid, and the reason.
Failed = Callable[[int, Exception], None]

#: The remedy that error texts name when a row cannot be read or changed.
REMEDY = "`jobcore doctor` lists what is damaged; restore it from a backup"


def readable(
    whole: Callable[[], Sequence[T]],
    keys: Callable[[], Iterable[int]],
    one: Callable[[int], Sequence[T]],
    failed: Failed,
) -> list[T]:
    """
    Return the rows that can be read, and report the others.

    Args:
        whole: Reads all rows with one statement. Usually this is the only one called.
        keys: Reads the keys of the rows, if `whole` meets damage.
        one: Reads the row with a key, if `whole` meets damage.
    """
    try:
        return list(whole())
    except Exception as error:
        if not is_damage(error):
            raise
    return list(read_each(keys(), one, failed))


def read_each(
    keys: Iterable[int], one: Callable[[int], Sequence[T]], failed: Failed
) -> Iterator[T]:
    """Yield the rows that `one` reads by key. Call `failed` with the keys of unreadable ones."""
    for key in keys:
        try:
            rows = one(key)
        except Exception as error:
            if not is_damage(error):
                raise
            failed(key, without_text(error))
        else:
            yield from rows


def leave_out(_key: int, _error: Exception) -> None:
    """Ignore a row that cannot be read."""


def is_damage(error: Exception) -> bool:
    """Tell whether an error comes from damaged content: unreadable, or against a constraint."""
    if isinstance(getattr(error, "orig", error), sqlite3.IntegrityError):
        return True
    return isinstance(error, DatabaseCorrupt) or NO_TEXT in str(error)


def without_text(error: Exception) -> DatabaseCorrupt:
    """Return an error that is safe to log, without stored text, which may be a secret."""
    return DatabaseCorrupt(NO_TEXT if NO_TEXT in str(error) else str(error))


def unchangeable(what: str, error: DatabaseCorrupt) -> DatabaseCorrupt:
    """Return the error of a write that met damage; it names the row, if known, and a remedy."""
    text = str(error)
    if what and what not in text:
        text = f"{what} cannot be changed: {text}"
    if REMEDY not in text:
        text += f"; {REMEDY}" + ("" if not what.startswith("job ") else ", or delete the job")
    return DatabaseCorrupt(text)


def rowid(table: Table) -> Any:
    """Return SQLite's rowid column, which identifies a row even if other columns are damaged."""
    return literal_column(f"{table.name}.rowid", Integer)


def read_rows(
    connection: Connection,
    statement: Select[Any],
    key: Any,
    failed: Failed,
    form: Callable[[Row[Any]], T],
) -> list[T]:
    """Return the rows, converted by `form`. Call `failed` with the key of each unreadable row."""

    def read(some: Select[Any]) -> list[T]:
        return [form(row) for row in connection.execute(some).all()]

    return readable(
        lambda: read(statement),
        lambda: connection.execute(statement.with_only_columns(key)).scalars().all(),
        lambda number: read(statement.where(key == number).limit(None).offset(None)),
        failed,
    )


def unconverted(row: T) -> T:
    """Return a row unchanged, as a `form`."""
    return row


#: The tables whose rows have public ids.
_NAMED = {table.name: table for table in (job, pipeline, workspace)}

#: Select the bytes of an id as hex, because a damaged id may not be text.
_NAMES_OF = {
    name: select(func.hex(table.c.id)).where(rowid(table) == bindparam("rowid"))
    for name, table in _NAMED.items()
}


def name_of_row(connection: Connection, kind: str, number: int) -> str:
    """Return the id of a job, pipeline or workspace; if the id is damaged, "number N"."""
    stored = connection.execute(_NAMES_OF[kind], {"rowid": number}).scalar_one_or_none()
    try:
        return str(UUID(hex=bytes.fromhex(stored or "").decode()))
    except ValueError:
        return f"number {number}"


def damaged_columns(connection: Connection, kind: str, this: UUID | int) -> list[str]:
    """Return the names of the unreadable columns of a row, which is given by id or rowid."""
    table = _NAMED[kind]
    key = rowid(table) == this if isinstance(this, int) else table.c.id == this

    def damaged(columns: list[Column[Any]]) -> list[str]:
        try:
            connection.execute(select(*columns).where(key)).all()
        except Exception as error:
            if not is_damage(error):
                raise
        else:
            return []
        if len(columns) == 1:
            return [columns[0].name]
        middle = len(columns) // 2  # most columns are readable: halves need few statements
        return damaged(columns[:middle]) + damaged(columns[middle:])

    return damaged(list(table.c))
