"""Hosts in which no job can run: whoever waits is told why, or the manager refuses at once."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import pytest

from jobcore import (
    CommandExecutor,
    DatabaseFull,
    JobManager,
    SpawnError,
    Status,
    StoreMismatch,
    WaitTimeout,
)
from jobcore.engine import launcher
from jobcore.supervisor.__main__ import main as supervise
from jobcore.testing import ManualClock
from jobcore.testing.parts import parts
from jobcore.tuning import PERSISTENT_SECONDS
from tests.processes import PATIENCE, ROOT, descriptors, until


def waits(jobs, job):
    """Return every way to wait, by name."""
    return {
        "wait": lambda: jobs.wait(job.id, PATIENCE),
        "follow": lambda: list(jobs.follow(job.id, timeout=PATIENCE)),
        "drain": lambda: jobs.drain(PATIENCE),
        "wait_async": lambda: asyncio.run(_awaited(jobs.wait_async(job.id, PATIENCE))),
        "follow_async": lambda: asyncio.run(_last(jobs.follow_async(job.id, timeout=PATIENCE))),
        "wait_all": lambda: jobs.wait_all([job.id], PATIENCE),
        "wait_all_async": lambda: asyncio.run(_awaited(jobs.wait_all_async([job.id], PATIENCE))),
        "drain_async": lambda: asyncio.run(_awaited(jobs.drain_async(PATIENCE))),
    }


async def _awaited(waiting):
    return await waiting


async def _last(lines):
    async for _ in lines:
        pass


def fails_three_times(jobs, key):
    """Wait until something has failed three times, which takes no time by the manual clock."""
    failures = parts(jobs).postponed._failures
    until(lambda: key in failures and failures[key].times >= 3, "three failures", 60)


def failing(jobs, key):
    """Wait until something has failed often enough, and let the time go by that it has to."""
    fails_three_times(jobs, key)
    parts(jobs).clock.advance(PERSISTENT_SECONDS)


# --- what fails for a while -----------------------------------------------------------------


@pytest.mark.usefixtures("quick_failures")
def test_waiters_get_the_error_of_a_failing_dispatcher(database, clock, monkeypatch):
    """Each way to wait raises a typed error with the cause; `check` shows it; it recovers."""
    with JobManager(database, slots=1, clock=clock) as jobs:
        monkeypatch.setattr(parts(jobs).dispatcher, "_round", lambda: 1 // 0)
        job = jobs.submit(["true"])
        failing(jobs, "round")
        for wait in waits(jobs, job).values():
            with pytest.raises(SpawnError, match="ZeroDivisionError"):
                wait()
        found = [one for one in jobs.check() if one.check == "this manager"]
        assert [one.verdict for one in found] == ["wrong"]
        assert "ZeroDivisionError" in found[0].detail

        monkeypatch.undo()
        assert jobs.wait(job.id, PATIENCE).status is Status.COMPLETE


def test_short_failure_is_not_raised_in_waiters(database, clock, monkeypatch):
    """A waiter does not get an error for three failures within a moment."""
    with JobManager(database, slots=1, clock=clock) as jobs:
        monkeypatch.setattr(parts(jobs).dispatcher, "_round", lambda: 1 // 0)
        job = jobs.submit(["true"])
        fails_three_times(jobs, "round")
        with pytest.raises(WaitTimeout):
            jobs.wait(job.id, 0.1)


@pytest.mark.usefixtures("quick_failures")
@pytest.mark.parametrize("error", [DatabaseFull("full"), OSError(errno.ENOSPC, "full")])
def test_full_disk_is_never_raised_in_waiters(database, clock, monkeypatch, error):
    """A database that is full, busy or read-only is waited for, as long as it takes."""

    def fail():
        raise error

    with JobManager(database, slots=1, clock=clock) as jobs:
        monkeypatch.setattr(parts(jobs).dispatcher, "_round", fail)
        job = jobs.submit(["true"])
        failing(jobs, "round")
        with pytest.raises(WaitTimeout):
            jobs.wait(job.id, 0.1)


@pytest.mark.usefixtures("quick_failures")
def test_job_of_another_managers_type_is_waited_for(database, clock, monkeypatch):
    """A waiter gets an error only if its own manager would have to run the job."""
    with JobManager(database, slots=1, clock=clock, executors={"X": CommandExecutor()}) as jobs:
        monkeypatch.setattr(parts(jobs).dispatcher, "_round", lambda: 1 // 0)
        job = jobs.submit(["true"])
        own = jobs.submit(["true"], type="X")
        failing(jobs, "round")
        with pytest.raises(WaitTimeout):
            jobs.wait(job.id, 0.1)
        with pytest.raises(SpawnError):
            jobs.wait(own.id, PATIENCE)


@pytest.mark.usefixtures("quick_failures")
def test_waiter_gets_the_error_of_an_unreadable_directory(database, clock):
    """The directory of a QUEUED job is unreadable: the error of its waiters says what to do."""
    with JobManager(database, slots=0) as before:
        job = before.submit(["true"])
    path = f"{database}.jobs/{job.id.hex}"
    os.mkdir(path)
    os.chmod(path, 0o755)
    with JobManager(database, slots=1, clock=clock) as jobs:
        failing(jobs, job.number)
        for wait in waits(jobs, job).values():
            with pytest.raises(StoreMismatch, match=r"mode 755: it has to be"):
                wait()
        os.chmod(path, 0o700)
        assert jobs.wait(job.id, PATIENCE).status is Status.COMPLETE


def test_waiter_gets_the_error_of_an_ended_jobs_unreadable_directory(clock, scripted, jobs):
    """Every manager's waiters get the error of an ended job whose files cannot be read."""
    one = scripted()
    one.started()
    one.die()
    os.chmod(one.path, 0o755)
    for _ in range(3):
        jobs.get_job(one.id)
    clock.advance(PERSISTENT_SECONDS)
    with pytest.raises(StoreMismatch):
        jobs.wait(one.id, PATIENCE)

    os.chmod(one.path, 0o700)
    assert jobs.get_job(one.id).status is Status.ERROR


# --- what must work -------------------------------------------------------------------------


class Forks:
    """A launcher that forks, in the thread and at the moment at which it is called."""

    def start(self, descriptor):
        pid = os.fork()
        if pid == 0:
            try:
                supervise(descriptor)
            finally:
                os._exit(1)
        return pid


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_launcher_that_forks_starts_supervisors(database):
    """The child keeps its end of the channel, and the parent goes on."""
    with JobManager(database, slots=2, launcher=Forks()) as jobs:
        made = jobs.submit_many([["echo", "x"]] * 4)
        assert {jobs.wait(job.id, PATIENCE).status for job in made} == {Status.COMPLETE}


def test_sockets_that_are_forbidden_keep_no_job_from_running(database, monkeypatch):
    """pytest-socket puts a class in the place of `socket.socket` that refuses to be made."""

    class Guarded(socket.socket):
        def __new__(cls, *_args, **_options):
            raise RuntimeError("a test tried to use a socket")

    monkeypatch.setattr(socket, "socket", Guarded)
    with JobManager(database, slots=1) as jobs:
        assert jobs.wait(jobs.submit(["true"]).id, PATIENCE).status is Status.COMPLETE


def test_debuggers_hook_does_not_reach_supervisors(database, monkeypatch):
    """pydevd is asked to leave the command line of a supervisor unchanged."""
    before = subprocess.Popen
    skipped = []

    class Skip:
        def __enter__(self):
            skipped.append(True)

        def __exit__(self, *_):
            skipped.pop()

    def popen(words, **options):
        return before(words if skipped else [words[0], "-c", "1"], **options)

    module = SimpleNamespace(skip_subprocess_arg_patch=Skip)
    monkeypatch.setitem(sys.modules, "_pydev_bundle.pydev_monkey", module)
    monkeypatch.setattr(subprocess, "Popen", popen)
    with JobManager(database, slots=1) as jobs:
        assert jobs.wait(jobs.submit(["true"]).id, PATIENCE).status is Status.COMPLETE


# --- what is refused at once ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("gevent.monkey", SimpleNamespace(is_module_patched=lambda name: name == "threading")),
        ("eventlet.patcher", SimpleNamespace(is_monkey_patched=lambda name: name == "thread")),
    ],
)
def test_replaced_threads_are_refused_at_once(database, monkeypatch, name, module):
    """In a process without real threads a manager with slots is refused; one without works."""
    monkeypatch.setitem(sys.modules, name, module)
    with pytest.raises(SpawnError, match=name.split(".")[0]):
        JobManager(database, slots=1)
    assert not os.path.exists(database)

    with JobManager(database, slots=0) as jobs:
        assert jobs.submit(["true"]).status is Status.QUEUED


def test_frozen_program_is_refused_at_once(database, monkeypatch):
    """A program that is its own `sys.executable` names an interpreter, or runs no jobs."""
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(SpawnError, match=r"frozen.*python="):
        JobManager(database, slots=1)
    with JobManager(database, slots=0) as jobs:
        jobs.submit(["true"])
    with JobManager(database, slots=1, python=sys.executable) as jobs:
        jobs.drain(PATIENCE)


def test_process_without_an_interpreter_is_refused_at_once(database, monkeypatch):
    """A program that embeds Python may have no `sys.executable`."""
    monkeypatch.setattr(sys, "executable", "")
    with pytest.raises(SpawnError, match="python="):
        JobManager(database, slots=1)


@pytest.mark.parametrize("program", ["/bin/true", "/bin/cat", "/bin/sh", "cat"])
def test_wrong_interpreter_is_reported_at_once(database, clock, program):
    """The first waiter hears of it: without three failures, and without ten seconds."""
    before = descriptors()
    with JobManager(database, slots=1, clock=clock, python=program) as jobs:
        job = jobs.submit(["true"])
        for wait in waits(jobs, job).values():
            with pytest.raises(SpawnError, match=r"not a Python interpreter.*python=") as caught:
                wait()
            assert caught.value.lasting
    assert descriptors() == before


def test_ordinary_interpreter_is_not_asked(database, monkeypatch):
    """The interpreter of this process itself is known to be one: no time is spent."""
    monkeypatch.setattr(launcher, "InterpreterCheck", pytest.fail)
    with JobManager(database, slots=1) as jobs:
        assert jobs.wait(jobs.submit(["true"]).id, PATIENCE).status is Status.COMPLETE


def test_program_that_starts_itself_stops_at_the_first(tmp_path):
    """A program that is its own `sys.executable` starts itself only once, with an error."""
    program, database = tmp_path / "program", tmp_path / "jobs.db"
    started = tmp_path / "started"
    program.write_text(
        f"#!{sys.executable}\n"
        + textwrap.dedent(
            f"""
            import sys
            sys.path.insert(0, {str(ROOT)!r})
            sys.executable = {str(program)!r}
            with open({str(started)!r}, "a") as file:
                file.write("x")
            from jobcore import JobManager, SpawnError
            with JobManager({str(database)!r}, slots=2) as jobs:
                job = jobs.submit(["true"])
                try:
                    jobs.wait(job.id, timeout=60)
                except SpawnError as error:
                    print(error)
            """
        )
    )
    program.chmod(0o755)
    # Two interpreters, one within the other, import everything.
    done = subprocess.run(
        [program], capture_output=True, text=True, timeout=3 * PATIENCE, check=False
    )

    assert "is not a Python interpreter" in done.stdout, done
    assert started.read_text() == "xx"


def test_persistent_failure_is_timed_by_the_managers_clock():
    """The seconds that a failure has to last are those of the manager's clock, too."""
    assert ManualClock().monotonic() >= PERSISTENT_SECONDS
