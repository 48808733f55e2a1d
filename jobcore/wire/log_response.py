"""
The response to a request for a log, also while the log grows.

A quiet job must not block a server. So a body that follows a job returns control every few
seconds, and the server can check whether its client is still connected. In an event loop a
follower occupies no thread. In a server with one thread per request, `Followers` limits them.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple, Protocol
from uuid import UUID

from jobcore import checks
from jobcore.errors import JobDeleted, TooManyFollowers, WaitTimeout
from jobcore.models import Job, LogLine
from jobcore.operations.arguments import checked_most, checked_timeout
from jobcore.operations.async_backend import in_thread
from jobcore.wire.accept import TEXT, log_type
from jobcore.wire.log_forms import form_of
from jobcore.wire.parameters import unsigned

#: Seconds without a line after which a follower's body returns control. Proxies close a
#: silent connection after 60 seconds, some after 30.
HEARTBEAT = 15.0
#: Bytes of stored lines that are sent at once. An estimated compromise between a system call
#: per line and a client that waits for the first line.
CHUNK_BYTES = 64 * 1024
#: Headers for a body that grows: caches must not store it, and nginx must not buffer it.
LIVE_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class LogResponse(NamedTuple):
    """
    The response to a request for a log.

    Attributes:
        content_type: The media type that was chosen. Text is declared as UTF-8, but is sent
            as the job wrote it.
        body: The bytes, read from the database on demand. Every item ends at the end of a
            line or of a piece of one, or is a heartbeat. It has a method `close`, which
            WSGI servers call at the end.
        headers: Further headers to send. They keep caches and proxies from holding back a
            body that grows.
    """

    content_type: str
    body: Iterator[bytes]
    headers: Mapping[str, str]


class AsyncLogResponse(NamedTuple):
    """
    The response to a request for a log in an event loop; see `LogResponse`.

    Attributes:
        content_type: As in `LogResponse`.
        body: An asynchronous iterator of the same items. It need not be closed.
        headers: As in `LogResponse`.
    """

    content_type: str
    body: AsyncIterator[bytes]
    headers: Mapping[str, str]


class Followers:
    """
    A limit on the number of followers, for a server with one thread per request.

    Create one for all requests of a process, and pass it to `log_response`. If the limit is
    below the number of threads, the remaining threads can always answer other requests.

    Args:
        most: Maximum number of followers at once in this process.

    Raises:
        ArgumentError: `most` is not a whole number, 0 or more.
    """

    def __init__(self, most: int) -> None:
        self.most = checked_most(most)
        self._pid = os.getpid()
        #: The followers by their place. `setdefault` assigns a place atomically.
        self._places: dict[int, object] = {}

    def enter(self) -> Callable[[], None]:
        """
        Register one more follower.

        Returns:
            A function that unregisters it. It is idempotent.

        Raises:
            TooManyFollowers: The limit is reached.
        """
        if self._pid != os.getpid():  # after a fork, the followers are the parent's
            self._pid, self._places = os.getpid(), {}
        me = object()
        for place in range(self.most):
            if self._places.setdefault(place, me) is me:
                return partial(self._leave, self._places, place, me)
        raise TooManyFollowers(self.most)

    @staticmethod
    def _leave(places: dict[int, object], place: int, me: object) -> None:
        if places.get(place) is me:
            del places[place]

    def __len__(self) -> int:
        """Return the current number of followers."""
        return len(self._places) if self._pid == os.getpid() else 0


class _Jobs(Protocol):
    """The methods of a `JobManager` that are used here."""

    def get_job(self, job_id: UUID | str) -> Job: ...

    def logs(
        self, job_id: UUID | str, sequence: int = 0, *, unfinished: bool = True
    ) -> Iterator[LogLine]: ...

    def follow(
        self,
        job_id: UUID | str,
        sequence: int = 0,
        timeout: float | None = None,
        *,
        unfinished: bool = True,
    ) -> Iterator[LogLine]: ...


class _AsyncJobs(_Jobs, Protocol):
    """The methods of a `JobManager` that are used here in an event loop."""

    def follow_async(
        self,
        job_id: UUID | str,
        sequence: int = 0,
        timeout: float | None = None,
        *,
        unfinished: bool = True,
    ) -> AsyncIterator[LogLine]: ...


class _LogRequest:
    """
    The parameters of a request, checked.

    Attributes:
        form: The encoder for lines.
        first: The number of the first line.
        timeout, heartbeat: Seconds.
    """

    def __init__(
        self,
        *,
        sequence: str | int,
        accept: str | None,
        last_event_id: str | None,
        timeout: float | None,
        heartbeat: float,
    ) -> None:
        self._media_type = log_type(accept)
        self.form = form_of(self._media_type)
        self.first = unsigned(sequence, "sequence")
        if last_event_id:
            self.first = unsigned(last_event_id, "Last-Event-ID") + 1
        self.timeout = checked_timeout(timeout)
        self.heartbeat = checks.positive_seconds(heartbeat, "heartbeat", checks.OLDEST)

    @property
    def content_type(self) -> str:
        """The value of the header Content-Type."""
        return f"{TEXT}; charset=utf-8" if self._media_type == TEXT else self._media_type

    def beginning(self, job: Job) -> bytes | None:
        """Return the first item, so that headers are sent at once; None: lines come at once."""
        return self.form.beginning or (None if job.line_count > self.first else b"")


def log_response(
    jobs: _Jobs,
    job_id: UUID | str,
    *,
    sequence: str | int = 0,
    accept: str | None = None,
    last_event_id: str | None = None,
    follow: bool = False,
    timeout: float | None = None,
    heartbeat: float = HEARTBEAT,
    followers: Followers | None = None,
    is_gone: Callable[[], bool] | None = None,
) -> LogResponse | None:
    r"""
    Return a job's log from the line `sequence` on, in the form that a request asks for.

    None means status 204: there is no such line, and with `follow` there never will be. So
    a client that follows again after each `timeout`, from the line after the last one it
    got, has the whole log when it gets a 204. An `EventSource` stops reconnecting then.

    If the job is deleted in the meantime, the body ends after a whole line.

    A body that follows occupies its thread until the client has left, or until `timeout` is
    over. After each `heartbeat` seconds without a line it yields an item: an empty line
    (`\n`) for NDJSON, a comment for server-sent events, or `b""` for text. If that cannot be
    sent, the server closes the body. For text nothing is sent, so a client that has left is
    noticed only through `is_gone`.

    Args:
        jobs: The manager.
        job_id: The job.
        sequence: The number of the first line, as text or as a number.
        accept: The Accept header; None: there was none.
        last_event_id: The header Last-Event-ID, from a client of server-sent events that
            reconnects: the number of the last line it has seen. None: there was none.
        follow: Whether to continue with new lines until the job is final. False: return
            what has been written so far.
        timeout: Seconds for which to follow; then the body ends as if it were complete.
            None: no limit.
        heartbeat: Seconds without a line until a heartbeat.
        followers: Counts the followers, and refuses those beyond its limit. None: no limit.
        is_gone: Called at each heartbeat; if it returns True, the client has left and the
            body ends. None: do not check.

    Raises:
        NotAcceptable: The header does not accept a media type of a log.
        InvalidParameter: `sequence` or `last_event_id` is not an unsigned integer.
        JobNotFound: No job has this id.
        TooManyFollowers: The limit of `followers` is reached.
        ArgumentError: `timeout` or `heartbeat` is not a valid number of seconds.
    """
    request = _LogRequest(
        sequence=sequence,
        accept=accept,
        last_event_id=last_event_id,
        timeout=timeout,
        heartbeat=heartbeat,
    )
    job = jobs.get_job(job_id) if follow else None
    if job is not None and not job.status.final:
        leave = None if followers is None else followers.enter()
        items = _followed(jobs, job, request, is_gone)
        return LogResponse(request.content_type, _Body(items, leave), LIVE_HEADERS)
    lines = jobs.logs(job_id, request.first, unfinished=False)
    body = _in_chunks(request.form.encode_together(lines))
    begin = next(body, None)
    if begin is None:
        return None
    return LogResponse(request.content_type, _Body(_until_deleted(begin, body)), {})


async def log_response_async(
    jobs: _AsyncJobs,
    job_id: UUID | str,
    *,
    sequence: str | int = 0,
    accept: str | None = None,
    last_event_id: str | None = None,
    follow: bool = False,
    timeout: float | None = None,
    heartbeat: float = HEARTBEAT,
) -> AsyncLogResponse | None:
    """
    Await what `log_response` returns, in an event loop (asyncio, trio or anyio).

    None and the items of the body are as in `log_response`. A follower occupies no thread,
    so the number of followers needs no limit. The server ends the body when its client has
    left; it need not be closed.

    Args:
        jobs: The manager.
        job_id, sequence, accept, last_event_id, follow: As in `log_response`.
        timeout: Seconds for which to follow; None: no limit.
        heartbeat: Seconds without a line until a heartbeat.

    Raises:
        NotAcceptable, InvalidParameter, JobNotFound, ArgumentError: As in `log_response`.
    """
    request = _LogRequest(
        sequence=sequence,
        accept=accept,
        last_event_id=last_event_id,
        timeout=timeout,
        heartbeat=heartbeat,
    )
    job = await in_thread(jobs.get_job, job_id) if follow else None
    if job is not None and not job.status.final:
        followed = _FollowedLines(jobs, job, request)
        return AsyncLogResponse(request.content_type, followed, LIVE_HEADERS)
    stored = partial(log_response, jobs, job_id, sequence=request.first, accept=accept)
    found = await in_thread(stored)
    if found is None:
        return None
    return AsyncLogResponse(found.content_type, _StoredLines(found.body), {})


# --- bodies -----------------------------------------------------------------------


class _Body(Iterator[bytes]):
    """A body whose `close` works even before the first item, unlike that of a generator."""

    def __init__(self, items: Iterator[bytes], leave: Callable[[], None] | None = None) -> None:
        self._items = items
        self._leave = leave

    def __next__(self) -> bytes:
        try:
            return next(self._items)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the body. Idempotent."""
        leave, self._leave = self._leave, None
        if leave is not None:
            leave()
        close = getattr(self._items, "close", None)
        if close is not None:
            close()

    def __del__(self) -> None:
        """Unregister the follower if no server closed the body, as after a HEAD request."""
        leave, self._leave = self._leave, None
        if leave is not None:
            leave()


def _followed(
    jobs: _Jobs, job: Job, request: _LogRequest, is_gone: Callable[[], bool] | None
) -> Iterator[bytes]:
    beginning = request.beginning(job)
    if beginning is not None:
        yield beginning
    quiet = time.monotonic()  # time of the last item
    deadline = quiet + request.timeout
    sequence = request.first
    while True:
        turn = min(quiet + request.heartbeat, deadline) - time.monotonic()
        try:
            for line in jobs.follow(job.id, sequence, turn, unfinished=False):
                yield request.form.encode(line)
                sequence, quiet = _number_after(line, sequence), time.monotonic()
            return
        except JobDeleted:
            # The status line was sent long ago. The client has whole lines only, and its
            # next request will fail with 404.
            return
        except WaitTimeout:
            now = time.monotonic()
            if now >= deadline or (is_gone is not None and is_gone()):
                return
        if now >= quiet + request.heartbeat:
            yield request.form.heartbeat
            quiet = time.monotonic()


def _number_after(line: LogLine, sequence: int) -> int:
    """Return the number after a line's, or `sequence` if the line has none."""
    return sequence if line.sequence is None else line.sequence + 1


def _in_chunks(lines: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the same bytes in fewer, larger items."""
    held: list[bytes] = []
    size = 0
    for line in lines:
        held.append(line)
        size += len(line)
        if size >= CHUNK_BYTES:
            yield b"".join(held)
            held, size = [], 0
    if held:
        yield b"".join(held)


def _until_deleted(begin: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    """Yield `begin` and the rest; end early if the job is deleted."""
    yield begin
    try:
        yield from rest
    except JobDeleted:
        return  # as in `_followed`


class _FollowedLines(AsyncIterator[bytes]):
    """The body of a follower in an event loop. Unlike a generator it need not be closed."""

    def __init__(self, jobs: _AsyncJobs, job: Job, request: _LogRequest) -> None:
        self._jobs = jobs
        self._job = job
        self._request = request
        self._beginning = request.beginning(job)
        self._last_item = time.monotonic()  # time of the last item
        self._deadline = self._last_item + request.timeout
        self._sequence = request.first
        self._lines: AsyncIterator[LogLine] | None = None

    async def __anext__(self) -> bytes:
        beginning, self._beginning = self._beginning, None
        if beginning is not None:
            return beginning
        while True:
            if self._lines is None:
                turn = min(self._last_item + self._request.heartbeat, self._deadline)
                self._lines = self._jobs.follow_async(
                    self._job.id, self._sequence, turn - time.monotonic(), unfinished=False
                )
            try:
                line = await anext(self._lines)
            except JobDeleted:
                raise StopAsyncIteration from None
            except WaitTimeout:
                now = time.monotonic()
                if now >= self._deadline:
                    raise StopAsyncIteration from None
                self._lines = None
                if now >= self._last_item + self._request.heartbeat:
                    self._last_item = now
                    return self._request.form.heartbeat
            else:
                self._sequence = _number_after(line, self._sequence)
                self._last_item = time.monotonic()
                return self._request.form.encode(line)


class _StoredLines(AsyncIterator[bytes]):
    """A body of stored lines, which are read in threads."""

    def __init__(self, items: Iterator[bytes]) -> None:
        self._items = items

    async def __anext__(self) -> bytes:
        item: Any = await in_thread(next, self._items, None)
        if item is None:
            raise StopAsyncIteration
        found: bytes = item
        return found
