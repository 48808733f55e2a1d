"""Escapes: whatever a command does to leave something behind, a stop leaves nothing."""

from __future__ import annotations

import pytest

from jobcore import JobManager, Reason, Status
from jobcore.testing.parts import parts
from tests.faults.escapes import NAMES, escape, marked
from tests.faults.invariants import check
from tests.faults.plans import place
from tests.faults.rounds import in_rounds

pytestmark = pytest.mark.usefixtures("warm_supervisors")

GRACE = 0.3  # seconds


@in_rounds(smoke=len(NAMES), full=25 * len(NAMES))
def test_nothing_escapes_a_stop(tmp_path, rounds, fork_server):
    """Daemons, fork loops, subreapers and the like: all are dead when the job is final."""
    for batch in rounds.batches(len(NAMES)):
        with (
            place(tmp_path, "escapes") as where,
            JobManager(where.database, slots=6, launcher=fork_server.launcher()) as jobs,
        ):
            marks = {
                name: str(chance.randrange(10**15, 10**16))
                for name, chance in zip(NAMES, batch, strict=False)
            }
            submitted = {
                name: jobs.submit(escape(name, mark), grace=GRACE) for name, mark in marks.items()
            }
            for name, job in submitted.items():
                assert next(jobs.follow(job.id, timeout=60)).text == "ready", name
                assert marked(marks[name]), name
                jobs.stop_job(job.id)
            for name, submitted_one in submitted.items():
                job = jobs.wait(submitted_one.id, timeout=60)
                with parts(jobs).database.read() as connection:
                    query = "SELECT unreaped FROM job WHERE number = ?"
                    unreaped = connection.exec_driver_sql(query, (job.number,)).scalar()

                assert marked(marks[name]) == {}, name
                assert (job.status, job.reason) == (Status.STOPPED, Reason.STOPPED), name
                assert (job.exit_code, job.signal, unreaped) == (137, 9, None), name
                # A minimum; how much longer it takes is the machine's affair.
                assert (job.end_time - job.stop_requested).total_seconds() >= GRACE, name
            check(jobs)
