"""Claims the next queued job of some types for a host's own worker, or waits for one."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row

from jobcore.errors import DatabaseBusy, WaitTimeout
from jobcore.models import Job
from jobcore.operations.async_backend import in_thread_to_its_end, redeliver_cancellation
from jobcore.operations.task_operations import TaskOperations
from jobcore.operations.waiting import Deadline, Waiter
from jobcore.operations.waiting_async import AsyncWaiter
from jobcore.tuning import CLAIM_PATIENCE


class Claimer:
    """Starts queued jobs for this process, one at a time."""

    def __init__(self, tasks: TaskOperations, waiter: Waiter, async_waiter: AsyncWaiter) -> None:
        self._tasks = tasks
        self._waiter = waiter
        self._async_waiter = async_waiter

    def claim(self, types: tuple[str, ...], timeout: float | None) -> Row[Any] | None:
        """Return a job, RUNNING now; None if there was none within `timeout` seconds."""
        claimed: list[Row[Any]] = []

        def attempt() -> bool:
            row = self._tasks.claim_next(types)
            if row is not None:
                claimed.append(row)
            return row is not None

        try:
            self._waiter.wait_for(attempt, timeout, "no job is queued")
        except WaitTimeout:
            return None
        return claimed[0]

    async def claim_async(self, types: tuple[str, ...], timeout: float | None) -> Job | None:
        """Do what `claim` does, in an event loop; a caller that is cancelled has no job."""
        deadline = Deadline(timeout)
        while True:
            left = None if timeout is None else deadline.left
            try:
                await self._async_waiter.wait_for(
                    lambda: self._tasks.has_next(types), left, "no job is queued"
                )
            except WaitTimeout:
                return None
            # Run it to its end even if cancelled: otherwise nothing would know of the job.
            row, cancelled = await in_thread_to_its_end(self._try_to_claim, types)
            if cancelled is not None:
                if row is None:
                    raise cancelled
                redeliver_cancellation(cancelled)
            if row is not None:
                return Job.from_row(row)

    def _try_to_claim(self, types: tuple[str, ...]) -> Row[Any] | None:
        try:
            return self._tasks.claim_next(types, patience=CLAIM_PATIENCE)
        except DatabaseBusy:
            return None
