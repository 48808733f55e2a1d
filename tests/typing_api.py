"""The public interface as a host uses it: read by mypy and pyright, strict, and run by nobody."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

import jobcore
from jobcore import (
    FINAL,
    STARTED,
    AsyncEvents,
    Backup,
    Change,
    ClaimedJob,
    Clock,
    Command,
    CommandExecutor,
    CurrentJob,
    Event,
    Events,
    Executor,
    Finding,
    FunctionExecutor,
    Imported,
    Job,
    JobManager,
    Launcher,
    Limit,
    LogLine,
    MovableClock,
    Pipeline,
    PipelineExecutor,
    PipelineStatus,
    Progress,
    Reason,
    Retention,
    Retries,
    Skip,
    Statistics,
    Status,
    Submission,
    SystemClock,
    Task,
    Transition,
    Trigger,
    Usage,
    Workspace,
    current_job,
    function_command,
    testing,
    wire,
)
from jobcore.testing import ManualClock, NeverEnds, Script, ScriptedExecutor, drain, elapse


class Frozen:
    """A host's own clock."""

    def now(self) -> int:
        """Return a moment."""
        return 0

    def monotonic(self) -> float:
        """Return a time."""
        return 0.0


class Greeter:
    """A host's own executor."""

    def command(self, job: ClaimedJob) -> Command:
        """Return what to run."""
        own: Command | None = job.command
        pipeline: Pipeline | None = job.pipeline
        name = pipeline.name if pipeline is not None else job.name
        if own is not None and own.shell:
            return CommandExecutor().command(job)
        if pipeline is not None and pipeline.script is not None:
            return PipelineExecutor().command(job)
        return own or Command(["echo", "hello", name or "you"], cwd=Path("/"), env={"A": "b"})


class Refusing:
    """A host's own launcher."""

    def start(self, descriptor: int) -> int | None:
        """Start nothing."""
        raise OSError(descriptor)


class Pushed(Frozen):
    """A host's own clock that can be moved."""

    def watch(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Tell nobody."""
        return callback


clock: Clock = Frozen()
pushed: MovableClock = Pushed()
manual: MovableClock = ManualClock(datetime.now(timezone.utc))
launcher: Launcher = Refusing()
system: Clock = SystemClock()
executors: dict[str, Executor] = {
    "GREETING": Greeter(),
    "COMMAND": CommandExecutor(python="/usr/bin/python3"),
    "FUNCTION": FunctionExecutor(python="/usr/bin/python3", warm=2, preload=["shop.orders"]),
    "PIPELINE_RUN": PipelineExecutor(python="/usr/bin/python3"),
}


def creating(jobs: JobManager) -> list[Job]:
    """Create jobs in every way there is."""
    command = Command(
        ["cat", b"-", Path("x")],
        cwd="/tmp",
        env={"A": "b"},
        inherit_env=False,
        stdin=b"input",
        timeout=60,
        grace=5.0,
        stop_signal="SIGINT",
        stop_scope="group",
        linger=1,
        output_limit=2**20,
        separate_streams=True,
        unbuffered=False,
        stdout_to=Path("out"),
        pty=False,
        redact=["secret", b"secret"],
        umask=0o077,
    )
    shell = Command("echo $HOME", shell=True)
    words: tuple[str, ...] = Command.from_json(shell.to_json()).words
    moment = datetime.now(timezone.utc)
    made = [
        jobs.submit(
            ["true"], name="n", data={"a": [1]}, timeout=3, not_before=moment, reserved=True
        ),
        jobs.submit(["true"], env_from="submitter"),
        jobs.submit(["true"], key="k", unique_for=3.5, on_conflict="raise", expires=moment),
        jobs.submit(["true"], priority=-1, group="gpu", expires=60),
        jobs.submit(["true"], after=[UUID(int=0), "text"], run_if="failed", retries=2),
        jobs.submit(["true"], on_complete=["a"], on_error=command, on_stopped=[["a"], ["b"]]),
        jobs.submit(command, workspace_id=UUID(int=0), pipeline_id="text", type="GREETING"),
        jobs.create_job("TASK"),
        jobs.create_job(pipeline_id=UUID(int=0), workspace_id="text", command=words),
        jobs.create_job("TASK", name="n", data={"a": [1]}, env_from="worker"),
        jobs.create_job(pipeline_id="text", args=["a", b"b"], env={"A": "b"}, timeout=9),
        jobs.create_job("TASK", key="k", unique_for=3, on_conflict="return"),
        jobs.create_job("TASK", priority=1, group="gpu", expires=60),
        jobs.retry_job("text"),
        jobs.update_job("text", priority=3, not_before=moment, name="n", data={"a": 1}),
        jobs.update_job(UUID(int=0), timeout=2.5, name=None, not_before=None),
        jobs.update_job("text", not_before=0.5),
    ]
    return (
        made
        + jobs.submit_many(
            [["true"], command, shell],
            name="n",
            data=[1],
            workspace_id="text",
            type="GREETING",
            env_from="submitter",
        )
        + jobs.submit_many(
            [
                ["true"],
                Submission(["true"], name="n", data=1, key="k", unique_for=3, priority=2, ref="r"),
                Submission(command, group="gpu", not_before=moment, expires=moment),
                Submission(command=command, expires=2.5, retries=Retries(1)),
                Submission(command, after=["r", UUID(int=0)], run_if="ended"),
                Submission(command, on_complete=["a"], on_error=[command], on_stopped=command),
            ],
            not_before=moment,
            on_conflict="raise",
            reserved=True,
            priority=3,
            group="gpu",
            expires=60,
            after=[UUID(int=0)],
            run_if="complete",
            retries=3,
            on_complete=["a"],
            on_error=[command],
            on_stopped=command,
        )
    )


def load(table: str, *, limit: int = 0) -> int:
    """Be what a job calls."""
    return len(table) + limit


async def load_slowly(table: str) -> int:
    """Be what a job calls and runs by asyncio."""
    return load(table)


def calling(jobs: JobManager) -> list[Job]:
    """Call functions in every way there is."""
    command: Command = function_command(load, ["orders"], {"limit": 3}, timeout=60, env={"A": "b"})
    named = function_command("shop.load:Loader.run", kwargs={"table": "orders"})
    made = [
        jobs.submit_function(load, "orders", limit=3),
        jobs.submit_function(load, "orders", key="k", unique_for=3, on_conflict="raise"),
        jobs.submit_function(load, "orders", priority=1, group="gpu", expires=60),
        jobs.submit_function(load, "orders", after=["text"], run_if="ended", retries=Retries(1)),
        jobs.submit_function(load, "o", on_complete=["a"], on_error=["b"], on_stopped=[["c"]]),
        jobs.submit_function(load_slowly, "orders"),
        jobs.submit_function("shop.load:run", "orders"),
        jobs.submit(command, type="FUNCTION", name="n"),
        jobs.submit(named, type="FUNCTION"),
    ]
    jobs.create_pipeline("nightly", command, schedule="0 3 * * *")
    return made


def returning(jobs: JobManager, job_id: UUID) -> int | None:
    """Read what a function returned."""
    try:
        number: int = jobs.result(job_id)
        return number
    except jobcore.NoResult as error:
        return None if error.job_status is Status.RUNNING else hash(error.job_id)


def moving(jobs: JobManager, job_id: UUID) -> list[Job]:
    """Move a job in every way there is."""
    counted: int = jobs.append_log(job_id, "text", b"bytes", stream="stderr")
    jobs.delete_job(str(job_id))
    jobs.drain(timeout=1.0)
    return [
        jobs.start_job(job_id),
        jobs.start_job(job_id, owner=None),
        jobs.adopt_task(job_id),
        jobs.finish_job(job_id, counted),
        jobs.finish_job(job_id),
        jobs.report_progress(job_id, 3),
        jobs.report_progress(job_id, 0.5, total=1, message="text"),
        jobs.stop_job(job_id, grace=0),
        jobs.cancel_job(job_id, grace=2.5),
        *jobs.wait_all(job_ids=[job_id], timeout=9.5),
        *jobs.as_completed(job_ids=[job_id], timeout=9.5),
        jobs.wait(job_id, timeout=None),
        jobs.wait(job_id, until="started"),
        *jobs.recover(),
        *jobs.list_copied_jobs(),
        *jobs.repair(),
    ]


def moving_many(jobs: JobManager, since: datetime) -> list[Job]:
    """Move all jobs that match."""
    return [
        *jobs.stop_jobs(grace=2.5, group="g", workspace_id="text"),
        *jobs.cancel_jobs(grace=0, name="a*", status=[Status.QUEUED], type="A"),
        *jobs.delete_jobs(pipeline_id=UUID(int=0), ended_until=since),
        *jobs.retry_jobs(exit_code=1, created_since=since),
    ]


def doing(jobs: JobManager, job_id: UUID) -> list[UUID]:
    """Do tasks in blocks, and the queue's."""
    with jobs.task("TASK", pipeline_id=job_id, workspace_id="text", name="n", data=[1]) as task:
        lines: int = task.log("text", b"bytes", stream="stdout")
        logging.getLogger().addHandler(task.handler(logging.INFO, stream="stderr"))
        print("text", file=task.writer(stream="stderr", prefix="tap | "))
        task.progress(1, total=2.5, message="text")
        task.check()
        task.result = {"rows": lines}
    found: Any = task.result
    done = [task.job.id, found]
    try:
        claimed: Job | None = jobs.claim_job(["TASK"], timeout=None)
        if claimed is not None:
            with jobs.task(job_id=claimed.id) as other:
                done.append(other.job.id)
    except jobcore.Stopped as error:
        done.append(error.job_id if error.job_status is None else hash(error.job_status))
    return done


def told_by_a_job() -> str | None:
    """Tell what a job knows about itself."""
    job: CurrentJob | None = current_job()
    if job is None:
        return None
    job.progress(1, 2.5, message="loading")
    changed: Job = job.update(data={"attempt": job.attempt})
    pipeline: UUID | None = job.pipeline_id
    return f"{changed.number} {job.id.hex} {pipeline} {job.workspace_id.hex} {job.database}"


async def doing_in_a_loop(jobs: JobManager) -> int:
    """Do the same in an event loop."""
    claimed: Job | None = await jobs.claim_job_async("TASK", timeout=1)
    task: Task = jobs.task(job_id=None if claimed is None else claimed.id)
    async with task as same:
        count: int = await same.log_async("text", b"bytes", stream="stderr")
        await same.progress_async(count, total=None, message=None)
        await same.check_async()
    return count


def examining(jobs: JobManager) -> list[str]:
    """Look for what is wrong."""
    jobs.refresh()
    findings: list[Finding] = jobs.check()
    limits: list[Limit] = [
        *jobs.limits(),
        jobs.set_limit("gpu", 1),
        jobs.set_limit(None, None, type="COMMAND"),
        jobs.pause(),
        jobs.pause("gpu"),
        jobs.resume(type="COMMAND"),
        jobs.resume(group="gpu"),
        jobs.pause(type="COMMAND"),
    ]
    jobs.slots = 2 * jobs.slots
    for limit in limits:
        scope: str = limit.scope
        counts: tuple[int | None, int, int] = (limit.slots, limit.running, limit.queued)
        since: datetime | None = limit.paused
        print(scope, limit.name, counts, since)
    damaged: list[str] = jobs.list_damaged_rows()
    return [*damaged, *(f"{one.check}: {one.detail}" for one in findings if one.verdict == "wrong")]


def pruning(jobs: JobManager) -> list[Job]:
    """Let old jobs go, and see first which ones."""
    count: int = jobs.prune(30 * 86_400, status=Status.ERROR, keep=10, workspace_id="text")
    count += jobs.prune(0, name="load-*", type=["A"], exit_code=3, reason=[Reason.LOST])
    return jobs.prune(count, status=FINAL, pipeline_id=UUID(int=0), dry_run=True)


def keeping(jobs: JobManager) -> tuple[object, ...]:
    """Look after the file, and read every number about it."""
    rules: list[Retention] = jobs.set_retention("30d", statuses=[Status.ERROR], count=100)
    for rule in rules + jobs.set_retention(keep=None, statuses=Status.COMPLETE):
        print(rule.statuses, rule.keep, rule.count, jobs.retention())
    exported: Iterator[str] = jobs.export_jobs(["text", UUID(int=0)], with_commands=True)
    read: Imported = jobs.import_jobs(exported, workspace_id="text", with_pickles=True)
    print(read.created, read.existing, read.skipped)
    copy: Backup = jobs.backup("copy.db", replace=True)
    what: tuple[str, int, dict[Status, int], int] = (
        copy.path,
        copy.size,
        copy.jobs,
        copy.pipelines,
    )
    found: Statistics = jobs.statistics(window=3600)
    when: tuple[datetime, datetime] = (found.at, found.since)
    counts: tuple[dict[Status, int], dict[Status, int], int] = (
        found.jobs,
        found.ended,
        found.created,
    )
    why: dict[Reason, int] = found.reasons
    seconds: list[dict[str, float]] = [found.durations, found.waits]
    ages: tuple[float | None, float | None] = (found.queue_age, found.running_age)
    sizes: int = found.file_size + found.log_size + found.free_size
    sent: tuple[str, str] = (wire.prometheus(found), wire.METRICS_TYPE)
    return what, when, counts, why, seconds, ages, sizes, sent


def reading(jobs: JobManager, job_id: UUID) -> Iterator[bytes]:
    """Read jobs and their logs in every way there is."""
    job: Job = jobs.get_job(job_id)
    page: list[Job] = jobs.list_jobs(status=STARTED, type=["A", "B"], limit=10, before=job.number)
    page += jobs.list_jobs(workspace_id="text", pipeline_id=job.pipeline_id)
    page += jobs.list_jobs(name="a*", key="k", group="g", reason=Reason.LOST, exit_code=[1, 2])
    page += jobs.list_jobs(created_since=job.created, created_until=job.end_time)
    page += jobs.list_jobs(ended_since=job.end_time, ended_until=job.end_time, order="duration")
    page += jobs.find_jobs("3f2a", limit=2)
    page += jobs.list_upcoming(limit=2)
    page += jobs.list_upstream(job.id)
    counts: dict[Status, int] = jobs.count_jobs(status=Status.ERROR, type="A")
    counts |= jobs.count_jobs(workspace_id=job.workspace_id, pipeline_id="text")
    counts |= jobs.count_jobs(name="a*", reason=[Reason.LOST], ended_since=job.end_time)
    entries: list[Transition] = jobs.history(page[0].id)
    lines: list[LogLine] = [
        *jobs.logs(job_id, 5, limit=10),
        *jobs.tail(job_id, 3),
        *jobs.follow(job_id, sequence=0, timeout=2.5),
        *jobs.logs(job_id, unfinished=False),
        *jobs.tail(job_id, 3, unfinished=False),
        *jobs.follow(job_id, unfinished=False, on_wait=sys.stdout.flush),
    ]
    for line in lines:
        number: int | None = line.sequence
        unfinished: bool = line.unfinished
        when: datetime = line.timestamp
        text: str = line.text
        raw: bytes = line.raw
        partial: bool = line.partial
        fields: dict[str, Any] | None = line.fields
        seconds: float = line.time_ns / 1e9
        yield (
            f"{number} {when} {line.stream} {text} {partial} {fields} {seconds} {counts}".encode()
            + raw
            + b"%d" % unfinished
        )
    for entry in entries:
        trigger: Trigger = entry.trigger
        before: Status | None = entry.from_status
        after: Status = entry.to_status
        yield f"{entry.at.isoformat()} {trigger} {before} {after} {entry.actor}".encode()
    yield from jobs.log_text(job_id, 7)
    yield from wire.text(jobs.logs(job_id))
    yield from wire.ndjson(jobs.follow(job_id), unfinished=True)
    yield from jobs.log_ndjson(job_id, sequence=7)


def watching(jobs: JobManager, seen: list[Event]) -> Iterator[int]:
    """See what happens in every way there is."""
    end: Callable[[], None] = jobs.subscribe(seen.append, status=FINAL, type=["A"])
    with_filters = jobs.subscribe(
        lambda event: print(event.id), workspace_id="text", pipeline_id=""
    )
    for event in jobs.events(None, follow=True, timeout=2.5, limit=10, status=Status.ERROR):
        job_id: UUID = event.job_id
        code: int | None = event.exit_code
        before: Status | None = event.from_status
        reason: Reason | None = event.reason
        print(job_id, code, event.trigger, before, event.to_status, reason, event.at, event.actor)
        print(event.name, event.signal, event.key, event.group)
        print(event.job_number, event.type, event.workspace_id, event.pipeline_id)
        yield event.id
    of_one: Events = jobs.events(3, scan_limit=1000, type="A", workspace_id=UUID(int=0))
    some: Events = jobs.events(name="load-*", key="k", group="g", reason=Reason.LOST, exit_code=[3])
    yield from (event.id for event in some)
    yield from (event.id for event in of_one)
    yield from (event.id for event in jobs.events(after=of_one.after, pipeline_id="text"))
    end()
    with_filters()


async def awaiting(jobs: JobManager, job_id: UUID) -> Job:
    """Wait in an event loop in every way there is."""
    lines: AsyncIterator[LogLine] = jobs.follow_async(str(job_id), 5, timeout=2.5)
    async for line in lines:
        text: str = line.text
        print(text, line.to_object())
    events: AsyncEvents = jobs.events_async(
        after="now",
        limit=1,
        scan_limit=1000,
        follow=True,
        timeout=2.5,
        workspace_id="text",
        pipeline_id=UUID(int=0),
        status=FINAL,
        type="A",
    )
    print([event.id async for event in events], events.after)
    first: LogLine = await jobs.follow_async(job_id, unfinished=False).__anext__()
    await jobs.drain_async(timeout=first.sequence)
    waiting = asyncio.create_task(jobs.wait_async(job_id, 60))
    await jobs.wait_async(job_id, until="started")
    ended: Job = await waiting
    measured: Usage | None = jobs.usage(job_id=ended.id)
    print(measured and (measured.cpu_seconds, measured.rss, measured.processes))
    every: list[Job] = await jobs.wait_all_async(job_ids=[ended.id], timeout=9.5)
    every += [one async for one in jobs.as_completed_async(job_ids=[ended.id], timeout=9.5)]
    print(len(every))
    return ended if ended.status.final else await jobs.wait_async(job_id)


def facts(job: Job) -> tuple[object, ...]:
    """Read every fact of a job."""
    ident: UUID = job.id
    status: Status = job.status
    final: bool = status.final and status in FINAL
    code: int | None = job.exit_code
    reason: Reason | None = job.reason
    ended: datetime | None = job.end_time
    data: Any = job.data
    progress: Progress | None = job.progress
    if progress is not None:
        done: float = progress.done
        total: float | None = progress.total
        message: str | None = progress.message
        said: datetime = progress.at
        return ident, done, total, message, said
    sent: str = job.model_dump_json()
    shown: dict[str, Any] = job.model_dump(mode="json")
    attempt: int = job.attempt
    original: UUID | None = job.retry_of
    times: tuple[datetime | None, ...] = (job.created, job.start_time, job.not_before)
    source: Literal["submitter", "worker"] = job.env_from
    asked: datetime | None = job.stop_requested
    number: int | None = job.signal
    lines: int = job.line_count + job.dropped + (job.left_processes or 0)
    used: tuple[float | None, int | None] = (job.cpu_seconds, job.max_rss)
    waiting: tuple[str | None, int, str | None] = (job.key, job.priority, job.group)
    due: tuple[datetime | None, datetime | None] = (job.expires, job.next_attempt)
    others: tuple[UUID | None, str | None, str | None] = (job.hook_of, job.run_if, job.waits_for)
    tries: Retries | None = job.retries
    print(tries)
    took: float | None = job.duration
    ending = (final, code, reason, ended, number, asked, waiting, due, others, took)
    return ident, ending, data, sent, shown, attempt, original, times, source, lines, used, job.type


def words(job: Job) -> str:
    """Tell each word from the others, as a checker can."""
    if job.status in (Status.QUEUED, Status.RUNNING, Status.COMPLETE, Status.STOPPED):
        return str(Trigger.FINISH if job.status.final else Trigger.START)
    return "lost" if job.reason is Reason.LOST else "failed"


def governing(jobs: JobManager) -> Pipeline:
    """Make and read what governs jobs."""
    default: Workspace = jobs.get_workspace()
    workspace: Workspace = jobs.create_workspace("w", properties={"a": 1})
    pipeline: Pipeline = jobs.create_pipeline(
        "p", ["true"], workspace_id=workspace.id, timeout=5, properties={}
    )
    jobs.create_pipeline("q", script="echo hello", workspace_id=default.id)
    jobs.create_pipeline("r", command=Command(["true"]))
    properties: dict[str, Any] | None = jobs.update_workspace(default.id, name="d").properties
    often = Retries(
        max=3, delay=5, factor=1.5, max_delay=60, jitter=0.1, on=("error", "timeout", "lost")
    )
    changed: Pipeline = jobs.update_pipeline(
        pipeline.id, schedule="@daily", time_zone=None, retries=often
    )
    skips: list[Skip] = jobs.skips(pipeline.id, limit=3)
    for skip in skips:
        due: datetime = skip.due
        blocker: UUID | None = skip.job_id
        print(due.isoformat(), skip.why, skip.count, blocker, properties)
    every: list[Workspace] = [*jobs.list_workspaces(), jobs.get_workspace(workspace.id)]
    every += jobs.list_workspaces(limit=5, after=default) or jobs.list_workspaces(after="text")
    jobs.set_pipeline_state(pipeline_id=pipeline.id, state=jobs.get_pipeline_state(pipeline_id="a"))
    jobs.delete_pipeline(pipeline.id)
    described = {"pipelines": {"p": {"script": "true"}}}
    changes: list[Change] = jobs.apply(described, workspace_id=default.id, prune=True, dry_run=True)
    for change in changes:
        before: tuple[str, UUID | None] = (change.action, change.pipeline_id)
        print(before, change.name, [(name, one) for name, one in change.fields.items()])
    jobs.delete_workspace(every[0].id)
    return (changed, *jobs.list_pipelines(workspace_id=workspace.id, limit=5, after=changed))[0]


def facts_of_owners(pipeline: Pipeline, workspace: Workspace) -> tuple[object, ...]:
    """Read every fact of what governs jobs."""
    limits: tuple[float | None, int] = (pipeline.timeout, pipeline.max_retries)
    again: Retries | None = pipeline.retries
    if again is not None:
        stored: Retries = Retries.from_json(again.to_json())
        pauses: tuple[int, float | tuple[float, ...], float, float] = (
            again.max,
            again.delay,
            again.factor,
            again.max_delay,
        )
        print(stored, pauses, again.jitter, again.on)
    when: tuple[str | None, str | None, datetime | None] = (
        pipeline.schedule,
        pipeline.time_zone,
        pipeline.next_tick,
    )
    late: tuple[str, float] = (pipeline.catch_up, pipeline.late_after)
    after: list[str] | None = pipeline.triggered_by or pipeline.requires
    hooks: list[Command] = [one for several in pipeline.hooks.values() for one in several]
    held: tuple[str | None, datetime | None] = (pipeline.group, pipeline.paused)
    what: tuple[str | None, Command | None] = (pipeline.script, pipeline.command)
    status: PipelineStatus = pipeline.status
    where: tuple[UUID, str, str] = (pipeline.workspace_id, pipeline.name, status)
    made: tuple[datetime, datetime] = (workspace.created, workspace.last_modified)
    properties: list[dict[str, Any] | None] = [pipeline.properties, workspace.properties]
    return (
        limits,
        when,
        late,
        after,
        hooks,
        held,
        what,
        where,
        made,
        properties,
        workspace.id,
        workspace.name,
    )


def serving(jobs: JobManager, job_id: str, query: dict[str, str]) -> Iterator[bytes]:
    """Make what a service sends."""
    page = wire.page(query, most=500)
    found = jobs.list_jobs(**page)
    forms: list[dict[str, Any]] = [
        wire.jobs_to_hal(found, "/api", self_path="/jobs", limit=page["limit"]),
        wire.job_to_hal(found[0], "/api", pipeline=jobs.get_pipeline("text")),
        wire.workspace_to_hal(jobs.get_workspace(), "/api"),
        wire.pipeline_to_hal(jobs.get_pipeline("text"), "/api"),
        wire.stop_to_object(jobs.stop_job(job_id)),
        wire.error_to_object(KeyError("x"), path="/api/jobs"),
    ]
    first: int = wire.unsigned(query["sequence"], "sequence")
    followers = wire.Followers(most=3)
    log = wire.log_response(
        jobs,
        job_id,
        sequence=first,
        accept="*/*",
        last_event_id=None,
        follow=True,
        timeout=9.5,
        heartbeat=15.0,
        followers=followers,
        is_gone=wire.watch_client(environ={}) or (lambda: len(followers) > followers.most),
    )
    if isinstance(log, wire.LogResponse):
        yield f"{log.content_type} {forms} {wire.HAL_TYPE} {dict(log.headers)}".encode()
        yield from log.body
    yield from wire.sse(lines=jobs.tail(job_id, 1), unfinished=True)
    yield wire.log_type("application/x-ndjson").encode()


async def serving_in_a_loop(jobs: JobManager, job_id: str) -> bytes:
    """Make what an asynchronous service sends."""
    log = await wire.log_response_async(
        jobs,
        job_id,
        sequence="0",
        accept="text/event-stream",
        last_event_id="7",
        follow=True,
        timeout=300.0,
        heartbeat=15.0,
    )
    if not isinstance(log, wire.AsyncLogResponse):
        return b""
    head = f"{log.content_type} {dict(log.headers)}".encode()
    return head + b"".join([item async for item in log.body])


def failing(jobs: JobManager) -> int:
    """Meet errors, and read their facts."""
    try:
        jobs.create_job(pipeline_id="text")
    except jobcore.PipelineAlreadyRunning as error:
        busy: UUID = error.job_id
        return hash((busy, error.pipeline_id))
    except jobcore.PipelineExists as error:
        return hash((error.name, error.pipeline_id))
    except jobcore.DuplicateKey as error:
        return hash((error.key, error.job_id))
    except jobcore.PipelineFileError as error:
        return hash(str(error.problems))
    except jobcore.JobNotRunning as error:
        return hash(error.job_status)
    except jobcore.InvalidTransition as error:
        return hash((error.job_id, error.job_status, error.trigger))
    except jobcore.JobDeleted as error:
        return hash(error.job_id)
    except (jobcore.JobNotFound, jobcore.WorkspaceNotFound, jobcore.PipelineNotFound) as error:
        lookup: LookupError = error
        return hash(lookup)
    except jobcore.InvalidParameter as error:
        return hash((error.name, error.value))
    except jobcore.NotAcceptable as error:
        accept: str | None = error.accept
        available: tuple[str, ...] = error.available
        return hash((accept, available))
    except (jobcore.CommandError, jobcore.ScheduleError, jobcore.PipelineCycle) as error:
        value: ValueError = error
        return hash(value)
    except jobcore.ArgumentError as error:
        return hash(str(error))
    except jobcore.TooManyFollowers as error:
        return error.most
    except jobcore.SpawnError as error:
        number: int | None = error.errno
        return 1 if error.lasting else number or 0
    except jobcore.WaitTimeout as error:
        late: TimeoutError = error
        return hash(late)
    except (jobcore.DatabaseBusy, jobcore.DatabaseFull, jobcore.DatabaseGone):
        return 2
    except (jobcore.DatabaseCorrupt, jobcore.NotAJobcoreDatabase, jobcore.ReadOnlyDatabase):
        return 3
    except (jobcore.SchemaTooNew, jobcore.StoreMismatch, jobcore.UnsupportedFileSystem):
        return 4
    except jobcore.StoreError as error:
        return error.status
    except jobcore.JobcoreError as error:
        status: int = error.status
        return status
    except (LookupError, ValueError, TimeoutError):
        return 1
    return 0


class Counting:
    """A host's own launcher, around the one of its tests."""

    def __init__(self, inner: ScriptedExecutor) -> None:
        self.inner = inner
        self.count = 0

    def start(self, descriptor: int) -> None:
        """Count a start."""
        self.count += 1
        self.inner.start(descriptor)


class Alarm:
    """What waits for a manual clock."""

    def due(self) -> float | None:
        """Wait for nothing."""
        return None

    def step(self) -> None:
        """Do nothing."""

    def runs(self) -> frozenset[str]:
        """Have nothing in hand."""
        return frozenset()


def choose(job: ClaimedJob) -> Script:
    """Return what a job does in a test."""
    if job.name is None:
        return Script(hangs=True, ignores_term=True)
    if job.name == "bad":
        return Script(cannot_start=2)
    if job.name == "odd":
        return Script(["a"], leaves_grandchild=True, floods=100, open_end=True)
    if job.name == "lost":
        return Script(dies=True)
    return Script(
        ["extract", 5, b"load", ("stderr", "oops"), ("progress", "1/2 loading")], exit_code=3
    )


def scripting(path: Path) -> list[UUID]:
    """Test a host's jobs without processes and without real time."""
    clock = ManualClock()
    with (
        ScriptedExecutor(choose, clock=clock) as scripted,
        ScriptedExecutor(Script(), Script(["a"], signal=9), clock=clock) as other,
        JobManager(
            path, executors={"COMMAND": scripted}, launcher=Counting(scripted), clock=clock, slots=2
        ) as jobs,
    ):
        job = jobs.submit(["etl"])
        elapse(jobs, 2.5, clock, patience=5.0)
        ends: list[Callable[[], None]] = [clock.drive(Alarm()), clock.watch(scripted.step)]
        clock.advance(60)
        clock.advance_to(clock.monotonic() + 1)
        clock.step()
        due: float | None = clock.next_due()
        runs: frozenset[str] = clock.runs() if due is None else scripted.runs()
        clock.jump(-3600)
        clock.set_wall(datetime.now(timezone.utc))
        scripted.die(job.id)
        other.shut_down(job.id)
        for end in ends:
            end()
        try:
            drain(jobs, clock, patience=5)
        except NeverEnds as error:
            return list(error.job_ids)
        ran: Command = scripted.commands[job.id]
        words: object = ran.argv
        return [] if words or runs else scripted.running()


class TestGreeter(testing.ExecutorContract):
    """A host's own executor, put to the contract."""

    job_type = "GREETING"
    lines = ["hello you"]  # noqa: RUF012 - as README has it

    def make_executor(self) -> Executor:
        """Return a new one."""
        return Greeter()

    def create_long_job(self, jobs: JobManager) -> Job:
        """Return one that runs until it is stopped."""
        return jobs.submit(["sleep", "60"], type="GREETING")


def asserting(jobs: JobManager, job: Job) -> Job:
    """Test in every way there is."""
    with testing.busy(jobs, timeout=5):
        pass
    with testing.crash(jobs, at=testing.failpoints.CLAIMED, timeout=5):
        jobs.submit(["true"])
    try:
        testing.crash(manager=jobs)
    except testing.Crashed as crashed:
        print(crashed.host)
    testing.assert_job(job.id, reason=None, exit_code=None, log="text")
    return testing.assert_job(
        job, status=Status.ERROR, exit_code=3, reason=Reason.EXITED, log=["a"], jobs=jobs
    )


def mistakes() -> None:
    """Names that are not there are errors: a checker does not take them for Any."""
    jobcore.JobManger  # type: ignore[attr-defined]  # noqa: B018
    jobcore.Job.crated  # type: ignore[attr-defined]  # noqa: B018


def main() -> None:
    """Open a manager in every way there is."""
    with JobManager() as jobs:
        creating(jobs)
        calling(jobs)
    with JobManager(
        Path("jobs.db"),
        slots=4,
        executors=executors,
        clock=clock,
        on_exit="stop",
        busy_timeout=5,
        python="/usr/bin/python3",
        only_own=True,
        trust_directory=False,
        create=False,
    ) as jobs:
        governing(jobs)
    manager = JobManager("jobs.db", slots=0, clock=system, launcher=launcher)
    manager.close()
    JobManager("jobs.db", slots=0, clock=pushed).close()
    JobManager("jobs.db", slots=0, clock=manual).close()
