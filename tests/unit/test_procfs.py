"""What is read of other processes: a process that is stuck holds nobody up."""

from __future__ import annotations

import _thread
import os
import threading

import pytest

from jobcore.engine import orphans, procfs
from jobcore.supervisor import job_directory
from tests.processes import until

TOKEN = "0123456789abcdef" * 2


@pytest.fixture
def proc(tmp_path, monkeypatch):
    """Return a maker of processes that are directories; an environment of None hangs."""
    monkeypatch.setattr(procfs, "ROOT", str(tmp_path))
    monkeypatch.setattr(procfs, "PATIENCE", 0.05)
    hanging = []

    def make(pid, environment=b""):
        (tmp_path / str(pid)).mkdir()
        path = tmp_path / str(pid) / "environ"
        if environment is None:
            os.mkfifo(path)
            hanging.append((pid, path))
        else:
            path.write_bytes(environment)

    yield make
    for pid, path in hanging:
        if procfs.is_waiting(pid):
            os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
            until(lambda: not procfs.is_waiting(pid), "the end of the thread")  # noqa: B023


def test_environment_that_hangs_does_not_hide_others(proc):
    """Processes on both sides of one that is stuck are found."""
    proc(11, b"A=1\0JOBCORE_RUN=me\0")
    proc(12, None)
    proc(13, b"JOBCORE_RUN=me")
    proc(14, b"JOBCORE_RUN=me2\0XJOBCORE_RUN=me")

    assert sorted(orphans.find("me")) == [11, 13]


def test_environment_that_hangs_is_read_once(proc):
    """While the kernel keeps one it is skipped, so that no threads gather."""
    proc(12, None)
    orphans.find("me")
    first = procfs.waiting[12]
    orphans.find("me")

    assert procfs.waiting[12] is first


def test_environment_that_answers_again_is_read_again(proc, tmp_path):
    """Once the kernel has let go of it the process is found."""
    proc(12, None)
    assert orphans.find("me") == []
    os.close(os.open(tmp_path / "12" / "environ", os.O_WRONLY | os.O_NONBLOCK))
    until(lambda: not procfs.waiting[12].is_alive(), "the end of the thread")
    (tmp_path / "12" / "environ").unlink()
    (tmp_path / "12" / "environ").write_bytes(b"JOBCORE_RUN=me\0")

    assert orphans.find("me") == [12]


def test_several_environments_that_hang_are_all_passed(proc):
    """Each costs its wait, and the last process is still found."""
    for pid in (12, 13, 14):
        proc(pid, None)
    proc(15, b"JOBCORE_RUN=me")

    assert orphans.find("me") == [15]


def test_process_that_has_ended_is_not_found(proc, tmp_path):
    """A directory without an environment is a process that ended meanwhile."""
    proc(11, b"JOBCORE_RUN=me")
    (tmp_path / "11" / "environ").unlink()

    assert orphans.find("me") == []


def test_child_of_a_process_that_ended_during_the_look_is_found(proc, tmp_path, monkeypatch):
    """A process that forks and ends before it was looked at does not hide its child."""
    proc(11, b"JOBCORE_RUN=me")
    read = procfs.read_entries

    def fork_first(pid, name):
        if pid == 11 and not (tmp_path / "12").exists():
            proc(12, b"JOBCORE_RUN=me")
            (tmp_path / "11" / "environ").unlink()
        return read(pid, name)

    monkeypatch.setattr(procfs, "read_entries", fork_first)
    assert orphans.find("me") == [12]


def test_process_in_the_middle_of_an_exec_is_found(proc, tmp_path, monkeypatch):
    """It has no environment for a moment, and is looked at again."""
    proc(11, b"")
    read = procfs.read_entries

    def exec_after(pid, name):
        try:
            return read(pid, name)
        finally:
            (tmp_path / "11" / "environ").write_bytes(b"JOBCORE_RUN=me")

    monkeypatch.setattr(procfs, "read_entries", exec_after)
    assert orphans.find("me") == [11]


def test_nothing_is_left_only_after_two_looks_that_found_nothing(monkeypatch):
    """A child that was forked while its parent was killed may be missed by one look."""
    looks = iter([[11], [], [12], [], []])
    monkeypatch.setattr(orphans, "find", lambda _cookie: next(looks))
    monkeypatch.setattr(orphans, "_kill_one", lambda _pid, _cookie: True)

    assert orphans.kill("me") == ()
    assert not list(looks)


def test_no_descriptor_is_an_error(monkeypatch):
    """Without a free descriptor it raises, instead of returning that nothing was found."""

    def refuse(*_args, **_options):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(OSError, match="Too many"):
        procfs.with_variable("A=1", [os.getpid()])


@pytest.mark.parametrize("ask", [procfs.is_stopped, procfs.is_held_back])
def test_no_descriptor_to_look_at_a_process_is_an_error(monkeypatch, ask):
    """A supervisor in a debugger must not be killed because the check failed."""

    def refuse(*_args, **_options):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(OSError, match="Too many"):
        ask(os.getpid())


@pytest.mark.parametrize("where", ["list", "locks", "kernel"])
def test_no_descriptor_to_look_for_locks_is_an_error(monkeypatch, where):
    """A failed search must not report that there is no supervisor."""

    def refuse(*_args, **_options):
        raise OSError(24, "Too many open files")

    if where == "list":
        monkeypatch.setattr(os, "listdir", refuse)
    else:
        monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(OSError, match="Too many"):
        job_directory.is_run_locked(TOKEN) if where == "kernel" else orphans.holds(
            os.getpid(), TOKEN
        )


def test_holder_is_found_by_its_locks_alone(proc, tmp_path):
    """Open files of a process are not touched: a name of one, which would hang, is enough."""
    byte = job_directory.spans_of(TOKEN)[1][0]
    proc(11)
    (tmp_path / "11" / "fdinfo").mkdir()
    (tmp_path / "11" / "fdinfo" / "3").write_text(
        "pos:\t0\nflags:\t02100002\nmnt_id:\t27\nino:\t1234\n"
        "lock:\t1: OFDLCK ADVISORY  WRITE -1 fe:10:1234 1 1\n"
        f"lock:\t2: OFDLCK ADVISORY  WRITE -1 fe:10:1234 {byte} {byte}\n"
    )

    assert orphans.find_holders(TOKEN) == [11]
    assert orphans.find_holders("f" * 32) == []


def test_holder_is_found_by_its_kernel_lock(tmp_path):
    """The byte of a run is found, and not that of its host, in whatever file it is."""
    preparing, running = job_directory.spans_of(TOKEN)
    found = []
    for span in (preparing, running):
        descriptor = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
        assert job_directory.try_lock(descriptor, job_directory.RUNNING)
        assert job_directory.try_lock(descriptor, span)
        os.unlink(tmp_path / "lock")
        found.append(orphans.holds(os.getpid(), TOKEN))
        os.close(descriptor)

    assert found == [False, True]


def test_search_lists_no_thread_that_never_ends(proc):
    """A thread that `threading` has not started may search, and is gone when it has ended."""
    proc(11, b"JOBCORE_RUN=me")
    before = threading.enumerate()
    found = []
    _thread.start_new_thread(lambda: found.append(orphans.find("me")), ())
    until(lambda: found, "the end of the search")

    assert found == [[11]]
    assert threading.enumerate() == before
