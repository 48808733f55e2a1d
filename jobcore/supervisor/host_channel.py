"""
The supervisor's end of the socket to its host: requests come in, notices of a job go out.

Sending never blocks: a message that the socket does not take stays pending until poll
reports space. The death of the host is not an error: the job continues.
"""

from __future__ import annotations

import _socket
import os
import select
import struct

from jobcore.supervisor import NewerProtocol, messages, system_calls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from socket import socket as Socket  # noqa: N812 - the type of both; `_socket` is cheap to import

    from jobcore.supervisor.execution import PollSet

_FIRST = 0.01  # seconds until the first notice of output; a job that ends sooner sends none
_EVERY = 0.05  # seconds between two notices of output,
_BYTES = 256 * 1024  # unless there are so many new bytes


class BadRequestError(Exception):
    """A request that is incomplete, lacks descriptors, or comes from a newer jobcore."""


class HostChannel:
    """
    The connection to the host.

    Attributes:
        dead: Whether the host is gone, so that no messages are read.
        pidfd: Becomes readable when the host dies; None: not available. It is needed
            because a forked child of the host may hold the other end of the socket, so
            that the socket does not close with the host.
        must_look: Whether to call `look_for_host` regularly, because the host is visible
            but there is no pidfd.
    """

    def __init__(self, descriptor: int) -> None:
        self._socket: Socket = _socket.socket(fileno=descriptor)  # type: ignore[assignment]
        self._pending: dict[tuple[int, str], bytes] = {}
        self.dead = False
        self.pidfd: int | None = None
        self.must_look = False
        # The process that created the socketpair, even if there were forks in between.
        credentials = self._socket.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12)
        self._host = host = struct.unpack("iII", credentials)[0]
        if host > 0:  # 0: it is in a pid namespace that is not visible here
            try:
                self.pidfd = system_calls.open_process(host)
            except ProcessLookupError:
                self.dead = True
            except system_calls.NoPidfdError:
                self.must_look = True
            except OSError:
                self._socket.close()
                raise

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        return self._socket.fileno()

    @property
    def pending(self) -> bool:
        """Whether messages wait to be sent."""
        return bool(self._pending)

    def post(self, kind: int, token: str = messages.NO_TOKEN, number: int = 0) -> None:
        """Send a message, now or later. It replaces a pending one of the same kind and run."""
        self._pending[kind, token] = messages.encode(kind, token, number)
        self.flush()

    def flush(self) -> None:
        """Send pending messages, as far as the socket takes them."""
        if self.dead:
            self._pending.clear()
        for key in list(self._pending):
            try:
                self._socket.send(self._pending[key], _socket.MSG_DONTWAIT | _socket.MSG_NOSIGNAL)
            except (ConnectionResetError, BrokenPipeError):
                # The host is dead. Requests that it sent before may still be queued.
                self.mark_dead()
                return
            except OSError:
                return  # the socket is full: poll will report space
            del self._pending[key]

    def mark_dead(self) -> None:
        """Note that the host is gone, and drop pending messages."""
        self.dead = True
        self._pending.clear()

    def look_for_host(self) -> None:
        """Check by pid whether the host is gone, if there is no pidfd."""
        if self.must_look and not self.dead and not system_calls.is_alive(self._host):
            self.mark_dead()

    def receive(self) -> tuple[messages.Notice, list[int]] | None:
        """
        Return the next request with its descriptors, which we own now, or None if no request is
        queued. End of file marks the host as dead.

        Raises:
            BadRequestError: The request is incomplete, or comes from a newer jobcore. Its
                descriptors are closed, which frees its lock. The supervisor must exit.
        """
        return self.receive_descriptors(messages.REQUEST, messages.DESCRIPTORS)

    def receive_descriptors(
        self, kind: int, count: int
    ) -> tuple[messages.Notice, list[int]] | None:
        """
        Return the next message and its descriptors, as `receive` does.

        Args:
            kind: What it must be.
            count: How many descriptors must come with it.
        """
        while True:
            try:
                data, ancillary, flags, _ = self._socket.recvmsg(
                    messages.SIZE,
                    _socket.CMSG_SPACE(4 * count),
                    # Without CLOEXEC the command would inherit the descriptors and the lock.
                    _socket.MSG_DONTWAIT | _socket.MSG_CMSG_CLOEXEC,
                )
                break
            except ConnectionResetError:
                # Raised once, if the host died with an unread message, and *before* a request
                # that is still queued.
                continue
            except BlockingIOError:
                return None
        if not data:
            self.mark_dead()
            return None
        descriptors: list[int] = []
        for level, sort, content in ancillary:
            if (level, sort) == (_socket.SOL_SOCKET, _socket.SCM_RIGHTS):
                whole = len(content) // 4
                descriptors.extend(struct.unpack(f"{whole}i", content[: 4 * whole]))
        try:
            message = messages.decode(data)
            if (
                message is None
                or message.kind != kind
                or flags & _socket.MSG_CTRUNC
                or len(descriptors) != count
            ):
                raise BadRequestError
        except (BadRequestError, NewerProtocol) as error:
            for descriptor in descriptors:
                os.close(descriptor)
            raise BadRequestError from error
        return message, descriptors

    def refuse(self) -> None:
        """Refuse new requests: sending one raises BrokenPipeError. Queued requests stay."""
        try:
            self._socket.shutdown(_socket.SHUT_RD)
        except OSError:
            pass  # the host is gone, so no requests come

    def close(self) -> None:
        """Close the socket and the pidfd. Idempotent."""
        self.mark_dead()
        self._socket.close()
        if self.pidfd is not None:
            os.close(self.pidfd)
            self.pidfd = None


class Notices:
    """
    Sends the notices of one run, as long as the host exists.

    Args:
        now: The monotonic time.

    Attributes:
        announced: The end of the spool in the last notice of output.
        errno: The errno in the last notice that output cannot be written.
    """

    def __init__(self, channel: HostChannel, watch: PollSet, token: str, now: float) -> None:
        self._channel = channel
        self._watch = watch
        self._token = token
        self.announced = 0
        self.errno = 0
        self._next = now + _FIRST
        if not channel.dead:
            # Not POLLIN: the request of a later job would wake every poll.
            watch.add(channel.fileno(), self._serve, 0)
            if channel.pidfd is not None:
                watch.add(channel.pidfd, self._lose_host)

    def announce(self, spool_end: int, now: float) -> None:
        """Report new output: at once after a pause, otherwise every `_EVERY` seconds."""
        gathered = spool_end - self.announced
        if gathered and not self._channel.dead and (now >= self._next or gathered >= _BYTES):
            self.announced = spool_end
            self._next = now + _EVERY
            self._post(messages.OUTPUT, spool_end)

    def held(self, number: int) -> None:
        """Report the errno that keeps output from being written, if changed; 0: it is written."""
        if number != self.errno and not self._channel.dead:
            self.errno = number
            self._post(messages.HELD, number)

    def due(self) -> float | None:
        """Return the monotonic time by which new output must be reported; None: never."""
        return None if self._channel.dead else self._next

    def _post(self, kind: int, number: int) -> None:
        self._channel.post(kind, self._token, number)
        self._await()

    def _serve(self) -> None:
        """Send pending messages. With none, the poll has woken because the host has gone."""
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
