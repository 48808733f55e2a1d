"""No descriptor is free: what cannot be read now is not taken for something that is not there."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from jobcore import Status, StoreError
from jobcore.engine import orphans, procfs, supervisor_pool
from jobcore.engine.supervisor_pool import SupervisorPool
from jobcore.lifecycle import Reason
from jobcore.storage import schema, wal_file
from jobcore.supervisor import (
    job_directory,
    pids,
    process_tree,
    stop_requests,
    system_calls,
    termination,
    values,
)
from jobcore.testing.parts import parts
from tests.jobfiles import stored_run
from tests.processes import descriptors, until

SHORTAGE = pytest.raises(OSError, match="Too many open files")


@contextmanager
def no_descriptors():
    """Let this process open nothing in a block."""
    free = os.open("/", os.O_RDONLY)
    os.close(free)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def refuse(*_args, **_options):
    """Fail as a call does that gets no descriptor."""
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


@pytest.fixture
def sleeper():
    """Return a process that leads a group of its own."""
    process = subprocess.Popen(["sleep", "300"], start_new_session=True)
    yield process
    process.kill()
    process.wait()


# --- /proc ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ask",
    [
        pids.level,
        lambda: pids.translate(os.getpid(), 2),
        lambda: pids.ProcessHandle(os.getpid()),
        process_tree.children,
        process_tree.descendants,
        process_tree.by_parent,
        lambda: process_tree.read_stat(os.getpid()),
        lambda: process_tree.read_entries_below(os.getpid()),
        procfs.other_pids,
        orphans.are_visible,
        lambda: orphans.find("none"),
        lambda: orphans.kill("none"),
        lambda: orphans.signal_all("0" * 32, signal.SIGCONT),
        system_calls.lacking,
    ],
)
def test_shortage_of_descriptors_is_not_taken_for_no_processes(ask):
    """Without a descriptor nothing can be said, which is not the same as nothing found."""
    with no_descriptors(), SHORTAGE:
        ask()


def test_handle_that_cannot_be_verified_leaves_nothing_open(monkeypatch):
    """In an outer namespace the pidfd is compared, which needs a second descriptor."""
    before = descriptors()
    monkeypatch.setattr(pids, "level", lambda: 2)
    monkeypatch.setattr(pids, "translate", lambda *_: os.getpid())
    monkeypatch.setattr(pids, "_entry_of", refuse)

    with SHORTAGE:
        pids.ProcessHandle(os.getpid())

    assert descriptors() == before


# --- the supervisor ---------------------------------------------------------------


@pytest.mark.parametrize("group", [True, False])
def test_stop_reaches_the_command_without_descriptors(sleeper, group):
    """The group and the main process are known without /proc."""
    tree = process_tree.ProcessTree(sleeper.pid)

    with no_descriptors():
        tree.stop(signal.SIGTERM, group=group)
        assert sleeper.wait() == -signal.SIGTERM


def test_kill_reaches_the_group_and_raises(sleeper):
    """The caller has to repeat it for the processes outside the group."""
    tree = process_tree.ProcessTree(sleeper.pid)

    with no_descriptors(), SHORTAGE:
        tree.kill()
    assert sleeper.wait() == -signal.SIGKILL


class Tree:
    """A command with a process that cannot be listed, and survives SIGKILL."""

    main, status, left = 2**22 + 1, None, True
    short = True
    asked = 0

    def stop(self, *_args, **_options):
        pass

    def end_rest(self, *, everyone):  # noqa: ARG002
        self.asked += 1
        return refuse() if self.short else []

    def survivors(self):
        return refuse() if self.short else ["1 (one)", "2 (two)"]

    def kill(self):
        return refuse() if self.short else ["1 (one)"]


class Never:
    """Nobody asks for a stop."""

    requested = False

    def take(self):
        return None


@pytest.fixture
def ending():
    """Return a termination of such a tree, and what it logs."""
    lines = []
    tree = Tree()
    made = termination.Termination(
        tree, Never(), Never(), lines.append,
        grace=1.0, linger=1.0, stop_signal=signal.SIGTERM, stop_group=False,
    )  # fmt: skip
    tree.children = lambda: refuse() if tree.short else [1]
    return made, tree, lines


def test_processes_count_as_unkillable_only_after_they_were_killed(ending):
    """The ten seconds begin when they can be listed again."""
    made, tree, lines = ending
    made.set_timeout(0.0, 1.0)
    for now in range(100):
        made.advance(float(now))
        assert not made.complete
    tree.short = False
    for now in range(100, 110):
        made.advance(float(now))
        assert not made.complete
    made.advance(110.0)

    assert (made.complete, made.unreaped) == (True, (1,))
    assert lines[-1] == "could not be killed: 1"


def test_remaining_processes_are_logged_once_they_can_be_listed(ending):
    """Until then at least one is left, and the time until SIGKILL already counts."""
    made, tree, lines = ending
    tree.status = 0
    made.note_main_end(0.0, None)
    made.advance(0.6)
    assert (made.left, lines) == (1, [])
    tree.short = False
    made.advance(0.7)

    assert (made.left, tree.asked) == (2, 1)
    assert lines == ["the command exited with 0 and left 1 (one), 2 (two): SIGTERM"]
    made.advance(1.5)
    assert not made.killed
    made.advance(1.6)
    assert made.killed


def test_last_call_is_repeated_soon(ending):
    """It is not skipped, and does not wait until the next event."""
    made, tree, _ = ending
    made.set_timeout(0.0, 1.0)
    made.advance(1.0)
    made.advance(1.5)
    assert (tree.asked, made.due(1.5, 5.0)) == (1, 1.5 + termination.LIST_RETRY)
    tree.short = False
    made.advance(1.6)
    made.advance(1.7)

    assert tree.asked == 2


def test_stop_request_that_cannot_be_read_is_a_stop(tmp_path):
    """An unreadable stop request stops the job; without the file nothing stops it."""
    directory = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    job_directory.make_control(directory)
    requests = stop_requests.StopRequests(directory, 7.0)
    with no_descriptors():
        assert requests.take() is None
    job_directory.write_record(directory, job_directory.STOP, {"grace_ms": 10, "who": "me"})
    with no_descriptors():
        assert requests.take().grace == 7.0
    found = requests.take()
    os.close(directory)

    assert (found.grace, found.words) == (0.01, "stopping: asked by me")
    assert requests.take() is None
    requests.close()


@pytest.mark.parametrize("error", [OSError(errno.EMFILE, "no descriptor"), ImportError("gone")])
def test_value_that_cannot_be_checked_now_is_handed_over(monkeypatch, error):
    """The job keeps its exit record, and the value is checked again before it is stored."""

    class Finder:
        def find_spec(self, *_args):
            raise error

    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    value = values.ValueReader(values.RESULT, reader)
    os.write(writer, b'{"rows": 3}')
    os.close(writer)
    value.end()
    monkeypatch.delitem(sys.modules, "json")
    monkeypatch.setattr(sys, "meta_path", [Finder()])

    assert value.value() == b'{"rows": 3}'


# --- the host ---------------------------------------------------------------------


def test_orphans_that_cannot_be_looked_for_are_not_gone(jobs, scripted, monkeypatch):
    """The job stays RUNNING until they can be killed."""
    run = scripted()
    run.started()
    run.die()
    left = subprocess.Popen(["sleep", "1000"], env={**os.environ, orphans.COOKIE: run.cookie})
    try:
        until(lambda: left.pid in orphans.find(run.cookie), "the exec of sleep")
        with monkeypatch.context() as patch:
            patch.setattr(pids, "_numbers", refuse)
            assert jobs.recover() == []
            assert jobs.get_job(run.id).status is Status.RUNNING
            assert left.poll() is None
        (lost,) = jobs.recover()
        assert (lost.reason, left.wait()) == (Reason.LOST, -signal.SIGKILL)
    finally:
        left.kill()
        left.wait()


def test_owner_waits_for_a_descriptor(jobs):
    """A name without its facts, and a verdict on another owner, would both stay."""
    ownership = parts(jobs).ownership
    with no_descriptors(), pytest.raises(StoreError) as caught:
        ownership.claim()
    assert caught.value.errno == errno.EMFILE
    name = ownership.claim()
    assert ownership.lives(name) is True


def test_supervisors_are_left_alone_without_a_descriptor():
    """No signal is sent to a process that cannot be verified, and nothing fails."""
    pool = SupervisorPool(slots=1)
    try:
        supervisor = pool.spawn()
        until(lambda: supervisor.receive() or supervisor.ready, "a supervisor")
        os.kill(supervisor.pid, signal.SIGSTOP)
        until(lambda: procfs.is_stopped(supervisor.pid), "its halt")
        with no_descriptors():
            pool.wake_stopped()
            supervisor.signal_unresponsive(signal.SIGKILL)
            assert not supervisor.signal(signal.SIGKILL)
        assert procfs.is_stopped(supervisor.pid)
        pool.wake_stopped()
        until(lambda: not procfs.is_stopped(supervisor.pid), "SIGCONT")
    finally:
        pool.close()


def test_of_many_supervisors_each_is_looked_at_in_turn(monkeypatch):
    """A round reads the state of a few; the rounds after it read the others, and begin again."""
    pool, looked = SupervisorPool(slots=5), []
    pool.supervisors = [SimpleNamespace(pid=pid) for pid in (None, 1, 2, 3, 4, 5)]
    monkeypatch.setattr(supervisor_pool, "EXAMINED_AT_ONCE", 2)
    monkeypatch.setattr(procfs, "is_stopped", looked.append)
    for _ in range(4):
        pool.wake_stopped()
    pool.supervisors = []

    assert looked == [1, 2, 3, 4, 5, 1, 2]


def test_of_very_many_supervisors_each_is_looked_at_within_seconds(monkeypatch):
    """A stopped one would hold up the time-out of its job, however many others there are."""
    pool, looked = SupervisorPool(slots=5), []
    pool.supervisors = [SimpleNamespace(pid=pid) for pid in range(1000)]
    monkeypatch.setattr(procfs, "is_stopped", looked.append)
    for _ in range(5):
        pool.wake_stopped()
    pool.supervisors = []

    assert sorted(looked) == list(range(1000))


@pytest.mark.parametrize("what", ["record", "letters"])
def test_supervisor_that_cannot_be_looked_at_is_not_silent(jobs, scripted, monkeypatch, what):
    """It is neither taken for one without a record nor for one that does not read."""
    run = scripted()
    run.started()
    watch = parts(jobs).unresponsive
    row = stored_run(jobs, run)
    if what == "record":
        monkeypatch.setattr(job_directory, "read_record", refuse)
        watch.wake(row)
        assert (watch._unrecorded, watch._supervisors) == ({}, {})
    else:
        monkeypatch.setattr(job_directory, "count_unread", refuse)
        with run.open() as directory, SHORTAGE:
            watch._answers(row, directory)


def test_log_of_another_file_is_not_overlooked(tmp_path):
    """A stale log would be mixed into the restored file."""
    assert wal_file  # `check_log` loads it only when it is needed
    path = str(tmp_path / "jobs.db")
    (tmp_path / "jobs.db").write_bytes(b"SQLite format 3\0" + bytes(84))
    (tmp_path / "jobs.db-wal").write_bytes(bytes(100))
    with no_descriptors():
        with pytest.raises(StoreError, match="Too many open files"):
            schema._header(path)
        with pytest.raises(StoreError, match="Too many open files"):
            schema.check_log(path)
