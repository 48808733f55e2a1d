"""Ctrl-Z stops a command between its writes, so that no other process waits for `fg`."""

from __future__ import annotations

import fcntl
import os
import pty
import random
import select
import signal
import subprocess
import termios
import threading
from functools import partial
from pathlib import Path

import pytest

from jobcore import JobManager, Status
from jobcore.cli import suspension
from jobcore.embedding import failpoints
from tests.integration.test_cli_usage import environment
from tests.processes import PATIENCE, forked, in_child, open_gate, state, until
from tests.verbs import call_all

#: Seconds within which another process has to get the write lock.
SOON = 5.0
#: How often Ctrl-Z is pressed.
ROUNDS = 12


def call_and_suspend(words):
    """Run a command that gets SIGTSTP in the middle of its first write."""
    os.setpgid(0, 0)  # as a shell does

    def suspend(point, _host):
        if point == failpoints.WRITE_BEGUN:
            failpoints.disarm(suspend)
            os.kill(os.getpid(), signal.SIGTSTP)

    failpoints.arm(suspend)
    call_all([words])


def call_suspend_and_continue(words):
    """Run a command that gets SIGTSTP and then SIGCONT in the middle of its first write."""
    os.setpgid(0, 0)

    def send_both(point, _host):
        if point == failpoints.WRITE_BEGUN:
            failpoints.disarm(send_both)
            os.kill(os.getpid(), signal.SIGTSTP)
            until(lambda: signal.SIGTSTP not in signal.sigpending(), "the thread that waits for it")
            os.kill(os.getpid(), signal.SIGCONT)

    failpoints.arm(send_both)
    call_all([words])


def guard_with_sigtstp_blocked():
    """Guard a process whose parent has blocked SIGTSTP."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTSTP})
    suspension.guard()
    assert threading.active_count() == 1
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == {signal.SIGTSTP}


def call_from_a_shell(words, told):
    """Run a command as the foreground job of a shell that owns the terminal; write its pid."""
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        os.tcsetpgrp(0, os.getpid())
        signal.signal(signal.SIGTTOU, signal.SIG_DFL)
        told.write_text(str(os.getpid()), "ascii")
        call_all([words])
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    raise SystemExit(os.waitstatus_to_exitcode(status))


@pytest.mark.parametrize("verb", ["run", "work"])
def test_ctrl_z_during_a_write_stops_after_it(database, jobs, gate, verb):
    """Others can write while the process is stopped, and `fg` continues it."""
    waiting = ["sh", "-c", f"read x <'{gate}'; true"]
    if verb == "work":
        jobs.submit(waiting)
    command = forked(
        partial(
            call_and_suspend, ["run", "--", *waiting] if verb == "run" else ["work", "--drain"]
        ),
        environment(database),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    until(lambda: state(command.pid) == "T", "the stop of the command")

    with JobManager(database, slots=0, busy_timeout=SOON) as other:
        made = other.submit(["true"], reserved=True)
    assert state(command.pid) == "T"
    os.kill(command.pid, signal.SIGCONT)
    open_gate(gate)

    assert command.wait(PATIENCE) == 0
    jobs.cancel_job(made.id)
    assert len(jobs.list_jobs(status=Status.COMPLETE)) == 1


def test_sigcont_during_a_write_takes_back_an_earlier_ctrl_z(database, jobs):
    """A process that was continued before it could stop does not stop at all."""
    command = forked(
        partial(call_suspend_and_continue, ["run", "--", "true"]),
        environment(database),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    assert command.wait(PATIENCE) == 0
    assert [job.status for job in jobs.list_jobs()] == [Status.COMPLETE]


def test_blocked_sigtstp_stays_blocked():
    """A parent that blocks Ctrl-Z wants no job control."""
    in_child(guard_with_sigtstp_blocked)


def test_ctrl_z_at_any_moment_lets_others_write(database, jobs, tmp_path):
    """A terminal stops `run` many times while it writes a log, and others commit each time."""
    told, end = tmp_path / "pid", tmp_path / "end"
    ours, theirs = pty.openpty()
    script = f"while [ ! -e '{end}' ]; do seq 200; done"
    shell = forked(
        partial(call_from_a_shell, ["run", "--", "sh", "-c", script], told),
        environment(database, TERM="xterm"),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    moment = random.Random(16)

    def read_some():
        left = moment.randrange(50_000)
        while left > 0:
            left -= len(os.read(ours, 4096))

    def is_stopped():
        if select.select([ours], [], [], 0)[0]:
            os.read(ours, 65536)  # a full terminal must not keep it from stopping
        return state(pid) == "T"

    read_some()
    pid = int(told.read_text("ascii"))
    for number in range(ROUNDS):
        read_some()
        os.write(ours, b"\x1a")
        until(is_stopped, f"stop number {number}")
        with JobManager(database, slots=0, busy_timeout=SOON) as other:
            other.submit(["true"])
        assert state(pid) == "T"
        os.kill(pid, signal.SIGCONT)

    end.touch()
    try:
        while os.read(ours, 65536):
            pass
    except OSError:
        pass  # EIO: the command has ended
    os.close(ours)
    assert shell.wait(PATIENCE) == 0
    assert len(jobs.list_jobs()) == ROUNDS + 1


def test_ctrl_z_gives_the_terminal_back(database, jobs):
    """While `watch` is stopped, the shell has its own screen with the cursor."""
    jobs.submit(["true"], name="waiting")
    ours, theirs = pty.openpty()
    shell = forked(
        partial(call_from_a_shell, ["watch"], Path(f"{database}.pid")),
        environment(database, TERM="xterm", COLUMNS="80", LINES="24"),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)

    def read_until(end):
        shown = b""
        while end not in shown:
            shown += os.read(ours, 4096)
        return shown

    read_until(b"waiting")
    pid = int(Path(f"{database}.pid").read_text("ascii"))
    for _ in range(2):
        os.write(ours, b"\x1a")
        assert b"\x1b[?1049l" in read_until(b"\x1b[?25h")  # the screen of before, the cursor
        until(lambda: state(pid) == "T", "the stop of the command")
        os.kill(pid, signal.SIGCONT)
        assert b"\x1b[?1049h" in read_until(b"waiting")
    os.write(ours, b"\x03")
    read_until(b"\x1b[?1049l")

    assert shell.wait(PATIENCE) == 0
    os.close(ours)
