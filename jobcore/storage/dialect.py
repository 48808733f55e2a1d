"""
An SQLAlchemy engine for SQLite that shares nothing with the engines of the host.

A host may have listeners on SQLAlchemy's classes, for foreign keys or for a tracer, and
may log what its engines do. Neither is meant for jobcore's file: they would run in its
transactions, and see commands with their environments.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from sqlalchemy import URL, Connection, Engine
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite
from sqlalchemy.pool import NullPool


class _Alone:
    """A class that hears nothing of listeners on the classes above it."""

    #: SQLAlchemy's own word for it.
    _sa_propagate_class_events = False


class Dialect(_Alone, SQLiteDialect_pysqlite):
    """
    A dialect that is equal to every other one of its kind.

    SQLAlchemy keeps each statement that it has compiled for a dialect, and gives
    each engine one of its own. To compile a statement takes longer than to execute
    it; a service does it once, but tests that open a manager each did it in each.
    """

    supports_statement_cache = True  # not inherited, by SQLAlchemy's rule

    def do_begin(self, dbapi_connection: Any) -> None:
        """Begin a transaction, unless the writer has begun one that is IMMEDIATE."""
        driver = dbapi_connection.driver_connection
        if not driver.in_transaction:
            driver.execute("BEGIN")

    def __eq__(self, other: object) -> bool:
        """Whether what was compiled for the one is right for the other."""
        return type(other) is type(self)

    def __hash__(self) -> int:
        """As for what is equal."""
        return hash(type(self))


class _Pool(_Alone, NullPool):
    """Keeps no connection: see `connections.Spares`."""


class _Connection(_Alone, Connection):
    """A connection without listeners."""


class _Engine(_Alone, Engine):
    """An engine without listeners, whose connections have none either."""

    _connection_cls = _Connection


#: Where engine and pool log to: nowhere, as the rows hold commands with their environments.
_SILENT = logging.Logger(__name__)  # noqa: LOG001 - none that a host could configure
_SILENT.disabled = True


#: What was compiled, by what SQLAlchemy makes of dialect and statement. As many as the code has.
COMPILED: dict[Any, Any] = {}


def make_engine(
    creator: Callable[[], Any],
    *,
    json_serializer: Callable[[Any], Any],
    json_deserializer: Callable[[Any], Any],
) -> Engine:
    """
    Return an engine; not by `create_engine`, which a tracer of the host may have replaced.

    Args:
        creator: Returns a new connection.
        json_serializer, json_deserializer: Make what is stored of JSON values, and back.
    """
    dialect = Dialect(
        dbapi=SQLiteDialect_pysqlite.import_dbapi(),
        json_serializer=json_serializer,
        json_deserializer=json_deserializer,
    )
    # Transactions are ended by who began them.
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
