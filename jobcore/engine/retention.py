"""Keeps the retention of the file: removes final jobs that its rules no longer keep."""

from __future__ import annotations

import time
from functools import partial

from jobcore import tuning
from jobcore.clock import Clock
from jobcore.engine.remover import REMOVED_AT_ONCE, SKIPS_AT_ONCE, Remover
from jobcore.lifecycle import FINAL
from jobcore.storage import retention, settings
from jobcore.storage.database import Database
from jobcore.storage.job_rows import JobFilter
from jobcore.storage.retention import Expired, Position
from jobcore.storage.settings import Rule

#: Seconds after which the dispatcher does something else first.
LOOK = 0.05


class RetentionChore:
    """
    Removes jobs in small steps: each call removes some, and tells whether there are more.

    Several managers may do this at once; each job is removed by one of them.
    """

    def __init__(self, database: Database, remover: Remover, clock: Clock) -> None:
        self._database = database
        self._remover = remover
        self._clock = clock
        self._rules: list[Rule] = []
        #: By rule: the last job that was examined. Those before it never expire by this rule.
        self._seen: dict[Rule, Position] = {}
        self._due: list[tuple[Rule, Expired]] = []  # what this look has yet to do
        self._next_look = 0  # by the wall clock
        self._last_look = 0

    def is_unfinished(self) -> bool:
        """Tell whether the last call left jobs to remove, so that the next should come soon."""
        return bool(self._due)

    def tick(self) -> None:
        """Remove some of the jobs that are due. New rules apply at once, others once a minute."""
        now = self._clock.now()
        with self._database.read() as connection:
            rules = settings.retention(connection)
        if rules != self._rules:
            self._rules, self._seen, self._due, self._next_look = rules, {}, [], 0
        if not self._due and rules and not self._last_look <= now < self._next_look:
            self._begin(now)
        deadline = time.monotonic() + LOOK
        while self._due:
            rule, expired = self._due[0]
            if not self._remove_some(rule, expired):
                self._due.pop(0)
            if time.monotonic() > deadline:
                return

    def _begin(self, now: int) -> None:
        self._last_look, self._next_look = now, now + int(tuning.RETENTION_PAUSE * 1e6)
        for rule in self._rules:
            wanted = JobFilter(statuses=rule.statuses)
            expired = Expired(now - round(rule.keep * 1e6), wanted)
            if rule.newest is not None:
                with self._database.read() as connection:
                    expired = expired.keep(connection, rule.newest)
                self._seen.pop(rule, None)  # a job that was spared may be spared no longer
            self._due.append((rule, expired))

    def _remove_some(self, rule: Rule, expired: Expired) -> bool:
        """Examine some of the jobs, the first ended first; return whether there may be more."""
        after = self._seen.get(rule, retention.FIRST)
        with self._database.read() as connection:
            numbers, last = retention.next_expired(
                connection,
                expired,
                after=after,
                examined=tuning.EXAMINED_AT_ONCE,
                limit=REMOVED_AT_ONCE,
            )
        if numbers:
            now = self._clock.now()
            mark = partial(
                retention.mark_deleted_if_expired, expired=expired, numbers=numbers, now=now
            )
            self._remover.remove_jobs(*self._database.write(mark))
        if last is not None:
            self._seen[rule] = last
            return True
        return self._remove_skips(expired)

    def _remove_skips(self, expired: Expired) -> bool:
        """Remove some old records of skipped runs, as pruning does; return whether some were."""
        statuses = expired.wanted.statuses
        if expired.up_to is not None or statuses is None or not statuses >= FINAL:
            return False
        with self._database.read() as connection:
            ids = retention.find_skips(connection, expired, SKIPS_AT_ONCE)
        if ids:
            self._database.write(partial(retention.remove_skips, ids=ids))
        return bool(ids)
