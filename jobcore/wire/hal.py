"""
Jobs, pipelines and workspaces as HAL objects, JSON objects with links to each other.

The links show what a client can do now. A link that is an action has its HTTP method in
`type`, as in Matatika's Jobs API.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qsl, urlencode

from jobcore.lifecycle import Status
from jobcore.models import Job, Pipeline, Workspace

#: The media type of these objects.
HAL_TYPE = "application/hal+json"


def job_to_hal(job: Job, base_url: str, *, pipeline: Pipeline | None = None) -> dict[str, Any]:
    """
    Return a job as in Matatika's Jobs API, with links.

    It has the fields of the job's JSON, with the API's seven first; an unknown value is
    null, never absent. The link `stop job` exists only while the job is RUNNING, and
    `pipeline` only if the job has one.

    Args:
        job: The job.
        base_url: The URL to which paths are appended, such as `https://example.org/api`.
        pipeline: The job's pipeline, to embed it; None: only link to it.
    """
    base = base_url.rstrip("/")
    own = f"{base}/jobs/{job.id}"
    links = {"self": {"href": own}, "workspace": {"href": f"{base}/workspaces/{job.workspace_id}"}}
    if job.pipeline_id is not None:
        links["pipeline"] = {"href": f"{base}/pipelines/{job.pipeline_id}"}
    links["logs"] = {"href": f"{own}/logs"}
    if job.status is Status.RUNNING:
        links["stop job"] = {"href": f"{own}/stopped", "type": "PUT"}
    links["delete job"] = {"href": own, "type": "DELETE"}
    form = job.model_dump(mode="json", by_alias=True)
    if pipeline is not None:
        form["_embedded"] = {"pipeline": pipeline_to_hal(pipeline, base)}
    form["_links"] = links
    return form


def jobs_to_hal(
    jobs: Sequence[Job], base_url: str, *, self_path: str, limit: int | None = None
) -> dict[str, Any]:
    """
    Return a page of jobs as a HAL collection.

    A full page has a link `next` to the page after it, which may be empty.

    Args:
        jobs: The jobs, as `JobManager.list_jobs` returned them.
        base_url: The URL to which paths are appended.
        self_path: The path of this listing under `base_url`, with its query if it has one.
        limit: The number of jobs that was requested; None: these are all.
    """
    base = base_url.rstrip("/")
    path, _, query = self_path.strip("/").partition("?")
    own = f"{base}/{path}"
    links = {"self": {"href": f"{own}?{query}" if query else own}}
    if jobs and limit is not None and len(jobs) >= limit:
        rest = [pair for pair in parse_qsl(query, True) if pair[0] not in ("limit", "before")]
        cursor = [*rest, ("limit", str(limit)), ("before", str(jobs[-1].number))]
        links["next"] = {"href": f"{own}?{urlencode(cursor)}"}
    return {"_embedded": {"jobs": [job_to_hal(job, base) for job in jobs]}, "_links": links}


def pipeline_to_hal(pipeline: Pipeline, base_url: str) -> dict[str, Any]:
    """
    Return a pipeline with links to itself, its workspace and its jobs, and `new job`.

    `new job` is refused with 409 while the pipeline has a QUEUED or RUNNING job.

    Args:
        pipeline: The pipeline.
        base_url: The URL to which paths are appended.
    """
    base = base_url.rstrip("/")
    own = f"{base}/pipelines/{pipeline.id}"
    links = {
        "self": {"href": own},
        "workspace": {"href": f"{base}/workspaces/{pipeline.workspace_id}"},
        "jobs": {"href": f"{own}/jobs"},
        "new job": {"href": f"{own}/jobs", "type": "POST"},
    }
    return {**pipeline.model_dump(mode="json", by_alias=True), "_links": links}


def workspace_to_hal(workspace: Workspace, base_url: str) -> dict[str, Any]:
    """
    Return a workspace with links to itself and its jobs.

    Args:
        workspace: The workspace.
        base_url: The URL to which paths are appended.
    """
    own = f"{base_url.rstrip('/')}/workspaces/{workspace.id}"
    links = {"self": {"href": own}, "jobs": {"href": f"{own}/jobs"}}
    return {**workspace.model_dump(mode="json", by_alias=True), "_links": links}
