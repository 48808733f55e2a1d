"""What the host of a running job is told, until the host is gone."""

from __future__ import annotations

import select

from jobcore.supervisor import messages

TYPE_CHECKING = False
if TYPE_CHECKING:
    from jobcore.supervisor.host_channel import HostChannel
    from jobcore.supervisor.poll_set import Watch

_EVERY = 0.05  # seconds between two notices of output,
_BYTES = 256 * 1024  # unless this much has gathered


class Reporter:
    """The notices of one run."""

    def __init__(self, channel: HostChannel, watch: Watch, token: str) -> None:
        self._channel = channel
        self._watch = watch
        self._token = token
        self._announced = 0
        self._held = 0
        self._next = 0.0
        if not channel.dead:
            # Never for reading: a request for later would wake every poll.
            watch.add(channel.fileno(), self._serve, 0)
            if channel.pidfd is not None:
                watch.add(channel.pidfd, self._lose_host)

    def started(self, pid: int) -> None:
        """Tell that the command runs."""
        self._post(messages.STARTED, pid)

    def announce(self, spool_end: int, now: float) -> None:
        """Tell of output: at once after quiet, else not too often."""
        gathered = spool_end - self._announced
        if gathered and not self._channel.dead and (now >= self._next or gathered >= _BYTES):
            self._announced = spool_end
            self._next = now + _EVERY
            self._post(messages.OUTPUT, spool_end)

    def held(self, number: int) -> None:
        """Tell why output is held back, by its errno, where that has changed; 0: it is not."""
        if number != self._held and not self._channel.dead:
            self._held = number
            self._post(messages.HELD, number)

    def due(self, spool_end: int) -> float | None:
        """Return when output that has gathered must be told at the latest; None: there is none."""
        return self._next if spool_end > self._announced and not self._channel.dead else None

    def _post(self, kind: int, number: int) -> None:
        self._channel.post(kind, self._token, number)
        self._await()

    def _serve(self) -> None:
        """Let notices go out; where none wait, the other end was closed: nothing else wakes us."""
        if self._channel.pending:
            self._channel.flush()
        else:
            self._channel.mark_dead()
        self._await()

    def _await(self) -> None:
        if self._channel.dead:
            self._lose_host()
        else:
            events = select.POLLOUT if self._channel.pending else 0
            self._watch.change(self._channel.fileno(), events)

    def _lose_host(self) -> None:
        self._channel.mark_dead()
        self._watch.forget(self._channel.fileno())
        if self._channel.pidfd is not None:
            self._watch.forget(self._channel.pidfd)
