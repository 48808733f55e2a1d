"""The whole manager against a short model: any order of events leads where the rules say."""

from __future__ import annotations

import errno
import tempfile
from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from jobcore import Command, DatabaseBusy, DuplicateKey, InvalidTransition, JobManager
from jobcore.testing import ManualClock, Script, ScriptedExecutor, busy, crash, drain, elapse
from tests.faults import invariants
from tests.faults.rounds import in_rounds
from tests.processes import in_child

SLOTS = 2
GRACE = 9.25  # seconds
#: Events of one example.
STEPS = 50

NEVER = float("inf")
#: The name of each hook's job.
HOOK_NAME = "on_error"


@dataclass
class Plan:
    """What a command does if nobody ends it: after `duration` seconds, `end`."""

    duration: float
    end: str  # "exits", "dies" (its supervisor does), "cannot" (start)
    code: int = 0
    stubborn: bool = False  # does not end by SIGTERM
    timeout: float | None = None

    def script(self):
        """Return the script that does so."""
        if self.end == "cannot":
            return Script(cannot_start=errno.ENOENT)
        if self.duration == NEVER:
            return Script(["begin"], hangs=True, ignores_term=self.stubborn)
        return Script(
            ["begin", self.duration, "end"],
            exit_code=self.code,
            dies=self.end == "dies",
            ignores_term=self.stubborn,
        )


@dataclass
class Model:
    """One job, as it must be."""

    number: int
    plan: Plan
    status: str = "QUEUED"
    code: int | None = None
    reason: str | None = None
    lines: list[str] = field(default_factory=list)
    started: float = NEVER
    halted: str | None = None  # by a stop or a time-out
    stop_requested: bool = False
    kill_at: float = NEVER
    priority: int = 0
    key: str | None = None
    expires: float = NEVER
    run_if: str = "complete"
    group: str | None = None
    hook: bool = False  # it has one for ERROR
    asked: dict = field(default_factory=dict)  # by the id of each upstream job: whether it was met
    tell: object = None  # is called when it is final

    @property
    def waits(self):
        """Tell whether it waits for another job."""
        return None in self.asked.values()

    @property
    def met(self):
        """Return the conditions that its end meets."""
        failed = self.status == "ERROR" or self.reason == "timeout"
        return {"ended", "complete" if self.status == "COMPLETE" else "failed" if failed else ""}

    def due(self):
        """Return when something happens to it next."""
        if self.status == "QUEUED":
            return self.expires
        if self.status != "RUNNING":
            return NEVER
        natural = self.started + self.plan.duration
        timeout = self.started + (self.plan.timeout or NEVER) if self.halted is None else NEVER
        return min(natural, timeout, self.kill_at)

    def happen(self, now):
        """Let what is due happen."""
        if self.status == "QUEUED":
            self._final("STOPPED", None, "expired")
        elif now == self.started + self.plan.duration:
            self._end_by_itself()
        elif now == self.kill_at:
            self._final("STOPPED", 137, self.halted)
        else:
            self.halt("timeout", now)

    def halt(self, reason, now):
        """SIGTERM comes."""
        if self.halted is None:
            self.halted = reason
            if self.plan.stubborn:
                self.kill_at = now + GRACE
            else:
                self._final("STOPPED", 143, reason)

    def start(self, now):
        """Be claimed, and begin."""
        self.status, self.started = "RUNNING", now
        if self.plan.end == "cannot":
            self._final("ERROR", 127, "spawn_failed")
        else:
            self.lines = ["begin"]

    def _end_by_itself(self):
        self.lines = ["begin", "end"]
        if self.plan.end == "dies":
            self._final("STOPPED" if self.stop_requested else "ERROR", None, "lost")
        elif self.halted is not None:
            self._final("STOPPED", self.plan.code, self.halted)
        else:
            self._final("ERROR" if self.plan.code else "COMPLETE", self.plan.code, "exited")

    def _final(self, status, code, reason):
        self.status, self.code, self.reason = status, code, reason
        self.tell(self)


PLANS = st.builds(
    Plan,
    duration=st.sampled_from([0.0, 1.0, 7.0, 20.0, NEVER]),
    end=st.sampled_from(["exits", "exits", "exits", "dies", "cannot"]),
    code=st.sampled_from([0, 0, 3]),
    stubborn=st.booleans(),
    timeout=st.sampled_from([None, None, 2.5, 15.5]),
).filter(lambda plan: plan.end != "dies" or (not plan.code and plan.duration != NEVER))
#: What every hook does.
HOOK = Plan(duration=3.25, end="exits")
CHOICE = st.integers(0, 2**16)


class Manager(RuleBasedStateMachine):
    """A manager with two slots, crashed and opened again at will, beside the model."""

    @initialize()
    def begin(self):
        self.folder = tempfile.TemporaryDirectory()
        self.path = f"{self.folder.name}/jobs.db"
        self.clock = ManualClock()
        self.plans = {HOOK_NAME: HOOK}  # by the name of the job
        self.scripted = ScriptedExecutor(
            lambda job: self.plans[job.name].script(), clock=self.clock
        )
        self.models = {}  # by id
        self.retries = {}  # the retries of each job, by id
        self.limits = {}  # by group; None: of the file
        self.paused = set()  # groups; None: the file
        self.without_hook = set()  # the ids of jobs whose hooks are not in the model yet
        self.steps = 0
        self.open()

    def open(self):
        self.jobs = JobManager(
            self.path,
            slots=SLOTS,
            executors={"COMMAND": self.scripted},
            launcher=self.scripted,
            clock=self.clock,
        )
        self.rest()

    def rest(self):
        """Let the manager do all that it can do now; the model starts what is next."""
        elapse(self.jobs, 0)
        self.fill_slots()

    def fill_slots(self):
        now = self.clock.monotonic()
        self.add_hooks()
        queued = [one for one in self.models.values() if one.status == "QUEUED" and not one.waits]
        for model in sorted(queued, key=lambda one: (-one.priority, one.number)):
            if self.has_room(model.group):
                model.start(now)
                if model.due() <= now:
                    model.happen(now)

    def has_room(self, group):
        """Tell whether a job of this group may start."""
        if not self.paused.isdisjoint({None, group}):
            return False
        # Those of earlier managers take slots, too: this one adopts them.
        running = [one.group for one in self.models.values() if one.status == "RUNNING"]
        most = min(SLOTS, self.limits.get(None) or SLOTS)
        of_group = SLOTS if group is None else self.limits.get(group) or SLOTS
        return len(running) < most and (group is None or running.count(group) < of_group)

    def add_hooks(self):
        """Note the hooks of jobs that have failed: each has exactly one."""
        if not self.without_hook:
            return
        hooks = [job for job in self.jobs.list_jobs(limit=500) if job.hook_of is not None]
        for job_id in self.without_hook:
            (hook,) = (one for one in hooks if one.hook_of == job_id)
            self.add(hook, HOOK)
        self.without_hook.clear()

    def pass_time(self, seconds, *, alive):
        """Move the model on; while no manager is there nothing is started."""
        end = self.clock.monotonic() + seconds
        if alive:
            elapse(self.jobs, seconds)
        else:
            self.clock.advance(seconds)
        while (due := min((m.due() for m in self.models.values()), default=NEVER)) <= end:
            for model in self.models.values():
                if model.due() == due:
                    model.happen(due)
            if alive:
                now, self.clock.monotonic = self.clock.monotonic, lambda due=due: due
                try:
                    self.fill_slots()
                finally:
                    self.clock.monotonic = now

    def pick(self, choice, *statuses):
        """Return the id and the model of a job in one of these statuses; None: there is none."""
        found = [job_id for job_id, model in self.models.items() if model.status in statuses]
        return found[choice % len(found)] if found else None

    def add(self, job, plan, **more):
        """Note a job that was created, and decide what it waits for, where that is known."""
        model = Model(job.number, plan, **more)
        model.tell = lambda model: self.has_ended(job.id, model.met)
        self.models[job.id] = model
        for upstream, met in list(model.asked.items()):
            other = self.models.get(upstream)
            if met is None and (other is None or other.status not in ("QUEUED", "RUNNING")):
                self.decide(model, upstream, set() if other is None else other.met)

    def has_ended(self, job_id, met):
        """Decide those that wait for a job; one that is deleted meets nothing."""
        ended = self.models.get(job_id)
        if ended is not None and ended.hook and ended.status == "ERROR":
            self.without_hook.add(job_id)
        for model in list(self.models.values()):
            if model.asked.get(job_id, False) is None:
                self.decide(model, job_id, met)

    def decide(self, model, upstream, met):
        """Note whether a dependency was met; if not, the job that has it is cancelled."""
        model.asked[upstream] = model.run_if in met
        if not model.asked[upstream] and model.status == "QUEUED":
            model.status, model.reason = "STOPPED", "upstream"
            model.tell(model)

    def last_attempt(self, job_id):
        """Return the newest retry of a job, or the newest retry of that."""
        while self.retries.get(job_id):
            job_id = self.retries[job_id][-1]
        return job_id

    def unique(self, seconds):
        """Return a time that no sum of others equals: two things never happen at one moment."""
        self.steps += 1
        return seconds + self.steps * 0.001

    # --- what can happen --------------------------------------------------------

    def holder(self, key):
        """Return the id of the job that holds a key, or None."""
        return next(
            (
                job_id for job_id, model in self.models.items()
                if key is not None and model.key == key and model.status in ("QUEUED", "RUNNING")
            ),
            None,
        )  # fmt: skip

    @rule(
        plan=PLANS,
        priority=st.sampled_from([0, 0, 5, -5]),
        key=st.sampled_from([None, None, "a", "b"]),
        expires=st.sampled_from([None, None, 0.5, 6.5, 25.5]),
        group=st.sampled_from([None, "g", "h"]),
        hook=st.booleans(),
    )
    def create(self, plan, priority, key, expires, group, hook):
        name = f"job {len(self.plans)}"
        self.plans[name] = plan
        command = Command(["scripted"], timeout=plan.timeout, grace=GRACE)
        seconds = None if expires is None else self.unique(expires)
        holder = self.holder(key)
        # What ends in the moment of its start may do so before or after the next job is claimed.
        hook = hook and plan.end != "cannot" and plan.duration > 0
        more = {"priority": priority, "key": key, "group": group}
        job = self.jobs.submit(
            command, name=name, expires=seconds, on_error=["hook"] if hook else None, **more
        )
        if holder is not None:
            assert job.id == holder
            return
        expires = self.clock.monotonic() + (NEVER if seconds is None else seconds)
        self.add(job, plan, expires=expires, hook=hook, **more)
        self.rest()

    @rule(
        plan=PLANS,
        others=st.lists(CHOICE, min_size=1, max_size=2),
        run_if=st.sampled_from(["complete", "complete", "ended", "failed"]),
    )
    def create_dependent(self, plan, others, run_if):
        """A job may wait for the last attempts of others."""
        # What ends in the moment of its start may do so before or after the next job is claimed.
        ids = [
            job_id for job_id, one in self.models.items()
            if one.status not in ("QUEUED", "RUNNING")
            or (one.plan.end != "cannot" and one.plan.duration)
        ]  # fmt: skip
        after = list(dict.fromkeys(ids[one % len(ids)] for one in others if ids))
        name = f"job {len(self.plans)}"
        self.plans[name] = plan
        command = Command(["scripted"], timeout=plan.timeout, grace=GRACE)
        job = self.jobs.submit(command, name=name, after=after, run_if=run_if)
        asked = dict.fromkeys(map(self.last_attempt, after))
        self.add(job, plan, run_if=run_if, asked=asked)
        self.rest()

    @rule(choice=CHOICE, priority=st.sampled_from([-9, 0, 9]))
    def move(self, choice, priority):
        """A job in the queue can be moved, one that has started cannot."""
        if job_id := self.pick(choice, "QUEUED"):
            self.jobs.update_job(job_id, priority=priority)
            self.models[job_id].priority = priority
            self.rest()
        if job_id := self.pick(choice, "RUNNING", "COMPLETE"):
            with pytest.raises(InvalidTransition):
                self.jobs.update_job(job_id, priority=priority)

    @rule(group=st.sampled_from([None, "g"]), slots=st.sampled_from([1, 1, 2, None]))
    def limit(self, group, slots):
        """A lower limit lets running jobs go on; a higher one lets others start."""
        self.jobs.set_limit(group, slots)
        self.limits[group] = slots
        self.rest()

    @rule(group=st.sampled_from([None, "g", "h"]))
    def pause(self, group):
        self.jobs.pause(group)
        self.paused.add(group)
        self.rest()

    @rule()
    def resume(self):
        for group in sorted(self.paused, key=str):
            self.jobs.resume(group)
            self.paused.remove(group)
            self.rest()

    @rule(seconds=st.sampled_from([0, 1, 3, 8, 30]))
    def elapse(self, seconds):
        self.pass_time(self.unique(seconds), alive=True)

    @rule(choice=CHOICE)
    def stop(self, choice):
        if job_id := self.pick(choice, "RUNNING"):
            self.jobs.stop_job(job_id)
            model = self.models[job_id]
            model.stop_requested = True
            model.halt("stopped", self.clock.monotonic())
            self.rest()

    @rule(choice=CHOICE)
    def cancel(self, choice):
        if job_id := self.pick(choice, "QUEUED"):
            self.jobs.cancel_job(job_id)
            model = self.models[job_id]
            model.status, model.reason = "STOPPED", "cancelled"
            model.tell(model)
            self.rest()

    @rule(choice=CHOICE)
    def refuse(self, choice):
        """What a status does not allow changes nothing."""
        if job_id := self.pick(choice, "COMPLETE", "ERROR", "STOPPED"):
            for verb in (self.jobs.stop_job, self.jobs.cancel_job, self.jobs.start_job):
                with pytest.raises(InvalidTransition):
                    verb(job_id)

    @rule(choice=CHOICE)
    def retry(self, choice):
        if job_id := self.pick(choice, "ERROR", "STOPPED"):
            old = self.models[job_id]
            if self.retries.get(job_id):
                with pytest.raises(InvalidTransition, match="has retried it"):
                    self.jobs.retry_job(job_id)
                return
            if (holder := self.holder(old.key)) is not None:
                with pytest.raises(DuplicateKey) as caught:
                    self.jobs.retry_job(job_id)
                assert caught.value.job_id == holder
                return
            job = self.jobs.retry_job(job_id)
            assert job.retry_of == job_id
            self.retries.setdefault(job_id, []).append(job.id)
            # What was met stays met; for the rest it waits for the last attempts.
            asked = {
                upstream if met else self.last_attempt(upstream): met or None
                for upstream, met in old.asked.items()
            }
            more = {"priority": old.priority, "key": old.key, "run_if": old.run_if}
            more |= {"group": old.group, "hook": old.hook}
            self.add(job, old.plan, asked=asked, **more)
            self.rest()

    @rule(choice=CHOICE)
    def delete(self, choice):
        job_id = self.pick(choice, "QUEUED", "RUNNING", "COMPLETE", "ERROR", "STOPPED")
        if job_id is None:
            return
        model = self.models[job_id]
        if model.status == "RUNNING" and model.plan.stubborn:
            return  # it would wait for a grace that only this thread can let go by
        self.jobs.delete_job(job_id)
        del self.models[job_id]
        for retries in self.retries.values():
            if job_id in retries:
                retries.remove(job_id)
        self.has_ended(job_id, set())
        self.rest()

    @rule(seconds=st.sampled_from([0, 4, 40]))
    def crash(self, seconds):
        """The host dies; time goes by; the next one opens the file."""
        crash(self.jobs)
        self.pass_time(self.unique(seconds), alive=False)
        self.open()

    @rule()
    def reopen(self):
        self.jobs.close()
        self.open()

    @rule()
    def fork(self):
        """A forked child sees the same jobs."""
        found = in_child(
            lambda: {job.id: str(job.status) for job in self.jobs.list_jobs(limit=500)}
        )
        assert found == {job_id: model.status for job_id, model in self.models.items()}

    @rule(choice=CHOICE)
    def follow(self, choice):
        """A follower ends with the job, and has all of its lines."""
        if job_id := self.pick(choice, "COMPLETE", "ERROR", "STOPPED"):
            said = [line.text for line in self.jobs.follow(job_id) if line.stream == "output"]
            assert said == self.models[job_id].lines

    @rule()
    def be_busy(self):
        """While another process writes nothing is created."""
        with busy(self.jobs), pytest.raises(DatabaseBusy):
            self.jobs.submit(["scripted"])

    # --- what must be true ------------------------------------------------------

    @invariant()
    @precondition(lambda self: hasattr(self, "jobs"))
    def rows_are_as_the_model_says(self):
        found = {
            job.id: (str(job.status), job.exit_code, job.reason and str(job.reason))
            for job in self.jobs.list_jobs(limit=500)
        }
        expected = {
            job_id: (model.status, model.code, model.reason)
            for job_id, model in self.models.items()
        }
        assert found == expected

    @invariant()
    @precondition(lambda self: hasattr(self, "jobs"))
    def limits_are_as_the_model_says(self):
        counts = Counter((one.group, one.status) for one in self.models.values())
        found = {one.name: one for one in self.jobs.limits()}
        limited = {group for group, slots in self.limits.items() if slots is not None}
        assert {*found} >= limited | self.paused
        for group, limit in found.items():
            numbers = [
                sum(
                    count for (of, status), count in counts.items()
                    if status == wanted and group in (None, of)
                )
                for wanted in ("QUEUED", "RUNNING")
            ]  # fmt: skip
            assert [limit.queued, limit.running] == numbers
            assert (limit.slots, limit.paused is not None) == (
                self.limits.get(group),
                group in self.paused,
            )

    def teardown(self):
        if not hasattr(self, "jobs"):
            return
        for job_id, model in reversed(self.models.items()):
            if model.status == "QUEUED":
                # First: a slot that comes free would start it. The youngest first, for which no
                # other one waits.
                self.jobs.cancel_job(job_id)
        for group in self.paused:
            self.jobs.resume(group)
        for job_id, model in self.models.items():
            if model.status == "RUNNING" and model.plan.duration == NEVER:
                self.jobs.stop_job(job_id)
        drain(self.jobs)
        invariants.check(self.jobs)
        for job_id, model in self.models.items():
            if model.reason not in (None, "cancelled", "expired", "upstream"):
                said = [one.text for one in self.jobs.logs(job_id) if one.stream == "output"]
                assert said == model.lines
        self.jobs.close()
        self.scripted.close()
        self.folder.cleanup()


@in_rounds(smoke=2, full=200, long=True)
def test_any_order_of_events_leads_where_the_model_says(rounds):
    """Created, stopped, timed out, deleted, retried, crashed, forked: all as the rules say."""
    run_state_machine_as_test(
        seed(rounds.chance().getrandbits(64))(Manager),
        settings=settings(
            max_examples=rounds.total,
            stateful_step_count=STEPS,
            deadline=None,
            database=None,
            # Without shrinking, which takes longer than the time limit and then hides the cause.
            phases=(Phase.explicit, Phase.reuse, Phase.generate),
            suppress_health_check=list(HealthCheck),
        ),
        _min_steps=STEPS // 2,
    )
    rounds.did(rounds.total)
