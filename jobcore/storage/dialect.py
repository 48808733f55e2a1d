"""
An SQLAlchemy engine for SQLite that shares nothing with the host's engines.

A host may have listeners on SQLAlchemy's classes, such as a tracer or one that turns on
foreign keys, and may log what its engines do. These must not reach jobcore's file: they
would run inside its transactions and see commands with their environments.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from sqlalchemy import URL, Connection, Engine
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite
from sqlalchemy.pool import NullPool


class _Alone:
    """A class that ignores event listeners registered on its base classes."""

    #: SQLAlchemy's own switch for that.
    _sa_propagate_class_events = False


class Dialect(_Alone, SQLiteDialect_pysqlite):
    """
    A dialect that is equal to every other instance of its class.

    SQLAlchemy caches compiled statements per dialect, and each engine has its own
    dialect instance. Compiling a statement takes longer than executing it. Equal
    dialects share one cache, so tests that each open a manager compile only once.
    """

    supports_statement_cache = True  # SQLAlchemy requires it on each class: it is not inherited

    def do_begin(self, dbapi_connection: Any) -> None:
        """Begin a transaction, unless the writer has already begun an IMMEDIATE one."""
        driver = dbapi_connection.driver_connection
        if not driver.in_transaction:
            driver.execute("BEGIN")

    def __eq__(self, other: object) -> bool:
        """Tell whether the two can share compiled statements."""
        return type(other) is type(self)

    def __hash__(self) -> int:
        """Return the same hash for equal dialects."""
        return hash(type(self))


class _Pool(_Alone, NullPool):
    """A pool that keeps no connections; `connections.SpareConnections` does that."""


class _Connection(_Alone, Connection):
    """A connection without listeners."""


class _Engine(_Alone, Engine):
    """An engine without listeners; its connections have none either."""

    _connection_cls = _Connection


#: The logger of engine and pool, disabled: rows contain commands with their environments.
_SILENT = logging.Logger(__name__)  # noqa: LOG001 - none that a host could configure
_SILENT.disabled = True


#: Compiled statements by SQLAlchemy's cache key. Bounded by the number of statements in the code.
COMPILED: dict[Any, Any] = {}


def make_engine(
    creator: Callable[[], Any],
    *,
    json_serializer: Callable[[Any], Any],
    json_deserializer: Callable[[Any], Any],
) -> Engine:
    """
    Return an engine. It does not use `create_engine`, which a tracer may have replaced.

    Args:
        creator: Returns a new connection of the driver.
        json_serializer, json_deserializer: Convert JSON values to their stored form and back.
    """
    dialect = Dialect(
        dbapi=SQLiteDialect_pysqlite.import_dbapi(),
        json_serializer=json_serializer,
        json_deserializer=json_deserializer,
    )
    # The code that begins a transaction ends it, so the pool resets nothing.
    pool = _Pool(creator, reset_on_return=None, dialect=dialect)
    pool.logger = _SILENT
    engine = _Engine(
        pool,
        dialect,
        URL.create("sqlite"),
        execution_options={"compiled_cache": COMPILED},
        hide_parameters=True,  # in the texts of errors
    )
    engine.logger = _SILENT
    return engine
