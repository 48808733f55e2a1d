"""The write-ahead log under load: it stays small, and no commit is lost."""

from __future__ import annotations

import os
import sqlite3
import threading
from contextlib import closing
from itertools import pairwise

from jobcore import JobManager
from jobcore.testing.parts import parts
from jobcore.tuning import CHECKPOINT_BYTES
from tests.faults.invariants import check
from tests.faults.rounds import in_rounds
from tests.jobfiles import sql
from tests.processes import Child

#: Bytes beyond which a log is one that nobody has emptied.
LARGE = 64 * 2**20
#: What a writer appends at a time; by chance, or there would be little left of it in the file.
LINES = [os.urandom(400).hex().encode() + b"\n" for _ in range(100)]


def write(database, batches):
    """Append to a job of one's own, and return how many lines were acknowledged."""
    with JobManager(database, slots=0) as jobs:
        job = jobs.create_job("IMPORT")
        jobs.start_job(job.id)
        for _ in range(batches):
            jobs.append_log(job.id, *LINES)
        jobs.finish_job(job.id)
        return job.id, batches * len(LINES)


@in_rounds(smoke=1, full=40, long=True)
def test_eight_writers_and_every_checkpoint_lose_nothing(database, rounds, monkeypatch):
    """Checkpoints follow one another as fast as they can while eight processes write."""
    # The bug of SQLite before 3.51.3 needs two of them in quick succession.
    monkeypatch.setattr("jobcore.storage.checkpointer.CHECKPOINT_PAUSE", 0.0)
    monkeypatch.setattr("jobcore.storage.checkpointer.CHECKPOINT_BYTES", 1)
    with JobManager(database, slots=0) as jobs:
        for _ in rounds:
            children = [Child(write, database, 12, held=True) for _ in range(8)]
            for child in children:
                child.go()
            with closing(sqlite3.connect(database, timeout=60)) as connection:
                while not parts(jobs).database.checkpoint():
                    pass  # as often as it gives way to somebody
                assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            for job_id, count in [child.result() for child in children]:
                assert jobs.get_job(job_id).line_count == count
                assert [line.sequence for line in jobs.logs(job_id)] == list(range(count))
        check(jobs)


@in_rounds(smoke=120, full=4000)
def test_the_log_stays_small_beside_a_follower(database, rounds, monkeypatch):
    """Readers come and go batch by batch, so a checkpoint gets through again and again."""
    # How much is written in a second is nothing to this test.
    monkeypatch.setattr("jobcore.storage.checkpointer.CHECKPOINT_PAUSE", 0.0)
    sizes, read = [], []
    with JobManager(database, slots=0) as jobs:
        job = jobs.create_job("IMPORT")
        jobs.start_job(job.id)

        def follow():
            read.extend(line.sequence for line in jobs.follow(job.id, unfinished=False))

        follower = threading.Thread(target=follow)
        follower.start()
        for _ in rounds:
            jobs.append_log(job.id, *LINES)
            sizes.append(os.stat(database + "-wal").st_size)
        jobs.finish_job(job.id)
        follower.join(60)

        assert read == list(range(rounds.total * len(LINES)))
        assert sql(database, "PRAGMA integrity_check")[0][0] == "ok"
        assert max(sizes) < LARGE
        # It was emptied in between, as often as there was enough in it.
        emptied = sum(later < earlier for earlier, later in pairwise(sizes))
        written = rounds.total * sum(map(len, LINES)) // 2
        assert emptied > written // (4 * CHECKPOINT_BYTES)
