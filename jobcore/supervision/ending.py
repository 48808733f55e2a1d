"""Ending: why and when a job comes to its end, from the first wish to the last kill."""

from __future__ import annotations

import os
import select

from jobcore.supervision.tree import ProcessTree, children

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Callable

    from jobcore.supervision.shutdown import Shutdown
    from jobcore.supervision.wishes import Wishes
else:
    import _signal

# All in seconds.
_KILL_FOR = 10.0  # what no SIGKILL ends in this time is recorded, not waited for
_KILL_ROUND = 0.002  # between two looks at what a kill left; each brings new orphans
_SHUTDOWN_LAG = 0.05  # whoever ends a group of processes needs some for all of it


class Ending:
    """
    The end of one job: of its command, and of all processes that come from it.

    Attributes:
        reason: Why it ended; once set, it stays.
        killed: Whether anything had to be killed.
        unreaped: Pids that no SIGKILL ended.
    """

    def __init__(
        self,
        tree: ProcessTree,
        wishes: Wishes,
        shutdown: Shutdown,
        say: Callable[[str], None],
        *,
        grace: float,
        linger: float,
    ) -> None:
        """
        Args:
            tree: The processes.
            wishes: What hosts ask.
            shutdown: What our own SIGTERM asks.
            say: Adds a line to the log: nothing is ended without one.
            grace: Seconds from SIGTERM to SIGKILL.
            linger: Seconds that processes may outlive the command.
        """
        self.reason: str | None = None
        self.unreaped: tuple[int, ...] = ()
        self._tree = tree
        self._wishes = wishes
        self._shutdown = shutdown
        self._say = say
        self._grace = grace
        self._linger = linger
        self._deadline: float | None = None
        self._timeout = 0.0
        self._term_at: float | None = None
        self._kill_at: float | None = None
        self._killing_since: float | None = None
        self._given_up = False

    @property
    def killed(self) -> bool:
        """Whether anything had to be killed."""
        return self._killing_since is not None

    @property
    def complete(self) -> bool:
        """Whether nothing is left to be ended, or what is left cannot be."""
        return self._given_up or not self._tree.left

    def set_timeout(self, begun: float, timeout: float) -> None:
        """Have the job end `timeout` seconds after `begun`."""
        self._deadline = begun + timeout
        self._timeout = timeout

    def due(self, now: float, longest: float) -> float:
        """Return the moment of the next `advance`: `longest` seconds from now, or earlier."""
        if self.complete:
            return now
        if self._killing_since is not None:
            return now + _KILL_ROUND
        due = now + longest
        if self._kill_at is not None:
            due = min(due, self._kill_at)
        if self._deadline is not None and self._term_at is None:
            due = min(due, self._deadline)
        return due

    def note_main_end(self, now: float, reason: str | None) -> None:
        """
        Fix why the command ended, unless a wish has fixed that before.

        Args:
            now: The monotonic clock, as for all methods.
            reason: Why, where the wait status does not tell.
        """
        status = self._tree.status or 0
        if reason is None:
            reason = "exited"
            if os.WIFSIGNALED(status):
                meant_for_all = os.WTERMSIG(status) == _signal.SIGTERM and self._shutting_down()
                reason = "shutdown" if meant_for_all else "signaled"
        self.reason = self.reason or reason
        if self._tree.left:
            if self._term_at is None:
                self._kill_at = now + self._linger
            else:
                self._tree.terminate()  # those that only now came to us

    def advance(self, now: float) -> None:
        """Act on wishes and on the clock. Behind the reaping: what has ended is not stopped."""
        wish = self._wishes.take()
        if wish is not None:
            self._terminate("stopped", wish.grace, wish.words, now)
        if self._term_at is None and self._shutdown.requested:
            words = "stopping: the supervisor was asked to go"
            self._terminate("shutdown", self._grace, words, now)
        if self._term_at is None and self._deadline is not None and now >= self._deadline:
            words = f"time-out after {self._timeout:g} s"
            self._terminate("timeout", self._grace, words, now)
        if self._kill_at is not None and now >= self._kill_at:
            self._kill(now)

    def _terminate(self, reason: str, grace: float, words: str, now: float) -> None:
        """Begin to end the job; where that has begun, only let it have less time."""
        kill_at = now + grace
        self._kill_at = kill_at if self._kill_at is None else min(self._kill_at, kill_at)
        if self._term_at is not None:
            return
        self._term_at = now
        self.reason = self.reason or reason
        self._say(words)
        self._tree.terminate()

    def _kill(self, now: float) -> None:
        """Kill what is left: one round of several, for each brings new orphans."""
        if self._killing_since is None:
            self._killing_since = now
            since = f"{self._linger:.1f} s after the command had ended"
            if self._term_at is not None:
                since = f"{now - self._term_at:.1f} s after SIGTERM"
            self._say(f"still alive {since}: killed")
        self._tree.kill()
        if now - self._killing_since > _KILL_FOR:
            self._given_up = True
            self.unreaped = tuple(children())
            self._say(f"could not be killed: {', '.join(map(str, self.unreaped))}")

    def _shutting_down(self) -> bool:
        """Tell whether the SIGTERM that ended the command was meant for all of us."""
        if not self._shutdown.requested and self._term_at is None:
            poll = select.poll()
            poll.register(self._shutdown.fileno(), select.POLLIN)
            poll.poll(int(_SHUTDOWN_LAG * 1000))
        return self._shutdown.requested
