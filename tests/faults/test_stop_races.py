"""Races: a stop, a time-out and a command's own end at one moment have one winner, told by all."""

from __future__ import annotations

import os
import threading
import time

from jobcore import JobManager, JobNotRunning, Reason, Status
from jobcore.lifecycle import Trigger
from jobcore.supervisor import job_directory
from jobcore.testing.parts import parts
from tests.faults.invariants import check
from tests.faults.plans import place
from tests.faults.rounds import in_rounds
from tests.processes import join, until

#: Opens the FIFO, which tells that it runs, and ends with the code that comes through it.
ENDS_WHEN_TOLD = 'read code < "$1"; exit "$code"'
#: The same, but SIGTERM does not end it.
STUBBORN = f"trap '' TERM; {ENDS_WHEN_TOLD}"

#: A time-out from the start on, in seconds: enough to know by then that the command runs.
TIMEOUT = 0.03
#: How far apart the events of a race may be, either way, in seconds.
APART = 0.002
#: How long the first stop is taken to be under way, in seconds: a durable commit and a file
#: come before the byte on the FIFO. Without that lead it hardly ever takes part in the race. From
#: then on it is what the last one took, for that depends on how busy the machine is.
UNDER_WAY = 0.003

HALTED = {Reason.STOPPED: "stopping: ", Reason.TIMEOUT: "time-out after "}


class Race:
    """One job, and what happens to it at about the same moment."""

    def __init__(self, jobs, fifo, chance, under_way):
        self.jobs = jobs
        self.under_way = under_way  # seconds; of this one's own stop, once it has run
        self.code = chance.choice((0, 3))
        self.is_stopped = chance.random() < 0.7
        self.has_timeout = not self.is_stopped or chance.random() < 0.5
        self.refused = False
        script = chance.choice((ENDS_WHEN_TOLD, ENDS_WHEN_TOLD, STUBBORN))
        self.grace = chance.choice((0, 0.01, 5))
        os.mkfifo(fifo)
        self.job = jobs.submit(
            ["sh", "-c", script, "race", fifo],
            timeout=TIMEOUT if self.has_timeout else None,
            grace=self.grace,
        )
        self._way = until(lambda: self._open(fifo), "the command")
        ahead = TIMEOUT - APART if self.has_timeout else APART + under_way
        self._start = time.monotonic() + ahead
        self._tell_at = self._start + chance.uniform(-APART, APART)
        self._stop_at = self._start + chance.uniform(-APART, APART) - under_way

    def _open(self, fifo):
        """Return the writing end of the FIFO once the command has opened it or has ended."""
        try:
            return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            if self.jobs.get_job(self.job.id).status.final:
                return os.open(os.devnull, os.O_WRONLY)
            return None

    def run(self):
        """Let it happen, and return the job as it ended."""
        teller = threading.Thread(target=self._tell)
        teller.start()
        if self.is_stopped:
            _sleep_until(self._stop_at)
            called = time.monotonic()
            try:
                self.jobs.stop_job(self.job.id)
                self.under_way = time.monotonic() - called
            except JobNotRunning:
                self.refused = True
        join(teller)
        return self.jobs.wait(self.job.id, timeout=60)

    def _tell(self):
        _sleep_until(self._tell_at)
        try:
            os.write(self._way, b"%d\n" % self.code)
        except BrokenPipeError:
            pass  # it was killed
        os.close(self._way)

    def allows(self, job):
        """Tell whether this can be what came of it."""
        if job.reason is Reason.EXITED:
            status = Status.ERROR if self.code else Status.COMPLETE
            return (job.status, job.exit_code) == (status, self.code)
        possible = (job.reason is Reason.STOPPED and self.is_stopped and not self.refused) or (
            job.reason is Reason.TIMEOUT and self.has_timeout
        )
        # It may still have ended by itself, or have been killed for its stubbornness.
        return possible and job.status is Status.STOPPED and job.exit_code in (self.code, 143, 137)


def _sleep_until(moment):
    # The moment of an event, not a wait for one.
    time.sleep(max(0, moment - time.monotonic()))


@in_rounds(smoke=25, full=2000, long=True)
def test_stop_timeout_and_exit_at_one_moment_have_one_winner(
    tmp_path, rounds, fork_server, monkeypatch
):
    """Whatever comes first: row, exit record, log and history say the same, and it can be true."""
    records = {}
    read_exit = job_directory.read_exit

    def remember(directory, token):
        record = read_exit(directory, token)
        if record is not None:
            records[token] = record
        return record

    monkeypatch.setattr(job_directory, "read_exit", remember)
    winners, under_way = set(), UNDER_WAY
    for batch in rounds.batches(50):
        with (
            place(tmp_path, "races") as where,
            JobManager(where.database, slots=1, launcher=fork_server.launcher()) as jobs,
        ):
            for chance in batch:
                fifo = os.path.join(where.sides, str(rounds.number))
                race = Race(jobs, fifo, chance, under_way)
                job = race.run()
                under_way = race.under_way
                winners.add(job.reason)
                with parts(jobs).database.read() as connection:
                    query = "SELECT token, wait_status FROM job WHERE number = ?"
                    (row,) = connection.exec_driver_sql(query, (job.number,)).all()
                record = records.pop(row.token)
                words = [line.text for line in jobs.logs(job.id)]
                asked = [entry.trigger for entry in jobs.history(job.id)].count(Trigger.STOP)

                assert race.allows(job), job
                assert (record.reason, record.wait_status) == (job.reason, row.wait_status)
                assert asked == int(race.is_stopped and not race.refused)
                assert [word for word in words if not word.startswith("still alive")] == (
                    [] if job.reason is Reason.EXITED else words[:1]
                )
                assert not words or words[0].startswith(HALTED[job.reason])
            check(jobs)
    assert winners == {Reason.EXITED, *HALTED}
