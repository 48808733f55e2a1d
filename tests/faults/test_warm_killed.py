"""Warm interpreters and supervisors that are SIGKILLed: each call is made at most once."""

from __future__ import annotations

import os
import signal
import textwrap
import time
from contextlib import suppress

from jobcore import Reason, Status, function_command
from jobcore.testing.parts import parts
from tests.faults.rounds import in_rounds
from tests.integration.test_warm_functions import MODULE, interpreters, manager, warm_up
from tests.processes import PATIENCE, carrying, until


@in_rounds(smoke=3, full=60)
def test_warm_calls_are_true_while_processes_are_killed(tmp_path, monkeypatch, rounds):
    """What a COMPLETE job has done is there once; no process of a lost one is left."""
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "warmed.py").write_text(textwrap.dedent(MODULE))
    monkeypatch.syspath_prepend(str(modules))
    warm_calls = 0
    for chance in rounds:
        made = tmp_path / f"made-{rounds.number}"
        made.touch()
        with manager(str(tmp_path / f"{rounds.number}.db"), slots=2) as jobs:
            warm_up(jobs)
            calls = [
                function_command("warmed:appends", [str(made), f"{number}\n"])
                for number in range(12)
            ]
            ids = [job.id for job in jobs.submit_many(calls, type="FUNCTION")]
            lost = False
            while any(not jobs.get_job(one).status.final for one in ids):
                time.sleep(chance.uniform(0, 0.1))  # a moment of death, not a wait for anything
                with suppress(OSError):  # a supervisor has just ended
                    victims = interpreters(jobs)
                    if chance.random() < 0.2:
                        victims += [one.pid for one in parts(jobs).pool.supervisors if one.pid]
                        lost = True
                    for pid in victims[: chance.randrange(3)]:
                        os.kill(pid, signal.SIGKILL)
            ended = [jobs.wait(one, PATIENCE) for one in ids]
            returned = [jobs.result(job.id) for job in ended if job.status == Status.COMPLETE]
            warm_calls += sum(returned)
            for job in ended:
                until(lambda job=job: not carrying(f"JOBCORE_JOB_ID={job.id}\0"), "no process")
        numbers = made.read_text().split()

        assert len(numbers) == len(set(numbers))
        done = {str(n) for n, job in enumerate(ended) if job.status == Status.COMPLETE}
        assert done <= set(numbers)
        # A call that was forked just now still looks like the interpreter.
        expected = {Reason.SIGNALED, *((Reason.LOST, Reason.NEVER_STARTED) if lost else ())}
        assert {job.reason for job in ended if job.status != Status.COMPLETE} <= expected
    assert warm_calls
