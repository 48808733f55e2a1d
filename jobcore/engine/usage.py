"""Measures the processes of a running job: their CPU time and their memory."""

from __future__ import annotations

import os
from functools import partial

from jobcore.embedding.worker import DIRECTORY_WORKER
from jobcore.engine import orphans
from jobcore.engine.job_directories import Directories
from jobcore.engine.procfs import ROOT
from jobcore.errors import DatabaseBusy, StoreError
from jobcore.models import Usage
from jobcore.storage.transitions import Run
from jobcore.supervisor import (
    NewerProtocol,
    job_directory,
    pids,
    process_tree,
    system_calls,
    warm,
)
from jobcore.tuning import READ_PATIENCE

#: The most processes of a job that are measured; it takes some 20 µs for each.
MOST_PROCESSES = 10_000

# The fields of /proc/PID/stat after the name, from the process's state on.
_UTIME, _CSTIME, _RSS = 11, 14, 21


def try_to_measure(directories: Directories, run: Run) -> Usage | None:
    """
    Measure the processes of a job that runs under a supervisor.

    Returns:
        The sums; None: no process of it can be seen from this process, or not now.
    """
    try:
        return DIRECTORY_WORKER.call(partial(_measure, directories, run), patience=READ_PATIENCE)
    except DatabaseBusy:
        return None


def _measure(directories: Directories, run: Run) -> Usage | None:
    if not run.supervised or run.boot_id != directories.boot_id:
        return None
    try:
        supervisor = _supervisor_of(directories, run)
        if supervisor is None:
            return None
        entries = process_tree.entries_below(supervisor, MOST_PROCESSES)
    except (StoreError, OSError, NewerProtocol):
        return None  # it has just ended, or cannot be examined now
    found = [one for one in map(_read, entries) if one is not None]
    if not found:
        return None
    ticks, pages = (sum(column) for column in zip(*found, strict=True))
    return Usage(
        cpu_seconds=ticks / os.sysconf("SC_CLK_TCK"),
        rss=pages * os.sysconf("SC_PAGE_SIZE"),
        processes=len(found),
    )


def _supervisor_of(directories: Directories, run: Run) -> int | None:
    """Return the pid of the job's living supervisor, if this process can see it."""
    if pids.level() != 1:
        return None  # the entries in /proc are no pids of this process's namespace
    with directories.open(run.name) as directory:
        record = job_directory.read_record(directory, job_directory.RUN)
    if record is None or record.get("token") != run.token:
        return None
    if record.get("pid_namespace") != system_calls.pid_namespace():
        return None
    pid = record.get("supervisor")
    # The stored pid may be another process's by now. The lock of the run is the supervisor's.
    return pid if isinstance(pid, int) and orphans.holds(pid, run.token or "") else None


def _read(entry: int) -> tuple[int, int] | None:
    """Return the clock ticks and the resident pages of a process; None: it is not of the job."""
    try:
        with open(f"{ROOT}/{entry}/stat", "rb", buffering=0) as file:
            head, _, rest = file.read(4096).rpartition(b")")
    except OSError:
        return None
    fields = rest.split()
    if len(fields) <= _RSS or fields[0] in (b"Z", b"X") or head.partition(b"(")[2] == warm.NAME:
        return None
    return sum(map(int, fields[_UTIME : _CSTIME + 1])), int(fields[_RSS])
