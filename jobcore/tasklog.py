"""Task log: the lines of a job without a process, which its host writes."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection

from jobcore import logs, runs
from jobcore.runs import Run
from jobcore.supervision import frames


def append(
    connection: Connection,
    run: Run,
    lines: Sequence[bytes],
    *,
    now: int,
    stream: int = frames.OUTPUT,
) -> Run:
    """
    Append lines, each with its terminator, and return the job with them.

    Args:
        run: As this transaction has read it; RUNNING, without a process.
    """
    count = run.next_sequence + len(lines)
    slices = logs.encode_lines(run.next_sequence, lines, now * 1000, stream)
    loose = logs.loose_behind(run.loose, slices, count)
    runs.count_lines_if_own(connection, run, next_sequence=count, loose=loose)
    logs.append_slices(connection, run.number, slices, before=run.loose, behind=loose)
    return run._replace(next_sequence=count, loose_sequence=loose[0], loose_bytes=loose[1])
