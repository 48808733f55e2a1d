"""Checks the filters that listings, counts and the verbs for many jobs take."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from jobcore import checks
from jobcore.clock import from_datetime
from jobcore.errors import ArgumentError, shown
from jobcore.lifecycle import Reason, Status
from jobcore.operations.arguments import checked_statuses, checked_types
from jobcore.storage.job_rows import JobFilter, members
from jobcore.storage.job_search import ORDERS

if TYPE_CHECKING:
    from typing import TypedDict

    from jobcore.operations.lookup import Id

    class _CommonFilters(TypedDict, total=False):
        workspace_id: Id | None
        pipeline_id: Id | None
        type: str | Collection[str] | None
        name: str | None
        key: str | None
        group: str | None
        reason: Reason | Collection[Reason] | None
        exit_code: int | Collection[int] | None

    class EventFilters(_CommonFilters, total=False):
        """The filters of `JobManager.events`."""

        status: Status | Collection[Status] | None

    class FurtherFilters(_CommonFilters, total=False):
        """The filters of `JobManager.list_jobs` by other things than the status."""

        created_since: datetime | None
        created_until: datetime | None
        ended_since: datetime | None
        ended_until: datetime | None

    class JobFilters(FurtherFilters, total=False):
        """The filters of `JobManager.list_jobs`."""

        status: Status | Collection[Status] | None


#: The names of the filters of events, and of those of jobs.
OF_EVENTS = (
    "workspace_id", "pipeline_id", "status", "type", "name", "key", "group", "reason", "exit_code",
)  # fmt: skip
NAMES = (*OF_EVENTS, "created_since", "created_until", "ended_since", "ended_until")

#: A set in a pattern; a `]` that comes first is one of its members.
_SET = re.compile(r"\[(?P<negated>[!^]?)(?P<rest>\]?[^\]]*\])")


def checked_filters(
    given: Mapping[str, Any], names: Collection[str] = NAMES, what: str = "jobs"
) -> JobFilter:
    """Return a filter without its workspace and its pipeline, which need the database."""
    unknown = given.keys() - set(names)
    if unknown:
        raise ArgumentError(f"{what} have no filter {', '.join(sorted(unknown))}")
    texts = {
        name: None if given.get(name) is None else checks.text(given[name], name)
        for name in ("name", "key", "group")
    }
    return JobFilter(
        statuses=members(checked_statuses(given.get("status"))),
        types=members(checked_types(given.get("type"))),
        name=_checked_pattern(texts["name"]),
        key=texts["key"],
        group=texts["group"],
        reasons=members(_checked_reasons(given.get("reason"))),
        exit_codes=members(_checked_codes(given.get("exit_code"))),
        created_since=_checked_time(given.get("created_since"), "created_since"),
        created_until=_checked_time(given.get("created_until"), "created_until"),
        ended_since=_checked_time(given.get("ended_since"), "ended_since"),
        ended_until=_checked_time(given.get("ended_until"), "ended_until"),
    )


def checked_order(order: Any) -> str:
    """Return what a listing is ordered by."""
    return str(checks.one_of(order, "order", ORDERS))


def _checked_pattern(name: str | None) -> str | None:
    # SQLite's GLOB knows only `^` as the mark of a negated set.
    if name is None or "[!" not in name:
        return name
    return _SET.sub(lambda found: f"[{'^' if found['negated'] else ''}{found['rest']}", name)


def _checked_reasons(reason: Any) -> list[Reason] | None:
    if reason is None:
        return None
    found = []
    for one in checks.several(reason, "reason"):
        try:
            found.append(Reason(one))
        except (ValueError, TypeError, RecursionError):
            raise ArgumentError(f"{shown(one)} is not a reason: {', '.join(Reason)}") from None
    return found


def _checked_codes(exit_code: Any) -> list[int] | None:
    if exit_code is None:
        return None
    codes = [exit_code] if checks.is_integer(exit_code) else checks.several(exit_code, "exit_code")
    return [checks.integer(one, "exit_code", 0, 255) for one in codes]


def _checked_time(moment: Any, what: str) -> int | None:
    if moment is None:
        return None
    if not isinstance(moment, datetime):
        raise ArgumentError(f"{what} must be a datetime, not {shown(moment)}")
    if moment.utcoffset() is None:
        raise ArgumentError(f"{what} needs a time zone")
    return from_datetime(moment)
