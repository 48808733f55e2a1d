"""Which jobs a caller has asked for: the filter of listings, counts, events and pruning."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, TypeVar
from uuid import UUID

from sqlalchemy import ColumnElement

from jobcore.lifecycle import Status
from jobcore.storage.history import Entry
from jobcore.storage.tables import job

T = TypeVar("T")


class JobFilter(NamedTuple):
    """
    Selects jobs, or their events by the status that these led to.

    None in a field matches all. At most one of the owners is given: a job is in the workspace
    of its pipeline, and with both conditions SQLite might scan all jobs of the workspace, or of
    the pipeline for nothing.
    """

    workspace_id: UUID | None = None
    pipeline_id: UUID | None = None
    statuses: frozenset[Status] | None = None
    types: frozenset[str] | None = None

    def of_owner(self) -> list[ColumnElement[bool]]:
        """Return the SQL condition on the owner."""
        if self.pipeline_id is not None:
            return [job.c.pipeline_id == self.pipeline_id]
        return [] if self.workspace_id is None else [job.c.workspace_id == self.workspace_id]

    def takes(self, entry: Entry) -> bool:
        """Tell whether an entry of the history matches."""
        return (
            (self.workspace_id is None or self.workspace_id.hex == entry.workspace_id)
            and (self.pipeline_id is None or self.pipeline_id.hex == entry.pipeline_id)
            and (self.statuses is None or entry.to_status in self.statuses)
            and (self.types is None or entry.type in self.types)
        )


def members(values: Iterable[T] | None) -> frozenset[T] | None:
    """Return a set for a field of a filter; None stays None."""
    return None if values is None else frozenset(values)
