"""Files of running jobs that something else removes: nothing false is said, nothing is killed."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal

import pytest

from jobcore import JobManager, Status
from jobcore.supervisor import job_directory
from tests.jobfiles import cookie_of, log_of
from tests.processes import carrying, open_gate, until


class Waiting:
    """A job whose command says `begun`, waits for the test, says `more` and exits with 3."""

    def __init__(self, jobs, database, tmp_path):
        self.gate = str(tmp_path / "gate")
        os.mkfifo(self.gate)
        self.done = tmp_path / "done"
        self.id = jobs.submit(
            [
                "sh",
                "-c",
                f"echo begun; read line < {self.gate}; echo more; touch {self.done}; exit 3",
            ]
        ).id
        until(lambda: jobs.get_job(self.id).line_count, "the first line")
        self.root = database + ".jobs"
        self.path = os.path.join(self.root, self.id.hex)

    def go_on(self):
        """Let the command go on."""
        open_gate(self.gate)


@pytest.fixture
def running(database, tmp_path):
    """Return a manager, and a job in the middle of its command."""
    with JobManager(database, slots=1) as jobs:
        job = Waiting(jobs, database, tmp_path)
        yield jobs, job
        for pid in carrying(f"JOBCORE_RUN={cookie_of(database, job.id)}"):
            os.kill(pid, signal.SIGKILL)


def test_last_line_of_a_job_with_a_replaced_directory_claims_nothing_unknown(running):
    """A copy of the directory has no record of the end, which the supervisor may have written."""
    jobs, job = running
    os.rename(job.path, job.path + ".moved")
    shutil.copytree(job.path + ".moved", job.path, ignore=shutil.ignore_patterns("ctl", "slot"))
    job.go_on()
    ended = jobs.wait(job.id, 30)
    shutil.rmtree(job.path + ".moved")

    assert ended.reason == "lost"
    assert log_of(jobs, job.id)[-1][2] == (
        b"lost: its directory was replaced, and does not say how the command ended\n"
    )


SWEPT = ("lock", "run", "ctl", "spool", "all")


@pytest.mark.parametrize("swept", SWEPT)
def test_job_whose_files_are_swept_has_its_true_end(running, swept):
    """A cleaner takes files of a running job: it stays RUNNING, and its end and output are kept."""
    jobs, job = running
    for name in os.listdir(job.path):
        if swept == "all" or name.startswith(swept):
            os.unlink(f"{job.path}/{name}")
    settled = jobs.recover()
    during = jobs.get_job(job.id)
    job.go_on()
    ended = jobs.wait(job.id, 30)

    assert (settled, during.status) == ([], Status.RUNNING)
    assert (ended.status, ended.exit_code, ended.reason) == (Status.ERROR, 3, "exited")
    assert [raw for _, _, raw in log_of(jobs, job.id)] == [b"begun\n", b"more\n"]
    assert job.done.exists()
    until(lambda: not os.path.exists(job.path), "the directory to be removed")


def test_job_whose_directory_is_swept_has_its_true_end(running):
    """The job's own directory is removed: the supervisor makes it again for output and end."""
    jobs, job = running
    shutil.rmtree(job.path, ignore_errors=True)
    settled = jobs.recover()
    during = jobs.get_job(job.id)
    job.go_on()
    ended = jobs.wait(job.id, 30)

    assert (settled, during.status) == ([], Status.RUNNING)
    assert (ended.status, ended.exit_code, ended.reason) == (Status.ERROR, 3, "exited")
    assert [raw for _, _, raw in log_of(jobs, job.id)] == [b"begun\n", b"more\n"]
    assert job.done.exists()


@pytest.mark.usefixtures("quick_upkeep")
def test_a_stop_reaches_a_job_whose_files_were_swept(running):
    """The supervisor makes its FIFO again, and reads the stop that was requested before."""
    jobs, job = running
    shutil.rmtree(job.path, ignore_errors=True)
    until(lambda: os.path.exists(f"{job.path}/ctl"), "the files that are made again")
    jobs.stop_job(job.id)
    ended = jobs.wait(job.id, 30)

    assert (ended.status, ended.reason) == (Status.STOPPED, "stopped")
    assert not job.done.exists()


def test_a_job_whose_directory_was_renamed_is_lost_at_its_end_and_not_before(running):
    """A job stays RUNNING while its supervisor lives, wherever its files are."""
    jobs, job = running
    os.rename(job.path, job.path + ".moved")
    during = jobs.recover(), jobs.get_job(job.id).status
    job.go_on()
    ended = jobs.wait(job.id, 30)
    shutil.rmtree(job.path + ".moved")

    assert during == ([], Status.RUNNING)
    assert (ended.status, ended.reason) == (Status.ERROR, "lost")
    assert job.done.exists()


def test_running_files_are_held_against_cleaners(running):
    """A cleaner such as systemd-tmpfiles cannot get a BSD lock on the directory."""
    _, job = running
    for path in (job.root, job.path):
        directory = os.open(path, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(directory)


def test_a_run_record_that_was_swept_does_not_prove_that_nothing_started(running, database):
    """Host and supervisor die, and a cleaner took `run`: the job is lost, its command killed."""
    jobs, job = running
    cookie = cookie_of(database, job.id)
    directory = os.open(job.path, os.O_RDONLY)
    supervisor = job_directory.read_record(directory, job_directory.RUN)["supervisor"]
    os.close(directory)
    os.unlink(f"{job.path}/run")
    with open(f"{job.path}/lock", "rb") as lock:
        assert lock.read() == b"%d\n" % os.fstat(lock.fileno()).st_ino
    os.kill(supervisor, signal.SIGKILL)
    ended = jobs.wait(job.id, 30)

    assert (ended.status, ended.reason) == (Status.ERROR, "lost")
    assert carrying(f"JOBCORE_RUN={cookie}") == []
    assert not job.done.exists()
