"""
Worker threads for blocking calls, and sleeping, under asyncio or trio.

anyio runs in one of the two. trio is never imported here: a program that runs in it has
imported it already.
"""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

Answer = TypeVar("Answer")


class OneReader(Generic[Answer]):
    """
    What an iterator in an event loop reads from: one task at a time, until the first error.

    An error ends it, as it ends a generator, so a loop that ignores errors terminates.

    Args:
        what: What it returns, for the error of a second task.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._reading = False
        self._ended = False

    async def next(self) -> Answer:
        """Return the next one, or raise StopAsyncIteration."""
        if self._reading:
            raise RuntimeError(f"another task waits for the next {self._what} of the same iterator")
        if self._ended:
            raise StopAsyncIteration
        self._reading = True
        try:
            return await self._next()
        except Exception:
            self._ended = True
            raise
        finally:
            self._reading = False

    @abstractmethod
    async def _next(self) -> Answer:
        """Return the next one, or raise StopAsyncIteration; a cancelled call changes nothing."""


async def in_thread(function: Callable[..., Answer], *arguments: Any) -> Answer:
    """
    Call `function` in a worker thread of the framework, and return its result.

    A caller that is cancelled does not wait for it: the function runs to its end, and its
    result or error is dropped.
    """
    trio = _trio()
    if trio is not None:
        answer: Answer = await trio.to_thread.run_sync(function, *arguments, abandon_on_cancel=True)
        return answer
    import asyncio  # noqa: PLC0415 - slow to load; programs that use it have loaded it

    return await asyncio.to_thread(function, *arguments)


async def sleep(seconds: float) -> None:
    """Let other tasks run for `seconds`; with 0, just once."""
    trio = _trio()
    if trio is not None:
        await trio.sleep(seconds)
        return
    import asyncio  # noqa: PLC0415 - as above

    await asyncio.sleep(seconds)


def _trio() -> Any:
    """Return the trio module if this is a trio task, else None."""
    trio = sys.modules.get("trio")
    if trio is None:
        return None
    try:
        trio.lowlevel.current_task()
    except RuntimeError:
        return None
    return trio


async def in_thread_to_its_end(
    function: Callable[..., Answer], *arguments: Any
) -> tuple[Answer, BaseException | None]:
    """
    Await `function` in a worker thread even if the caller is cancelled; it must end soon.

    Returns:
        Its result, and the cancellation that arrived meanwhile, or None. The caller raises
        the cancellation, or delays it with `redeliver_cancellation`. In trio it is always None,
        because trio cancels at the next await.
    """
    trio = _trio()
    if trio is not None:
        with trio.CancelScope(shield=True):
            return await trio.to_thread.run_sync(function, *arguments), None
    import asyncio  # noqa: PLC0415 - as above

    work = asyncio.ensure_future(asyncio.to_thread(function, *arguments))
    cancelled: BaseException | None = None
    while not work.done():
        try:
            await asyncio.wait([work])
        except asyncio.CancelledError as error:
            cancelled = error
    return work.result(), cancelled


def redeliver_cancellation(cancelled: BaseException) -> None:
    """Deliver an asyncio cancellation that was caught again, at the next await."""
    import asyncio  # noqa: PLC0415 - as above

    task: Any = asyncio.current_task()
    if hasattr(task, "uncancel"):  # Python 3.11 and later count cancellations
        task.uncancel()
    task.cancel(*cancelled.args)  # anyio recognizes its own cancellations by the arguments


class Interruption:
    """
    Cancels the body of a block in an event loop when a condition becomes true.

    Call `begin` before the body and `end` after it, in the same task.

    Attributes:
        triggered: Whether this has cancelled the body.
    """

    def __init__(self) -> None:
        self.triggered = False
        self._loop: _Asyncio | _Trio | None = None

    def begin(self, condition: Callable[[], Coroutine[Any, Any, bool]]) -> None:
        """Cancel the body when `condition` returns True; if it returns False or raises, never."""
        trio = _trio()
        self._loop = _Asyncio() if trio is None else _Trio(trio)
        self._loop.begin(self._watch(condition))

    async def _watch(self, condition: Callable[[], Coroutine[Any, Any, bool]]) -> None:
        if await condition() and self._loop is not None:
            self.triggered = True
            self._loop.cancel()

    async def end(self, error: BaseException | None) -> bool:
        """Stop watching; tell whether `error`, which ended the body, is this cancellation."""
        assert self._loop is not None  # noqa: S101 - for the type checker alone
        return await self._loop.end(error, triggered=self.triggered)


class _Asyncio:
    def begin(self, watch: Coroutine[Any, Any, None]) -> None:
        import asyncio  # noqa: PLC0415 - as above

        self._body: Any = asyncio.current_task()
        self._before = _cancelling(self._body)
        self._watcher = asyncio.ensure_future(watch)

    def cancel(self) -> None:
        self._body.cancel()

    async def end(self, error: BaseException | None, *, triggered: bool) -> bool:
        import asyncio  # noqa: PLC0415 - as above

        self._watcher.cancel()
        self._watcher.add_done_callback(_hear)
        if not triggered:
            return False
        if not isinstance(error, asyncio.CancelledError):
            try:
                await asyncio.sleep(0)  # receives the cancellation if the body has not
            except asyncio.CancelledError as late:
                error = late
        if hasattr(self._body, "uncancel"):
            self._body.uncancel()
        # If the task was also cancelled by someone else, let that cancellation through.
        return isinstance(error, asyncio.CancelledError) and (
            _cancelling(self._body) <= self._before
        )


def _cancelling(task: Any) -> int:
    """Return how many cancellations a task has pending; 0 before Python 3.11."""
    return int(task.cancelling()) if hasattr(task, "cancelling") else 0


def _hear(task: Any) -> None:
    """Retrieve a watcher's error, so that asyncio does not report it."""
    if not task.cancelled():
        task.exception()


class _Trio:
    def __init__(self, trio: Any) -> None:
        self._trio = trio
        self._body = trio.CancelScope()
        self._watcher = trio.CancelScope()

    def begin(self, watch: Coroutine[Any, Any, None]) -> None:
        self._body.__enter__()

        async def run() -> None:
            with self._watcher:
                try:
                    await watch
                except Exception:  # noqa: BLE001 - a system task must not raise
                    return

        self._trio.lowlevel.spawn_system_task(run)

    def cancel(self) -> None:
        self._body.cancel()

    async def end(self, error: BaseException | None, *, triggered: bool) -> bool:
        self._watcher.cancel()
        kind = None if error is None else type(error)
        trace = None if error is None else error.__traceback__
        return bool(self._body.__exit__(kind, error, trace)) and triggered
