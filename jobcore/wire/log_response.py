"""
The answer to a request for a log, also while the log grows.

A quiet job must not hold a server up. So a body that follows a job gives control back every
few seconds, and the server then sees whether its client is still there. In an event loop a
follower holds no thread; in a server with a thread per request `Followers` limits them.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple, Protocol
from uuid import UUID

from jobcore.errors import JobDeleted, TooManyFollowers, WaitTimeout
from jobcore.models import Job, LogLine
from jobcore.operations.arguments import checked_heartbeat, checked_most, checked_patience
from jobcore.operations.async_backend import in_thread
from jobcore.wire.accept import TEXT, log_type
from jobcore.wire.log_forms import form_of
from jobcore.wire.parameters import unsigned

#: Seconds without a line after which a follower's body gives control back. Proxies close a
#: silent connection after 60 seconds, some after 30.
HEARTBEAT = 15.0
#: Bytes that are sent at once of what is stored already. A guess between a
#: system call for each line and a client that waits for the first one.
CHUNK_BYTES = 64 * 1024
#: For a body that grows: no cache may keep it, and nginx is not to gather it.
LIVE_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class LogResponse(NamedTuple):
    """
    What a request for a log is answered with.

    Attributes:
        content_type: The media type that was asked for; text says it is UTF-8,
            which most of it is: it is sent as the job wrote it.
        body: The bytes, read from the database as they are taken; every item
            ends at the end of a line or of a piece of one, or is a heartbeat. It has a
            method `close`, which WSGI servers call when they are done with it.
        headers: Other headers to send: those that keep caches and proxies from holding a
            body back that grows.
    """

    content_type: str
    body: Iterator[bytes]
    headers: Mapping[str, str]


class AsyncLogResponse(NamedTuple):
    """
    What a request for a log is answered with in an event loop; see `LogResponse`.

    Attributes:
        content_type: As in `LogResponse`.
        body: An asynchronous iterator of the same items. There is nothing to close.
        headers: As in `LogResponse`.
    """

    content_type: str
    body: AsyncIterator[bytes]
    headers: Mapping[str, str]


class Followers:
    """
    A limit on the followers of a server that gives each request a thread.

    Give it to `log_response`, and keep one for all requests of a process. With fewer
    followers than threads the others answer all other requests, however quiet the jobs are.

    Args:
        most: Followers at once in this process.

    Raises:
        ArgumentError: `most` is no whole number, 0 or more.
    """

    def __init__(self, most: int) -> None:
        self.most = checked_most(most)
        self._pid = os.getpid()
        #: The followers by their place. Who gets one is decided by one operation.
        self._places: dict[int, object] = {}

    def enter(self) -> Callable[[], None]:
        """
        Count one more follower.

        Returns:
            What ends that; to call it again is harmless.

        Raises:
            TooManyFollowers: There are as many as there may be.
        """
        if self._pid != os.getpid():  # those of the parent are not here
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
        """Return how many there are now."""
        return len(self._places) if self._pid == os.getpid() else 0


class _Jobs(Protocol):
    """What is needed of a `JobManager`."""

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
    """What is needed of a `JobManager` in an event loop."""

    def follow_async(
        self,
        job_id: UUID | str,
        sequence: int = 0,
        timeout: float | None = None,
        *,
        unfinished: bool = True,
    ) -> AsyncIterator[LogLine]: ...


class _Request:
    """
    What a request asks for, checked.

    Attributes:
        form: How lines are sent.
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
        self.timeout = checked_patience(timeout)
        self.heartbeat = checked_heartbeat(heartbeat)

    @property
    def content_type(self) -> str:
        """The value of the header."""
        return f"{TEXT}; charset=utf-8" if self._media_type == TEXT else self._media_type

    def beginning(self, job: Job) -> bytes | None:
        """Return what is sent at once, so that the client sees the headers; None: lines follow."""
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
    Return a job's log from the line `sequence` on, as a request asks for it.

    None stands for 204: there is no such line, and with `follow` none can come
    any more. So a client that follows in turns of `timeout`, each from the line
    behind the last it got, has the whole log when it gets a 204; and an `EventSource`
    stops reconnecting.

    The body ends when the job is deleted meanwhile, after a whole line.

    A body that follows holds its thread until the client has left, or `timeout` is over.
    Each `heartbeat` seconds without a line it yields an item: an empty line (`\n`) of
    NDJSON, a comment of server-sent events, or nothing (`b""`) of text. When that cannot
    be sent, the server closes the body. Nothing can be sent within a text: there
    `is_gone` tells.

    Args:
        jobs: The manager.
        job_id: The job.
        sequence: The number of the first line, as text or as a number.
        accept: The Accept header; None: there was none.
        last_event_id: The header Last-Event-ID of a client of server-sent events that
            reconnects: it has seen the line with this number. None: there was none.
        follow: If the job is not final, go on with lines as they come until it
            is. Else the log is what has been written by now.
        timeout: Seconds for which it follows; then the body ends like one that
            is complete. None: as long as it takes.
        heartbeat: Seconds without a line until a heartbeat.
        followers: Counts those who follow, and refuses more than it allows. None: no limit.
        is_gone: Called at each heartbeat; tells whether the client has left, and the body
            ends. None: nothing tells.

    Raises:
        NotAcceptable: A log has no form that the header names.
        InvalidParameter: `sequence` or `last_event_id` is no unsigned integer.
        JobNotFound: No job has this id.
        TooManyFollowers: There are as many followers as there may be.
        ArgumentError: `timeout` or `heartbeat` is no number of seconds.
    """
    request = _Request(
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
    body = _gathered(map(request.form.encode, lines))
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

    None and the items of the body are those of `log_response`. A follower holds no thread,
    so they need no limit; the server ends the body when its client has left, and there is
    nothing to close.

    Args:
        jobs: The manager.
        job_id, sequence, accept, last_event_id, follow: As in `log_response`.
        timeout: Seconds for which it follows; None: as long as it takes.
        heartbeat: Seconds without a line until a heartbeat.

    Raises:
        NotAcceptable, InvalidParameter, JobNotFound, ArgumentError: As `log_response` does.
    """
    request = _Request(
        sequence=sequence,
        accept=accept,
        last_event_id=last_event_id,
        timeout=timeout,
        heartbeat=heartbeat,
    )
    job = await in_thread(jobs.get_job, job_id) if follow else None
    if job is not None and not job.status.final:
        return AsyncLogResponse(request.content_type, _Followed(jobs, job, request), LIVE_HEADERS)
    stored = partial(log_response, jobs, job_id, sequence=request.first, accept=accept)
    found = await in_thread(stored)
    return None if found is None else AsyncLogResponse(found.content_type, _Stored(found.body), {})


# --- bodies -----------------------------------------------------------------------


class _Body(Iterator[bytes]):
    """Items that can be closed before the first of them was taken, as a generator cannot be."""

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
        """End it; again is harmless."""
        leave, self._leave = self._leave, None
        if leave is not None:
            leave()
        close = getattr(self._items, "close", None)
        if close is not None:
            close()

    def __del__(self) -> None:
        """Leave where no server closed it, as for the answer to a HEAD."""
        leave, self._leave = self._leave, None
        if leave is not None:
            leave()


def _followed(
    jobs: _Jobs, job: Job, request: _Request, is_gone: Callable[[], bool] | None
) -> Iterator[bytes]:
    beginning = request.beginning(job)
    if beginning is not None:
        yield beginning
    quiet = time.monotonic()  # since when nothing was sent
    deadline = quiet + request.timeout
    sequence = request.first
    while True:
        turn = min(quiet + request.heartbeat, deadline) - time.monotonic()
        try:
            for line in jobs.follow(job.id, sequence, turn, unfinished=False):
                yield request.form.encode(line)
                sequence, quiet = _behind(line, sequence), time.monotonic()
            return
        except JobDeleted:
            # The status line has long been sent. What the client has are whole
            # lines; that there are no more, the next request tells it.
            return
        except WaitTimeout:
            now = time.monotonic()
            if now >= deadline or (is_gone is not None and is_gone()):
                return
        if now >= quiet + request.heartbeat:
            yield request.form.heartbeat
            quiet = time.monotonic()


def _behind(line: LogLine, sequence: int) -> int:
    """Return the number behind a line, or `sequence` where it has none."""
    return sequence if line.sequence is None else line.sequence + 1


def _gathered(lines: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the same bytes in fewer items."""
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
    """Yield `begin` and the rest, up to the end of the job or of its being."""
    yield begin
    try:
        yield from rest
    except JobDeleted:
        return  # as above


class _Followed(AsyncIterator[bytes]):
    """The body of a follower in an event loop: an object, for a generator would be to be closed."""

    def __init__(self, jobs: _AsyncJobs, job: Job, request: _Request) -> None:
        self._jobs = jobs
        self._job = job
        self._request = request
        self._beginning = request.beginning(job)
        self._quiet = time.monotonic()  # since when nothing was sent
        self._deadline = self._quiet + request.timeout
        self._sequence = request.first
        self._lines: AsyncIterator[LogLine] | None = None

    async def __anext__(self) -> bytes:
        beginning, self._beginning = self._beginning, None
        if beginning is not None:
            return beginning
        while True:
            if self._lines is None:
                turn = min(self._quiet + self._request.heartbeat, self._deadline)
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
                if now >= self._quiet + self._request.heartbeat:
                    self._quiet = now
                    return self._request.form.heartbeat
            else:
                self._sequence, self._quiet = _behind(line, self._sequence), time.monotonic()
                return self._request.form.encode(line)


class _Stored(AsyncIterator[bytes]):
    """A body that is stored already, read in threads."""

    def __init__(self, items: Iterator[bytes]) -> None:
        self._items = items

    async def __anext__(self) -> bytes:
        item: Any = await in_thread(next, self._items, None)
        if item is None:
            raise StopAsyncIteration
        found: bytes = item
        return found
