"""What no signal ends, or may end: it is named, nobody waits for ever, no stranger is hit."""

from __future__ import annotations

import _signal
import os
import signal
import subprocess

from jobcore import JobManager, Reason, Status
from jobcore.engine import orphans
from jobcore.supervisor import process_tree, system_calls, termination
from jobcore.testing import ManualClock, Script, ScriptedExecutor, drain
from jobcore.testing.scripted_process import ScriptedProcesses
from tests.processes import until


def sleeping(cookie):
    """Return a process that carries a cookie, once it does."""
    process = subprocess.Popen(["sleep", "1000"], env={**os.environ, orphans.COOKIE: cookie})
    until(lambda: process.pid in orphans.find(cookie), "a process with the cookie")
    return process


def end(process):
    process.kill()
    process.wait()


def test_a_command_that_cannot_be_killed_is_given_up_and_named(database, monkeypatch):
    """SIGKILL does not end an uninterruptible sleep: the job ends, and names the process."""
    monkeypatch.setattr(ScriptedProcesses, "kill", lambda _: [])
    monkeypatch.setattr(process_tree, "children", lambda: [4242])
    monkeypatch.setattr(
        termination, "KILL_ROUND", 0.5
    )  # twenty vain kills are as good as thousands
    clock = ManualClock()
    script = Script(["extract"], hangs=True, ignores_term=True)
    with (
        ScriptedExecutor(script, clock=clock) as scripted,
        JobManager(database, slots=1, clock=clock, launcher=scripted) as jobs,
    ):
        job = jobs.submit(["etl"], timeout=60, grace=5)
        drain(jobs)
        job = jobs.get_job(job.id)
        words = [line.text for line in jobs.logs(job.id)]

        assert (job.status, job.reason, job.exit_code) == (Status.STOPPED, Reason.TIMEOUT, None)
        assert words[-1] == "could not be killed: 4242"
        # The time-out, the grace, and ten seconds of vain kills: nobody waits longer.
        assert 75 <= (job.end_time - job.start_time).total_seconds() < 76


def test_orphan_of_another_user_is_recorded_as_unreaped(jobs, scripted, monkeypatch):
    """What runs as another user stays where a supervisor was killed, and the row has its pid."""
    run = scripted()
    run.started(pid_namespace=system_calls.pid_namespace())
    left = sleeping(run.cookie)

    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(_signal, "pidfd_send_signal", refuse)
    try:
        run.die()
        jobs.recover()
        job = jobs.get_job(run.id)

        assert (job.status, job.reason) == (Status.ERROR, Reason.LOST)
        assert run.row()["unreaped"] == str(left.pid)
        assert left.poll() is None
    finally:
        end(left)


def test_command_of_another_user_does_not_crash_the_supervisor(monkeypatch):
    """A command that has become another user's is passed over, and named when time is over."""
    command = subprocess.Popen(["sleep", "1000"], start_new_session=True)

    def refuse(*_):
        raise PermissionError

    try:
        with monkeypatch.context() as patched:
            patched.setattr(os, "kill", refuse)
            patched.setattr(os, "killpg", refuse)
            patched.setattr(process_tree, "children", lambda: [command.pid])
            processes = process_tree.ProcessTree(command.pid)
            for group in (False, True):
                processes.stop(signal.SIGTERM, group=group)
            processes.end_rest(everyone=True)
            named = processes.kill()
        assert f"{command.pid} (sleep)" in named
        assert command.poll() is None
    finally:
        end(command)


def test_reused_pid_is_not_signalled(monkeypatch):
    """Between the look at /proc and the signal the pid was given away: the cookie is looked at."""
    innocent = sleeping("another")
    found = [[innocent.pid], [], []]
    monkeypatch.setattr(orphans, "find", lambda _: found.pop(0))
    try:
        assert orphans.kill("mine") == ()
        assert found == []
        assert innocent.poll() is None
    finally:
        end(innocent)


def test_vanished_pid_is_not_a_survivor(monkeypatch):
    """A process that has ended between the two is simply gone."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    found = [[gone.pid], [], []]
    monkeypatch.setattr(orphans, "find", lambda _: found.pop(0))

    assert orphans.kill("mine") == ()


def test_former_lock_holder_is_not_signalled():
    """Before a process is signalled as the holder of a lock, the lock is checked again."""
    innocent = sleeping("another")
    gone = subprocess.Popen(["true"])
    gone.wait()
    try:
        for pid in (innocent.pid, gone.pid):
            assert not orphans.signal_holder(pid, "a" * 32, signal.SIGKILL)
        assert innocent.poll() is None
    finally:
        end(innocent)
