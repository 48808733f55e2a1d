"""Scale: many jobs and many lines leave nothing behind, and stay readable."""

from __future__ import annotations

import gc
import os
import resource
import sqlite3

from jobcore import JobManager, Status
from jobcore.storage import log_segments
from tests.faults.invariants import check
from tests.faults.rounds import in_rounds
from tests.jobfiles import sql
from tests.processes import carrying, children, descriptors, left_open, until


def own_objects():
    """Return how many objects of jobcore's own types there are."""
    gc.collect()
    kinds = (type(one).__module__ for one in gc.get_objects())
    return sum(kind.startswith("jobcore.") for kind in kinds if isinstance(kind, str))


@in_rounds(smoke=200, full=1000)
def test_many_jobs_leave_no_descriptor_thread_zombie_or_directory(database, rounds):
    """1,000 jobs in 4 slots all end COMPLETE and leave nothing open."""
    before = descriptors()
    objects = []
    with JobManager(database, slots=4) as jobs:
        for _ in range(2):
            jobs.submit_many([["true"]] * (rounds.total // 2))
            jobs.drain(timeout=120)
            objects.append(own_objects())
        counted = jobs.count_jobs()
        until(lambda: "Z" not in children().values(), "the reaping of all children")
        directories = [name for name in os.listdir(database + ".jobs") if len(name) == 32]
        tokens = {(job.exit_code, job.reason) for job in jobs.list_jobs(limit=1000)}
        check(jobs)
    rounds.did(rounds.total)
    connection = sqlite3.connect(database)
    problems = [
        connection.execute("PRAGMA integrity_check").fetchall(),
        connection.execute("PRAGMA foreign_key_check").fetchall(),
        connection.execute(
            "SELECT job FROM transition GROUP BY job HAVING count(*) <> 3"
        ).fetchall(),
        connection.execute("SELECT token FROM job GROUP BY token HAVING count(*) > 1").fetchall(),
    ]
    cookies = [cookie for (cookie,) in connection.execute("SELECT cookie FROM job")]
    connection.close()

    assert counted[Status.COMPLETE] == rounds.total
    assert tokens == {(0, "exited")}
    assert directories == []
    assert problems == [[("ok",)], [], [], []]
    assert not any(carrying(cookie) for cookie in cookies[::100])
    assert left_open(before) == {}
    assert objects[1] - objects[0] < rounds.total // 8, "each job leaves something in memory"


def test_a_million_lines_are_readable_by_number_and_cost_no_memory(database):
    """`seq 1000000` is stored line by line; the host's memory stays flat; any line is at hand."""
    with JobManager(database, slots=1) as jobs:
        jobs.wait(jobs.submit(["true"]).id, timeout=60)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB
        job = jobs.wait(jobs.submit(["seq", "1000000"]).id, timeout=120)
        last = [line.text for line in jobs.logs(job.id, 999_990)]
        count = 0
        for line in jobs.logs(job.id):
            count += 1
            assert line.sequence == count - 1
            if count % 50_000 == 0:
                assert line.text == str(count)
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        tail = [line.text for line in jobs.tail(job.id, 3)]

    assert (job.status, job.line_count, count) == (Status.COMPLETE, 1_000_000, 1_000_000)
    assert last == [str(n) for n in range(999_991, 1_000_001)]
    assert tail == ["999998", "999999", "1000000"]
    assert after - before < 64 * 1024


def test_reading_near_the_end_touches_one_segment(database, statements, monkeypatch):
    """A read from line 299,990 decompresses the segments from there on, not those before."""
    unpack, unpacked = log_segments.unpack, set()

    def noted(row):
        unpacked.add(row.first_sequence)
        return unpack(row)

    with JobManager(database, slots=1) as jobs:
        job = jobs.wait(jobs.submit(["seq", "300000"]).id, timeout=120)
        monkeypatch.setattr(log_segments, "unpack", noted)
        statements.clear()
        last = [line.text for line in jobs.logs(job.id, 299_990)]
        asked = [text for text in statements if "log_segment" in text]
        plan = [
            step for text in asked for (*_, step) in sql(database, f"EXPLAIN QUERY PLAN {text}")
        ]
        segments = sql(database, "SELECT first_sequence, line_count FROM log_segment ORDER BY 1")
    from_there = {first for first, count in segments if first + count > 299_990}

    assert len(segments) > 5
    assert unpacked == from_there
    assert len(from_there) == 1
    assert last == [str(n) for n in range(299_991, 300_001)]
    assert plan
    for step in plan:
        assert "SUBQUERY" in step or ("SEARCH" in step and "AND first_sequence" in step), plan
