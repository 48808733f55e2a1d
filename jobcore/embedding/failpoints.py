"""
Failpoints: named points in the protocol at which a test can end a process.

Each failpoint comes directly after one step, so that a test can check the state after a
crash there. Outside tests none is armed, and passing one costs no more than reading a global.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Callback = Callable[[str, object], None]

# --- in a host --------------------------------------------------------------

#: A thread of the host is about to use the database or job directories; nothing is done yet.
ENTERED = "entered"
#: BEGIN IMMEDIATE has the write lock; the transaction has written nothing.
WRITE_BEGUN = "write begun"
#: The transaction that creates jobs is committed; its caller does not know it yet.
CREATED = "created"
#: A scheduled tick is taken, with its job or its skip, and committed.
TICK_TAKEN = "tick taken"
#: The process of a supervisor is started; it has not reported that it is ready.
SUPERVISOR_STARTED = "supervisor started"
#: Job directory, lock file and FIFO are created, and byte 0 of the lock is held.
DIRECTORY_PREPARED = "directory prepared"
#: The executor has returned the command and the request is in memory, so the claim can begin.
REQUEST_PREPARED = "request prepared"
#: The change from QUEUED to RUNNING is written with token and cookie, and not committed.
CLAIM_WRITTEN = "claim written"
#: The claim is committed; no request was sent.
CLAIMED = "claimed"
#: A claimed job is about to be sent; other jobs of the same round may have been sent.
BEFORE_SEND = "before send"
#: The supervisor has the message with lock, directory and request; our own copies are open.
SENT = "sent"
#: A host that holds the lock wrote `exit` itself, because no supervisor took the job.
ENDED_HERE = "ended here"
#: Frames and `exit` are read from the job directory; nothing of them is in the database.
IMPORT_READ = "import read"
#: Offset, sequence and segments are written, and not committed.
IMPORT_WRITTEN = "import written"
#: An import is committed; the spool files that it has imported still exist.
IMPORTED = "imported"
#: The final status is written with history and follow-ups, and not committed.
SETTLE_WRITTEN = "settle written"
#: A settle is committed; the job directory still exists.
SETTLED = "settled"
#: A host has locked all bytes, to resolve a job or remove its directory, and read nothing yet.
DIRECTORY_TAKEN = "directory taken"
#: A job directory that is being removed has its `.gone-` name; its files still exist.
DIRECTORY_RENAMED = "directory renamed"
#: A resolver wrote `exit` for a job whose supervisor is dead; the row is unchanged.
RESOLVED = "resolved"
#: The stop request is committed in the row; no file contains it.
STOP_STORED = "stop stored"
#: The `stop` file contains the stop request; the supervisor was not woken through the FIFO.
STOP_WRITTEN = "stop written"
#: The supervisor was woken through the FIFO.
STOP_SENT = "stop sent"
#: Jobs are hidden for good, and ended or asked to stop; nothing is removed.
MARKED_DELETED = "marked deleted"
#: The rows of deleted jobs are removed; their directories may still exist.
ROWS_REMOVED = "rows removed"

#: All failpoints in a host.
HOST = (
    ENTERED, WRITE_BEGUN, CREATED, TICK_TAKEN, SUPERVISOR_STARTED, DIRECTORY_PREPARED,
    REQUEST_PREPARED, CLAIM_WRITTEN, CLAIMED, BEFORE_SEND, SENT, ENDED_HERE, IMPORT_READ,
    IMPORT_WRITTEN, IMPORTED, SETTLE_WRITTEN, SETTLED, DIRECTORY_TAKEN, DIRECTORY_RENAMED,
    RESOLVED, STOP_STORED, STOP_WRITTEN, STOP_SENT, MARKED_DELETED, ROWS_REMOVED,
)  # fmt: skip

# --- in a supervisor --------------------------------------------------------

#: A request was received, with its three descriptors; the host's byte 0 is still held.
REQUEST_RECEIVED = "request received"
#: Byte 1 of the lock is held through a separate open file description.
LOCK_TAKEN = "lock taken"
#: Byte 0 is free, also for copies of the descriptor that a fork of the host may have made.
BYTE_0_RELEASED = "byte 0 released"
#: `ctl` is open, and `stop` was read.
STOP_READ = "stop read"
#: `run` is written: from here on the command may have started.
RUN_WRITTEN = "run written"
#: The process that becomes the command is forked; it may not have reached its exec.
FORKED = "forked"
#: The supervisor knows that the exec of the command has succeeded.
COMMAND_RUNS = "command runs"
#: A frame was written to the spool, completely or as far as there was space.
FRAME_WRITTEN = "frame written"
#: The main process was reaped; its descendants may be alive.
MAIN_REAPED = "main reaped"
#: Everything is written except the verdict, which is decided.
BEFORE_EXIT = "before exit"
#: `exit` is written; the lock is held.
EXIT_WRITTEN = "exit written"
#: The lock is free; the host does not know it.
UNLOCKED = "unlocked"
#: The message `ended` was handed to the socket.
ENDED_SENT = "ended sent"

#: All failpoints in a supervisor.
SUPERVISOR = (
    REQUEST_RECEIVED, LOCK_TAKEN, BYTE_0_RELEASED, STOP_READ, RUN_WRITTEN, FORKED, COMMAND_RUNS,
    FRAME_WRITTEN, MAIN_REAPED, BEFORE_EXIT, EXIT_WRITTEN, UNLOCKED, ENDED_SENT,
)  # fmt: skip

# --- a keeper -----------------------------------------------------------------

#: In the host: the process of a keeper is started; it has not reported that it is ready.
KEEPER_STARTED = "keeper started"
#: In the host: the keeper was asked for a supervisor.
KEEPER_ASKED = "keeper asked"
#: In the keeper: a supervisor was forked; it may have done nothing yet.
SUPERVISOR_FORKED = "supervisor forked"
#: In the keeper: a supervisor was reaped; processes that it has left may be alive.
SUPERVISOR_REAPED = "supervisor reaped"

#: All failpoints of a keeper.
KEEPER = (KEEPER_STARTED, KEEPER_ASKED, SUPERVISOR_FORKED, SUPERVISOR_REAPED)

# --- a warm interpreter -------------------------------------------------------

#: In the supervisor: the process of a warm interpreter is started; it is not ready.
WARM_STARTED = "warm started"
#: In the supervisor: a warm interpreter was asked to fork a process.
WARM_ASKED = "warm asked"
#: In the supervisor: a forked process may begin.
WARM_SENT_OFF = "warm sent off"

#: All failpoints of a warm interpreter.
WARM = (WARM_STARTED, WARM_ASKED, WARM_SENT_OFF)

# --- reaching them ----------------------------------------------------------


class Crashed(BaseException):
    """
    A host in this process has crashed, as if by SIGKILL; see `jobcore.testing.crash`.

    It is a BaseException, so `except Exception` does not catch it. Code that catches it all
    the same does no harm, because every later failpoint of the host raises it again.

    Attributes:
        host: The host that has crashed.
    """

    def __init__(self, message: str = "", host: object = None) -> None:
        super().__init__(message)
        self.host = host


#: The callbacks; empty outside tests. Code checks them before it calls `reach`.
armed: tuple[Callback, ...] = ()


def reach(point: str, host: object = None) -> None:
    """
    Call the armed callbacks, because `point` is reached. An exception in one is raised here.

    Args:
        point: One of the constants above.
        host: The `Database` of the manager that reached the point; None in a supervisor,
            which is a separate process.
    """
    for callback in armed:
        callback(point, host)


def arm(callback: Callback) -> None:
    """Call `callback(point, host)` at each failpoint, in the thread that reaches it. Idempotent."""
    global armed  # noqa: PLW0603 - the check must cost no more than reading a global
    if callback not in armed:
        armed = (*armed, callback)


def disarm(callback: Callback) -> None:
    """Stop calling `callback`. Idempotent."""
    global armed  # noqa: PLW0603 - see `arm`
    armed = tuple(one for one in armed if one != callback)
