"""
An SQLAlchemy engine for SQLite that shares nothing with the host's engines.

A host may have listeners on SQLAlchemy's classes, such as a tracer or one that turns on
foreign keys, and may log what its engines do. These must not reach jobcore's file: they
would run inside its transactions and see commands with their environments.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from functools import cache
from typing import Any

from sqlalchemy import URL, Connection, Engine
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite
from sqlalchemy.pool import NullPool

from jobcore.storage.statement import read_json, write_json


class _WithoutEvents:
    """A class that ignores event listeners registered on its base classes."""

    #: SQLAlchemy's own switch for that.
    _sa_propagate_class_events = False


class Dialect(_WithoutEvents, SQLiteDialect_pysqlite):
    """SQLAlchemy's dialect, for transactions that the writer begins itself."""

    supports_statement_cache = True  # SQLAlchemy requires it on each class: it is not inherited

    def do_begin(self, dbapi_connection: Any) -> None:
        """Begin a transaction, unless the writer has already begun an IMMEDIATE one."""
        driver = dbapi_connection.driver_connection
        if not driver.in_transaction:
            driver.execute("BEGIN")


class _Pool(_WithoutEvents, NullPool):
    """A pool that keeps no connections; `reading.SpareConnections` does that."""


class _Connection(_WithoutEvents, Connection):
    """
    A connection without listeners.

    Attributes:
        driver: The connection of the driver. SQLAlchemy finds it through four properties.
        cursor: The cursor for each `statement.Statement`, which reads all rows at once.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        driver: Any = self.connection.driver_connection
        self.driver = driver
        self.cursor = driver.cursor()

    def renew_cursor(self) -> None:
        """Replace the cursor, and end the statement of the former one."""
        try:
            self.cursor.close()
            self.cursor = self.driver.cursor()
        except sqlite3.Error:
            pass  # the connection is closed; the caller raises the error that led here


class _Engine(_WithoutEvents, Engine):
    """An engine without listeners; its connections have none either."""

    _connection_cls = _Connection


#: The logger of engine and pool, disabled: rows contain commands with their environments.
_DISABLED_LOGGER = logging.Logger(__name__)  # noqa: LOG001 - none that a host could configure
_DISABLED_LOGGER.disabled = True


#: Compiled statements by SQLAlchemy's cache key. Bounded by the number of statements in the code.
COMPILED: dict[Any, Any] = {}


@cache
def _dialect() -> Dialect:
    """Return the one instance: SQLAlchemy caches compiled statements per dialect."""
    writes: Any = write_json  # it may return bytes, which its type in SQLAlchemy does not allow
    return Dialect(
        dbapi=SQLiteDialect_pysqlite.import_dbapi(),
        json_serializer=writes,
        json_deserializer=read_json,
    )


def make_engine(creator: Callable[[], Any]) -> Engine:
    """
    Return an engine. It does not use `create_engine`, which a tracer may have replaced.

    Args:
        creator: Returns a new connection of the driver.
    """
    # The code that begins a transaction ends it, so the pool resets nothing.
    pool = _Pool(creator, reset_on_return=None, dialect=_dialect())
    pool.logger = _DISABLED_LOGGER
    engine = _Engine(
        pool,
        _dialect(),
        URL.create("sqlite"),
        execution_options={"compiled_cache": COMPILED},
        hide_parameters=True,  # in the texts of errors
    )
    engine.logger = _DISABLED_LOGGER
    return engine
