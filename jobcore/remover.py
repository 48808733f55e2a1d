"""Remover: takes away what is hidden and over, rows and directories, a little at a time."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection

from jobcore import logs, runs, store
from jobcore.database import Database
from jobcore.directories import Directories
from jobcore.runs import Run
from jobcore.supervision import failpoints
from jobcore.turns import Turns

#: Jobs whose rows are removed in one transaction: others wait for no more than these.
REMOVED_AT_ONCE = 100
#: Segments of logs, too: 25 MiB of lines, for which SQLite needs some 50 ms where
#: they could not be compressed: it reads every page that it frees.
SEGMENTS_AT_ONCE = 100


class Remover:
    """
    Removes what was marked deleted; whoever is killed meanwhile leaves the rest to the next one.

    Args:
        database: The rows.
        directories: What is left of jobs outside of it.
    """

    def __init__(self, database: Database, directories: Directories) -> None:
        self._database = database
        self._directories = directories

    def remove_jobs(self, *numbers: int, turns: Turns | None = None) -> None:
        """Remove those of the jobs that are final and marked deleted, with their directories."""
        turns = turns or Turns()
        for first in range(0, len(numbers), REMOVED_AT_ONCE):
            some = numbers[first : first + REMOVED_AT_ONCE]
            while not self._remove(some, turns):
                pass

    def _remove(self, numbers: Sequence[int], turns: Turns) -> bool:
        """Remove what one transaction may; True: nothing of these jobs is left to be removed."""

        def remove_rows(connection: Connection) -> list[Run] | None:
            # Not left to the cascade: a log may be as large as the disk.
            if logs.remove_of_deleted(connection, numbers, SEGMENTS_AT_ONCE) == SEGMENTS_AT_ONCE:
                return None
            found = [runs.find(connection, number) for number in numbers]
            return [
                run
                for run in found
                if run is not None and runs.remove_if_final(connection, run.number)
            ]

        with turns.take():
            removed = self._database.write(remove_rows)
        if removed is None:
            return False
        failpoints.reach(failpoints.ROWS_REMOVED, self._database)
        for run in removed:
            self._directories.remove(run.name)
        return True

    def remove_owners(self) -> None:
        """Remove workspaces and pipelines that were marked deleted and have no jobs left."""
        with self._database.read() as connection:
            if not store.has_marked(connection):
                return
        self._database.write(store.remove_marked)
