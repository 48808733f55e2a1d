"""The statements about pipelines, and about which pipeline triggers which."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeVar
from uuid import UUID, uuid4

from sqlalchemy import (
    JSON,
    ColumnElement,
    Connection,
    Row,
    Subquery,
    Table,
    delete,
    exists,
    func,
    insert,
    select,
    type_coerce,
    update,
)

from jobcore.lifecycle import PipelineStatus
from jobcore.storage.damage import Failed, leave_out, read_rows, rowid, unconverted
from jobcore.storage.tables import (
    link,
    pipeline,
    pipeline_note,
    requirement,
)
from jobcore.storage.workspaces import page_of, update_row

T = TypeVar("T")

#: The platform's workspace task. Pipelines may name it, though no pipeline has this name.
DEPLOY = "deploy"

_SOURCE = pipeline.alias("source")


def _names(table: Table, name: ColumnElement[Any]) -> Subquery:
    """Return the names of the sources of a pipeline, in order."""
    sources = table.join(_SOURCE, _SOURCE.c.id == table.c.source_id, isouter=table is link)
    return (
        select(name.label("name"))
        .select_from(sources)
        .where(table.c.pipeline_id == pipeline.c.id)
        .order_by(table.c.position)
        .correlate(pipeline)
        .subquery()
    )


#: Selects pipelines as they are shown: with the current names of their sources, as JSON.
_PIPELINE = select(
    pipeline,
    *(
        type_coerce(select(func.json_group_array(names.c.name)).scalar_subquery(), JSON).label(name)
        for name, names in (
            ("triggered_by", _names(link, func.coalesce(_SOURCE.c.name, link.c.name))),
            ("requires", _names(requirement, _SOURCE.c.name)),
        )
    ),
).where(pipeline.c.deleted_at.is_(None))


def insert_pipeline(connection: Connection, *, now: int, **fields: Any) -> UUID:
    """Create a pipeline and return its id."""
    made = uuid4()
    connection.execute(
        insert(pipeline).values(
            id=made, status=str(PipelineStatus.READY), created=now, last_modified=now, **fields
        )
    )
    return made


def find_pipeline(connection: Connection, pipeline_id: UUID) -> Row[Any] | None:
    """Return the pipeline; None: there is none, or it is being deleted."""
    return connection.execute(_PIPELINE.where(pipeline.c.id == pipeline_id)).one_or_none()


def find_pipeline_called(connection: Connection, workspace_id: UUID, name: str) -> UUID | None:
    """Return the id of the pipeline with this name, ignoring case, or None."""
    found: UUID | None = connection.execute(
        select(pipeline.c.id).where(
            pipeline.c.workspace_id == workspace_id,
            pipeline.c.folded_name == name.casefold(),
            pipeline.c.deleted_at.is_(None),
        )
    ).scalar_one_or_none()
    return found


def other_pipelines(
    connection: Connection, workspace_id: UUID, kept: Collection[UUID]
) -> list[Row[Any]]:
    """Return id and name of the pipelines of a workspace that are not in `kept`."""
    columns: tuple[Any, ...] = (pipeline.c.id, pipeline.c.name)
    rows = connection.execute(
        select(*columns)
        .where(pipeline.c.workspace_id == workspace_id, pipeline.c.deleted_at.is_(None))
        .order_by(pipeline.c.created, pipeline.c.id)
    )
    return [row for row in rows if row.id not in kept]


def find_followups(connection: Connection, pipeline_id: UUID) -> Row[Any] | None:
    """Return what follows from the end of a job of the pipeline; None: it is gone, or deleted."""
    # Read only these columns, so that jobs can be settled even if another column is damaged.
    columns: tuple[Any, ...] = (
        pipeline.c.id,
        pipeline.c.name,
        pipeline.c.max_retries,
        pipeline.c.retries,
        pipeline.c.hooks,
    )
    return connection.execute(
        select(*columns).where(pipeline.c.id == pipeline_id, pipeline.c.deleted_at.is_(None))
    ).one_or_none()


def list_pipelines(
    connection: Connection,
    workspace_id: UUID | None,
    form: Callable[[Row[Any]], T],
    failed: Failed,
    *,
    limit: int | None = None,
    after: tuple[int, UUID] | None = None,
) -> list[T]:
    """
    Return a page of all pipelines, or of those of a workspace, in order of creation.

    Args:
        limit, after: As for `list_workspaces`.
    """
    statement = _PIPELINE
    if workspace_id is not None:
        statement = statement.where(pipeline.c.workspace_id == workspace_id)
    statement = page_of(statement, pipeline, limit, after)
    return read_rows(connection, statement, rowid(pipeline), failed, form)


def set_pipeline_status(
    connection: Connection, pipeline_id: UUID, status: str, *, now: int
) -> None:
    """Set the status of a pipeline, which tells whether its configuration was processed."""
    update_row(connection, pipeline, pipeline_id, now=now, status=status)


# --- triggers -------------------------------------------------------------


def links_of(connection: Connection, pipeline_id: UUID) -> Sequence[Row[Any]]:
    """Return the links of a pipeline, in order: ids of its sources, or names without a pipeline."""
    return connection.execute(
        select(link).where(link.c.pipeline_id == pipeline_id).order_by(link.c.position)
    ).all()


def replace_links(
    connection: Connection, pipeline_id: UUID, links: Sequence[tuple[UUID | None, str | None]]
) -> None:
    """Replace the sources of a pipeline. Each link is the id of a pipeline, or only a name."""
    connection.execute(delete(link).where(link.c.pipeline_id == pipeline_id))
    if links:
        connection.execute(
            insert(link),
            [
                {"pipeline_id": pipeline_id, "position": n, "source_id": source, "name": name}
                for n, (source, name) in enumerate(links)
            ],
        )


def pipelines_triggered_by(
    connection: Connection,
    source_id: UUID,
    failed: Failed = leave_out,
) -> list[Row[Any]]:
    """Return id and workspace of the pipelines that run after this one, in order of creation."""
    triggered = (
        select(pipeline.c.id, pipeline.c.workspace_id)
        .join_from(link, pipeline, link.c.pipeline_id == pipeline.c.id)
        .where(link.c.source_id == source_id, pipeline.c.deleted_at.is_(None))
        .order_by(pipeline.c.created, pipeline.c.id)
    )
    return read_rows(connection, triggered, rowid(pipeline), failed, unconverted)


def replace_requirements(
    connection: Connection, pipeline_id: UUID, sources: Sequence[UUID]
) -> None:
    """Replace the sources of which a pipeline requires all; those that stay keep what is met."""
    of_it = requirement.c.pipeline_id == pipeline_id
    met: dict[UUID, int | None] = {
        row.source_id: row.met for row in connection.execute(select(requirement).where(of_it))
    }
    connection.execute(delete(requirement).where(of_it))
    if sources:
        connection.execute(
            insert(requirement),
            [
                {"pipeline_id": pipeline_id, "position": n, "source_id": one, "met": met.get(one)}
                for n, one in enumerate(sources)
            ],
        )


def pipelines_completed_by(
    connection: Connection, source_id: UUID, now: int, failed: Failed = leave_out
) -> list[Row[Any]]:
    """
    Note that a source is COMPLETE, and return the pipelines whose sets this has completed.

    Their next sets begin empty.

    Returns:
        Id and workspace of each of them, in order of creation.
    """
    connection.execute(
        update(requirement)
        .where(requirement.c.source_id == source_id, requirement.c.met.is_(None))
        .values(met=now)
    )
    others = requirement.alias("others")
    whole = (
        select(pipeline.c.id, pipeline.c.workspace_id)
        .join_from(requirement, pipeline, requirement.c.pipeline_id == pipeline.c.id)
        .where(requirement.c.source_id == source_id, pipeline.c.deleted_at.is_(None))
        .where(~exists().where(others.c.pipeline_id == pipeline.c.id, others.c.met.is_(None)))
        .order_by(pipeline.c.created, pipeline.c.id)
    )
    completed = read_rows(connection, whole, rowid(pipeline), failed, unconverted)
    for one in completed:
        connection.execute(
            update(requirement).where(requirement.c.pipeline_id == one.id).values(met=None)
        )
    return completed


def pipelines_requiring(connection: Connection, source_id: UUID) -> Sequence[Row[Any]]:
    """Return the ids of the pipelines that require this one."""
    return connection.execute(
        select(pipeline.c.id)
        .join_from(requirement, pipeline, requirement.c.pipeline_id == pipeline.c.id)
        .where(requirement.c.source_id == source_id, pipeline.c.deleted_at.is_(None))
    ).all()


def sources_of(connection: Connection, pipeline_id: UUID) -> list[UUID]:
    """Return the ids of the pipelines after which this one runs."""
    found: list[UUID] = []
    for table in (link, requirement):
        ids = select(table.c.source_id).where(
            table.c.pipeline_id == pipeline_id, table.c.source_id.is_not(None)
        )
        found += connection.execute(ids).scalars()
    return found


def runs_before(connection: Connection, pipeline_id: UUID, others: Collection[UUID]) -> bool:
    """Tell whether the pipeline is one of `others` or runs before one, even indirectly."""
    before = select(pipeline.c.id).where(pipeline.c.id.in_(others)).cte("before", recursive=True)
    # A term for each table: of a union of both, SQLite would read all rows at each step.
    before = before.union(
        *(
            select(table.c.source_id).where(
                table.c.pipeline_id == before.c.id, table.c.source_id.is_not(None)
            )
            for table in (link, requirement)
        )
    )
    found = connection.execute(select(before.c.id).where(before.c.id == pipeline_id)).first()
    return found is not None


def remove_links_to(connection: Connection, source_id: UUID) -> None:
    """Remove all links to a pipeline, so that it triggers nothing any more."""
    for table in (link, requirement):
        connection.execute(delete(table).where(table.c.source_id == source_id))


def note(connection: Connection, pipeline_id: UUID, topic: str, detail: str) -> None:
    """Record a note about a pipeline, which `doctor` lists."""
    connection.execute(
        insert(pipeline_note).values(pipeline_id=pipeline_id, topic=topic, detail=detail)
    )


def remove_notes(connection: Connection, pipeline_id: UUID, topic: str) -> None:
    """Remove the notes on a pipeline's `name` or `chain`, after the user has changed it."""
    connection.execute(
        delete(pipeline_note).where(
            pipeline_note.c.pipeline_id == pipeline_id, pipeline_note.c.topic == topic
        )
    )
