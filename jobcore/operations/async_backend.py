"""
A thread for blocking calls, and a pause, under asyncio or trio.

That is asyncio, by the standard library alone, or trio. The latter is never
imported here: whoever runs in it has done so. anyio runs in one of the two.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

Answer = TypeVar("Answer")


async def in_thread(function: Callable[..., Answer], *arguments: Any) -> Answer:
    """
    Return what `function` returns, called in a worker thread of the framework.

    A caller that is cancelled does not wait for it: the function comes to its end
    by itself, and nobody hears of its answer, nor of its error.
    """
    trio = _trio()
    if trio is not None:
        answer: Answer = await trio.to_thread.run_sync(function, *arguments, abandon_on_cancel=True)
        return answer
    import asyncio  # noqa: PLC0415 - loaded by whoever runs in it, and slow to load

    return await asyncio.to_thread(function, *arguments)


async def sleep(seconds: float) -> None:
    """Let others run for so long; with 0, just once."""
    trio = _trio()
    if trio is not None:
        await trio.sleep(seconds)
        return
    import asyncio  # noqa: PLC0415 - as above

    await asyncio.sleep(seconds)


def _trio() -> Any:
    """Return trio if this is a task of it, else None."""
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
    Await `function` in a worker thread also when the caller is cancelled. Only for what ends soon.

    Returns:
        What it returned, and the cancellation that came meanwhile. The caller raises
        it, or has it come again with `cancel_again`. None where none came, and in trio,
        which cancels at the next await by itself.
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


def cancel_again(cancelled: BaseException) -> None:
    """Have a cancellation of asyncio that was caught come again at the next await."""
    import asyncio  # noqa: PLC0415 - as above

    task: Any = asyncio.current_task()
    if hasattr(task, "uncancel"):  # from Python 3.11 on, which counts them
        task.uncancel()
    task.cancel(*cancelled.args)  # by which anyio knows its own


class Interruption:
    """
    Ends the body of a block in an event loop once something outside has come true.

    Call `begin` before the body and `end` after it, in the same task.

    Attributes:
        struck: Whether the body was cancelled by this.
    """

    def __init__(self) -> None:
        self.struck = False
        self._loop: _Asyncio | _Trio | None = None

    def begin(self, condition: Callable[[], Coroutine[Any, Any, bool]]) -> None:
        """Cancel the body when `condition` returns True; False, or an error: never."""
        trio = _trio()
        self._loop = _Asyncio() if trio is None else _Trio(trio)
        self._loop.begin(self._watch(condition))

    async def _watch(self, condition: Callable[[], Coroutine[Any, Any, bool]]) -> None:
        if await condition() and self._loop is not None:
            self.struck = True
            self._loop.cancel()

    async def end(self, error: BaseException | None) -> bool:
        """Stop watching; tell whether `error`, with which the body ended, is this cancellation."""
        assert self._loop is not None  # noqa: S101 - for the type checker alone
        return await self._loop.end(error, struck=self.struck)


class _Asyncio:
    def begin(self, watch: Coroutine[Any, Any, None]) -> None:
        import asyncio  # noqa: PLC0415 - as above

        self._body: Any = asyncio.current_task()
        self._before = _cancelling(self._body)
        self._watcher = asyncio.ensure_future(watch)

    def cancel(self) -> None:
        self._body.cancel()

    async def end(self, error: BaseException | None, *, struck: bool) -> bool:
        import asyncio  # noqa: PLC0415 - as above

        self._watcher.cancel()
        self._watcher.add_done_callback(_hear)
        if not struck:
            return False
        if not isinstance(error, asyncio.CancelledError):
            try:
                await asyncio.sleep(0)  # takes the cancellation that the body has not met
            except asyncio.CancelledError as late:
                error = late
        if hasattr(self._body, "uncancel"):
            self._body.uncancel()
        # Another cancellation besides goes on its way.
        return isinstance(error, asyncio.CancelledError) and (
            _cancelling(self._body) <= self._before
        )


def _cancelling(task: Any) -> int:
    """Return how often a task was asked to end; 0 before Python 3.11, which does not count."""
    return int(task.cancelling()) if hasattr(task, "cancelling") else 0


def _hear(task: Any) -> None:
    """Take the error of a watcher, which is nobody's concern any more."""
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

    async def end(self, error: BaseException | None, *, struck: bool) -> bool:
        self._watcher.cancel()
        kind = None if error is None else type(error)
        trace = None if error is None else error.__traceback__
        return bool(self._body.__exit__(kind, error, trace)) and struck
