"""Makes a database usable again after its job directories were removed."""

from __future__ import annotations

from sqlalchemy import Connection

from jobcore.engine.job_directories import Directories
from jobcore.engine.recovery import Recovery
from jobcore.storage import filesystem, schema, transitions
from jobcore.storage.database import Database
from jobcore.storage.statement import driver_of
from jobcore.storage.transitions import Run


def repair(database: Database, directories: Directories, recovery: Recovery) -> list[Run]:
    """
    Make a missing directory of job directories again, and settle the jobs that ran in it.

    Returns:
        The jobs that this call settled.

    Raises:
        StoreMismatch: The existing directory belongs to another database.
        StoreError: The directory cannot be made.
    """
    from jobcore.storage import counts  # noqa: PLC0415 - loaded with the first connection, not at import

    def change(connection: Connection) -> None:
        schema.renew_root(driver_of(connection), database.path)
        transitions.ignore_left(connection)
        counts.count_anew(driver_of(connection))

    try:
        database.write(change)
    except OSError as error:
        raise filesystem.typed(f"{database.path}.jobs", error) from error
    directories.reopen()
    return recovery.sweep(everything=True)
