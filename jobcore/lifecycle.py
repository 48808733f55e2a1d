"""
Lifecycle: the rules of a job's status, stated once.

One `transitions` machine says which trigger leads from where to where. The
store derives its guards from it, the tables' constraints and triggers are
generated from it, and README's diagram is printed from it. Nothing here knows
of databases, processes or clocks.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import Enum
from typing import Any

from transitions import Machine


class _Word(str, Enum):
    """A string with a closed set of values, that prints as its value on every Python."""

    __str__ = str.__str__


class Status(_Word):
    """
    Where a job stands, a text; each says who moves it on.

    Attributes:
        QUEUED: Waits for a slot (a manager starts it), for its host
            (`start_job`), or to be cancelled.
        RUNNING: Has been claimed; its ending moves it on, seen by any manager.
        COMPLETE: Ended by itself with exit code 0. Final.
        ERROR: Ended by itself otherwise, could not start, or was lost. Final.
        STOPPED: Was cancelled, stopped or timed out. Final.
    """

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    COMPLETE = "COMPLETE"
    ERROR = "ERROR"
    STOPPED = "STOPPED"

    @property
    def final(self) -> bool:
        """Whether nothing leaves this status."""
        return self in FINAL


#: The statuses that nothing leaves.
FINAL = frozenset({Status.COMPLETE, Status.ERROR, Status.STOPPED})
#: The statuses in which a job holds its pipeline.
ACTIVE = frozenset({Status.QUEUED, Status.RUNNING})
#: The statuses after which somebody may ask for another attempt.
RETRIABLE = (Status.ERROR, Status.STOPPED)
#: "Running or completed", as Matatika's Jobs API lists them: all that are past the queue.
STARTED = frozenset({Status.RUNNING}) | FINAL


class PipelineStatus(_Word):
    """
    Whether changes to a pipeline have been processed, a text; it does not say whether it runs.

    Attributes:
        READY: They have been.
        PROVISIONING: A job of type PIPELINE_CONFIG is on it.
        FAILED: That job did not complete; a further change is tried again.
    """

    READY = "READY"
    PROVISIONING = "PROVISIONING"
    FAILED = "FAILED"


class Trigger(_Word):
    """
    What can happen to a job, a text.

    Attributes:
        CREATE: It was created.
        START: It was claimed by a manager, or started by its host.
        STOP: It was asked to stop; it stays RUNNING until its ending is known.
        FINISH: It ended, one way or another.
        CANCEL: It was taken from the queue.
    """

    CREATE = "create"
    START = "start"
    STOP = "stop"
    FINISH = "finish"
    CANCEL = "cancel"


class Reason(_Word):
    """
    Why a job is final, a text.

    Attributes:
        EXITED: The command exited, or its host finished it; the exit code says how.
        SIGNALED: A signal that nobody here sent killed the command.
        TIMEOUT: It ran longer than its time-out.
        STOPPED: Somebody had asked it to stop.
        CANCELLED: It was taken from the queue.
        SHUTDOWN: Its supervisor was asked to end, as systemd does to a service.
        SPAWN_FAILED: The command could not be started.
        LOST: Its supervisor died before it could record how the command ended, or the
            process that did the task itself ended without finishing it.
        NEVER_STARTED: Its host or its supervisor died before; the command never ran.
    """

    EXITED = "exited"
    SIGNALED = "signaled"
    TIMEOUT = "timeout"
    STOPPED = "stopped"
    CANCELLED = "cancelled"
    SHUTDOWN = "shutdown"
    SPAWN_FAILED = "spawn_failed"
    LOST = "lost"
    NEVER_STARTED = "never_started"


#: A stop, a time-out or a shutdown had been started when it ended.
_HALTED = frozenset({Reason.STOPPED, Reason.TIMEOUT, Reason.SHUTDOWN, Reason.CANCELLED})
#: Nobody was there to see how it ended.
_UNSEEN = frozenset({Reason.LOST, Reason.NEVER_STARTED})


@dataclass(frozen=True)
class Ending:
    """
    How one execution ended.

    Attributes:
        reason: Why.
        wait_status: What the kernel said, undecoded; None where nothing was
            reaped. An exec that failed says 126 or 127 by exiting so.
        stop_requested: Whether somebody had asked for a stop. Decides only
            where nobody saw the ending.
    """

    reason: Reason
    wait_status: int | None = None
    stop_requested: bool = False

    @classmethod
    def by_host(cls, exit_code: int) -> Ending:
        """Return the ending of a job without a process, as its host reports it."""
        return cls(Reason.EXITED, exit_code << 8)

    @property
    def exit_code(self) -> int | None:
        """The kernel's answer, 128 + n for signal n as shells say it; None where there is none."""
        if self.wait_status is None:
            return None
        code = os.waitstatus_to_exitcode(self.wait_status)
        return code if code >= 0 else 128 - code

    @property
    def signal(self) -> int | None:
        """The signal that killed the command, else None."""
        if self.wait_status is None or not os.WIFSIGNALED(self.wait_status):
            return None
        return os.WTERMSIG(self.wait_status)

    @property
    def status(self) -> Status:
        """The final status, as the machine has it."""
        return apply(Status.RUNNING, Trigger.FINISH, self)


def _succeeded(ending: Ending) -> bool:
    return ending.reason is Reason.EXITED and ending.exit_code == 0


def _was_halted(ending: Ending) -> bool:
    return ending.reason in _HALTED or (ending.reason in _UNSEEN and ending.stop_requested)


#: The only statement of the rules. `finish` tries its three arrows in this
#: order: success by itself, somebody ended it, everything else.
MACHINE = Machine(
    model=None,  # rows cannot be models, and a machine per job would cost 1,000 times the memory
    states=[str(status) for status in Status],
    initial=str(Status.QUEUED),
    auto_transitions=False,  # no to_COMPLETE(): there is no way past the arrows
    transitions=[
        {"trigger": "start", "source": "QUEUED", "dest": "RUNNING"},
        {"trigger": "cancel", "source": "QUEUED", "dest": "STOPPED"},
        {"trigger": "stop", "source": "RUNNING", "dest": None},
        {"trigger": "finish", "source": "RUNNING", "dest": "COMPLETE", "conditions": _succeeded},
        {"trigger": "finish", "source": "RUNNING", "dest": "STOPPED", "conditions": _was_halted},
        {"trigger": "finish", "source": "RUNNING", "dest": "ERROR"},
    ],
)

#: By trigger and source, in the machine's order: where to, and under which conditions.
_ARROWS: dict[tuple[Trigger, Status], list[tuple[Status, list[Any]]]] = {
    (Trigger(name), Status(source)): [
        (Status(arrow.dest or source), [condition.func for condition in arrow.conditions])
        for arrow in found
    ]
    for name, event in MACHINE.events.items()
    for source, found in event.transitions.items()
    if found
}

#: The status a job is created with.
INITIAL = Status(MACHINE.initial)


def apply(status: Status, trigger: Trigger, ending: Ending | None = None) -> Status:
    """
    Return the status that `trigger` leads to.

    The machine is asked for its arrows, not run: running it would log two lines
    a job into the host's logs.

    Args:
        ending: How it ended; needed for `finish` alone.

    Raises:
        ValueError: The rules have no such arrow.
    """
    for dest, conditions in _ARROWS.get((trigger, status), ()):
        if all(condition(ending) for condition in conditions):
            return dest
    raise ValueError(f"no {trigger} from {status}")


def sources(trigger: Trigger) -> tuple[Status, ...]:
    """Return the statuses that allow `trigger`: the guard of its UPDATE."""
    found = {arrow.source for arrow in MACHINE.get_transitions(trigger=str(trigger))}
    return tuple(status for status in Status if str(status) in found)


def arrows() -> tuple[tuple[Status, Status], ...]:
    """Return the pairs of different statuses between which a job may move."""
    found = {(arrow.source, arrow.dest) for arrow in MACHINE.get_transitions() if arrow.dest}
    return tuple((a, b) for a in Status for b in Status if (str(a), str(b)) in found)


def diagram() -> str:
    """Return the machine as a mermaid state diagram."""
    lines = ["stateDiagram-v2", f"  [*] --> {INITIAL}: create"]
    lines += [
        f"  {arrow.source} --> {arrow.dest or arrow.source}: {trigger}"
        for trigger in MACHINE.events
        for arrow in MACHINE.get_transitions(trigger=trigger)
    ]
    lines += [f"  {status} --> [*]" for status in Status if status.final]
    return "\n".join(lines) + "\n"


# --- what follows from an ending ----------------------------------------------

#: Seconds before the first retry; each further one waits twice as long.
FIRST_RETRY = 10.0
#: Seconds that a retry waits at the most.
LAST_RETRY = 3600.0


def is_retried(status: Status, *, attempt: int, max_retries: int, stop_requested: bool) -> bool:
    """Tell whether a job is tried again: after an ERROR, and never against a wish to stop."""
    return status is Status.ERROR and attempt <= max_retries and not stop_requested


def retry_delay(attempt: int) -> float:
    """Return the seconds between the end of the attempt `attempt` (from 1) and the next one."""
    return min(FIRST_RETRY * 2.0 ** min(attempt - 1, 32), LAST_RETRY)


def configured_as(status: Status) -> str:
    """Return the status of a pipeline whose configuration has ended."""
    return PipelineStatus.READY if status is Status.COMPLETE else PipelineStatus.FAILED


# --- the same rules, for the database ---------------------------------------


def _quoted(words: Any) -> str:
    return ", ".join(f"'{word}'" for word in words)


def constraints() -> dict[str, str]:
    """
    Return CHECK constraints of the job table, by name, generated from the rules.

    They hold for every writer of the file, jobcore or not.
    """
    final = _quoted(status for status in Status if status.final)
    return {
        "status_is_known": f"status IN ({_quoted(Status)})",
        "reason_is_known": f"reason IN ({_quoted(Reason)})",
        # A reason exactly when final: nothing ends without one, nothing else has one.
        "final_has_reason": f"(status IN ({final})) = (reason IS NOT NULL)",
        "final_has_end": f"(status IN ({final})) = (end_time IS NOT NULL)",
        "complete_is_exit_0": (
            "(status = 'COMPLETE') = "
            "(status <> 'RUNNING' "
            "AND coalesce(reason, '') = 'exited' AND coalesce(exit_code, 1) = 0)"
        ),
        "exit_code_needs_end": f"exit_code IS NULL OR status IN ({final})",
        "exit_code_is_a_byte": "exit_code BETWEEN 0 AND 255",
        "halted_is_stopped": (
            f"status = 'STOPPED' OR coalesce(reason, '') NOT IN ({_quoted(sorted(_HALTED))})"
        ),
        "stopped_was_halted": (
            f"status <> 'STOPPED' OR reason IN ({_quoted(sorted(_HALTED | _UNSEEN))})"
        ),
        # Where nobody saw it end, or it never began, a code would be an invented one.
        "unseen_has_no_exit_code": (
            f"exit_code IS NULL OR reason NOT IN ({_quoted(sorted({Reason.CANCELLED} | _UNSEEN))})"
        ),
        "queued_has_not_started": "status <> 'QUEUED' OR start_time IS NULL",
        "running_has_started": "status <> 'RUNNING' OR start_time IS NOT NULL",
        "only_cancelled_never_starts": (
            f"status NOT IN ({final}) OR (start_time IS NULL) = (reason = 'cancelled')"
        ),
        "ends_after_start": "end_time >= start_time",
    }


def triggers(fact_columns: tuple[str, ...]) -> tuple[str, ...]:
    """
    Return the statements that make the database itself refuse an illegal move.

    Args:
        fact_columns: The columns that say what became of a job. They are
            frozen once it is final; the others (a tombstone, say) are not.
    """
    final = _quoted(status for status in Status if status.final)
    active = _quoted(status for status in Status if status in ACTIVE)
    legal = " OR ".join(
        f"(OLD.status = '{source}' AND NEW.status = '{dest}')" for source, dest in arrows()
    )
    changed = " OR ".join(f"OLD.{column} IS NOT NEW.{column}" for column in fact_columns)
    begins_queued = (
        f"CREATE TRIGGER job_begins_queued BEFORE INSERT ON job "
        f"WHEN NEW.status <> '{INITIAL}' "
        f"BEGIN SELECT RAISE(ABORT, 'a job is created {INITIAL}'); END"
    )
    moves_by_the_rules = (
        f"CREATE TRIGGER job_moves_by_the_rules BEFORE UPDATE OF status ON job "
        f"WHEN OLD.status <> NEW.status AND NOT ({legal}) "
        f"BEGIN SELECT RAISE(ABORT, 'no such transition of a job'); END"
    )
    final_stays_final = (
        f"CREATE TRIGGER job_final_stays_final "
        f"BEFORE UPDATE OF {', '.join(fact_columns)} ON job "
        f"WHEN OLD.status IN ({final}) AND ({changed}) "
        f"BEGIN SELECT RAISE(ABORT, 'a final job does not change'); END"
    )
    # An upsert (INSERT OR REPLACE) removes the row in its way, and no other trigger is asked.
    in_its_way = (
        "number = NEW.number OR id = NEW.id "
        f"OR (pipeline_id = NEW.pipeline_id AND status IN ({active}))"
    )
    is_not_replaced = (
        "CREATE TRIGGER job_is_not_replaced BEFORE INSERT ON job "  # noqa: S608 - our own words
        f"WHEN EXISTS (SELECT 1 FROM job WHERE {in_its_way}) "
        "BEGIN SELECT RAISE(ABORT, 'a job is not replaced by another'); END"
    )
    # Of any column: SQLite has three more names for the number, such as `rowid`.
    keeps_its_id = (
        "CREATE TRIGGER job_keeps_its_id BEFORE UPDATE ON job "
        "WHEN OLD.number IS NOT NEW.number OR OLD.id IS NOT NEW.id "
        "OR OLD.pipeline_id IS NOT NEW.pipeline_id "
        "BEGIN SELECT RAISE(ABORT, 'a job keeps its number, its id and its pipeline'); END"
    )
    return begins_queued, moves_by_the_rules, final_stays_final, is_not_replaced, keeps_its_id
