"""Tasks: jobs that their host runs itself, by calls alone and without a process."""

from __future__ import annotations


def task(jobs, **options):
    """Return a RUNNING job without a process: two events."""
    return jobs.start_job(jobs.create_job("TASK", **options).id)


def end(jobs, job, exit_code=0):
    """Start and finish a job on behalf of its host."""
    jobs.start_job(job.id)
    return jobs.finish_job(job.id, exit_code)


def stop(jobs, job, *_):
    """Start and stop a job on behalf of its host; more that an ending is given is not needed."""
    jobs.start_job(job.id)
    jobs.stop_job(job.id)
