"""
SQLAlchemy Core statements that are compiled once and executed by the driver directly.

SQLAlchemy looks up its statement cache and processes parameters and results at each
execution. That takes 60 to 100 µs (measured); SQLite itself needs 5. For the few
statements that every job needs, this overhead would be most of the host's work.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar

from sqlalchemy import Connection, Row, Select
from sqlalchemy.engine import result_tuple
from sqlalchemy.sql import ClauseElement

from jobcore.errors import DatabaseCorrupt

T = TypeVar("T")

#: Values in one statement. More would make its text, which SQLite parses each time, very long.
MOST_VALUES = 500


class Statement:
    """
    One statement. Its values are numbers, texts and bytes, exactly as the file stores them.

    Args:
        core: The statement. Each value that changes between executions is a `bindparam`.
    """

    def __init__(self, core: ClauseElement) -> None:
        self._core = core
        self._text: str | None = None
        self._constants: dict[str, Any] = {}

    def __call__(self, connection: Connection, **values: Any) -> list[Any]:
        """Execute the statement and return its rows as tuples."""
        try:
            return self._execute(connection, values).fetchall()
        except BaseException:
            # A statement that has not ended keeps its transaction open, even after a COMMIT.
            # Python 3.10 fetches the first row in `execute`.
            connection.renew_cursor()  # type: ignore[attr-defined]  # of `dialect`
            raise

    def count(self, connection: Connection, **values: Any) -> int:
        """Execute the statement and return the number of rows it changed."""
        return int(self._execute(connection, values).rowcount)

    def insert(self, connection: Connection, **values: Any) -> int:
        """Execute the statement, which inserts one row, and return the rowid of that row."""
        rowid: int = self._execute(connection, values).lastrowid  # type: ignore[assignment]
        return rowid

    def many(self, connection: Connection, rows: Sequence[dict[str, Any]]) -> None:
        """Execute the statement once for each of `rows`."""
        text = self._compiled()
        driver_of(connection).executemany(text, [{**self._constants, **row} for row in rows])

    def _execute(self, connection: Connection, values: dict[str, Any]) -> sqlite3.Cursor:
        text = self._text or self._compiled()
        if self._constants:
            values = {**self._constants, **values}
        cursor: sqlite3.Cursor = connection.cursor.execute(text, values)  # type: ignore[attr-defined]  # of `dialect`
        return cursor

    def _compiled(self) -> str:
        if self._text is None:  # on first use, so that importing jobcore stays cheap
            from sqlalchemy.dialects import sqlite  # noqa: PLC0415 - loaded with the first connection, not at import

            compiled = self._core.compile(dialect=sqlite.dialect(paramstyle="named"))
            self._constants = {
                name: value for name, value in compiled.params.items() if value is not None
            }
            self._text = str(compiled)
        return self._text


class RowStatement(Statement):
    """
    A statement whose rows are those that SQLAlchemy would return, with values of the same types.

    Args:
        core: The statement. The values of its `bindparam`s are as the file stores them.
    """

    def __init__(self, core: Select[Any]) -> None:
        super().__init__(core)
        self._columns = core.selected_columns
        self._convert: Callable[[Sequence[Any]], Row[Any]] | None = None

    def rows(self, connection: Connection, **values: Any) -> list[Row[Any]]:
        """Execute the statement and return its rows."""
        convert = self._convert or self._converter(connection)
        return [convert(one) for one in self(connection, **values)]

    def _converter(self, connection: Connection) -> Callable[[Sequence[Any]], Row[Any]]:
        dialect = connection.dialect
        every = [
            one.type.dialect_impl(dialect).result_processor(dialect, None) for one in self._columns
        ]
        some = [(index, process) for index, process in enumerate(every) if process is not None]
        row = result_tuple(self._columns.keys())

        def convert(stored: Sequence[Any]) -> Row[Any]:
            read = list(stored)
            for index, process in some:
                if read[index] is not None:
                    read[index] = process(read[index])
            return row(read)

        self._convert = convert
        return convert


def driver_of(connection: Connection) -> Any:
    """Return the `sqlite3` connection under an SQLAlchemy connection."""
    return connection.driver  # type: ignore[attr-defined]  # of `dialect`


def in_parts(values: Iterable[T], size: int = MOST_VALUES) -> Iterator[list[T]]:
    """Yield the values in lists of up to `size`, for one statement each."""
    rest = iter(values)
    while part := list(islice(rest, size)):
        yield part


def write_json(value: Any) -> str | bytes:
    """
    Return the stored form of a JSON value: text, or bytes if the value is a number.

    A column of type JSON has SQLite's numeric affinity. It would turn the text `1.0` into 1,
    and an integer beyond 64 bits into a float. Bytes are stored unchanged.
    """
    text = json.dumps(value)
    return text.encode("ascii") if isinstance(value, int | float) else text


def read_json(stored: str | bytes) -> Any:
    """Return the value of a stored JSON text. Invalid JSON is damage: jobcore writes none."""
    try:
        return json.loads(stored)
    except (ValueError, RecursionError) as error:
        raise DatabaseCorrupt(f"a stored JSON value is not valid: {error}") from error
