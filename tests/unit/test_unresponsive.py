"""A supervisor that ignores a stop is woken, then killed, unless it answers or is frozen."""

from __future__ import annotations

import os
import signal

import pytest

from jobcore.engine import orphans, procfs, unresponsive
from jobcore.storage import filesystem
from jobcore.supervisor import job_directory, system_calls


@pytest.fixture
def signals(monkeypatch):
    """Return what is sent to the supervisor, which is made to be another process."""
    sent = []

    def send(pid, _token, number):
        sent.append((pid, number))
        return True

    monkeypatch.setattr(orphans, "find_holders", lambda *_: [4321])
    monkeypatch.setattr(orphans, "signal_holder", send)
    monkeypatch.setattr(procfs, "is_held_back", lambda _: False)
    return sent


@pytest.fixture
def stopped(jobs, scripted):
    """Return a job that was asked to stop at once, and still runs."""
    run = scripted()
    run.started()
    jobs.stop_job(run.id, grace=0)
    return run


def read_control(run):
    """Read the FIFO, as a supervisor does that is woken by it."""
    with run.open() as directory:
        control = job_directory.open_control(directory)
        os.read(control, 4096)
        os.close(control)


@pytest.fixture
def control(stopped):
    """Keep the FIFO open, as its supervisor does: without any reader nothing stays in it."""
    with stopped.open() as directory:
        descriptor = job_directory.open_control(directory)
    yield descriptor
    os.close(descriptor)


@pytest.mark.usefixtures("control")
def test_supervisor_that_reads_nothing_is_woken_and_killed(jobs, clock, signals):
    """SIGCONT after half a minute beyond the grace, SIGKILL ten seconds later."""
    sent = []
    for _ in range(43):
        jobs.recover()
        sent.append(signals[-1][1] if signals else None)
        clock.advance(1)

    assert set(sent[:30]) == {None}
    assert set(sent[31:40]) == {signal.SIGCONT}
    assert set(sent[41:]) == {signal.SIGKILL}


@pytest.mark.usefixtures("control")
@pytest.mark.parametrize("name", ["ctl", "lock", "run", "exit", "stop"])
def test_irregular_files_do_not_protect_an_overdue_supervisor(jobs, clock, signals, stopped, name):
    """Neither the lock file nor the FIFO is needed to find the supervisor."""
    path = f"{stopped.path}/{name}"
    if os.path.exists(path):
        os.unlink(path)
    os.mkdir(path)
    for _ in range(43):
        jobs.recover()
        clock.advance(1)

    assert [number for _, number in signals[-2:]] == [signal.SIGKILL] * 2


def test_supervisor_that_reads_is_left_alone(jobs, clock, signals, stopped, control):
    """It may be unable to write its verdict, on a full disk: killed, the verdict would be lost."""
    del control
    for _ in range(100):
        jobs.recover()
        read_control(stopped)
        clock.advance(1)

    assert signals == []


@pytest.mark.usefixtures("control")
def test_supervisor_that_is_held_back_is_not_killed(jobs, clock, signals, monkeypatch):
    """A debugger, or a frozen cgroup, may keep it for as long as it likes."""
    monkeypatch.setattr(procfs, "is_held_back", lambda _: True)
    for _ in range(100):
        jobs.recover()
        clock.advance(1)

    assert signals == []


@pytest.mark.usefixtures("control")
def test_clock_that_leaps_kills_no_supervisor(jobs, clock, signals):
    """After a frozen machine goes on, the first look wakes, whatever time has passed."""
    jobs.recover()
    jobs.recover()
    clock.advance(86_400)
    jobs.recover()
    jobs.recover()

    assert {number for _, number in signals} == {signal.SIGCONT}


def test_time_out_makes_a_supervisor_overdue(jobs, clock, signals, scripted):
    """A job whose time-out has passed is looked after without any stop."""
    run = scripted()
    run.started()
    run.update(timeout_ms=60_000, grace_ms=10_000)
    with run.open() as directory:
        control = job_directory.open_control(directory)
    first = None
    for second in range(130):
        jobs.recover()
        if signals and first is None:
            first = second
        clock.advance(1)
    os.close(control)

    assert first >= 60 + 10 + 30
    assert signals[-1][1] is signal.SIGKILL


def test_stopped_supervisor_is_woken_at_once(jobs, scripted, monkeypatch):
    """Without any stop or time-out, by the pid in its record, and only if it holds the lock."""
    pid = 4321
    run = scripted()
    run.started(
        supervisor=pid, boot_id=filesystem.boot_id(), pid_namespace=system_calls.pid_namespace()
    )
    sent = []
    monkeypatch.setattr(procfs, "is_stopped", lambda one: one == pid)
    monkeypatch.setattr(orphans, "signal_holder", lambda *facts: sent.append(facts))
    jobs.recover()

    assert [(facts[0], facts[-1]) for facts in sent] == [(pid, signal.SIGCONT)]


def test_missing_directory_is_not_an_error(jobs, scripted, monkeypatch):
    """Between the look at the lock and this one the job may end."""
    run = scripted()
    run.started()
    look = unresponsive.Unresponsive.look
    looked = []

    def look_late(self, of):
        looked.append(of.id)
        os.rename(run.path, run.path + "x")
        look(self, of)
        os.rename(run.path + "x", run.path)

    monkeypatch.setattr(unresponsive.Unresponsive, "look", look_late)
    jobs.recover()

    assert looked == [run.id]


@pytest.mark.parametrize(
    ("events", "freezer", "frozen"),
    [("populated 1\nfrozen 1\n", None, True), ("populated 1\nfrozen 0\n", None, False),
     (None, "FROZEN\n", True), (None, "FREEZING\n", True), (None, "THAWED\n", False),
     (None, None, False)],
)  # fmt: skip
def test_frozen_cgroup_is_seen(tmp_path, monkeypatch, events, freezer, frozen):
    """Both versions of cgroups are known; one that cannot be seen is not frozen."""
    proc, cgroups = tmp_path / "proc", tmp_path / "cgroups"
    (proc / "7").mkdir(parents=True)
    (proc / "7" / "cgroup").write_text("3:cpu,freezer:/a/b\n0::/a/b\n")
    (proc / "7" / "status").write_text("Name:\tpython\nTracerPid:\t0\n")
    monkeypatch.setattr(procfs, "ROOT", str(proc))
    monkeypatch.setattr(procfs, "CGROUPS", str(cgroups))
    for text, path in ((events, "a/b/cgroup.events"), (freezer, "freezer/a/b/freezer.state")):
        if text is not None:
            (cgroups / path).parent.mkdir(parents=True)
            (cgroups / path).write_text(text)

    assert procfs.is_held_back(7) is frozen


def test_process_states_are_distinguished(tmp_path, monkeypatch):
    """Stopped by a signal, stopped by a debugger, running, and gone."""
    for pid, letter, tracer in ((1, "T", 0), (2, "T", 99), (3, "t", 99), (4, "S", 0)):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "stat").write_text(f"{pid} (a) T ) {letter} 1 2 3\n")
        (tmp_path / str(pid) / "status").write_text(f"Name:\tT\nTracerPid:\t{tracer}\n")
    monkeypatch.setattr(procfs, "ROOT", str(tmp_path))

    assert [procfs.is_stopped(pid) for pid in range(1, 6)] == [True, False, False, False, False]
    assert [procfs.is_held_back(pid) for pid in range(1, 6)] == [False, True, True, False, False]


def test_real_process_is_seen_stopped():
    """What the kernel says of a process that has got SIGSTOP."""
    pid = os.fork()
    if pid == 0:
        signal.pause()
        os._exit(0)
    os.kill(pid, signal.SIGSTOP)
    os.waitpid(pid, os.WUNTRACED)
    seen = procfs.is_stopped(pid)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)

    assert seen
