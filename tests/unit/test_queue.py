"""The queue: which job is claimed next, against a short model; and who may start none."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from jobcore import ArgumentError, CommandError, JobManager, Status
from jobcore.clock import to_datetime
from jobcore.storage import transitions
from jobcore.testing import ManualClock
from jobcore.testing.parts import parts
from tests.jobfiles import sql

GROUPS = [None, "a", "b", "ü"]
TYPES = ["LEFT", "RIGHT"]
PRIORITIES = [0, 0, 0, 1, -1, 7]


@dataclass
class Model:
    """One job, as it must be."""

    number: int
    id: object
    type: str
    group: str | None
    priority: int
    due: float
    status: str = "QUEUED"

    def scopes(self):
        return [(None, None), (None, self.type), *([(self.group, None)] if self.group else [])]


class Claims(RuleBasedStateMachine):
    """Submits, limits, pauses and claims in any order; each claim takes the job that it must."""

    def __init__(self):
        super().__init__()
        self.place = tempfile.TemporaryDirectory()
        self.clock = ManualClock()
        self.begin = self.clock.monotonic()
        self.manager = JobManager(
            os.path.join(self.place.name, "jobs.db"), slots=0, clock=self.clock
        )
        self.jobs = []
        self.slots = {}  # by group and type
        self.paused = set()

    def teardown(self):
        self.manager.close()
        self.place.cleanup()

    def now(self):
        return self.clock.monotonic() - self.begin

    def running(self, scope):
        return sum(job.status == "RUNNING" and scope in job.scopes() for job in self.jobs)

    def may_start(self, job):
        return not any(
            scope in self.paused or self.running(scope) >= self.slots.get(scope, 10**9)
            for scope in job.scopes()
        )

    def expected(self, types):
        """Return the job that a claim must take, or None."""
        ready = [
            job
            for job in self.jobs
            if job.status == "QUEUED"
            and job.type in types
            and job.due <= self.now()
            and self.may_start(job)
        ]
        return min(ready, key=lambda job: (-job.priority, job.number), default=None)

    @rule(
        kind=st.sampled_from(TYPES),
        group=st.sampled_from(GROUPS),
        priority=st.sampled_from(PRIORITIES),
        delay=st.sampled_from([None, None, 0, 1, 3]),
    )
    def submit(self, kind, group, priority, delay):
        due = self.now() + (delay or 0)
        not_before = (
            None if delay is None else to_datetime(self.clock.now()) + timedelta(seconds=delay)
        )
        job = self.manager.submit(
            ["true"], type=kind, group=group, priority=priority, not_before=not_before
        )
        self.jobs.append(Model(job.number, job.id, kind, group, priority, due))

    @rule(types=st.sampled_from([("LEFT",), ("RIGHT",), ("LEFT", "RIGHT"), ("NONE",)]))
    def claim(self, types):
        expected = self.expected(types)
        job = self.manager.claim_job(types)

        assert (job and job.number) == (expected and expected.number)
        if expected is not None:
            expected.status = "RUNNING"

    @precondition(lambda self: any(job.status == "QUEUED" for job in self.jobs))
    @rule(data=st.data())
    def start(self, data):
        """A host may start what a limit would keep in the queue; it counts all the same."""
        job = data.draw(st.sampled_from([one for one in self.jobs if one.status == "QUEUED"]))
        self.manager.start_job(job.id)
        job.status = "RUNNING"

    @precondition(lambda self: any(job.status == "RUNNING" for job in self.jobs))
    @rule(data=st.data())
    def finish(self, data):
        job = data.draw(st.sampled_from([one for one in self.jobs if one.status == "RUNNING"]))
        self.manager.finish_job(job.id)
        job.status = "COMPLETE"

    @precondition(lambda self: any(job.status == "QUEUED" for job in self.jobs))
    @rule(data=st.data(), priority=st.sampled_from(PRIORITIES))
    def change(self, data, priority):
        job = data.draw(st.sampled_from([one for one in self.jobs if one.status == "QUEUED"]))
        self.manager.update_job(job.id, priority=priority)
        job.priority = priority

    scopes = st.sampled_from(
        [(None, None), *((None, kind) for kind in TYPES), ("a", None), ("ü", None)]
    )

    @rule(scope=scopes, slots=st.sampled_from([None, 1, 2, 3]))
    def limit(self, scope, slots):
        shown = self.manager.set_limit(scope[0], slots, type=scope[1])
        self.slots.pop(scope, None)
        if slots is not None:
            self.slots[scope] = slots
        assert (shown.slots, shown.running) == (slots, self.running(scope))

    @rule(scope=scopes)
    def pause(self, scope):
        self.manager.pause(*scope)
        self.paused.add(scope)

    @rule(scope=scopes)
    def resume(self, scope):
        self.manager.resume(*scope)
        self.paused.discard(scope)

    @rule(seconds=st.sampled_from([0.5, 1, 4]))
    def wait(self, seconds):
        self.clock.advance(seconds)

    @invariant()
    def shows_what_a_job_waits_for(self):
        shown = {job.number: job.waits_for for job in self.manager.list_jobs(limit=100)}
        for job in self.jobs[-100:]:
            why = None
            if job.status == "QUEUED":
                if job.due > self.now():
                    why = "time"
                elif self.paused.intersection(job.scopes()):
                    why = "paused"
                elif not self.may_start(job):
                    why = "limit"
            assert shown[job.number] == why

    @invariant()
    def shows_all_limits(self):
        shown = {
            (
                one.name if one.scope == "group" else None,
                one.name if one.scope == "type" else None,
            ): one
            for one in self.manager.limits()
        }
        assert shown.keys() == self.slots.keys() | self.paused
        for scope, one in shown.items():
            assert one.slots == self.slots.get(scope)
            assert (one.paused is not None) == (scope in self.paused)
            queued = sum(job.status == "QUEUED" and scope in job.scopes() for job in self.jobs)
            assert (one.running, one.queued) == (self.running(scope), queued)


TestClaims = Claims.TestCase
TestClaims.settings = settings(
    max_examples=settings.default.max_examples // 4,
    stateful_step_count=40,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
)


def claimed(jobs, *types):
    """Claim until there is nothing, and return the names in that order."""
    names = []
    while (job := jobs.claim_job(types or "TASK")) is not None:
        names.append(job.name)
    return names


def test_delayed_jobs_take_part_by_priority_and_creation_once_they_are_due(jobs, clock):
    soon = to_datetime(clock.now()) + timedelta(seconds=10)
    for number, (priority, due) in enumerate(
        [(0, None), (0, soon), (5, soon), (5, None), (0, soon - timedelta(seconds=5)), (5, soon)]
    ):
        jobs.submit(["true"], type="TASK", name=str(number), priority=priority, not_before=due)
    clock.advance(20)

    assert claimed(jobs) == ["2", "3", "5", "0", "1", "4"]


def test_full_group_keeps_no_other_job_waiting(jobs):
    jobs.set_limit("gpu", 1)
    for number in range(100):
        jobs.submit(["true"], type="TASK", group="gpu", priority=9, name=f"gpu {number}")
    jobs.submit(["true"], type="TASK", group="cpu", name="cpu")
    jobs.submit(["true"], type="TASK", name="alone")

    assert claimed(jobs) == ["gpu 0", "cpu", "alone"]


def test_reserved_jobs_are_passed_by(jobs, database):
    jobs.submit_many([["true"]] * 50, type="TASK", priority=9)
    sql(database, "UPDATE job SET owner = 'another process'")
    jobs.submit(["true"], type="TASK", reserved=True)
    job = jobs.submit(["true"], type="TASK")

    assert jobs.claim_job("TASK").id == job.id
    assert jobs.claim_job("TASK") is None


def test_jobs_of_an_open_batch_are_passed_by(jobs, database):
    made = [jobs.submit(["true"], type="TASK", group=group) for group in ("a", "a", "a", None)]
    sql(database, f"INSERT INTO batch (first, last, owner) VALUES (1, {made[1].number}, 'x')")

    assert jobs.claim_job("TASK").id == made[2].id
    assert jobs.claim_job("TASK").id == made[3].id
    assert jobs.claim_job("TASK") is None


def test_limits_outlive_the_manager_that_set_them(database):
    with JobManager(database, slots=0) as jobs:
        jobs.set_limit("gpu", 3)
        jobs.set_limit(None, 7)
        jobs.pause(type="TASK")
    with JobManager(database, slots=0) as jobs:
        shown = [(one.scope, one.name, one.slots, one.paused is None) for one in jobs.limits()]

        assert shown == [
            ("file", None, 7, True), ("group", "gpu", 3, True), ("type", "TASK", None, False)
        ]  # fmt: skip


def test_first_pause_sets_the_time(jobs, clock):
    first = jobs.pause("gpu").paused
    clock.advance(100)

    assert jobs.pause("gpu").paused == first
    assert jobs.resume("gpu").paused is None
    assert jobs.limits() == []


def test_pause_keeps_the_slots_of_a_limit(jobs):
    jobs.set_limit("gpu", 2)
    jobs.pause("gpu")
    jobs.set_limit("gpu", 3)

    assert jobs.resume("gpu").slots == 3


@pytest.mark.parametrize("slots", [0, -1, 1.5, True, "2"])
def test_wrong_slots_are_refused(jobs, slots):
    with pytest.raises(ArgumentError, match="slots must be"):
        jobs.set_limit("gpu", slots)


def test_limit_of_a_group_and_a_type_is_refused(jobs):
    with pytest.raises(ArgumentError, match="give a group or a type, not both"):
        jobs.pause("gpu", "TASK")
    with pytest.raises(CommandError, match="group must have"):
        jobs.pause("")


def test_damaged_limit_admits_no_job(jobs, database):
    jobs.set_limit("gpu", 1)
    job = jobs.submit(["true"], type="TASK", group="gpu")
    sql(database, "UPDATE job_limit SET slots = 'many'")

    assert jobs.claim_job("TASK") is None
    assert jobs.get_job(job.id).waits_for == "limit"
    jobs.set_limit("gpu", 2)
    assert jobs.claim_job("TASK").id == job.id


def test_changed_job_does_not_start_as_it_was_read(jobs):
    """A claim that has read a job refuses it if its command or its time has changed since."""
    job = jobs.submit(["true"])
    read = sql(parts(jobs).database.path, "SELECT command FROM job")[0]["command"]
    later = job.created + timedelta(seconds=50)

    def start(connection):
        return transitions.start_if_queued(
            connection, job.number, now=parts(jobs).clock.now(), from_queue=(read, None)
        )

    jobs.update_job(job.id, timeout=3)
    assert parts(jobs).database.write(start) is None
    jobs.update_job(job.id, timeout=None, not_before=later)
    assert parts(jobs).database.write(start) is None
    jobs.update_job(job.id, not_before=None)
    read = sql(parts(jobs).database.path, "SELECT command FROM job")[0]["command"]
    assert parts(jobs).database.write(start).status == Status.RUNNING
