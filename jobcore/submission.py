"""Submission: one job of a call of `submit_many`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import os
    from datetime import datetime
    from typing import TypeAlias
    from uuid import UUID

    from jobcore.command import Command
    from jobcore.models import Job
    from jobcore.retries import Retries

    Words: TypeAlias = Sequence[str | bytes | os.PathLike[str]]
    #: A command, or several.
    Hook: TypeAlias = Command | Words | Sequence[Command | Words] | None


@dataclass(frozen=True)
class Submission:
    """
    A job to create, for calls of `submit_many` whose jobs differ in more than their commands.

    Each field but `command`, `key`, `unique_for` and `ref` replaces the argument of the same name
    of the call. None: the job takes the call's.

    Args:
        command: A list of words, or a `Command`.
        name: A name of your choice.
        data: Your own small JSON, up to 64 KiB.
        key: Its key, as in `submit`. A key occurs at most once in a call.
        unique_for: Seconds for which it holds its key at least, as in `submit`.
        priority: Jobs with a higher priority start first.
        group: The group whose limit it counts for.
        not_before: The earliest time at which it starts: seconds from its creation, or a time
            with a time zone.
        expires: Seconds from its creation, or a time with a time zone: if it has not started by
            then, it is cancelled.
        after: The jobs that it waits for, their ids, or the `ref` of jobs of the same call.
        run_if: How they have to end, as in `submit`.
        retries: How often it is tried again, as in `submit`.
        on_complete, on_error, on_stopped: What runs after it has ended that way, as in `submit`.
        ref: A text by which other jobs of the same call can name this one in `after`.
    """

    command: Command | Sequence[str | bytes | os.PathLike[str]]
    name: str | None = None
    data: Any = None
    key: str | None = None
    unique_for: float | None = None
    priority: int | None = None
    group: str | None = None
    not_before: float | datetime | None = None
    expires: float | datetime | None = None
    after: Job | Sequence[UUID | str | Job] | None = None
    run_if: Literal["complete", "ended", "failed"] | None = None
    retries: Retries | int | None = None
    on_complete: Hook = None
    on_error: Hook = None
    on_stopped: Hook = None
    ref: str | None = None
