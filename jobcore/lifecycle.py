"""
Lifecycle: the rules for a job's status, in one place.

One `transitions` machine defines which trigger leads from which status to which. The
guards of the UPDATE statements, the constraints and triggers of the tables, and the
diagram in `docs/guarantees.md` are generated from it. This module uses no database, process
or clock.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import Enum
from typing import Any

from transitions import Machine


class _StrEnum(str, Enum):
    """A string with a fixed set of values; it prints as its value on every Python version."""

    __str__ = str.__str__


class Status(_StrEnum):
    """
    The status of a job, a text.

    Attributes:
        QUEUED: It waits for a free slot of a manager, or for its host to call `start_job`;
            it can be cancelled.
        RUNNING: A manager has claimed it, or its host has started it. Any manager that sees
            its end makes it final.
        COMPLETE: It ended by itself with exit code 0. Final.
        ERROR: It ended by itself in another way, could not start, or was lost. Final.
        STOPPED: It was cancelled, stopped or timed out. Final.
    """

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    COMPLETE = "COMPLETE"
    ERROR = "ERROR"
    STOPPED = "STOPPED"

    @property
    def final(self) -> bool:
        """Whether a job in this status never changes its status again."""
        return self in FINAL


#: The final statuses.
FINAL = frozenset({Status.COMPLETE, Status.ERROR, Status.STOPPED})
#: The statuses in which a job occupies its pipeline: there can be no other active job.
ACTIVE = frozenset({Status.QUEUED, Status.RUNNING})
#: The statuses from which a job can be retried.
RETRIABLE = (Status.ERROR, Status.STOPPED)
#: All statuses but QUEUED: "running or completed" in Matatika's Jobs API.
STARTED = frozenset({Status.RUNNING}) | FINAL


class PipelineStatus(_StrEnum):
    """
    Whether changes to a pipeline have been processed, a text; not whether it is running.

    Attributes:
        READY: They have been processed.
        PROVISIONING: A job of type PIPELINE_CONFIG is processing them.
        FAILED: That job did not complete; the next change is processed again.
    """

    READY = "READY"
    PROVISIONING = "PROVISIONING"
    FAILED = "FAILED"


class JobType:
    """The job types that jobcore gives a meaning; hosts may use any others."""

    COMMAND = "COMMAND"  # runs its own command
    FUNCTION = "FUNCTION"  # calls a function in a fresh interpreter
    PIPELINE_RUN = "PIPELINE_RUN"  # runs its pipeline; retried, and triggers other pipelines
    PIPELINE_CONFIG = "PIPELINE_CONFIG"  # processes a change; its end sets the pipeline's status
    PIPELINE_VERIFY = "PIPELINE_VERIFY"  # is neither retried nor triggers anything
    WORKSPACE_INIT = "WORKSPACE_INIT"  # prepares a new workspace
    TASK = "TASK"  # the host does it itself


class Trigger(_StrEnum):
    """
    What can happen to a job, a text.

    Attributes:
        CREATE: It was created.
        START: A manager claimed it, or its host started it.
        STOP: It was asked to stop; it stays RUNNING until it has ended.
        FINISH: It ended, in any way.
        CANCEL: It was removed from the queue.
    """

    CREATE = "create"
    START = "start"
    STOP = "stop"
    FINISH = "finish"
    CANCEL = "cancel"


class Reason(_StrEnum):
    """
    Why a job is final, a text.

    Attributes:
        EXITED: The command exited, or its host finished it; the exit code says how.
        SIGNALED: A signal that jobcore did not send killed the command.
        TIMEOUT: It ran longer than its time-out.
        STOPPED: It ended after it had been asked to stop.
        CANCELLED: It was removed from the queue.
        UPSTREAM: It was removed from the queue because a job that it depends on did not end as
            asked.
        EXPIRED: It was removed from the queue because it had not started by `expires`.
        SHUTDOWN: Its supervisor was asked to end, as systemd does when it stops a service.
        SPAWN_FAILED: The command could not be started.
        LOST: Its supervisor died before it could record how the command ended, or the
            process that owned the task ended without finishing it.
        NEVER_STARTED: Its host or its supervisor died before the command could run.
    """

    EXITED = "exited"
    SIGNALED = "signaled"
    TIMEOUT = "timeout"
    STOPPED = "stopped"
    CANCELLED = "cancelled"
    UPSTREAM = "upstream"
    EXPIRED = "expired"
    SHUTDOWN = "shutdown"
    SPAWN_FAILED = "spawn_failed"
    LOST = "lost"
    NEVER_STARTED = "never_started"


#: The job left the queue without being started.
UNSTARTED = frozenset({Reason.CANCELLED, Reason.UPSTREAM, Reason.EXPIRED})
#: The job ended after a stop, a time-out or a shutdown, or left the queue.
_HALTED = frozenset({Reason.STOPPED, Reason.TIMEOUT, Reason.SHUTDOWN}) | UNSTARTED
#: No process saw how the job ended.
UNOBSERVED = frozenset({Reason.LOST, Reason.NEVER_STARTED})


@dataclass(frozen=True)
class Ending:
    """
    How one execution ended.

    Attributes:
        reason: Why it ended.
        wait_status: The raw wait status from the kernel; None: no process was reaped. A
            failed exec is an exit with code 126 or 127.
        stop_requested: Whether a stop had been requested. It matters only if no process
            saw the ending.
    """

    reason: Reason
    wait_status: int | None = None
    stop_requested: bool = False

    @classmethod
    def by_host(cls, exit_code: int) -> Ending:
        """Return the ending of a job without a process, from the exit code that its host gives."""
        return cls(Reason.EXITED, exit_code << 8)

    @property
    def exit_code(self) -> int | None:
        """The exit code, 128 + n for signal n as in a shell; None: there is no wait status."""
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
        """The final status that follows from this ending, by the rules of the machine."""
        return apply(Status.RUNNING, Trigger.FINISH, self)


def _succeeded(ending: Ending) -> bool:
    return ending.reason is Reason.EXITED and ending.exit_code == 0


def _was_halted(ending: Ending) -> bool:
    return ending.reason in _HALTED or (ending.reason in UNOBSERVED and ending.stop_requested)


#: The only definition of the rules. `finish` tries its three transitions in this order:
#: success, ended on request, everything else.
MACHINE = Machine(
    model=None,  # rows cannot be models, and a machine per job would take 1,000 times the memory
    states=[str(status) for status in Status],
    initial=str(Status.QUEUED),
    auto_transitions=False,  # no to_COMPLETE(), which would bypass the rules
    transitions=[
        {"trigger": "start", "source": "QUEUED", "dest": "RUNNING"},
        {"trigger": "cancel", "source": "QUEUED", "dest": "STOPPED"},
        {"trigger": "stop", "source": "RUNNING", "dest": None},
        {"trigger": "finish", "source": "RUNNING", "dest": "COMPLETE", "conditions": _succeeded},
        {"trigger": "finish", "source": "RUNNING", "dest": "STOPPED", "conditions": _was_halted},
        {"trigger": "finish", "source": "RUNNING", "dest": "ERROR"},
    ],
)

#: By trigger and source, in the machine's order: each destination and its conditions.
_ARROWS: dict[tuple[Trigger, Status], list[tuple[Status, list[Any]]]] = {
    (Trigger(name), Status(source)): [
        (Status(arrow.dest or source), [condition.func for condition in arrow.conditions])
        for arrow in found
    ]
    for name, event in MACHINE.events.items()
    for source, found in event.transitions.items()
    if found
}

#: The status of a new job.
INITIAL = Status(MACHINE.initial)


def apply(status: Status, trigger: Trigger, ending: Ending | None = None) -> Status:
    """
    Return the status that `trigger` leads to.

    This reads the machine's transitions instead of running the machine, which would write
    two lines per job to the host's log.

    Args:
        ending: How the job ended; needed only for `finish`.

    Raises:
        ValueError: The rules do not allow `trigger` in this status.
    """
    for dest, conditions in _ARROWS.get((trigger, status), ()):
        if all(condition(ending) for condition in conditions):
            return dest
    raise ValueError(f"no {trigger} from {status}")


def sources(trigger: Trigger) -> tuple[Status, ...]:
    """Return the statuses that allow `trigger`, for the WHERE clause of its UPDATE."""
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


def configured_as(status: Status) -> str:
    """Return the status of a pipeline whose configuration has ended."""
    return PipelineStatus.READY if status is Status.COMPLETE else PipelineStatus.FAILED


# --- the same rules, for the database ---------------------------------------


def quoted(words: Any) -> str:
    """Return words as a list of SQL literals."""
    return ", ".join(f"'{word}'" for word in words)


def statuses_with(reason: Reason) -> frozenset[Status]:
    """Return the statuses that a job with this reason can have, by the constraints."""
    found = {Status.STOPPED} if reason in _HALTED | UNOBSERVED else set()
    if reason not in _HALTED:
        found.add(Status.ERROR)
    if reason is Reason.EXITED:
        found.add(Status.COMPLETE)
    return frozenset(found)


def constraints() -> dict[str, str]:
    """
    Return the CHECK constraints of the job table, by name, generated from the rules.

    SQLite enforces them for every program that writes the file, not only for jobcore.
    """
    final = quoted(status for status in Status if status.final)
    return {
        "status_is_known": f"status IN ({quoted(Status)})",
        "reason_is_known": f"reason IN ({quoted(Reason)})",
        # A job has a reason if and only if it is final.
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
            f"status = 'STOPPED' OR coalesce(reason, '') NOT IN ({quoted(sorted(_HALTED))})"
        ),
        "stopped_was_halted": (
            f"status <> 'STOPPED' OR reason IN ({quoted(sorted(_HALTED | UNOBSERVED))})"
        ),
        # If no process saw the end, or the job never began, no exit code is known.
        "unseen_has_no_exit_code": (
            f"exit_code IS NULL OR reason NOT IN ({quoted(sorted(UNSTARTED | UNOBSERVED))})"
        ),
        "queued_has_not_started": "status <> 'QUEUED' OR start_time IS NULL",
        "running_has_started": "status <> 'RUNNING' OR start_time IS NOT NULL",
        "only_cancelled_never_starts": (
            f"status NOT IN ({final}) OR (start_time IS NULL) = "
            f"(reason IN ({quoted(sorted(UNSTARTED))}))"
        ),
        "ends_after_start": "end_time >= start_time",
    }


def triggers(fact_columns: tuple[str, ...]) -> tuple[str, ...]:
    """
    Return the triggers with which the database itself refuses illegal transitions.

    Args:
        fact_columns: The columns that record how a job went. They are frozen once the job
            is final; the other columns, such as the deletion mark, are not.
    """
    final = quoted(status for status in Status if status.final)
    active = quoted(status for status in Status if status in ACTIVE)
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
    # INSERT OR REPLACE removes a conflicting row without running any other trigger.
    in_its_way = (
        "number = NEW.number OR id = NEW.id "
        f"OR (pipeline_id = NEW.pipeline_id AND status IN ({active})) "
        "OR (workspace_id = NEW.workspace_id AND held_key = NEW.held_key)"
    )
    is_not_replaced = (
        "CREATE TRIGGER job_is_not_replaced BEFORE INSERT ON job "  # noqa: S608 - our own words
        f"WHEN EXISTS (SELECT 1 FROM job WHERE {in_its_way}) "
        "BEGIN SELECT RAISE(ABORT, 'a job is not replaced by another'); END"
    )
    # BEFORE UPDATE of any column: SQLite has three more names for `number`, such as `rowid`.
    keeps_its_id = (
        "CREATE TRIGGER job_keeps_its_id BEFORE UPDATE ON job "
        "WHEN OLD.number IS NOT NEW.number OR OLD.id IS NOT NEW.id "
        "OR OLD.workspace_id IS NOT NEW.workspace_id OR OLD.pipeline_id IS NOT NEW.pipeline_id "
        "BEGIN SELECT RAISE(ABORT, 'a job keeps its number, id, workspace and pipeline'); END"
    )
    return begins_queued, moves_by_the_rules, final_stays_final, is_not_replaced, keeps_its_id
