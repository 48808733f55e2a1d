"""Checks which jobs a new job waits for: jobs that exist, and others of the same call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Connection

from jobcore import checks
from jobcore.errors import ArgumentError, JobNotFound, shown
from jobcore.operations.lookup import parse_id
from jobcore.storage import dependencies, job_rows


class Dependencies:
    """
    What the new jobs of one call wait for.

    Args:
        jobs: The columns of the jobs, with `after` and `ref`, which are taken out.

    Raises:
        ArgumentError: Two jobs have the same `ref`, or jobs wait for each other in a cycle.
    """

    def __init__(self, jobs: Sequence[dict[str, Any]]) -> None:
        self._own: dict[str, UUID] = {}
        for job in jobs:
            ref = job.pop("ref", None)
            if ref is not None:
                if ref in self._own:
                    raise ArgumentError(f"two jobs of this call have the ref {shown(ref)}")
                self._own[checks.text(ref, "ref")] = job["id"]
        # By the id of each new job that waits for others.
        self._after: dict[UUID, list[Any]] = {
            job["id"]: [self._own.get(str(one), one) for one in job.pop("after")]
            for job in jobs
            if "after" in job
        }
        if self._after:
            self._refuse_cycles()

    def __bool__(self) -> bool:
        """Tell whether any of the jobs waits for another."""
        return bool(self._after)

    @property
    def count(self) -> int:
        """How many dependencies there are."""
        return sum(map(len, self._after.values()))

    def of(self, job_id: UUID) -> int:
        """Return how many jobs a new job waits for."""
        return len(self._after.get(job_id, ()))

    def resolve(self, connection: Connection) -> dict[UUID, list[UUID]]:
        """
        Return the ids of the jobs that each new job waits for: of their last attempts.

        Raises:
            JobNotFound: `after` names an unknown job.
        """
        own = set(self._own.values())
        known: dict[Any, UUID] = {}
        for upstreams in self._after.values():
            for one in upstreams:
                if one not in known:
                    known[one] = one if one in own else _find(connection, one)
        return {
            job_id: [known[one] for one in upstreams] for job_id, upstreams in self._after.items()
        }

    def _refuse_cycles(self) -> None:
        own = {job_id: name for name, job_id in self._own.items()}
        waiting = {
            job_id: {one for one in upstreams if one in own}
            for job_id, upstreams in self._after.items()
        }
        dependents: dict[UUID, list[UUID]] = {}
        for job_id, upstreams in waiting.items():
            for one in upstreams:
                dependents.setdefault(one, []).append(job_id)
        free = [job_id for job_id in own if not waiting.get(job_id)]
        while free:
            upstream = free.pop()
            for job_id in dependents.get(upstream, ()):
                waiting[job_id].discard(upstream)
                if not waiting[job_id]:
                    free.append(job_id)
        stuck = [own[job_id] for job_id, left in waiting.items() if left and job_id in own]
        if stuck:
            raise ArgumentError(
                f"jobs of this call wait for each other in a cycle: {shown(sorted(stuck))}"
            )


def _find(connection: Connection, job_id: Any) -> UUID:
    parsed = parse_id(job_id)
    if parsed is None or job_rows.number_of(connection, parsed) is None:
        raise JobNotFound(job_id)
    return dependencies.last_attempt(connection, parsed)


def add(
    connection: Connection,
    numbers: Mapping[UUID, int],
    resolved: Mapping[UUID, Sequence[UUID]],
    replaced: Mapping[UUID, UUID],
) -> None:
    """
    Store what new jobs wait for.

    Args:
        numbers: The numbers of the new jobs, by their ids.
        resolved: The ids that `Dependencies.resolve` returned.
        replaced: The jobs that hold the keys of jobs which were not created, by the ids of these.
    """
    for job_id, number in numbers.items():
        upstreams = [replaced.get(one, one) for one in resolved.get(job_id, ())]
        if upstreams:
            dependencies.add(connection, number, upstreams)
