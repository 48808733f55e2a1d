"""Hosts of tasks are killed at random moments: theirs are lost at the next look, no others."""

from __future__ import annotations

import os
import random
import signal
import warnings
from collections import defaultdict
from contextlib import ExitStack, suppress
from datetime import datetime, timezone
from pathlib import Path

from jobcore import InvalidTransition, JobManager, PipelineAlreadyRunning, Reason, Status
from tests.faults.hosts import host
from tests.faults.invariants import check
from tests.faults.rounds import in_rounds
from tests.processes import state, until

#: Jobs that wait for a host that claims them.
QUEUED = 6
#: Seconds after its first task by which a host is killed.
LATEST = 0.15


class Worker:
    """
    Does tasks in every way that there is, one after the other, until it is killed.

    Args:
        path: Of its witness, a file that says what has happened and what may have.
    """

    def __init__(self, path, jobs, pipelines, chance):
        self._witness = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._jobs, self._pipelines, self._chance = jobs, pipelines, chance

    def note(self, word, what):
        os.write(self._witness, f"{word} {what}\n".encode())

    def keep(self):
        """Begin a task that it never ends."""
        self.note("begun", self._jobs.start_job(self._jobs.create_job("KEPT").id).id)

    def work(self):
        ways = [self._block, self._failing_block, self._start, self._claim, self._adopt]
        while True:
            with suppress(PipelineAlreadyRunning, InvalidTransition):
                self._chance.choice(ways)()

    def _pipeline(self):
        return self._chance.choice([None, *self._pipelines])

    def _block(self):
        with self._jobs.task(pipeline_id=self._pipeline()) as task:
            self.note("begun", task.job.id)
            task.log("one", "two")
            task.progress(1, 2)
            task.result = [str(task.job.id)]
            self.note("result", task.job.id)
            self.note("ending", task.job.id)
        self.note("ended", task.job.id)

    def _failing_block(self):
        with suppress(ZeroDivisionError), self._jobs.task() as task:
            self.note("begun", task.job.id)
            self.note("ending", task.job.id)
            task.log(str(1 // 0))
        self.note("ended", task.job.id)

    def _start(self):
        job = self._jobs.create_job("TASK", pipeline_id=self._pipeline())
        self._jobs.start_job(job.id)
        self.note("begun", job.id)
        self._jobs.append_log(job.id, "a line")
        if self._chance.random() < 0.5:
            self._finish(job.id)

    def _claim(self):
        job = self._jobs.claim_job("QUEUED")
        if job is not None:
            self.note("begun", job.id)
            self._finish(job.id)

    def _adopt(self):
        others = self._jobs.list_jobs(status=Status.RUNNING, type="TASK")
        if others:
            job_id = self._chance.choice(others).id
            self.note("adopting", job_id)
            self._jobs.adopt_task(job_id)
            self.note("begun", job_id)

    def _finish(self, job_id):
        self.note("ending", job_id)
        self._jobs.finish_job(job_id)
        self.note("ended", job_id)


def do_tasks(say, database, inherited, pipelines, seed, path, told, tell):
    """Do tasks until killed, with a manager of the parent's or an own one."""
    os.close(tell)
    warnings.simplefilter("ignore")  # of forks beside threads
    chance = random.Random(seed)
    jobs = inherited if chance.random() < 0.5 else JobManager(database, slots=0)
    worker = Worker(path, jobs, pipelines, chance)
    worker.keep()
    if chance.random() < 0.3:
        pid = os.fork()
        if pid == 0:
            outlive(worker, told)
        worker.note("child", pid)
    say("begun")
    worker.work()


def outlive(worker, told):
    """Own a task in a forked child until `told`, however its parent ends."""
    try:
        job = worker._jobs.start_job(worker._jobs.create_job("KEPT").id)
        worker.note("childs", job.id)
        os.read(told, 1)
    finally:
        os._exit(0)


def stay(say, database, tell):
    """Own a task, and do nothing else."""
    os.close(tell)
    with JobManager(database, slots=0) as jobs:
        say(str(jobs.start_job(jobs.create_job("KEPT").id).id))
        signal.pause()


def words(path):
    """Return what a witness says: by the word, of what it was said."""
    said = defaultdict(set)
    for line in Path(path).read_text().splitlines():
        word, what = line.split()
        said[word].add(what)
    return said


def has_begun(said):
    """Tell whether each forked child that there is has its task."""
    return len(said["childs"]) == len(said["child"])


def kill(process, seconds):
    """Kill a host after so long, and leave it a zombie; return a moment at which it lived."""
    assert process.hear() == "begun"
    process.live(seconds)
    alive = datetime.now(timezone.utc)
    os.kill(process.pid, signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    return alive


def look(jobs, chance, ids):
    """Look at jobs, in one of the ways that there are."""
    if chance.random() < 0.5:
        jobs.recover()
    else:
        for job_id in chance.sample(ids, len(ids)):
            jobs.get_job(job_id)


def examine(jobs, first, second, second_alive):
    """See that every job has ended as its hosts say, who are dead."""
    ending = first["ending"] | second["ending"]
    ended = first["ended"] | second["ended"]
    begun = first["begun"] | second["begun"]
    for job_id in begun:
        job = jobs.get_job(job_id)
        if job_id in ended:
            assert job.reason is Reason.EXITED, job
        elif job_id not in ending:
            assert job.reason is Reason.LOST, job
        else:
            assert job.reason in (Reason.EXITED, Reason.LOST), job
        assert (job.reason is Reason.LOST) <= (job.status is Status.ERROR), job
        if job.reason is Reason.LOST and job_id in second["begun"] - first["adopting"]:
            assert job.end_time > second_alive, f"{job} was lost while its owner lived"
        if job.status is Status.COMPLETE and job_id in first["result"] | second["result"]:
            assert jobs.result(job_id) == [job_id]


@in_rounds(smoke=2, full=200)
def test_tasks_of_killed_hosts_are_lost_and_those_of_others_are_not(tmp_path, rounds):
    """What has ended stays so, pipelines and the queue are free, a forked child keeps its own."""
    for chance in rounds:
        database = str(tmp_path / f"{rounds.number}.db")
        paths = [f"{database}.first", f"{database}.second"]
        with JobManager(database, slots=0) as jobs, ExitStack() as stack:
            pipelines = [jobs.create_pipeline(name, ["true"]).id for name in "abc"]
            for _ in range(QUEUED):
                jobs.create_job("QUEUED")
            told, tell = os.pipe()
            stack.callback(os.close, told)
            with open(tell, "wb") as until_closed:  # children end with it
                staying = stack.enter_context(host(stay, database, tell))
                stayed = staying.hear()
                killed = [
                    stack.enter_context(
                        host(do_tasks, database, jobs, pipelines, chance.random(), path, told, tell)
                    )
                    for path in paths
                ]
                kill(killed[0], chance.uniform(0, LATEST))
                look(jobs, chance, [job.id for job in jobs.list_jobs(limit=1000)])
                second_alive = kill(killed[1], chance.uniform(0, LATEST))
                look(jobs, chance, [job.id for job in jobs.list_jobs(limit=1000)])

                for path in paths:
                    until(lambda path=path: has_begun(words(path)), "the task of a forked child")
                first, second = map(words, paths)
                owned = {stayed} | first["childs"] | second["childs"]
                running = {str(job.id) for job in jobs.list_jobs(status=Status.RUNNING, limit=1000)}
                assert running == owned
                examine(jobs, first, second, second_alive)
                for job in jobs.list_jobs(type="TASK", status=Status.QUEUED):
                    jobs.cancel_job(job.id)  # its host was killed before it started it
                for pipeline in pipelines:
                    jobs.cancel_job(jobs.create_job(pipeline_id=pipeline).id)
                while (job := jobs.claim_job("QUEUED")) is not None:
                    jobs.finish_job(job.id)
                assert jobs.count_jobs(type="QUEUED")[Status.QUEUED] == 0
                jobs.recover()
                assert {jobs.get_job(job_id).status for job_id in owned} == {Status.RUNNING}
                staying.kill()
                until_closed.close()
                for pid in first["child"] | second["child"]:
                    until(lambda pid=pid: state(pid) in "XZ", "the end of a forked child")
            assert {jobs.get_job(job_id).reason for job_id in owned} == {Reason.LOST}
            for process in killed:
                process.kill()
                assert process.code == -signal.SIGKILL  # and not by itself before that
            check(jobs)
