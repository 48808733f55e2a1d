"""One job whose directory, files or row cannot be read: all others go on, and it is told."""

from __future__ import annotations

import errno
import os
import re
import signal
import socket
from datetime import datetime, timezone

import pytest

from jobcore import JobManager, Reason, Status, StoreError
from jobcore.clock import from_datetime
from jobcore.engine import orphans
from jobcore.engine.recovery import Recovery
from jobcore.supervisor import job_directory
from jobcore.testing.parts import parts
from tests.faults.test_supervisor_killed import supervisor_of
from tests.jobfiles import UNDECODABLE, cookie_of, damage_rows, row_of, sql
from tests.processes import PATIENCE, carrying, stop, until

pytestmark = pytest.mark.usefixtures("warm_supervisors")

NAMES = ("lock", "exit", "run", "spool.0", "ctl", "stop", "result")
#: Times that are long over, for schedules that are due.
LONG_AGO = from_datetime(datetime(2023, 11, 14, tzinfo=timezone.utc))


def a_socket(path):
    # Its own name, as that of a socket is short, and a rename to the wanted one.
    before = os.getcwd()
    os.chdir(os.path.dirname(path))
    try:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(os.path.basename(path))
    finally:
        os.chdir(before)


def a_directory(path):
    os.makedirs(path + "/in/it")


STRANGE = {
    "a directory": a_directory,
    "a FIFO": os.mkfifo,
    "a link": lambda path: os.symlink("/etc/passwd", path),
    "a link to nothing": lambda path: os.symlink("nothing", path),
    "a socket": a_socket,
}
#: Files that are no more than damaged.
DAMAGED = {
    "an empty file": lambda path: open(path, "w").close(),
    "an unreadable file": lambda path: os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0)),
}


def replace(path, kind):
    """Put something strange where a file of a job is, or should be; return what undoes it."""
    kept = path + ".kept"
    if os.path.lexists(path):
        os.rename(path, kept)
    {**STRANGE, **DAMAGED}[kind](path)
    placed = os.lstat(path)

    def undo():
        if not os.path.lexists(path) or not os.path.samestat(os.lstat(path), placed):
            return  # jobcore has put it aside, or removed it with its directory
        if kind == "a directory":
            os.removedirs(path + "/in/it")
        else:
            os.unlink(path)
        if os.path.lexists(kept):
            os.rename(kept, path)

    return undo


def ends(jobs, job):
    """Tell whether it is over, without a look at its directory."""
    return row_of(parts(jobs).database.path, job.id)["end_time"] is not None


@pytest.fixture
def due(jobs):
    """Return a pipeline whose schedule is due at once, in the manager that looks."""
    made = jobs.create_pipeline("due", ["true"], schedule="0 0 1 1 *")

    def make_due():
        now = parts(jobs).clock.now() - 1_000_000
        sql(
            parts(jobs).database.path,
            "UPDATE pipeline SET next_tick = ? WHERE id = ?",
            now,
            made.id.hex,
        )
        return made

    return make_due


def all_goes_on(database, clock, jobs, adopted, due):
    """Run a manager with slots: a new job, one whose host is gone, and a schedule come to pass."""
    pipeline = due()
    good = jobs.submit(["echo", "good"])
    with JobManager(database, slots=2, clock=clock) as runs:
        until(lambda: ends(jobs, good), "the end of another job")
        until(lambda: ends(jobs, adopted), "the end of an adopted job")
        until(lambda: jobs.list_jobs(pipeline_id=pipeline.id), "a scheduled job")
        runs.wait(jobs.list_jobs(pipeline_id=pipeline.id)[0].id, PATIENCE)
    assert row_of(database, good.id)["status"] == "COMPLETE"
    assert row_of(database, adopted.id)["status"] == "COMPLETE"


def an_ended_one(scripted):
    """Return a job that has ended, and that no host has settled."""
    one = scripted()
    one.started()
    one.write(b"a line\n")
    one.exit()
    one.die()
    return one


@pytest.fixture
def adopted(scripted):
    return an_ended_one(scripted)


def test_unforeseen_error_concerns_its_own_job(database, clock, jobs, scripted, due, monkeypatch):
    """Even a bug of jobcore with one job does not keep other jobs from ending."""
    bad, adopted, reconcile = an_ended_one(scripted), an_ended_one(scripted), Recovery.reconcile

    def fail(self, run, **options):
        if run.name == bad.id.hex:
            raise RuntimeError("a defect")
        return reconcile(self, run, **options)

    monkeypatch.setattr(Recovery, "reconcile", fail)
    all_goes_on(database, clock, jobs, adopted, due)

    assert not ends(jobs, bad)


def test_directory_with_another_mode_concerns_its_own_job(
    database, clock, jobs, scripted, adopted, due, caplog
):
    """After `chmod -R` on the directories of some jobs, the others run; a log event says so."""
    modes = (0o755, 0o750, 0o500, 0o000, 0o4700)
    bad = [an_ended_one(scripted) for _ in modes]
    for one, mode in zip(bad, modes, strict=True):
        os.chmod(one.path, mode)

    all_goes_on(database, clock, jobs, adopted, due)
    jobs.recover()  # that manager may have been closed before it had looked at all
    told = set(re.findall(r"event='job postponed' job='([0-9a-f-]+)'", caplog.text))

    for one in bad:
        if not one.gone():
            os.chmod(one.path, 0o700)
        assert jobs.wait(one.id, PATIENCE).status is Status.COMPLETE
    assert len(told) == (2 if os.geteuid() == 0 else 4)


@pytest.mark.parametrize("kind", STRANGE)
def test_irregular_files_affect_only_their_own_jobs(
    database, clock, jobs, scripted, adopted, due, kind
):
    """Jobcore neither waits for nor trusts irregular files; without them, it settles the job."""
    bad = {name: an_ended_one(scripted) for name in NAMES}
    undo = [replace(f"{one.path}/{name}", kind) for name, one in bad.items()]

    all_goes_on(database, clock, jobs, adopted, due)
    for one in undo:
        one()

    assert {jobs.wait(one.id, PATIENCE).status for one in bad.values()} == {Status.COMPLETE}
    jobs.recover()
    assert [name for name, one in bad.items() if not one.gone()] == []


@pytest.mark.parametrize("kind", STRANGE)
def test_irregular_files_of_dead_jobs_affect_only_those_jobs(
    database, clock, jobs, scripted, adopted, due, kind
):
    """A dead job whose files cannot be read is resolved once they can be, and not by guessing."""
    bad = {name: scripted() for name in NAMES}
    for one in bad.values():
        one.started()
        one.write(b"a line\n")
    undo = [replace(f"{one.path}/{name}", kind) for name, one in bad.items()]
    for one in bad.values():
        one.die()

    all_goes_on(database, clock, jobs, adopted, due)
    for one in undo:
        one()

    for one in bad.values():
        assert str(jobs.wait(one.id, PATIENCE).reason) == "lost"
    jobs.recover()
    assert [name for name, one in bad.items() if not one.gone()] == []


@pytest.mark.parametrize("kind", STRANGE)
def test_irregular_files_of_starting_jobs_affect_only_those_jobs(
    database, clock, jobs, adopted, due, kind
):
    """A QUEUED job with an irregular file in its directory keeps no other from starting."""
    bad, undo = [], []
    for name in NAMES:
        job = jobs.submit(["true"])
        path = f"{database}.jobs/{job.id.hex}"
        os.mkdir(path, 0o700)
        undo.append(replace(f"{path}/{name}", kind))
        bad.append(job)

    all_goes_on(database, clock, jobs, adopted, due)
    for one in undo:
        one()

    with JobManager(database, slots=1, clock=clock) as runs:
        for job in bad:
            runs.wait(job.id, PATIENCE)
    jobs.recover()
    assert [job for job in bad if os.path.exists(f"{database}.jobs/{job.id.hex}")] == []


def start_all(jobs, kinds, **options):
    """Return running jobs, by a kind each, that have said a line and sleep."""
    script = "echo up; exec sleep 300"
    running = {kind: jobs.submit(["sh", "-c", script], grace=0.1, **options) for kind in kinds}
    for job in running.values():
        until(lambda job=job: list(jobs.logs(job.id)), "its first line")
    return running


@pytest.mark.parametrize("names", [("ctl",), ("stop",), ("stop", "ctl"), ("exit", "stop")])
@pytest.mark.usefixtures("quick_upkeep")
def test_stop_holds_whatever_has_the_name_of_its_files(database, names):
    """The supervisor makes its FIFO again, and finds the request that was written meanwhile."""
    strange = {**STRANGE, "a file": lambda path: open(path, "w").close()}
    with JobManager(database, slots=len(strange)) as jobs:
        running = start_all(jobs, strange)
        supervisors = [supervisor_of(database, job.id)[0] for job in running.values()]
        for pid in supervisors:
            stop(pid)  # so that it makes nothing again before there is the request
        for kind, job in running.items():
            for name in names:
                path = f"{database}.jobs/{job.id.hex}/{name}"
                if name == "ctl":
                    os.unlink(path)
                strange[kind](path)
        for job in running.values():
            jobs.stop_job(job.id)
        for pid in supervisors:
            os.kill(pid, signal.SIGCONT)
        ended = {kind: jobs.wait(job.id, PATIENCE) for kind, job in running.items()}

    assert {str(job.reason) for job in ended.values()} == {"stopped"}


def test_stop_holds_where_no_file_of_it_can_be_written(running_jobs, monkeypatch):
    """Neither `stop` nor the FIFO: the supervisor is found by its lock, and gets SIGTERM."""

    def refuse(*_args, **_options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    (job,) = start_all(running_jobs, [None]).values()
    monkeypatch.setattr(job_directory, "write_record", refuse)
    monkeypatch.setattr(job_directory, "send_control", refuse)
    with pytest.raises(StoreError, match="the stop request for job"):
        running_jobs.stop_job(job.id)
    job = running_jobs.wait(job.id, PATIENCE)

    assert (job.status, str(job.reason)) == (Status.STOPPED, "shutdown")


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENOENT], ids=errno.errorcode.get)
@pytest.mark.parametrize("grace", [None, 0.5])
def test_stop_reaches_its_job_while_its_directory_cannot_be_opened(
    database, running_jobs, monkeypatch, number, grace
):
    """The stop is stored, its supervisor gets SIGTERM, and the error says both."""
    (job,) = start_all(running_jobs, [None]).values()
    cookie = cookie_of(database, job.id)
    real = job_directory.open_directory

    def refuse(name, **options):
        if name == job.id.hex:
            raise OSError(number, os.strerror(number))
        return real(name, **options)

    with monkeypatch.context() as patch:
        patch.setattr(job_directory, "open_directory", refuse)
        if number == errno.ENOENT:  # a tool has removed it, or the job has just ended
            running_jobs.stop_job(job.id, grace=grace)
        else:
            with pytest.raises(StoreError, match="is stored, and its supervisor got SIGTERM"):
                running_jobs.stop_job(job.id, grace=grace)
        until(lambda: not carrying(cookie), "the end of the command")
    job = running_jobs.wait(job.id, PATIENCE)

    # If this manager hears of the end while the directory is missing, that is all it can say.
    reasons = {"shutdown", "lost"} if number == errno.ENOENT else {"shutdown"}
    assert job.status is Status.STOPPED
    assert str(job.reason) in reasons


def test_error_of_an_undelivered_stop_says_what_happens_next(running_jobs, monkeypatch):
    """It is stored, and is delivered once the directory can be read again."""
    (job,) = start_all(running_jobs, [None]).values()
    real = job_directory.open_directory

    def refuse(name, **options):
        if name == job.id.hex:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(name, **options)

    with monkeypatch.context() as patch:
        patch.setattr(job_directory, "open_directory", refuse)
        patch.setattr(orphans, "signal_all", lambda *_: [])
        with pytest.raises(StoreError, match=r"is stored; a manager .* delivers it as soon as"):
            running_jobs.stop_job(job.id)
    job = running_jobs.wait(job.id, PATIENCE)

    assert (job.status, job.reason) == (Status.STOPPED, Reason.STOPPED)


def test_time_out_holds_whatever_has_the_name_of_a_file(database):
    """A supervisor that lives ends its job, and its verdict replaces what has its name."""
    places = [(name, kind) for name in NAMES for kind in STRANGE]
    running, cookies, undo = {}, [], []
    with JobManager(database, slots=len(places)) as jobs:
        for name, kind in places:  # one by one, so that none is over before it has its file
            running |= start_all(jobs, [(name, kind)], timeout=4)
            job = running[name, kind]
            cookies.append(cookie_of(database, job.id))
            undo.append(replace(f"{database}.jobs/{job.id.hex}/{name}", kind))
        until(lambda: not carrying(*cookies), "the end of all commands")
        for one in undo:
            one()
        ended = {place: jobs.wait(job.id, PATIENCE) for place, job in running.items()}

    wrong = {place: str(job.reason) for place, job in ended.items() if job.reason != "timeout"}
    assert wrong == {}


def test_job_starts_whatever_has_the_name_of_the_fifo(database):
    """Its supervisor puts that aside before it listens."""
    with JobManager(database, slots=0) as jobs:
        made = {kind: jobs.submit(["true"]) for kind in STRANGE}
    for kind, job in made.items():
        os.mkdir(f"{database}.jobs/{job.id.hex}", 0o700)
        STRANGE[kind](f"{database}.jobs/{job.id.hex}/ctl")
    with JobManager(database, slots=1) as jobs:
        ended = {kind: jobs.wait(job.id, PATIENCE).status for kind, job in made.items()}

    assert ended == dict.fromkeys(STRANGE, Status.COMPLETE)


#: What no jobcore has ever stored.
GARBAGE = {
    "bytes": b"\x00\xff",
    "text": "garbage {",
    "a negative number": -(2**63),
    "a large number": 2**63 - 1,
    "a fraction": 1e308,
    "nothing": None,
    "text that is not UTF-8": UNDECODABLE,
}


def columns_of(database, table):
    """Return the columns of a table that a row cannot be found by, and whether each must be set."""
    rows = sql(database, f"PRAGMA table_info({table})")
    return {row["name"]: row["notnull"] for row in rows if row["name"] not in ("number", "id")}


def spoiled(database, table, kinds=tuple(GARBAGE)):
    """Return each column with each garbage that its definition lets in."""
    return [
        (column, GARBAGE[what])
        for column, must_be_set in columns_of(database, table).items()
        for what in kinds
        if what != "nothing" or not must_be_set
    ]


@pytest.mark.parametrize("what", GARBAGE)
@pytest.mark.parametrize("state", ["queued", "running"])
def test_damaged_row_of_a_job_concerns_it_alone(
    database, clock, jobs, scripted, adopted, due, state, what
):
    """Garbage in any column of one job affects no other job, schedule or adoption."""
    damaged = []
    for column, value in spoiled(database, "job", [what]):
        if state == "queued":
            job = jobs.submit(["true"], pipeline_id=jobs.create_pipeline(column, ["true"]).id)
        else:
            job = an_ended_one(scripted)
        damaged.append((job.id, column, value))
    damage_rows(database, "job", damaged)

    all_goes_on(database, clock, jobs, adopted, due)


def test_damaged_row_of_a_claimed_job_keeps_no_other_from_running(database):
    """The manager that runs the jobs deletes them, and runs the next one."""
    columns = ("token", "cookie", "boot_id", "directory_id", "owner", "type")
    with JobManager(database, slots=len(columns)) as jobs:
        damaged = [(jobs.submit(["sleep", "300"]).id, column, b"\x00\xff") for column in columns]
        for job_id, _, _ in damaged:
            jobs.wait(job_id, PATIENCE, until="started")
        damage_rows(database, "job", damaged)
        jobs.recover()
        for job_id, _, _ in damaged:
            jobs.delete_job(job_id)
        ended = jobs.wait(jobs.submit(["true"]).id, PATIENCE)

        assert ended.status is Status.COMPLETE
        assert jobs.list_jobs() == [ended]


def test_damaged_row_of_a_pipeline_concerns_it_alone(database, clock, jobs, adopted, due):
    """Garbage in any column of a pipeline stops no other schedule, job or adoption."""
    damaged = []
    for number, (column, value) in enumerate(spoiled(database, "pipeline")):
        name = f"{column} {number}"
        pipeline = jobs.create_pipeline(name, ["true"], schedule="0 0 1 1 *")
        jobs.create_job(pipeline_id=pipeline.id)
        damaged.append((pipeline.id, column, value))
    sql(database, "UPDATE pipeline SET next_tick = ? WHERE name != 'due'", LONG_AGO)
    damage_rows(database, "pipeline", damaged)

    all_goes_on(database, clock, jobs, adopted, due)


#: A command whose child the kernel does not kill together with the supervisor.
LEAVES_A_CHILD = "sleep 300 & echo up; exec sleep 300"


@pytest.mark.parametrize("name", NAMES)
def test_leftovers_are_killed_though_no_verdict_can_be_given(database, name):
    """Whatever files a dead supervisor has left, its leftover processes are killed."""
    kinds = [*STRANGE, *DAMAGED]
    with JobManager(database, slots=len(kinds)) as jobs:
        running = {kind: jobs.submit(["sh", "-c", LEAVES_A_CHILD]) for kind in kinds}
        undo, cookies = [], []
        for kind, job in running.items():
            until(lambda job=job: list(jobs.logs(job.id)), "its first line")
            supervisor, cookie = supervisor_of(database, job.id)
            cookies.append(cookie)
            undo.append(replace(f"{database}.jobs/{job.id.hex}/{name}", kind))
            os.kill(supervisor, signal.SIGKILL)
        until(lambda: not carrying(*cookies), "the end of what is left")
        for one in undo:
            one()
        ended = {kind: jobs.wait(job.id, PATIENCE) for kind, job in running.items()}

    assert {str(job.reason) for job in ended.values()} == {"lost"}
