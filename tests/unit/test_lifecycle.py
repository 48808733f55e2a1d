"""Lifecycle: which trigger leads where, and what each ending means."""

from __future__ import annotations

import os
import signal

import pytest

from jobcore import lifecycle
from jobcore.lifecycle import (
    ACTIVE,
    FINAL,
    STARTED,
    Ending,
    Reason,
    Status,
    Trigger,
    apply,
    statuses_with,
)
from tests.cases import each, every

TERM, KILL = int(signal.SIGTERM), int(signal.SIGKILL)
CORE = 0x80  # the wait status of a killed command that left a core
EXIT_1, EXIT_126, EXIT_127 = 1 << 8, 126 << 8, 127 << 8

#: How it ended, by reason, wait status and stop request: status, exit code and signal.
TRUTH = [
    # By itself.
    (Reason.EXITED, 0, False, Status.COMPLETE, 0, None),
    (Reason.EXITED, EXIT_1, False, Status.ERROR, 1, None),
    (Reason.EXITED, 137 << 8, False, Status.ERROR, 137, None),
    # By itself, though a stop had been asked and came too late: the exit record says who won.
    (Reason.EXITED, 0, True, Status.COMPLETE, 0, None),
    (Reason.EXITED, EXIT_1, True, Status.ERROR, 1, None),
    # Killed by a signal that nobody here sent.
    (Reason.SIGNALED, KILL, False, Status.ERROR, 137, KILL),
    (Reason.SIGNALED, TERM, True, Status.ERROR, 143, TERM),
    (Reason.SIGNALED, signal.SIGSEGV | CORE, False, Status.ERROR, 139, signal.SIGSEGV),
    # After a stop, a time-out or a shutdown had been started: the code is as reaped.
    (Reason.STOPPED, TERM, True, Status.STOPPED, 143, TERM),
    (Reason.STOPPED, KILL, True, Status.STOPPED, 137, KILL),
    (Reason.STOPPED, 0, True, Status.STOPPED, 0, None),
    (Reason.STOPPED, EXIT_1, True, Status.STOPPED, 1, None),
    (Reason.STOPPED, None, True, Status.STOPPED, None, None),
    (Reason.TIMEOUT, TERM, False, Status.STOPPED, 143, TERM),
    (Reason.TIMEOUT, 0, False, Status.STOPPED, 0, None),
    (Reason.SHUTDOWN, TERM, False, Status.STOPPED, 143, TERM),
    (Reason.SHUTDOWN, None, False, Status.STOPPED, None, None),
    # Could not start: by exec with a code of ours, by fork or executor without one.
    (Reason.SPAWN_FAILED, EXIT_127, False, Status.ERROR, 127, None),
    (Reason.SPAWN_FAILED, EXIT_126, False, Status.ERROR, 126, None),
    (Reason.SPAWN_FAILED, None, False, Status.ERROR, None, None),
    (Reason.SPAWN_FAILED, None, True, Status.ERROR, None, None),
    # Nobody saw it: no code is invented, and the stop request decides.
    (Reason.LOST, None, False, Status.ERROR, None, None),
    (Reason.LOST, None, True, Status.STOPPED, None, None),
    (Reason.NEVER_STARTED, None, False, Status.ERROR, None, None),
    (Reason.NEVER_STARTED, None, True, Status.STOPPED, None, None),
    # Left the queue without being started.
    (Reason.CANCELLED, None, False, Status.STOPPED, None, None),
    (Reason.UPSTREAM, None, False, Status.STOPPED, None, None),
    (Reason.EXPIRED, None, False, Status.STOPPED, None, None),
]

#: Every status and trigger: where it leads. What is not here leads nowhere.
ARROWS = {
    (Status.QUEUED, Trigger.START): Status.RUNNING,
    (Status.QUEUED, Trigger.CANCEL): Status.STOPPED,
    (Status.RUNNING, Trigger.STOP): Status.RUNNING,
    (Status.RUNNING, Trigger.FINISH): Status.ERROR,  # by the ending used below
}
SOME_ENDING = Ending(Reason.EXITED, EXIT_1)


@each(("reason", "wait_status", "asked", "status", "code", "number"), TRUTH)
def test_ending_means(reason, wait_status, asked, status, code, number):
    """An ending has the status, exit code and signal of the truth table."""
    ending = Ending(reason, wait_status, stop_requested=asked)

    assert (ending.status, ending.exit_code, ending.signal) == (status, code, number)


def test_statuses_of_a_reason_are_those_of_the_table():
    """No more and no fewer, so that a search by reason can leave out the other statuses."""
    for reason in Reason:
        assert statuses_with(reason) == {row[3] for row in TRUTH if row[0] is reason}


def test_truth_table_has_every_reason():
    """There is no reason whose meaning is not in the table, and no others."""
    expected = {
        "exited", "signaled", "timeout", "stopped", "cancelled", "shutdown", "spawn_failed",
        "lost", "never_started", "upstream", "expired",
    }  # fmt: skip

    assert {str(reason) for reason in Reason} == expected
    assert {str(row[0]) for row in TRUTH} == expected


@every(code=range(256))
def test_exit_code_is_the_kernels(code):
    """Every exit code is stored unchanged; only 0 without a signal is COMPLETE."""
    expected = Status.COMPLETE if code == 0 else Status.ERROR

    for ending in (Ending(Reason.EXITED, code << 8), Ending.by_host(code)):
        assert (ending.status, ending.exit_code, ending.signal) == (expected, code, None)


@every(core=[0, CORE], number=sorted({int(one) for one in signal.valid_signals()}))
def test_every_signal_becomes_exit_code_and_signal(number, core):
    """A command killed by signal n is ERROR with 128 + n and the signal beside it."""
    ending = Ending(Reason.SIGNALED, number | core)

    assert (ending.status, ending.exit_code, ending.signal) == (Status.ERROR, 128 + number, number)


def test_wait_status_is_what_the_kernel_gives():
    """Codes and signals are decoded as a real child's are: 256 wraps to 0, -1 to 255."""
    for code in (0, 1, 255, 256, 300, -1):
        pid = os.fork()
        if pid == 0:
            os._exit(code)
        _, wait_status = os.waitpid(pid, 0)
        assert Ending(Reason.EXITED, wait_status).exit_code == code % 256
    pid = os.fork()
    if pid == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    _, wait_status = os.waitpid(pid, 0)
    killed, exited = Ending(Reason.SIGNALED, wait_status), Ending(Reason.EXITED, 137 << 8)

    assert (killed.exit_code, killed.signal) == (137, 9)
    assert (exited.exit_code, exited.signal) == (137, None)


@each("trigger", Trigger)
@each("status", Status)
def test_triggers_follow_the_rules(status, trigger):
    """Each trigger changes each status as the rules say, or is refused."""
    expected = ARROWS.get((status, trigger))

    if expected is None:
        with pytest.raises(ValueError, match=f"no {trigger} from {status}"):
            apply(status, trigger, SOME_ENDING)
    else:
        assert apply(status, trigger, SOME_ENDING) is expected


@pytest.mark.parametrize("trigger", Trigger)
def test_sources_are_the_statuses_that_allow_it(trigger):
    """The guard of a trigger's UPDATE names exactly the statuses that allow it."""
    expected = {status for status, allowed in ARROWS if allowed is trigger}

    assert set(lifecycle.sources(trigger)) == expected


def test_arrows_are_all_moves():
    """A job moves by five arrows, and by no others: QUEUED never fails directly."""
    expected = {
        (Status.QUEUED, Status.RUNNING),
        (Status.QUEUED, Status.STOPPED),
        (Status.RUNNING, Status.COMPLETE),
        (Status.RUNNING, Status.ERROR),
        (Status.RUNNING, Status.STOPPED),
    }

    assert set(lifecycle.arrows()) == expected
    assert len(lifecycle.arrows()) == len(expected)


def test_nothing_leaves_a_final_status():
    """No arrow begins at a final status, and every other one has a way to each final status."""
    reachable = {Status.QUEUED: {Status.QUEUED}}
    for _ in Status:
        for source, dest in lifecycle.arrows():
            if source in reachable[Status.QUEUED]:
                reachable[Status.QUEUED] = reachable[Status.QUEUED] | {dest}

    assert {source for source, _ in lifecycle.arrows()} & FINAL == set()
    assert reachable[Status.QUEUED] == set(Status)


def test_words_are_a_closed_set():
    """There are five statuses and five triggers, which print as their values."""
    assert [str(status) for status in Status] == [
        "QUEUED", "RUNNING", "COMPLETE", "ERROR", "STOPPED",
    ]  # fmt: skip
    assert [f"{trigger}" for trigger in Trigger] == ["create", "start", "stop", "finish", "cancel"]
    assert {status for status in Status if status.final} == FINAL
    assert set(Status) == ACTIVE | FINAL
    assert set(Status) - {Status.QUEUED} == STARTED
    assert lifecycle.INITIAL is Status.QUEUED


def test_diagram_shows_every_arrow():
    """The mermaid diagram has the beginning, each arrow with its trigger, and the ends."""
    expected = [
        "stateDiagram-v2",
        "  [*] --> QUEUED: create",
        "  QUEUED --> RUNNING: start",
        "  QUEUED --> STOPPED: cancel",
        "  RUNNING --> RUNNING: stop",
        "  RUNNING --> COMPLETE: finish",
        "  RUNNING --> STOPPED: finish",
        "  RUNNING --> ERROR: finish",
        "  COMPLETE --> [*]",
        "  ERROR --> [*]",
        "  STOPPED --> [*]",
    ]

    assert lifecycle.diagram().splitlines() == expected


def test_applying_changes_nothing():
    """The shared machine has no state: asking it twice gives the same answer."""
    first = [apply(Status.RUNNING, Trigger.FINISH, Ending.by_host(code)) for code in (0, 1, 0)]

    assert first == [Status.COMPLETE, Status.ERROR, Status.COMPLETE]
