"""Graphs of jobs with retries, while hosts and supervisors are killed: each runs as it should."""

from __future__ import annotations

import os
import signal
import time
from contextlib import ExitStack, suppress
from types import SimpleNamespace

from jobcore import JobManager, Retries, Status, Submission
from tests.faults.hosts import host, serve
from tests.faults.invariants import check
from tests.faults.plans import supervisors
from tests.faults.rounds import in_rounds

#: Says on disk that it begins and ends; fails in its first attempts, as often as told.
SCRIPT = (
    'echo "begin $1 $JOBCORE_JOB_ID" >> "$0"; sleep $2; '
    '[ $JOBCORE_ATTEMPT -gt $3 ] || { echo "fail $1 $JOBCORE_JOB_ID" >> "$0"; exit 1; }; '
    'echo "end $1 $JOBCORE_JOB_ID" >> "$0"'
)
#: Failures of a job that never succeeds.
ALWAYS = 1000
#: Retries of the others: more than there are kills.
ENOUGH = 100
#: Seconds within which a graph has ended.
PATIENCE = 90.0


class Task:
    """One job of a graph, and how it has to end."""

    def __init__(self, name, after, run_if, failures, seconds):
        self.name, self.after, self.run_if = name, after, run_if
        self.failures, self.seconds = failures, seconds
        outcomes = {one.outcome for one in after}
        wanted = {
            "complete": outcomes <= {Status.COMPLETE},
            "failed": outcomes <= {Status.ERROR},
            "ended": True,
        }[run_if]
        ended = Status.ERROR if failures == ALWAYS else Status.COMPLETE
        self.outcome = ended if wanted else Status.STOPPED

    def submission(self, log):
        """Return it as it is submitted."""
        poisoned = self.failures == ALWAYS
        return Submission(
            ["sh", "-c", SCRIPT, log, self.name, str(self.seconds), str(self.failures)],
            ref=self.name,
            name=self.name,
            after=[one.name for one in self.after],
            run_if=self.run_if,
            retries=Retries(1 if poisoned else ENOUGH, delay=0, on=("error", "lost")),
        )


def draw(chance):
    """Return the jobs of a graph, each after those that it names."""
    tasks = []
    for number in range(chance.randint(10, 24)):
        count = min(len(tasks), chance.choice((0, 1, 1, 2, 3)))
        tasks.append(
            Task(
                f"t{number}",
                chance.sample(tasks, count),
                chance.choice(("complete",) * 4 + ("ended", "failed")) if count else "complete",
                chance.choice((0, 0, 0, 0, 1, 2, ALWAYS)),
                round(chance.uniform(0, 0.08), 3),
            )
        )
    return tasks


def kill_now_and_then(chance, database, hosts, stack, ended):
    """SIGKILL hosts, which are replaced, and supervisors, until all has ended or time is up."""
    kills = chance.randint(2, 6)
    give_up = time.monotonic() + PATIENCE
    while not ended() and time.monotonic() < give_up:
        # An instant of death, not a wait for anything.
        time.sleep(chance.uniform(0.02, 0.2))
        if not kills:
            continue
        kills -= 1
        if chance.random() < 0.5:
            place = chance.randrange(len(hosts))
            hosts[place].kill()
            hosts[place] = stack.enter_context(host(serve, database))
        else:
            found = supervisors(SimpleNamespace(database=database))
            for pid in chance.sample(found, min(1, len(found))):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def wrong_with(tasks, jobs, lines):
    """Return what is not as it should be, by the jobs and by what they have said."""
    attempts = {task.name: [job for job in jobs[::-1] if job.name == task.name] for task in tasks}
    return [
        one
        for task in tasks
        for one in (
            *ended_wrong(task, attempts[task.name], lines),
            *began_wrong(task, attempts, lines),
        )
    ]


def ended_wrong(task, attempts, lines):
    """Yield what is wrong with the attempts of one job, the oldest first."""
    last = attempts[-1]
    if last.status != task.outcome:
        yield f"{task.name} is {last.status}, {last.reason}; not {task.outcome}"
    complete = [job for job in attempts if job.status == Status.COMPLETE]
    if len(complete) != (task.outcome == Status.COMPLETE):
        yield f"{task.name} is COMPLETE {len(complete)} times"
    for job in attempts:
        begun = lines.count(f"begin {task.name} {job.id}")
        if begun > 1 or (begun and str(job.reason) in ("never_started", "upstream")):
            yield f"{task.name} began {begun} times: {job.reason}"
        if job in complete and f"end {task.name} {job.id}" not in lines:
            yield f"{task.name} is COMPLETE and has not ended"


def began_wrong(task, attempts, lines):
    """Yield each job that had not ended for good when one began that was to wait for it."""
    begins = [number for number, line in enumerate(lines) if line.startswith(f"begin {task.name} ")]
    for one in task.after if begins else ():
        said = [number for number, line in enumerate(lines) if line.split()[1] == one.name]
        if said and min(begins) < max(said):
            yield f"{task.name} began before {one.name} had ended for good"
        if attempts[one.name][-1].end_time > attempts[task.name][0].start_time:
            yield f"{task.name} started before the end of {one.name}"


@in_rounds(smoke=2, full=60)
def test_graph_runs_as_it_should_while_processes_are_killed(rounds, tmp_path):
    """Each job ends as the graph says, none begins too early, none is stuck or done twice."""
    for chance in rounds:
        folder = tmp_path / str(rounds.number)
        folder.mkdir()
        database, log = folder / "jobs.db", folder / "log"
        log.touch()
        tasks = draw(chance)
        with JobManager(database, slots=0) as jobs, ExitStack() as stack:
            made = jobs.submit_many([task.submission(str(log)) for task in tasks])
            hosts = [stack.enter_context(host(serve, database)) for _ in range(2)]

            def ended(jobs=jobs):
                counts = jobs.count_jobs()
                return not counts[Status.QUEUED] and not counts[Status.RUNNING]

            kill_now_and_then(chance, database, hosts, stack, ended)
            jobs.wait_all([job.id for job in made], timeout=PATIENCE)
            for one in hosts:
                one.kill()
            found = jobs.list_jobs(limit=5000)
            wrong = wrong_with(tasks, found, log.read_text().splitlines())
            assert wrong == []
            told = [one for one in jobs.check() if one.check in ("dependencies", "counts")]
            assert {one.verdict for one in told} == {"ok"}, told
            check(jobs, killed=True)
