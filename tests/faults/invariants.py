"""Invariants: what is true of a database and its job directories after whatever happened."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from uuid import UUID

from jobcore import lifecycle
from jobcore.supervisor import job_directory
from jobcore.testing.parts import parts
from tests.faults import witness
from tests.processes import PATIENCE

#: Where each trigger may lead, with those that the machine does not draw.
_ARROWS = {
    ("create", None): {"QUEUED"},
    ("start", "QUEUED"): {"RUNNING"},
    ("cancel", "QUEUED"): {"STOPPED"},
    ("stop", "RUNNING"): {"RUNNING"},
    ("finish", "RUNNING"): {"COMPLETE", "ERROR", "STOPPED"},
}
_FINAL = ("COMPLETE", "ERROR", "STOPPED")
#: The reasons of commands that were never begun, or cannot have said anything.
_NOT_BEGUN = ("never_started", "cancelled", "spawn_failed")
#: A command with one of these was seen by its supervisor to its end.
_SEEN = ("exited", "signaled", "timeout", "stopped", "shutdown")
_COOKIE = re.compile(rb"(?:^|\0)JOBCORE_RUN=([0-9a-f]{32})(?:\0|$)")


def check(jobs, sides=None, *, killed=False, lines=True):
    """
    Fail with all that is wrong, once nothing is under way any more.

    Leftovers that the next look removes are removed first, as any manager does.

    Args:
        jobs: A manager of the database.
        sides: Where witnesses have their files; None: there are none.
        killed: Whether commands were SIGKILLed, so that this may be how they ended.
        lines: Whether to read the logs; those too large for memory are the test's own.
    """
    path = parts(jobs).database.path
    jobs.recover()
    _let_removals_end(jobs, path)
    rows, history, wrong = _read(path)
    for row in rows:
        steps = [step for step in history if step["job"] == row["number"]]
        told = [*_legal(row), *_history(row, steps), *_directory(path, row)]
        if lines and row["deleted_at"] is None:
            told += _log(jobs, row, sides, killed=killed)
        wrong += [f"job {row['number']} ({row['status']}, {row['reason']}): {one}" for one in told]
    wrong += _once(rows) + _nobody_left(rows) + _no_strays(path, rows)
    assert wrong == [], "\n".join(wrong)


def _let_removals_end(jobs, path):
    """Wait for another thread that was just removing what this one would have removed."""
    give_up = time.monotonic() + PATIENCE
    while _no_strays(path, _read(path)[0]) and time.monotonic() < give_up:
        time.sleep(0.01)
        jobs.recover()


def _read(path):
    """Return jobs and history as they are in the file, and what is wrong with the file."""
    with closing(sqlite3.connect(path, isolation_level=None, timeout=60)) as connection:
        connection.row_factory = sqlite3.Row
        rows = connection.execute("SELECT * FROM job ORDER BY number").fetchall()
        history = connection.execute("SELECT * FROM transition ORDER BY id").fetchall()
        return rows, history, _sound(connection)


def living():
    """Return, by cookie, the pids of all processes of jobs; zombies have no environment."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                match = _COOKIE.search((entry / "environ").read_bytes())
            except OSError:
                continue
            if match:
                found.setdefault(match[1].decode(), []).append(int(entry.name))
    return found


def _sound(connection):
    """The file itself is whole."""
    wrong = []
    for pragma, whole in (("integrity_check", [("ok",)]), ("foreign_key_check", [])):
        answer = [tuple(row) for row in connection.execute(f"PRAGMA {pragma}")]
        if answer != whole:
            wrong.append(f"{pragma}: {answer[:5]}")
    return wrong


def _legal(row):
    """The row is one that the rules allow, and says of the exit code what the kernel said."""
    status, reason, code = row["status"], row["reason"], row["exit_code"]
    if status not in ("QUEUED", "RUNNING", *_FINAL):
        yield f"unknown status {status}"
    if (status == "COMPLETE") != (code == 0 and reason == "exited"):
        yield f"exit code {code}"
    if (status in _FINAL) != (reason is not None and row["end_time"] is not None):
        yield f"ended at {row['end_time']} for reason {reason}"
    if code is not None and row["token"] is not None:
        said = lifecycle.Ending(lifecycle.Reason(reason), row["wait_status"])
        if (said.exit_code, said.signal) != (code, row["signal"]):
            yield f"exit code {code}, signal {row['signal']} of status {row['wait_status']}"
    times = [row["created"], row["start_time"], row["end_time"]]
    known = [time for time in times if time is not None]
    if known != sorted(known):
        yield f"created, started, ended at {times}"
    if status in ("COMPLETE", "ERROR", "RUNNING") and row["start_time"] is None:
        yield "no start"


def _history(row, steps):
    """Its history is a path through the rules that leads to its status."""
    status = None
    for step in steps:
        trigger, source, target = step["trigger"], step["from_status"], step["to_status"]
        if source != status or target not in _ARROWS.get((trigger, source), ()):
            yield f"{trigger} from {source} to {target}, where it was {status}"
        status = target
    if status != row["status"]:
        yield f"the history ends with {status}"
    if sum(step["trigger"] == "start" for step in steps) > 1:
        yield "it was started twice"


def _directory(path, row):
    """A final job has no directory; a RUNNING one has, and a supervisor that holds its lock."""
    name = row["id"]
    directory = os.path.join(path + ".jobs", name)
    if row["status"] in _FINAL and os.path.exists(directory):
        yield f"its directory is still there: {os.listdir(directory)}"
    if row["status"] == "RUNNING" and row["token"] is not None:
        try:
            lock = os.open(os.path.join(directory, job_directory.LOCK), os.O_RDWR)
        except FileNotFoundError:
            yield "it has no lock"
            return
        if not job_directory.is_locked(lock):
            yield "nobody holds its lock"
        os.close(lock)


def _log(jobs, row, sides, *, killed):
    """Its lines are numbered from 0 without a gap, and are what its command has said."""
    lines = list(jobs.logs(UUID(hex=row["id"])))
    numbers = [line.sequence for line in lines]
    if numbers != list(range(row["next_sequence"])):
        yield f"{row['next_sequence']} lines are numbered {numbers[:3]}...{numbers[-3:]}"
    if sides is not None:
        logged = b"".join(line.raw for line in lines if line.stream == "output")
        yield from _output(row, logged, witness.said(sides, UUID(hex=row["id"])), killed=killed)
        yield from _start(row, witness.starts(sides, UUID(hex=row["id"])), killed=killed)


def _output(row, logged, said, *, killed):
    """The log is what the witness says, or the beginning of it where its end was not seen."""
    if not said.startswith(logged):
        yield f"its log differs from what it said: {_difference(logged, said)}"
    missing = said[len(logged) :]
    # A command that is SIGKILLed between its two writes has said a piece to its witness alone.
    whole_log = row["reason"] == "exited" or (row["reason"] == "signaled" and not killed)
    if whole_log and missing:
        yield f"its log lacks {len(missing)} bytes: {missing[:100]!r}"
    if row["reason"] in _SEEN and missing.count(b"\n") > 1:
        yield f"its log lacks more than a line: {missing[:100]!r}"
    whole = said.removesuffix(witness.OPEN_END)
    if not witness.expected(whole.count(b"\n") + 1).startswith(whole):
        yield "its witness is no witness"


def _start(row, begun, *, killed):
    """It was started once or not at all, and ended by itself with the code that it was to."""
    if begun not in ([], [row["cookie"]]):
        yield f"started as {begun}, though its run is {row['cookie']}"
    if begun and (row["status"] == "QUEUED" or row["reason"] in _NOT_BEGUN):
        yield "it was started all the same"
    data = json.loads(row["data"]) if row["data"] else None
    if data and row["reason"] in ("exited", "signaled"):
        possible = [witness.ENDS.get(data["end"]), *([(137, "signaled")] * killed)]
        if (row["exit_code"], row["reason"]) not in possible:
            yield f"{row['exit_code']} is not what it ended with: {possible}"
        if not begun and not killed:
            yield "it was never started"


def _difference(logged, said):
    at = next((n for n, (a, b) in enumerate(zip(logged, said)) if a != b), len(said))  # noqa: B905
    return f"at byte {at}: {logged[at : at + 60]!r} is not {said[at : at + 60]!r}"


def _once(rows):
    """No run is that of two jobs."""
    tokens = [row["token"] for row in rows if row["token"]]
    return [] if len(tokens) == len(set(tokens)) else ["a token occurs twice"]


def _nobody_left(rows):
    """No process of a final job lives."""
    alive = living()
    return [
        f"job {row['number']} ({row['status']}, {row['reason']}): {alive[row['cookie']]} live"
        for row in rows
        if row["status"] in _FINAL and row["cookie"] in alive
    ]


def _no_strays(path, rows):
    """There is nothing beside the directories of jobs that are not final."""
    active = {row["id"] for row in rows if row["status"] not in _FINAL}
    names = set(os.listdir(path + ".jobs")) - {"store", "checkpoint"} - active
    return [f"{name} is still there" for name in sorted(names) if not _is_of_living_owner(name)]


def _is_of_living_owner(name):
    """Tell whether a file is the lock of a process that is still there; its name has the pid."""
    return name.startswith(".owner-") and os.path.exists(f"/proc/{name.split('.')[3]}")
