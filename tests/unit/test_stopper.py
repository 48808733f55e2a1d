"""Stopper: a stop request reaches its supervisor even if it cannot be stored or written."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from contextlib import closing

import pytest

from jobcore import (
    DatabaseBusy,
    DatabaseFull,
    InvalidTransition,
    JobManager,
    JobNotFound,
    Reason,
    Status,
)
from jobcore.storage import transitions
from jobcore.supervisor import job_directory
from jobcore.supervisor.stop_requests import StopRequests
from jobcore.testing.parts import parts
from tests.jobfiles import stored_run

#: The grace that is asked for, and what says so without a file.
GRACES = pytest.mark.parametrize(
    ("grace", "byte"),
    [(None, job_directory.STOP_NOW), (3, job_directory.STOP_NOW), (0, job_directory.KILL_NOW)],
)
OWN_GRACE = 7.0  # of the command, in seconds


@pytest.fixture
def asked(scripted):
    """Return a RUNNING job, and what reads the bytes on its FIFO."""
    run = scripted()
    run.started()
    with run.open() as directory:
        control = job_directory.open_control(directory)

    def sent():
        try:
            return os.read(control, 100)
        except BlockingIOError:
            return b""

    yield run, sent
    os.close(control)


def refuse(error):
    """Return what fails with `error`, whatever it is given."""

    def fail(*_, **__):
        raise error

    return fail


def request_of(run):
    """Return what the stop file asks of a supervisor that has read a byte."""
    with run.open() as directory, closing(StopRequests(directory, OWN_GRACE)) as stop_requests:
        stop = stop_requests.take()  # a request from before it listened counts, too
    return None if stop is None else (stop.grace, stop.words)


@GRACES
def test_stop_that_cannot_be_stored_raises_and_reaches_the_supervisor(
    jobs, asked, monkeypatch, grace, byte
):
    """On a full disk, the caller gets an error, and the supervisor the stop without a file."""
    run, sent = asked
    monkeypatch.setattr(transitions, "ask_stop_if_running", refuse(DatabaseFull("no space")))

    with pytest.raises(DatabaseFull):
        jobs.stop_job(run.id, grace=grace)

    assert sent() == byte
    assert "stop" not in run.files()
    assert run.row()["stop_requested"] is None
    run.exit(9, "stopped")
    run.die()
    job = jobs.get_job(run.id)
    assert (job.status, job.reason, job.signal) == (Status.STOPPED, Reason.STOPPED, 9)


@GRACES
def test_stop_that_cannot_be_written_reaches_the_supervisor(jobs, asked, monkeypatch, grace, byte):
    """On a full disk, the supervisor gets the stop; the file is written later."""
    run, sent = asked
    monkeypatch.setattr(job_directory, "write_record", refuse(OSError(errno.ENOSPC, "no space")))

    with pytest.raises(DatabaseFull, match=f"the stop request for job {run.id} cannot be written"):
        jobs.stop_job(run.id, grace=grace)

    assert sent() == byte
    assert "stop" not in run.files()
    assert run.row()["stop_requested"] is not None
    monkeypatch.undo()
    jobs.recover()
    assert set(sent()) == set(
        job_directory.READ_STOP
    )  # once for the request, and once when it is overdue
    said, words = request_of(run)
    assert said == (OWN_GRACE if grace is None else grace)
    assert words == f"stopping: asked by pid {os.getpid()}: stop"


def test_stop_of_a_just_ended_job_is_not_an_error(jobs, asked, monkeypatch):
    """A job that has ended meanwhile takes no request, and that is not an error."""
    run, sent = asked
    monkeypatch.setattr(job_directory, "write_record", refuse(FileNotFoundError()))
    job = jobs.stop_job(run.id)

    assert (job.status, job.stop_requested is None) == (Status.RUNNING, False)
    assert sent() == job_directory.READ_STOP


def test_stop_file_of_a_newer_jobcore_is_a_stop(jobs, asked, monkeypatch):
    """A stop file of a newer protocol stays unchanged, and still stops the job."""
    run, sent = asked
    jobs.stop_job(run.id, grace=1)
    with monkeypatch.context() as patch, run.open() as directory:
        patch.setattr(job_directory, "PROTOCOL_VERSION", job_directory.PROTOCOL_VERSION + 1)
        job_directory.write_record(directory, job_directory.STOP, {"grace_ms": 1, "beside": "more"})
    with open(f"{run.path}/stop", "rb") as file:
        before = file.read()
    sent()
    jobs.recover()

    assert sent() == job_directory.READ_STOP
    assert request_of(run) == (OWN_GRACE, "stopping: asked by a host")
    with open(f"{run.path}/stop", "rb") as file:
        assert file.read() == before


def test_byte_without_a_stop_file_stops_nothing(asked):
    """A byte whose stop file is not there, or torn, stops no job."""
    run, _ = asked
    before = request_of(run)
    with open(f"{run.path}/stop", "wb") as file:
        file.write(b"{}")

    assert (before, request_of(run)) == (None, None)


@pytest.mark.parametrize(
    ("sent", "written", "grace"),
    [
        (b"S", None, OWN_GRACE),
        (b"K", None, 0),
        (b"SK", None, 0),
        (b"S", 2000, 2),
        (b"S", 60_000, OWN_GRACE),
        (b"K", 2000, 0),
        (b"D", 60_000, 60),
    ],
)
def test_the_shortest_of_all_graces_that_were_asked_for_counts(asked, sent, written, grace):
    """Of the graces in messages and in the file, the shortest counts."""
    run, _ = asked
    names = {
        b"S": job_directory.STOP_NOW,
        b"K": job_directory.KILL_NOW,
        b"D": job_directory.READ_STOP,
    }
    with run.open() as directory, closing(StopRequests(directory, OWN_GRACE)) as stop_requests:
        assert stop_requests.take() is None
        if written is not None:
            job_directory.write_record(directory, job_directory.STOP, {"grace_ms": written})
        for byte in sent:
            job_directory.send_control(directory, names[bytes([byte])])
        stop_requests.listen()
        stop = stop_requests.take()
        assert stop_requests.take() is None

    assert stop.grace == grace


def test_closing_stops_the_others_if_one_job_cannot_be_reached(jobs, scripted, monkeypatch, caplog):
    """One job that cannot be stopped does not keep a closing manager from the others."""
    first, broken, last = made = [scripted() for _ in range(3)]
    for run in made:
        run.started()
    running = [stored_run(jobs, run) for run in made]
    shutil.rmtree(broken.path)
    os.symlink("/nowhere", broken.path)
    controls = []
    for run in (first, last):
        with run.open() as directory:
            controls.append(job_directory.open_control(directory))
    monkeypatch.setattr(transitions, "ask_stop_if_running", refuse(DatabaseBusy("held")))

    with caplog.at_level(logging.WARNING, "jobcore"):
        parts(jobs).stopper.stop_all(running)
    heard = [os.read(control, 100) for control in controls]
    for control in controls:
        os.close(control)
    os.unlink(broken.path)

    assert heard == [job_directory.STOP_NOW] * 2
    told = [record.getMessage() for record in caplog.records]
    assert [sum(words in one for one in told) for words in ("stop not stored", "not stopped")] == [
        3,
        1,
    ]


def test_closing_waits_for_the_lock_though_a_directory_is_broken(
    jobs, scripted, monkeypatch, caplog
):
    """A stop that was stored and cannot be delivered does not hurry the next ones."""
    broken, _ = made = [scripted() for _ in range(2)]
    for run in made:
        run.started()
    running = [stored_run(jobs, run) for run in made]
    shutil.rmtree(broken.path)
    os.symlink("/nowhere", broken.path)
    tried = []
    store = parts(jobs).stopper._store
    monkeypatch.setattr(
        parts(jobs).stopper, "_store", lambda *args: (tried.append(args[-1]), store(*args))[1]
    )

    with caplog.at_level(logging.WARNING, "jobcore"):
        parts(jobs).stopper.stop_all(running)
    os.unlink(broken.path)

    assert tried == [None, None]
    logged = [record.getMessage() for record in caplog.records]
    words = ("stop delayed", "stop not stored", "not stopped")
    assert [sum(one in message for message in logged) for one in words] == [1, 0, 0]
    assert all(stored_run(jobs, run).stop_requested for run in made)


def test_stop_of_a_deleted_job_raises_job_not_found(jobs, scripted, database):
    """If another manager has just deleted it, stop and cancel raise JobNotFound."""
    run = scripted()
    run.started()
    run.exit()
    run.die()
    before = stored_run(jobs, run)
    with JobManager(database, slots=0) as other:
        other.delete_job(run.id)

    for verb in (
        lambda: parts(jobs).stopper.stop(before, None, "stop"),
        lambda: parts(jobs).stopper.cancel(before),
    ):
        with pytest.raises(JobNotFound, match=str(run.id)):
            verb()


def test_cancel_of_a_just_ended_job_raises(jobs, scripted):
    """Between the look and the write it became final: that is what the error says."""
    run = scripted()
    before = stored_run(jobs, run)
    run.exit()
    run.die()
    assert jobs.get_job(run.id).status is Status.COMPLETE

    with pytest.raises(InvalidTransition, match="COMPLETE"):
        parts(jobs).stopper.cancel(before)
