"""The statements about workspaces."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar
from uuid import UUID, uuid4

from sqlalchemy import (
    Connection,
    Row,
    Select,
    Table,
    func,
    insert,
    select,
    update,
)

from jobcore.errors import DatabaseCorrupt
from jobcore.storage.damage import Failed, read_rows, rowid
from jobcore.storage.statement import Statement
from jobcore.storage.tables import (
    workspace,
)

T = TypeVar("T")


def insert_workspace(
    connection: Connection, *, name: str, now: int, properties: Any = None, default: bool = False
) -> Row[Any]:
    """Create a workspace and return its row."""
    return connection.execute(
        insert(workspace)
        .values(
            id=uuid4(),
            name=name,
            is_default=default,
            properties=properties,
            created=now,
            last_modified=now,
        )
        .returning(workspace)
    ).one()


def find_workspace(connection: Connection, workspace_id: UUID) -> Row[Any] | None:
    """Return the workspace; None: there is none, or it is being deleted."""
    return connection.execute(
        select(workspace).where(workspace.c.id == workspace_id, workspace.c.deleted_at.is_(None))
    ).one_or_none()


_DEFAULT = Statement(select(workspace.c.id).where(workspace.c.is_default))


def find_default_workspace(connection: Connection) -> UUID | None:
    """Return the id of the default workspace; None: it has not been needed yet."""
    rows = _DEFAULT(connection)
    try:
        return UUID(hex=rows[0][0]) if rows else None
    except (ValueError, AttributeError) as error:
        raise DatabaseCorrupt("a stored ID is not a valid UUID") from error


def default_workspace(connection: Connection, now: int) -> UUID:
    """Return the id of the default workspace, and create it if needed."""
    found = find_default_workspace(connection)
    if found is None:
        found = insert_workspace(connection, name="default", now=now, default=True).id
    return found


def list_workspaces(
    connection: Connection,
    form: Callable[[Row[Any]], T],
    failed: Failed,
    *,
    limit: int | None = None,
    after: tuple[int, UUID] | None = None,
) -> list[T]:
    """
    Return a page of all workspaces, in order of creation.

    Args:
        form: Converts a row to the returned object.
        limit: Maximum number in the page; None: all.
        after: Creation time and id of the last one of the page before; None: the first page.
    """
    statement = select(workspace).where(workspace.c.deleted_at.is_(None))
    statement = page_of(statement, workspace, limit, after)
    return read_rows(connection, statement, rowid(workspace), failed, form)


# --- for pipelines, too --------------------------------------------------


def page_of(
    statement: Select[Any], table: Table, limit: int | None, after: tuple[int, UUID] | None
) -> Select[Any]:
    """Return the statement limited to one page, in order of creation."""
    if after is not None:
        created, last = after
        statement = statement.where(
            (table.c.created > created) | ((table.c.created == created) & (table.c.id > last))
        )
    return statement.order_by(table.c.created, table.c.id).limit(limit)


def update_row(
    connection: Connection, table: Table, row_id: UUID, *, now: int, **changes: Any
) -> None:
    """Change a workspace or pipeline that the same transaction has found."""
    connection.execute(
        update(table)
        .where(table.c.id == row_id, table.c.deleted_at.is_(None))
        .values(last_modified=func.max(table.c.created, now), **changes)
    )
