"""
Named steps of the protocol at which a test can end a process.

Each stands directly behind one step, so that a test can ask what is true when
everything ends there. Nothing is armed outside tests; `reach` then compares one
global with None.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Callback = Callable[[str, object], None]

# --- of a host --------------------------------------------------------------

#: A thread of the host is about to use database or job directories; of this nothing happened.
ENTERED = "entered"
#: BEGIN IMMEDIATE has the write lock; the transaction has written nothing.
WRITE_BEGUN = "write begun"
#: The transaction that creates jobs is committed; whoever asked for them does not know it.
CREATED = "created"
#: A tick of a pipeline's schedule was taken, with the job it is for or the skip, and committed.
TICK_TAKEN = "tick taken"
#: The process of a supervisor was started; it has not said that it is ready.
SUPERVISOR_STARTED = "supervisor started"
#: Directory, lock file and FIFO are made, and byte 0 of the lock is held.
DIRECTORY_PREPARED = "directory prepared"
#: The executor was asked, and the request is in memory: all is at hand for the claim.
REQUEST_PREPARED = "request prepared"
#: QUEUED to RUNNING is written with token and cookie, and not committed.
CLAIM_WRITTEN = "claim written"
#: The claim is committed; nothing was sent.
CLAIMED = "claimed"
#: A claimed job's turn to be sent has come; others of its round may have been.
BEFORE_SEND = "before send"
#: The message with lock, directory and request is with the supervisor; own copies are open.
SENT = "sent"
#: A host that holds the lock wrote `exit` itself, for no supervisor took the job.
ENDED_HERE = "ended here"
#: Frames and `exit` are read out of the job directory; nothing of them is written.
IMPORT_READ = "import read"
#: Offset, sequence and segments are written, and not committed.
IMPORT_WRITTEN = "import written"
#: An import is committed; the spool files that it emptied are still there.
IMPORTED = "imported"
#: RUNNING to final is written with history and follow-ups, and not committed.
SETTLE_WRITTEN = "settle written"
#: A settle is committed; the job's directory is still there.
SETTLED = "settled"
#: A host took the whole lock, to resolve a job or to remove its directory; it did not look yet.
DIRECTORY_TAKEN = "directory taken"
#: A directory that is to be removed has its `.gone-` name; its files are still there.
DIRECTORY_RENAMED = "directory renamed"
#: A resolver wrote `exit` of a job whose supervisor is dead; the row does not say so.
RESOLVED = "resolved"
#: The wish to stop is committed in the row; no file says so.
STOP_STORED = "stop stored"
#: The `stop` file says what the row says; the doorbell did not ring.
STOP_WRITTEN = "stop written"
#: The doorbell rang.
STOP_RUNG = "stop rung"
#: Jobs are hidden for good, and ended or asked to end; nothing is removed.
MARKED_DELETED = "marked deleted"
#: The rows of deleted jobs are gone; their directories may still be there.
ROWS_REMOVED = "rows removed"

#: All of a host.
HOST = (
    ENTERED, WRITE_BEGUN, CREATED, TICK_TAKEN, SUPERVISOR_STARTED, DIRECTORY_PREPARED,
    REQUEST_PREPARED, CLAIM_WRITTEN, CLAIMED, BEFORE_SEND, SENT, ENDED_HERE, IMPORT_READ,
    IMPORT_WRITTEN, IMPORTED, SETTLE_WRITTEN, SETTLED, DIRECTORY_TAKEN, DIRECTORY_RENAMED,
    RESOLVED, STOP_STORED, STOP_WRITTEN, STOP_RUNG, MARKED_DELETED, ROWS_REMOVED,
)  # fmt: skip

# --- of a supervisor --------------------------------------------------------

#: A request was received, with its three descriptors; the host's byte 0 is still held.
REQUEST_RECEIVED = "request received"
#: Byte 1 of the lock is held, through a description of its own.
LOCK_TAKEN = "lock taken"
#: Byte 0 is free, for every copy that a fork of the host may have made.
BYTE_0_RELEASED = "byte 0 released"
#: `ctl` is open and `stop` was looked at.
STOP_READ = "stop read"
#: `run` is written: from here on the command may have started.
RUN_WRITTEN = "run written"
#: The process that becomes the command was forked; it may not have come to its exec.
FORKED = "forked"
#: The notice `started` was given to the socket.
STARTED_TOLD = "started told"
#: A frame was written to the spool, whole or as far as there was room.
FRAME_WRITTEN = "frame written"
#: The main process was reaped; its descendants may live.
MAIN_REAPED = "main reaped"
#: All is written but the verdict, which is decided.
BEFORE_EXIT = "before exit"
#: `exit` is written; the lock is held.
EXIT_WRITTEN = "exit written"
#: The lock is free; the host does not know it.
UNLOCKED = "unlocked"
#: The notice `ended` was given to the socket.
ENDED_TOLD = "ended told"

#: All of a supervisor.
SUPERVISOR = (
    REQUEST_RECEIVED, LOCK_TAKEN, BYTE_0_RELEASED, STOP_READ, RUN_WRITTEN, FORKED, STARTED_TOLD,
    FRAME_WRITTEN, MAIN_REAPED, BEFORE_EXIT, EXIT_WRITTEN, UNLOCKED, ENDED_TOLD,
)  # fmt: skip

# --- reaching them ----------------------------------------------------------


class Crashed(BaseException):
    """
    A host in this process is gone, as if by SIGKILL; see `jobcore.testing.crash`.

    Like a SIGKILL it goes through every `except Exception`. What catches it all
    the same does no harm: every further point raises it again.

    Attributes:
        host: Which one.
    """

    def __init__(self, message: str = "", host: object = None) -> None:
        super().__init__(message)
        self.host = host


_armed: tuple[Callback, ...] | None = None


def reach(point: str, host: object = None) -> None:
    """
    Tell whoever armed it that `point` is reached; what that raises is raised here.

    Args:
        point: One of the constants above.
        host: Whose point it is: the `Database` of the manager that came here.
            A supervisor, which is a process of its own, names none.
    """
    if _armed is not None:
        for callback in _armed:
            callback(point, host)


def arm(callback: Callback) -> None:
    """Have `callback(point, host)` called at every point, in the thread that reaches it; once."""
    global _armed  # noqa: PLW0603 - one look at a global is all that `reach` may cost
    if callback not in (_armed or ()):
        _armed = (*(_armed or ()), callback)


def disarm(callback: Callback) -> None:
    """Call it no more; that it was not armed is fine."""
    global _armed  # noqa: PLW0603 - see `arm`
    _armed = tuple(one for one in _armed or () if one != callback) or None
