"""A poll set in which every descriptor has a handler."""

from __future__ import annotations

import os
import select

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class Watch:
    """The descriptors that the only thread of a supervisor waits for."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._handlers: dict[int, Callable[[], None]] = {}
        self._events: dict[int, int] = {}

    @property
    def events(self) -> dict[int, int]:
        """The events that are waited for, by descriptor, to poll several sets at once."""
        return dict(self._events)

    def add(
        self, descriptor: int, handler: Callable[[], None], events: int = select.POLLIN
    ) -> None:
        """Call `handler` when one of `events` occurs or the other end is closed."""
        self._handlers[descriptor] = handler
        self._events[descriptor] = events
        self._poll.register(descriptor, events)

    def change(self, descriptor: int, events: int) -> None:
        """Change the events of a descriptor, if it is watched."""
        if descriptor in self._handlers:
            self._events[descriptor] = events
            self._poll.modify(descriptor, events)

    def forget(self, descriptor: int) -> None:
        """Stop watching a descriptor, if it is watched."""
        if self._handlers.pop(descriptor, None) is not None:
            del self._events[descriptor]
            self._poll.unregister(descriptor)

    def close(self, descriptor: int) -> None:
        """Stop watching a descriptor and close it; a negative one is ignored."""
        self.forget(descriptor)
        if descriptor >= 0:
            os.close(descriptor)

    def wait(self, milliseconds: int) -> bool:
        """Wait for events, call their handlers, and tell whether there were any."""
        ready = self._poll.poll(milliseconds)
        for descriptor, _ in ready:
            handler = self._handlers.get(descriptor)
            if handler is not None:  # an earlier handler of this round may have removed it
                handler()
        return bool(ready)
