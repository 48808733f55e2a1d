"""A keeper that is SIGKILLed, alone or with a supervisor: no job is lost by that, none runs on."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress

from jobcore import JobManager, Reason
from jobcore.engine.launcher import STARTED_VARIABLE, STUBS
from tests.faults.hosts import host
from tests.faults.invariants import check
from tests.faults.plans import carry_out, draw, place, supervisors
from tests.faults.rounds import in_rounds
from tests.integration.supervision_harness import Host, is_alive
from tests.integration.test_keeper import another
from tests.processes import carrying, until
from tests.programs import SLEEPS


def keepers(host):
    """Return the pids of the keepers of a host."""
    found = []
    for pid in carrying(f"{STARTED_VARIABLE}={host}\0"):
        with suppress(OSError):
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                words = file.read().decode().split("\0")
            # Supervisors that were forked, and their commands up to the exec, have the same words.
            # But the leader of their session lives, and that of a keeper has ended.
            if STUBS[-2] in words and not is_alive(os.getsid(pid)):
                found.append(pid)
    return found


def kill(pids):
    """SIGKILL processes that were there a moment ago."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@in_rounds(smoke=6, full=300)
def test_no_command_outlives_its_supervisor_and_keeper(tmp_path, rounds):
    """Killed within 50 ms of each other, in any order: no manager looks, and nothing runs on."""
    small = Host(tmp_path)
    another(small.pool)
    together = 0
    for chance in rounds:
        forked = another(small.pool)
        if forked.keeper is not None:
            until(lambda one=forked.keeper: one.receive() or one.pid, "the keeper is ready")
        run = small.start(SLEEPS, forked)
        run.wait_for_output()
        command = small.wait_for_start(run)
        both = [forked.pid, *([forked.keeper.pid] if forked.keeper else [])]
        together += len(both) == 2
        chance.shuffle(both)
        for pid in both:
            kill([pid])
            time.sleep(chance.uniform(0, 0.05))  # a moment of death, not a wait for anything

        until(lambda pid=command: not is_alive(pid), "the end of the command")
        assert run.exit is None
        small.pool.discard(forked)
    small.close()

    assert together


@in_rounds(smoke=4, full=200, long=True)
def test_jobs_are_true_while_keepers_are_killed(tmp_path, rounds):
    """Keepers are killed at any moment, with and without supervisors, under jobs that run."""
    struck = 0
    for chance in rounds:
        with place(tmp_path, rounds.number) as where:
            plan = draw(chance, jobs=6)
            with host(carry_out, where, plan) as serving:
                lost = False
                while not serving.done:
                    serving.live(chance.uniform(0, 0.1))
                    running = supervisors(where)
                    found = keepers(serving.pid)
                    struck += len(found)
                    victims = [*found, *(running[:1] if chance.random() < 0.2 else ())]
                    lost = lost or len(victims) > len(found)
                    chance.shuffle(victims)
                    kill(victims)
                said = serving.kill_after(60)
            with JobManager(where.database, slots=0) as jobs:
                check(jobs, where.sides)
                ended = jobs.list_jobs()

            assert said[-1] == "done"
            assert {str(job.id) for job in ended} == set(said[:-1])
            assert all(job.status.final for job in ended)
            if not lost:
                assert not {job.reason for job in ended} & {Reason.LOST, Reason.NEVER_STARTED}
    assert struck
