"""Keys, limits, dependencies, retries and hooks in one queue, while its hosts are killed."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import pytest

from jobcore import Command, JobManager, Retries, Status
from tests.faults.hosts import host, serve
from tests.faults.invariants import check
from tests.faults.rounds import in_rounds
from tests.integration.test_limits import most_running
from tests.jobfiles import sql
from tests.processes import until

pytestmark = pytest.mark.usefixtures("warm_supervisors")

#: Fails in its first attempts, as often as it is told.
SCRIPT = 'sleep "$1"; [ "$JOBCORE_ATTEMPT" -gt "$2" ] || exit 1'
TELLS = 'echo "$JOBCORE_HOOK_JOB_ID $JOBCORE_HOOK_STATUS" >> "$0"'
#: The limits of two groups and of the file.
LIMITS = {"narrow": 1, "wide": 2, None: 3}
KEYS = ("a", "b", "c")
#: Seconds within which the queue of one round has ended.
PATIENCE = 90.0


def submit_one(jobs, chance, earlier, log):
    """Submit a job of any kind; return it, or the one that holds its key."""
    upstream = chance.sample(earlier, min(len(earlier), chance.choice((0, 0, 1, 2))))
    seconds, failures = round(chance.uniform(0, 0.06), 3), chance.choice((0, 0, 1, 9))
    tells = Command(["sh", "-c", TELLS, log])
    return jobs.submit(
        ["sh", "-c", SCRIPT, "runs", str(seconds), str(failures)],
        key=chance.choice((None, None, *KEYS)),
        group=chance.choice((None, "narrow", "wide")),
        priority=chance.choice((0, 0, 5)),
        after=[job.id for job in upstream],
        run_if=chance.choice(("complete", "complete", "failed", "ended")),
        retries=Retries(chance.choice((0, 1, 2)), delay=0, on=("error", "lost")),
        on_complete=tells,
        on_error=tells,
        on_stopped=tells,
    )


def is_over(jobs):
    counts = jobs.count_jobs()
    return not counts[Status.QUEUED] and not counts[Status.RUNNING]


def steps_of(database):
    """Return the ids of the first and the last step of each job, and of its start, by number."""
    rows = sql(
        database,
        "SELECT job, min(id), max(id), max(CASE WHEN trigger = 'start' THEN id END) "
        "FROM transition GROUP BY job",
    )
    return {number: Steps(*ids) for number, *ids in map(tuple, rows)}


class Steps(NamedTuple):
    """The order of commits, which times need not show: a caller takes the time before it waits."""

    create: int
    end: int
    start: int | None


def wrong_with_keys(found, steps):
    """Yield each two jobs that held one key at one time."""
    for key in KEYS:
        holders = sorted((job for job in found if job.key == key), key=lambda job: job.number)
        for one, following in pairwise(holders):
            # A retry takes the key in the transaction of the end.
            if steps[following.number].create < steps[one.number].end:
                yield f"{one.number} and {following.number} held the key {key} at one time"


def wrong_with_limits(database):
    """Yield each limit that was exceeded."""
    for group, limit in LIMITS.items():
        most = most_running(database, "1" if group is None else f"group_name = '{group}'")
        if most > limit:
            yield f"{most} jobs of {group or 'the file'} ran at once"


def wrong_with_dependencies(jobs, job, steps):
    """Yield why a job started too early, or though it should not have, or did not start."""
    upstream = jobs.list_upstream(job.id)
    failed = [one.status == Status.ERROR or one.reason == "timeout" for one in upstream]
    complete = [one.status == Status.COMPLETE for one in upstream]
    met = {"complete": all(complete), "failed": all(failed), "ended": True, None: True}[job.run_if]
    if met == (job.reason == "upstream"):
        yield f"{job.number} is {job.status}, {job.reason}"
    start = steps[job.number].start
    for one in upstream:
        if start is not None and steps[one.number].end > start:
            yield f"{job.number} started before the end of {one.number}"


def wrong_with_attempts(job, found, said):
    """Yield if a job has too many attempts, or not one hook after its last attempt that has run."""
    if job.attempt > 1 + job.retries.max:
        yield f"{job.number} is attempt {job.attempt} of {1 + job.retries.max}"
    retried = any(one.retry_of == job.id for one in found)
    hooks = sum(one.hook_of == job.id and one.attempt == 1 for one in found)
    if hooks != (not retried):
        yield f"{job.number} has {hooks} hooks; retried: {retried}"
    if not retried and f"{job.id} {job.status}" not in said:
        yield f"the hook of {job.number} has not run"


@in_rounds(smoke=1, full=40, long=True)
def test_queue_keeps_its_rules_while_hosts_are_killed(rounds, tmp_path):
    """Keys, limits, dependencies and attempts are exact, and each hook runs at least once."""
    for chance in rounds:
        folder = tmp_path / str(rounds.number)
        folder.mkdir()
        database, log = str(folder / "jobs.db"), folder / "log"
        log.touch()
        with JobManager(database, slots=0) as jobs, ExitStack() as stack:
            for group, limit in LIMITS.items():
                jobs.set_limit(group, limit)
            hosts = [stack.enter_context(host(serve, database, 3)) for _ in range(2)]
            submitted = []
            for _ in range(chance.randint(20, 30)):
                submitted.append(submit_one(jobs, chance, submitted, str(log)))
                if chance.random() < 0.15:
                    place = chance.randrange(len(hosts))
                    hosts[place].live(chance.uniform(0, 0.3))
                    hosts[place].kill()
                    hosts[place] = stack.enter_context(host(serve, database, 3))
            # Not drain: a hook that was lost with its host runs again after a pause.
            until(partial(is_over, jobs), "the end of all jobs", PATIENCE)
            for one in hosts:
                one.kill()
            found = jobs.list_jobs(limit=5000)
            own = [job for job in found if job.hook_of is None]
            said = log.read_text().splitlines()
            steps = steps_of(database)
            wrong = [*wrong_with_keys(own, steps), *wrong_with_limits(database)]
            for job in own:
                wrong += wrong_with_dependencies(jobs, job, steps)
                wrong += wrong_with_attempts(job, found, said)
            assert wrong == []
            assert {one.verdict for one in jobs.check()} <= {"ok", "note"}
            check(jobs, killed=True)
