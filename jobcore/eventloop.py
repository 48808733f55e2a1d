"""
Event loop: a thread for what blocks, and a pause, in whichever framework the caller runs.

That is asyncio, by the standard library alone, or trio. The latter is never
imported here: whoever runs in it has done so. anyio runs in one of the two.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
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
