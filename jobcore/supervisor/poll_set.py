"""One poll set, in which every descriptor has a function to call."""

from __future__ import annotations

import os
import select

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class Watch:
    """What the one thread of a supervisor waits for."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._handlers: dict[int, Callable[[], None]] = {}
        self._events: dict[int, int] = {}

    @property
    def events(self) -> dict[int, int]:
        """What is waited for, by descriptor: for a poll that does so for several."""
        return dict(self._events)

    def add(
        self, descriptor: int, handler: Callable[[], None], events: int = select.POLLIN
    ) -> None:
        """Call `handler` whenever one of `events` is there, or the other end was closed."""
        self._handlers[descriptor] = handler
        self._events[descriptor] = events
        self._poll.register(descriptor, events)

    def change(self, descriptor: int, events: int) -> None:
        """Wait for other events on a descriptor, if it is watched."""
        if descriptor in self._handlers:
            self._events[descriptor] = events
            self._poll.modify(descriptor, events)

    def forget(self, descriptor: int) -> None:
        """Watch it no more; that it is not watched is fine."""
        if self._handlers.pop(descriptor, None) is not None:
            del self._events[descriptor]
            self._poll.unregister(descriptor)

    def close(self, descriptor: int) -> None:
        """Watch it no more, and close it; a negative one is none."""
        self.forget(descriptor)
        if descriptor >= 0:
            os.close(descriptor)

    def wait(self, milliseconds: int) -> bool:
        """Wait for at most so long, call whom it concerns, and tell whether there was anybody."""
        ready = self._poll.poll(milliseconds)
        for descriptor, _ in ready:
            handler = self._handlers.get(descriptor)
            if handler is not None:  # one called before it in this round may have forgotten it
                handler()
        return bool(ready)
