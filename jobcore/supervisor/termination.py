"""Ends a job: decides why and when, from the first stop request to the last SIGKILL."""

from __future__ import annotations

import os
import select

from jobcore.supervisor.process_tree import ProcessTree

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Callable

    from jobcore.supervisor.stop_requests import Shutdown, StopRequests
else:
    import _signal

# All in seconds.
KILL_FOR = 10.0  # processes that survive SIGKILL so long are recorded, and not waited for
KILL_ROUND = 0.002  # between two rounds of SIGKILL, each of which may reveal new orphans
_SHUTDOWN_LAG = 0.05  # signalling a whole group of processes takes a moment
LIST_RETRY = 0.05  # before another try, if no descriptor is free to list the processes
PAUSE = 1.0  # remaining processes have so long to end by themselves before SIGTERM
PAUSE_IN_STOP = 0.25  # the same, if a stop has ended the command

_NAMES_IN_LINE = 100
_MOST_NAMES = 1000  # a process that keeps forking can create any number
_BY_SHELL = 128  # a shell reports the end by signal N as exit code 128 + N


class Termination:
    """
    Ends one job: its command and all processes that descend from it.

    Attributes:
        reason: Why the job ended. Once set, it never changes.
        killed: Whether a process had to be killed.
        left: The number of processes that were left when the command ended by itself, and
            that did not end by themselves shortly after.
        unreaped: Pids that survived SIGKILL.
    """

    def __init__(
        self,
        tree: ProcessTree,
        stop_requests: StopRequests,
        shutdown: Shutdown,
        say: Callable[[str], None],
        *,
        grace: float,
        linger: float,
        stop_signal: int,
        stop_group: bool,
    ) -> None:
        """
        Args:
            tree: The processes of the job.
            stop_requests: The stop requests of hosts.
            shutdown: The request to shut this supervisor down.
            say: Adds a line to the log. Every action here is logged.
            grace: Seconds from the first signal of a stop to SIGKILL.
            linger: Seconds from SIGTERM to SIGKILL for processes that the command has left.
            stop_signal: The first signal of a stop.
            stop_group: Whether all processes get that signal, or only the command.
        """
        self.reason: str | None = None
        self.left = 0
        self.unreaped: tuple[int, ...] = ()
        self._tree = tree
        self._stop_requests = stop_requests
        self._shutdown = shutdown
        self._say = say
        self._grace = grace
        self._linger = linger
        self._stop_signal = stop_signal
        self._stop_group = stop_group
        self._deadline: float | None = None
        self._timeout = 0.0
        self._term_at: float | None = None  # monotonic time at which a stop began
        self._main_end: str | None = None  # how the command ended, as text
        self._rest_at: float | None = None  # when remaining processes get SIGTERM, from then on
        self._asked: tuple[float, int] | None = None  # time and number of the first signal
        self._unlogged: str | None = None  # begins the line that names the remaining processes
        self._sigterm_sent = False
        self._all_signalled = False
        self._kill_at: float | None = None
        self._killing_since: float | None = None
        self._killed_late: list[str] = []
        self._given_up = False

    @property
    def killed(self) -> bool:
        """Whether a process had to be killed."""
        return self._killing_since is not None

    @property
    def complete(self) -> bool:
        """Whether no processes are left, or those left cannot be killed."""
        return self._given_up or not self._tree.left

    def set_timeout(self, begun: float, timeout: float) -> None:
        """Set the time limit: end the job `timeout` seconds after `begun`."""
        self._deadline = begun + timeout
        self._timeout = timeout

    def due(self, now: float, longest: float) -> float:
        """Return when to call `advance` next, at most `longest` seconds from now."""
        if self.complete:
            return now
        if self._killing_since is not None:
            return now + KILL_ROUND
        due = now + longest
        if self._kill_at is not None:
            due = min(due, self._kill_at)
        if self._deadline is not None and self._term_at is None:
            due = min(due, self._deadline)
        if self._rest_at is not None and self._rest_at > now:
            due = min(due, self._rest_at)
        sigterm_at = self._sigterm_all_at()
        if sigterm_at is not None:
            due = min(due, sigterm_at if sigterm_at > now else now + LIST_RETRY)
        return due

    def note_main_end(self, now: float, reason: str | None) -> None:
        """
        Set why the command ended, unless a stop request has set it before.

        Args:
            now: The monotonic clock, as for all methods.
            reason: The reason, if the wait status does not show it.
        """
        status = self._tree.status or 0
        if reason is None:
            reason = "exited"
            if os.WIFSIGNALED(status):
                reason = "signaled"
            if _is_end_by_sigterm(status) and self._shutting_down():
                reason = "shutdown"
        self.reason = self.reason or reason
        self._main_end = f"exited with {os.WEXITSTATUS(status)}"
        if os.WIFSIGNALED(status):
            self._main_end = f"was ended by {_name_of(os.WTERMSIG(status))}"
        # Wait a moment: processes that read the command's output, such as `tee`, end by themselves.
        if self._term_at is None or self._kill_at is None:
            self._rest_at = now + min(PAUSE, self._linger / 2)
        else:
            self._rest_at = now + min(PAUSE_IN_STOP, (self._kill_at - now) / 4)

    def advance(self, now: float) -> None:
        """
        Act on stop requests and on the clock.

        Call it after reaping, so that a command that has ended is not stopped.
        """
        stop = self._stop_requests.take()
        if stop is not None:
            self._terminate("stopped", stop.grace, stop.words, now)
        if self._term_at is None and self._shutdown.requested:
            words = "stopping: the supervisor was asked to exit"
            if self._shutdown.by_service_manager and self._tree.shares_cgroup():
                # It signals every process of the service, and a second SIGTERM may abort one.
                self._all_signalled = True
                words = "stopping: the service manager ends the service, this command included"
            self._terminate("shutdown", self._grace, words, now)
        if self._term_at is None and self._deadline is not None and now >= self._deadline:
            words = f"time-out after {self._timeout:g} s"
            self._terminate("timeout", self._grace, words, now)
        sigterm_at = self._sigterm_all_at()
        if self._kill_at is not None and now >= self._kill_at:
            self._kill(now)
        elif self._rest_at is not None and now >= self._rest_at:
            self._end_rest(now)
        elif sigterm_at is not None and now >= sigterm_at:
            self._sigterm_all(now)

    def conclude(self) -> None:
        """Log the killed processes that are not logged yet. Call it when none is left."""
        if self._killed_late:
            self._say_names("killed, too: ", self._killed_late)
            self._killed_late = []

    # --- by a signal ----------------------------------------------------------------

    def _terminate(self, reason: str, grace: float, words: str, now: float) -> None:
        """Begin a stop. If one has begun already, only shorten the remaining time."""
        kill_at = now + grace
        self._kill_at = kill_at if self._kill_at is None else min(self._kill_at, kill_at)
        if self._term_at is not None:
            return
        self._term_at = now
        if self._main_end is not None:
            self._rest_at = now
            self._end_rest(now, words)
            return
        self.reason = self.reason or reason
        self._say(words)
        if self._all_signalled:
            self._asked = (now, _signal.SIGTERM)
        else:
            self._asked = (now, self._stop_signal)
            self._tree.stop(self._stop_signal, group=self._stop_group)

    def _end_rest(self, now: float, words: str | None = None) -> None:
        """
        Send SIGTERM to processes that outlive the command, also to those that appear later.

        Args:
            words: The reason, if it is not only the end of the command.
        """
        if self._asked is None:
            self._asked = (now, _signal.SIGTERM)
            self._unlogged = "" if words is None else f"{words}: "
            self.left = 1  # at least; they may not be visible
            if words is None:
                self._kill_at = now + self._linger
        elif words is not None:
            self._say(f"{words}: the command {self._main_end} before, and what it left ends now")
        try:
            if self._unlogged is not None:
                self._say_left(self._unlogged)
            if not self._all_signalled:
                self._tree.end_rest(everyone=self._stop_group)
        except OSError:
            pass  # they cannot be listed now; the next round tries again

    def _say_left(self, before: str) -> None:
        survivors = self._tree.survivors()
        self.left = len(survivors) or 1  # without /proc they are not visible
        names = survivors or ["processes"]
        self._say_names(f"{before}the command {self._main_end} and left ", names, ": SIGTERM")
        self._unlogged = None

    def _sigterm_all_at(self) -> float | None:
        """
        Return when all other processes get SIGTERM while the command is still alive; None: never.

        The command may not have passed the signal on to its children, and may wait for them.
        """
        if (
            self._term_at is None
            or self._kill_at is None
            or self._main_end is not None
            or self._sigterm_sent
            or self._stop_group
            or self._all_signalled
        ):
            return None
        return self._kill_at - min(self._linger, (self._kill_at - self._term_at) / 2)

    def _sigterm_all(self, now: float) -> None:
        try:
            asked = self._tree.end_rest(everyone=True)
        except OSError:
            return  # they cannot be listed now; try again soon
        self._sigterm_sent = True
        if asked:
            self._say_names(f"still alive {self._since_asked(now)}: SIGTERM to ", asked, ", too")

    # --- by force -------------------------------------------------------------------

    def _kill(self, now: float) -> None:
        """Kill the remaining processes. One round of several: each may reveal new orphans."""
        killed: list[str] = []
        try:
            killed = self._tree.kill()
            is_late = self._killing_since is not None and now - self._killing_since > KILL_FOR
            unreaped = tuple(self._tree.children()) if is_late else ()
        except OSError:
            # They cannot be listed now, and only the group was killed. The others must get SIGKILL
            # before they count as unkillable.
            is_late, unreaped = False, ()
            self._killing_since = None if self._killing_since is None else now
        if self._killing_since is None:
            self._killing_since = now
            since = f"still alive {self._since_asked(now)}: killed"
            if killed:
                self._say_names(f"{since}: ", killed)
            else:  # /proc is missing
                self._say(since)
        else:
            self._killed_late += killed
        if is_late:
            self._given_up = True
            self.unreaped = unreaped
            self._say(f"could not be killed: {', '.join(map(str, self.unreaped))}")

    def _say_names(self, before: str, names: list[str], suffix: str = "") -> None:
        """Log the names of processes, in as many lines as needed."""
        shown = names[:_MOST_NAMES]
        for begin in range(0, len(shown), _NAMES_IN_LINE):
            listed = ", ".join(shown[begin : begin + _NAMES_IN_LINE])
            self._say(f"{before if begin == 0 else 'and '}{listed}{suffix}")
        if len(names) > len(shown):
            self._say(f"and {len(names) - len(shown)} more{suffix}")

    def _since_asked(self, now: float) -> str:
        """Return, as text, how long ago the first signal was sent, and which one."""
        asked_at, number = self._asked or (now, self._stop_signal)
        return f"{now - asked_at:.1f} s after {_name_of(number)}"

    def _shutting_down(self) -> bool:
        """Tell whether the SIGTERM that ended the command was sent to this supervisor, too."""
        if not self._shutdown.requested and self._term_at is None:
            poll = select.poll()
            poll.register(self._shutdown.fileno(), select.POLLIN)
            poll.poll(int(_SHUTDOWN_LAG * 1000))
        return self._shutdown.requested


def _is_end_by_sigterm(status: int) -> bool:
    """Tell whether SIGTERM ended the command, also by exit code as in shells and functions."""
    if os.WIFSIGNALED(status):
        return os.WTERMSIG(status) == _signal.SIGTERM
    return os.WEXITSTATUS(status) == _BY_SHELL + _signal.SIGTERM


def _name_of(number: int) -> str:
    """Return the name of a signal. `_signal` only has constants, and no enum."""
    names = [
        name
        for name, value in vars(_signal).items()
        if value == number and name.startswith("SIG") and name[3:4] != "_"
    ]
    return names[-1] if names else f"signal {number}"  # some have an old name, listed first
