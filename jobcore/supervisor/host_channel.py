"""
The supervisor's end of the socket to its host, and whether the host still lives.

Notices never block: what the socket does not take stays pending, and goes out
when poll says so. A host that is gone is a fact, not an error: the job goes on.
"""

from __future__ import annotations

import _socket
import os
import struct

from jobcore.supervisor import NewerProtocol, messages, system_calls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from socket import socket as Socket  # noqa: N812 - the type of both; `_socket` is cheap to import


class BadRequestError(Exception):
    """A request that came torn, without all its descriptors, or from a newer jobcore."""


class Request:
    """A request as it came: the token of its message, and the three descriptors, now ours."""

    __slots__ = ("body", "directory", "lock", "token")

    def __init__(self, token: str, lock: int, directory: int, body: int) -> None:
        self.token = token
        self.lock = lock
        self.directory = directory
        self.body = body


class HostChannel:
    """
    The way to the host.

    Attributes:
        dead: No host is there any more; nobody reads notices.
        pidfd: Becomes readable when the host dies; None where it cannot be had.
            A forked child of the host may hold the other end of the socket, so
            its closing alone would not tell.
        must_look: There is no pidfd though the host can be seen: call `look_for_host`
            now and then.
    """

    def __init__(self, descriptor: int) -> None:
        self._socket: Socket = _socket.socket(fileno=descriptor)  # type: ignore[assignment]
        self._pending: dict[tuple[int, str], bytes] = {}
        self.dead = False
        self.pidfd: int | None = None
        self.must_look = False
        # The creator of the socketpair, however many forks lie between.
        credentials = self._socket.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12)
        self._host = host = struct.unpack("iII", credentials)[0]
        if host > 0:  # 0: it lives in a pid namespace we cannot see
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
        """Whether notices wait for the socket to take them."""
        return bool(self._pending)

    def post(self, kind: int, token: str = messages.NO_TOKEN, number: int = 0) -> None:
        """Send a notice, now or when there is room; a newer one of its kind and run replaces it."""
        self._pending[kind, token] = messages.encode(kind, token, number)
        self.flush()

    def flush(self) -> None:
        """Send what is pending, as far as the socket takes it."""
        if self.dead:
            self._pending.clear()
        for key in list(self._pending):
            try:
                self._socket.send(self._pending[key], _socket.MSG_DONTWAIT | _socket.MSG_NOSIGNAL)
            except (ConnectionResetError, BrokenPipeError):
                # Of the host this says all; of requests it sent before, nothing.
                self.mark_dead()
                return
            except OSError:
                return  # no room: poll will say
            del self._pending[key]

    def mark_dead(self) -> None:
        """Remember that the host is gone, and drop what only it would have read."""
        self.dead = True
        self._pending.clear()

    def look_for_host(self) -> None:
        """Find out whether the host is gone, where no pidfd tells."""
        if self.must_look and not self.dead and not system_calls.is_alive(self._host):
            self.mark_dead()

    def receive(self) -> Request | None:
        """
        Take the next request, or None where none is queued; at the end of file the host is dead.

        Raises:
            BadRequestError: It came without all it needs, or from a newer jobcore. What came is
                closed, which frees its lock; there is no way to go on.
        """
        while True:
            try:
                data, ancillary, flags, _ = self._socket.recvmsg(
                    messages.SIZE,
                    _socket.CMSG_SPACE(4 * messages.DESCRIPTORS),
                    # Without the second flag they would leak into the command, lock and all.
                    _socket.MSG_DONTWAIT | _socket.MSG_CMSG_CLOEXEC,
                )
                break
            except ConnectionResetError:
                # Told once when the host died with a notice unread, and *before*
                # a request that is still queued.
                continue
            except BlockingIOError:
                return None
        if not data:
            self.mark_dead()
            return None
        descriptors: list[int] = []
        for level, kind, content in ancillary:
            if (level, kind) == (_socket.SOL_SOCKET, _socket.SCM_RIGHTS):
                count = len(content) // 4
                descriptors.extend(struct.unpack(f"{count}i", content[: 4 * count]))
        try:
            message = messages.decode(data)
            if (
                message is None
                or message.kind != messages.REQUEST
                or flags & _socket.MSG_CTRUNC
                or len(descriptors) != messages.DESCRIPTORS
            ):
                raise BadRequestError
        except (BadRequestError, NewerProtocol) as error:
            for descriptor in descriptors:
                os.close(descriptor)
            raise BadRequestError from error
        return Request(message.token, *descriptors)

    def refuse(self) -> None:
        """Take no request sent from now on; the host sees a broken pipe. Queued ones stay."""
        try:
            self._socket.shutdown(_socket.SHUT_RD)
        except OSError:
            pass  # the host is gone, and nobody sends

    def close(self) -> None:
        """Close the socket, as the end of a supervisor's process does; twice is harmless."""
        self.mark_dead()
        self._socket.close()
        if self.pidfd is not None:
            os.close(self.pidfd)
            self.pidfd = None
