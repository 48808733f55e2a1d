"""
Plans of the queue: a look takes steps for each group, however many jobs wait for something else.

The file has 50,000 queued jobs of a full group, 25,000 of a high priority that are not due,
1,000 groups, and 25,000 jobs each that are reserved by another process and in an open batch. To
go through any of these takes more steps than the bound.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest

from jobcore.storage.database import Database
from tests.unit.test_plans import FAR, NOW, PLACE, backlog, made_once, watched_copy

#: Steps that a statement may take that goes through 1,000 groups: 200 for each.
MOST = 200_000

#: How many jobs, and their columns; `i` is the number of the job.
QUEUED = [
    (50_000, {"group_name": "'full'", "priority": "5"}),
    (25_000, {"not_before": str(FAR), "priority": "i % 20 + 9"}),
    (25_000, {"owner": "'another process'", "priority": "9"}),
    (25_000, {"priority": "9"}),
    (20_000, {"group_name": "'paused'", "not_before": str(NOW - 1), "priority": "9"}),
    (1_000, {"group_name": "'group ' || i"}),
    (1_000, {"group_name": "'later ' || i", "not_before": str(NOW - 1)}),
    (1, {"name": "'last'", "priority": "-1"}),
]
BATCH = 100_001, 125_000
LAST = sum(count for count, _ in QUEUED)


@pytest.fixture(scope="session")
def crowd(tmp_path_factory):
    """Return the path of a file with these jobs; nothing may open it, only copy it."""
    return made_once(tmp_path_factory, "queue_plans", make_crowd)


def make_crowd(path):
    """Make the file; it is closed on return."""
    Database(path).close()
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("BEGIN")
        guards = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'")
        guards = guards.fetchall()
        for name, _ in guards:
            connection.execute(f"DROP TRIGGER {name}")
        connection.execute(
            "INSERT INTO workspace (id, name, is_default, created, last_modified) "
            "VALUES (?, 'default', 1, 1, 1)",
            (PLACE,),
        )
        number = 0
        for count, columns in QUEUED:
            connection.execute(
                "WITH RECURSIVE n(i) AS (SELECT ? UNION ALL SELECT i + 1 FROM n WHERE i < ?) "
                "INSERT INTO job (number, id, workspace_id, type, status, attempt, created, "
                "spool_offset, next_sequence, loose_sequence, loose_bytes, dropped, "
                f"{', '.join(columns)}) SELECT i, printf('%032x', i), '{PLACE}', 'TASK', 'QUEUED', "
                f"1, 1, 0, 0, 0, 0, 0, {', '.join(columns.values())} FROM n",
                (number + 1, number + count),
            )
            number += count
        # One job of the full group runs.
        connection.execute("UPDATE job SET status = 'RUNNING', start_time = 1 WHERE number = 1")
        connection.execute("INSERT INTO job_limit VALUES ('group', 'full', 1, NULL)")
        connection.execute("INSERT INTO job_limit VALUES ('group', 'paused', NULL, 1)")
        connection.execute(
            "INSERT INTO batch (first, last, owner) VALUES (?, ?, 'another process')", BATCH
        )
        for _, text in guards:
            connection.execute(text)
        connection.execute("COMMIT")


@pytest.fixture(scope="module", params=["as it is", "after ANALYZE"])
def watched(crowd, request, tmp_path_factory):
    """Return a manager of that file, and the counter of its statements."""
    folder = tmp_path_factory.mktemp("watched")
    with watched_copy(crowd, folder, analyzed=request.param == "after ANALYZE") as found:
        yield found


#: What is called in that file, by what it shows.
CALLS = {
    "a look": lambda jobs: backlog(jobs, "TASK").look(8, 8),
    "a look at an empty type": lambda jobs: backlog(jobs, "NONE").look(8, 8),
    "is it empty": lambda jobs: backlog(jobs, "TASK").is_empty(),
    "is it empty but for full limits": lambda jobs: backlog(jobs, "TASK").is_empty(counted=False),
    "are there paused jobs": lambda jobs: backlog(jobs, "TASK").has_paused(),
    "the next delayed job": lambda jobs: backlog(jobs, "TASK").next_due(),
    "what a job waits for": lambda jobs: jobs.get_job(f"{2:032x}"),
    "what jobs wait for": lambda jobs: jobs.list_jobs(),
    "limits": lambda jobs: jobs.limits(),
    "a limit of a group": lambda jobs: jobs.set_limit("full", 1),
    "a limit of a type": lambda jobs: jobs.set_limit(None, None, type="TASK"),
    "a limit of the file": lambda jobs: jobs.set_limit(None, None),
    "a pause": lambda jobs: jobs.pause("group 7"),
    "a resumption": lambda jobs: jobs.resume("group 7"),
    "a claim": lambda jobs: jobs.finish_job(jobs.claim_job("TASK").id),
}


@pytest.mark.parametrize("call", CALLS)
def test_no_statement_goes_through_jobs_that_wait(watched, call):
    jobs, counter = watched
    counter.steps.clear()
    CALLS[call](jobs)

    assert counter.steps != {}
    assert counter.excess(MOST) == {}


def test_look_finds_the_first_jobs_of_all(watched):
    """Of 2,000 groups, it returns the oldest jobs that may start."""
    jobs, _ = watched
    _, seen = backlog(jobs, "TASK").look(5000, 5000)
    numbers = [row.number for row, _ in seen]

    first = LAST - 2000
    assert numbers == [*(one for one in range(first, LAST) if jobs_queued(jobs, one)), LAST]


def jobs_queued(jobs, number):
    """Tell whether a job is still QUEUED: another test claims one."""
    return jobs.get_job(f"{number:032x}").status == "QUEUED"
