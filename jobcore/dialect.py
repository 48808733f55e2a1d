"""Dialect: SQLite's, in which all databases of a process share what was once compiled."""

from __future__ import annotations

from typing import Any

from sqlalchemy.dialects import registry
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite


class Dialect(SQLiteDialect_pysqlite):
    """
    A dialect that is equal to every other one of its kind.

    SQLAlchemy keeps each statement that it has compiled for a dialect, and gives
    each engine one of its own. To compile a statement takes longer than to execute
    it; a service does it once, but tests that open a manager each did it in each.
    """

    supports_statement_cache = True  # not inherited, by SQLAlchemy's rule

    def __eq__(self, other: object) -> bool:
        """Whether what was compiled for the one is right for the other."""
        return type(other) is type(self)

    def __hash__(self) -> int:
        """As for what is equal."""
        return hash(type(self))


#: What was compiled, by what SQLAlchemy makes of dialect and statement. As many as the code has.
COMPILED: dict[Any, Any] = {}

#: Where engines with this dialect are at.
URL = "sqlite+jobcore://"

registry.register("sqlite.jobcore", __name__, Dialect.__name__)
