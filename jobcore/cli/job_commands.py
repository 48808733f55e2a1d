"""Commands that show all that is known of one job."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from jobcore.cli import output
from jobcore.cli.app import AsJson, JobId, app, full_id, open_manager
from jobcore.errors import PipelineNotFound
from jobcore.lifecycle import Status, Trigger

if TYPE_CHECKING:
    from jobcore.manager import JobManager
    from jobcore.models import Job


@app.command()
def show(ctx: typer.Context, job_id: JobId, *, as_json: AsJson = False) -> None:
    """
    Show everything that is known about a job.

    Also what a running job uses now, and the jobs that it waits for. Of its environment
    the names are shown, and never the values. A terminal leaves out what is empty.

    \b
    Example:
      jobcore show 3f2a
    """  # noqa: D301
    with open_manager(ctx) as jobs:
        job = jobs.get_job(full_id(jobs, job_id))
        output.note_copies(one for one in jobs.list_copied_jobs() if one.id == job.id)
        further = {} if as_json else _more_facts(jobs, job)
    if as_json:
        output.print_json(job)
    else:
        output.print_job(job, further)


def _more_facts(jobs: JobManager, job: Job) -> dict[str, Any]:
    """Return facts that are not in a job's row: who asked for its stop, what it waits for, ..."""
    stops = [entry.actor for entry in jobs.history(job.id) if entry.trigger is Trigger.STOP]
    found: dict[str, Any] = {"stopRequestedBy": stops[0] if stops else None}
    waits_for = [f"#{one.number} {one.status}" for one in jobs.list_upstream(job.id)]
    found["after"] = ", ".join(waits_for) or None
    used = jobs.usage(job.id) if job.status is Status.RUNNING else None
    if used is not None:
        found["usage"] = (
            f"{used.cpu_seconds:.1f} s of CPU, {used.rss / 2**20:.1f} MiB, "
            f"{used.processes} process{'' if used.processes == 1 else 'es'}"
        )
    if job.pipeline_id is not None:
        try:
            found["pipeline"] = jobs.get_pipeline(job.pipeline_id).name
        except PipelineNotFound:
            pass  # it has just been deleted
    return found


@app.command()
def history(ctx: typer.Context, job_id: JobId, *, as_json: AsJson = False) -> None:
    """
    Show what happened to a job, oldest first.

    Fields in a pipe: when, trigger, from, to, reason, by whom.

    \b
    Example:
      jobcore history 3f2a
    """  # noqa: D301
    with open_manager(ctx) as jobs:
        entries = jobs.history(full_id(jobs, job_id))
        output.note_damage(jobs.list_damaged_rows())
    if as_json:
        output.print_json(entries)
    else:
        output.print_history(entries)
