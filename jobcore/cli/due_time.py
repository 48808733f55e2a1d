"""When a queued job may start: the options `--delay` and `--at`."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Annotated

import typer

from jobcore.cli.values import delay, moment
from jobcore.errors import CommandError

Delay = Annotated[
    float | None,
    typer.Option(
        "--delay", parser=delay, metavar="TIME", help="Do not start before this time has passed."
    ),
]
At = Annotated[
    datetime | None,
    typer.Option(
        parser=moment,
        metavar="MOMENT",
        help="Do not start before then: 18:30, or '2026-12-01 18:30'.",
    ),
]


def chosen(wait: float | None, at: datetime | None) -> datetime | None:
    """Return the moment that `--delay` or `--at` gives; None if neither was given."""
    if wait is None:
        return at
    if at is not None:
        raise CommandError("--delay and --at cannot be combined: give one of them")
    try:
        return datetime.now(timezone.utc) + timedelta(seconds=wait)
    except OverflowError:
        raise CommandError(f"--delay is too long: {wait:g} s") from None
