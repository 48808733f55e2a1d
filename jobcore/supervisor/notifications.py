"""Sends messages about a running job to its host, as long as the host exists."""

from __future__ import annotations

import select

from jobcore.supervisor import messages

TYPE_CHECKING = False
if TYPE_CHECKING:
    from jobcore.supervisor.host_channel import HostChannel
    from jobcore.supervisor.poll_set import Watch

_EVERY = 0.05  # seconds between two messages about output,
_BYTES = 256 * 1024  # unless there are so many new bytes


class Reporter:
    """Sends the messages of one run."""

    def __init__(self, channel: HostChannel, watch: Watch, token: str) -> None:
        self._channel = channel
        self._watch = watch
        self._token = token
        self._announced = 0
        self._held = 0
        self._next = 0.0
        if not channel.dead:
            # Not POLLIN: the request of a later job would wake every poll.
            watch.add(channel.fileno(), self._serve, 0)
            if channel.pidfd is not None:
                watch.add(channel.pidfd, self._lose_host)

    def started(self, pid: int) -> None:
        """Report that the command runs."""
        self._post(messages.STARTED, pid)

    def announce(self, spool_end: int, now: float) -> None:
        """Report new output: at once after a pause, otherwise every `_EVERY` seconds."""
        gathered = spool_end - self._announced
        if gathered and not self._channel.dead and (now >= self._next or gathered >= _BYTES):
            self._announced = spool_end
            self._next = now + _EVERY
            self._post(messages.OUTPUT, spool_end)

    def held(self, number: int) -> None:
        """Report the errno that keeps output from being written, if changed; 0: it is written."""
        if number != self._held and not self._channel.dead:
            self._held = number
            self._post(messages.HELD, number)

    def due(self, spool_end: int) -> float | None:
        """Return the monotonic time by which new output must be reported; None: there is none."""
        return self._next if spool_end > self._announced and not self._channel.dead else None

    def _post(self, kind: int, number: int) -> None:
        self._channel.post(kind, self._token, number)
        self._await()

    def _serve(self) -> None:
        """Send pending messages. If there are none, the other end was closed, which wakes, too."""
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
