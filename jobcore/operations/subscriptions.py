"""
Delivers the transitions that this process makes to subscribers, in a separate thread.

The transitions of a transaction are read inside it, just before its commit, so nothing that
happens to the job later, such as its deletion, can hide them. After the commit they go to a
queue in memory, and the writer continues.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable

from sqlalchemy import Connection

from jobcore.embedding import telemetry
from jobcore.embedding.locks import GATE, Condition, ForkAware, Lock
from jobcore.engine.thread_loop import Loop
from jobcore.errors import DatabaseCorrupt, SpawnError
from jobcore.models import Event
from jobcore.storage import history
from jobcore.storage.database import Database
from jobcore.storage.history import Entry
from jobcore.storage.job_rows import JobFilter
from jobcore.storage.writer import Observer
from jobcore.tuning import CLOSE_PATIENCE

#: A limit larger than the number of transitions in any transaction.
ALL = 2**31


class Subscription:
    """A callback, and the filter of its events."""

    def __init__(self, callback: Callable[[Event], object], wanted: JobFilter) -> None:
        self.wanted = wanted
        self.ended = False
        self._callback = callback

    def deliver(self, event: Event) -> None:
        """Call the callback unless the subscription has ended; log what it raises."""
        if self.ended:
            return
        try:
            self._callback(event)
        except BaseException as error:  # noqa: BLE001 - SystemExit too: the other subscribers must get the event
            telemetry.event(
                logging.ERROR,
                "subscriber failed",
                job=str(event.job_id),
                event_id=event.id,
                exc_info=error,
            )


class Notifier(Observer, ForkAware):
    """
    Delivers each transition that is committed through one database, once and in order.

    Any thread may call `subscribe`, `drain`, `close`, and the function that `subscribe`
    returned. The notifier's thread calls the callbacks, one after the other.
    """

    change_lock: Lock  # held during each change of the subscriptions
    _all_delivered: Condition  # notified when the queue becomes empty

    def __init__(self, database: Database) -> None:
        self._database = database
        self._on_end: Callable[[], None] | None = None  # called at the end of the thread
        self.loop = Loop("jobcore-notifier", self._turn, self._end)
        self._subscriptions: tuple[Subscription, ...] = ()
        self._deadline: float | None = None  # by the monotonic clock; set by `drain`
        self._reset()
        GATE.watch(self)

    def _reset(self) -> None:
        self.change_lock = Lock()
        self._all_delivered = Condition()
        #: Each entry with the subscriptions at the time of its commit.
        self.queue: deque[tuple[Entry, tuple[Subscription, ...]]] = deque()
        self._mark: int | None = None
        self._entries: list[Entry] = []
        self._newest = 0  # the id of the last entry that was delivered

    # --- for other threads --------------------------------------------------------

    def subscribe(
        self, callback: Callable[[Event], object], wanted: JobFilter
    ) -> Callable[[], None]:
        """
        Call `callback` for every transition that is committed after this returns.

        Returns:
            A function that ends the subscription; a second call is harmless.
        """
        subscription = Subscription(callback, wanted)

        def end() -> None:
            subscription.ended = True
            with self.change_lock:
                self._subscriptions = tuple(one for one in self._subscriptions if not one.ended)
                if not self._subscriptions:
                    self._database.stop_observing()

        with self.change_lock:
            self._subscriptions += (subscription,)
        try:
            self._database.observe(self)
            self.loop.start()
        except BaseException:
            end()
            raise
        return end

    def drain(self) -> None:
        """Wait for the delivery of committed events, `CLOSE_PATIENCE` from the first call on."""
        if self._deadline is None:
            self._deadline = time.monotonic() + CLOSE_PATIENCE
        if not self.loop.is_inside():  # a callback that closes the manager cannot wait for itself
            while self.queue and (left := self._deadline - time.monotonic()) > 0:
                self._all_delivered.wait(lambda: not self.queue, left)

    @property
    def has_thread(self) -> bool:
        """Whether the thread runs in this process."""
        return self.loop.runs

    def close_without_waiting(self, on_end: Callable[[], None]) -> None:
        """Close without waiting, for a finalizer: deliver what is committed, then call `on_end`."""
        self._on_end = on_end
        self.loop.end_without_waiting()

    def mute(self) -> None:
        """End all subscriptions; events that are committed but not delivered are dropped."""
        for subscription in self._subscriptions:
            subscription.ended = True

    def close(self) -> None:
        """Deliver what is committed, as `drain` does, and end; a second call is harmless."""
        self.drain()
        self.loop.close(max((self._deadline or 0.0) - time.monotonic(), 0))

    # --- the transactions of this process -----------------------------------------

    def begun(self, connection: Connection) -> None:
        """Note the last id of the history at the beginning of a transaction."""
        self._entries = []
        try:
            self._mark = history.newest(connection)
        except Exception as error:  # noqa: BLE001 - observing a job must not make it fail
            self._mark = None
            telemetry.event(logging.ERROR, "events missed", error=repr(error))

    def ending(self, connection: Connection) -> None:
        """Read what the transaction appended to the history, without rolled-back savepoints."""
        if self._mark is None:
            return
        try:
            self._entries = history.entries_after(connection, self._mark, ALL, failed=_leave_out)
        except Exception as error:  # noqa: BLE001 - as above
            telemetry.event(logging.ERROR, "events missed", error=repr(error))

    def committed(self) -> None:
        """Queue the entries for the thread."""
        if self._entries:
            subscriptions = self._subscriptions
            # If Ctrl-C makes this run twice, entries are queued twice; their ids distinguish them.
            self.queue.extend([(entry, subscriptions) for entry in self._entries])
            try:
                self.loop.start()  # a forked child has no thread yet
            except SpawnError as error:
                # The commit stands. The events are delivered together with later ones.
                telemetry.event(logging.ERROR, "events delayed", error=str(error))
            self.loop.wake()
            self._entries = []

    @property
    def in_doubt(self) -> bool:
        """Whether there are entries that may or may not have been committed."""
        return bool(self._entries)

    def interrupted(self, connection: Connection) -> None:
        """Queue the entries if the file has them; it has all of them, or none."""
        first, count = self._entries[0].id, len(self._entries)
        there = {
            _as_written(entry) for entry in history.entries_after(connection, first - 1, count)
        }
        if any(_as_written(entry) in there for entry in self._entries):
            self.committed()
        self._entries = []

    # --- the fork of the host -----------------------------------------------------

    def after_fork_in_child(self) -> None:
        """Leave the thread and its queue to the parent; keep the subscriptions."""
        self.loop.forget()
        self._reset()

    # --- the thread ---------------------------------------------------------------

    def _turn(self) -> None:
        self.loop.wait((), None)
        self._deliver_all()

    def _end(self) -> None:
        try:
            self._deliver_all()
        finally:
            on_end, self._on_end = self._on_end, None
            if on_end is not None:
                on_end()

    def _deliver_all(self) -> None:
        queue = self.queue
        while queue and not self._is_late():
            entry, subscriptions = queue[0]
            try:
                if entry.id > self._newest:
                    self._newest = entry.id
                    self._deliver(entry, subscriptions)
            finally:
                queue.popleft()  # only now, so that an empty queue means that all are delivered
        if queue:
            telemetry.event(logging.WARNING, "events not delivered", events=len(queue))
            queue.clear()
        self._all_delivered.notify_all()

    def _deliver(self, entry: Entry, subscriptions: tuple[Subscription, ...]) -> None:
        wanting = [one for one in subscriptions if one.wanted.takes(entry)]
        if wanting:
            try:
                event = Event.from_entry(entry)
            except DatabaseCorrupt as error:
                _leave_out(entry.id, error)
                return
            for subscription in wanting:
                if not self._is_late():
                    subscription.deliver(event)

    def _is_late(self) -> bool:
        return self._deadline is not None and time.monotonic() > self._deadline


def _leave_out(event_id: int, error: Exception) -> None:
    """Log an event that cannot be read; the others are still delivered."""
    telemetry.event(logging.WARNING, "event left out", event_id=event_id, error=str(error))


def _as_written(entry: Entry) -> Entry:
    """Return an entry as it was written, without the mark of a later deletion."""
    return entry._replace(hidden=0)
