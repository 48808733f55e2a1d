"""
Copies a database while it is used.

The copy is written beside its later name, synced and then renamed, so a name never stands for
half of a copy. Next to it is a directory with the store id, as a restored database needs it.
"""

from __future__ import annotations

import os
import sqlite3
import uuid
from contextlib import closing, suppress

from jobcore import checks
from jobcore.errors import ArgumentError, StoreError
from jobcore.lifecycle import Status
from jobcore.models import Backup
from jobcore.storage import counts, filesystem, permissions
from jobcore.storage.connections import uri_of
from jobcore.storage.database import Database


def back_up(database: Database, target: str, *, replace: bool) -> Backup:
    """Write a complete copy to `target` and `<target>.jobs`; return what is in it."""
    path = checks.text(os.path.abspath(target), "path")  # SQLite has no other names
    if permissions.is_part_of(path, database.path):
        raise ArgumentError(
            f"{path} is the database itself or a part of it: name another file for its backup"
        )
    if os.path.lexists(path) and not replace:
        raise ArgumentError(f"{path} exists: name another file, or pass --force (replace=True)")
    for end in ("-wal", "-journal"):
        if os.path.exists(path + end):
            # SQLite would mix it with the copy.
            raise ArgumentError(f"{path + end} exists, so {path} may be in use: remove it first")
    temporary = f"{path}.{uuid.uuid4().hex}.part"
    try:
        try:
            _make(temporary)
            database.copy_into(temporary)
            found = _content(temporary, path)
            _write_store_id(database.path, path)
            os.rename(temporary, path)
            _sync(os.path.dirname(path), os.O_DIRECTORY)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
    except OSError as error:
        raise filesystem.typed(path, error) from error
    return found


def _make(path: str) -> None:
    """Make an empty file for this user alone; a copy has the same secrets as the original."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))


def _sync(path: str, flags: int = 0) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _content(temporary: str, path: str) -> Backup:
    """Return what is in a copy, read from the copy itself; sync it."""
    _sync(temporary)
    sums = ", ".join(f"coalesce(sum({one}), 0)" for one in counts.COLUMNS)
    uri = uri_of(temporary, "ro&immutable=1")
    try:
        with closing(sqlite3.connect(uri, uri=True)) as connection:
            jobs = connection.execute(
                f"SELECT {sums} FROM workspace_count WHERE batch = 0"  # noqa: S608 - our own words
            ).fetchone()
            (pipelines,) = connection.execute(
                "SELECT count(*) FROM pipeline WHERE deleted_at IS NULL"
            ).fetchone()
    except sqlite3.Error as error:
        raise StoreError(f"the copy {temporary} cannot be read: {error}") from error
    return Backup(
        path=path,
        size=os.path.getsize(temporary),
        jobs=dict(zip(Status, jobs, strict=True)),
        pipelines=pipelines,
    )


def _write_store_id(database: str, path: str) -> None:
    """Copy the store id: without it, a restored file could not continue its running jobs."""
    root = filesystem.open_root(database, create=False)
    try:
        store_id = filesystem.read_store_id(root, database)
    finally:
        os.close(root)
    if store_id is None:
        return
    folder = f"{path}.jobs"
    os.makedirs(folder, 0o700, exist_ok=True)
    temporary = os.path.join(folder, f"{filesystem.STORE}.{uuid.uuid4().hex}")
    _make(temporary)
    with open(temporary, "w", encoding="ascii") as file:
        file.write(f"{store_id}\n")
        file.flush()
        os.fsync(file.fileno())
    os.rename(temporary, os.path.join(folder, filesystem.STORE))
    _sync(folder, os.O_DIRECTORY)
