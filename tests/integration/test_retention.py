"""Retention: rules of the file, kept in small steps by whoever runs its queue."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing

import pytest

from jobcore import ArgumentError, JobManager, Status
from jobcore.engine import retention as engine
from jobcore.engine.retention import RetentionChore
from jobcore.testing import ManualClock
from jobcore.testing.parts import parts
from tests.integration.verbs_harness import in_a_pipe, on_a_terminal
from tests.processes import until
from tests.tasks import end

DAY = 86_400.0


def chore(jobs):
    """Return what a manager with slots does every second."""
    return RetentionChore(parts(jobs).database, parts(jobs).remover, parts(jobs).clock)


def look(kept):
    """Look until nothing is left to remove."""
    kept.tick()
    while kept.is_unfinished():
        kept.tick()


def ended(jobs, exit_code=0):
    return end(jobs, jobs.create_job("TASK"), exit_code).number


def numbers(jobs):
    return sorted(job.number for job in jobs.list_jobs())


def test_managers_with_slots_keep_the_rule(database):
    """A job is removed once it ended so long ago; by a worker that opens the file later, too."""
    clock = ManualClock()
    with JobManager(database, slots=1, clock=clock) as jobs:
        old = ended(jobs)
        jobs.set_retention("30d")
        clock.advance(29 * DAY)
        young = ended(jobs)
        assert numbers(jobs) == [old, young]
        clock.advance(DAY)
        until(lambda: numbers(jobs) == [young])
    clock.advance(30 * DAY)
    with JobManager(database, slots=0, clock=clock) as jobs:
        jobs.refresh()
        assert numbers(jobs) == [young]
    with JobManager(database, slots=1, clock=clock) as jobs:
        until(lambda: numbers(jobs) == [])
        assert [one for one in jobs.check() if one.verdict == "wrong"] == []


def test_rules_are_by_status(jobs, clock):
    """A rule replaces earlier ones for its statuses, and leaves the others."""
    good, bad = ended(jobs), ended(jobs, 1)
    stopped = jobs.cancel_job(jobs.create_job("TASK").id).number
    jobs.set_retention("10d")
    jobs.set_retention("20d", statuses="ERROR")
    rules = jobs.set_retention(statuses=[Status.STOPPED])

    assert [(one.statuses, one.keep, one.count) for one in rules] == [
        (["COMPLETE"], 10 * DAY, None), (["ERROR"], 20 * DAY, None),
    ]  # fmt: skip
    assert jobs.retention() == rules
    kept = chore(jobs)
    found = []
    for _ in range(3):
        look(kept)
        found.append(numbers(jobs))
        clock.advance(10 * DAY)
    look(kept)
    assert [*found, numbers(jobs)] == [
        [good, bad, stopped], [bad, stopped], [stopped], [stopped],
    ]  # fmt: skip
    assert jobs.set_retention() == []


def test_newest_jobs_are_kept_by_count(jobs, clock):
    """However old they are; and without `keep` nothing else is kept."""
    made = [ended(jobs) for _ in range(5)]
    jobs.set_retention("1d", count=2)
    kept = chore(jobs)
    look(kept)
    assert numbers(jobs) == made
    clock.advance(DAY)
    look(kept)
    assert numbers(jobs) == made[3:]

    made = [*made[3:], *(ended(jobs) for _ in range(3))]
    clock.advance(100)
    look(kept)
    assert numbers(jobs) == made[2:]  # the newest two, and those that are young enough

    jobs.set_retention(count=1)
    look(kept)
    assert numbers(jobs) == made[-1:]


def test_jobs_that_are_not_final_are_never_removed(jobs, clock):
    """Neither queued nor running ones."""
    queued = jobs.create_job("TASK")
    running = jobs.create_job("TASK")
    jobs.start_job(running.id)
    jobs.set_retention(0)
    clock.advance(365 * DAY)
    ended(jobs)
    clock.advance(1)
    look(chore(jobs))

    assert numbers(jobs) == [queued.number, running.number]


def test_retention_works_in_small_steps(jobs, clock, monkeypatch):
    """Each call removes a part and reports that there is more; new rules apply at once."""
    monkeypatch.setattr(engine, "REMOVED_AT_ONCE", 10)
    for _ in range(25):
        ended(jobs)
    clock.advance(DAY)
    jobs.set_retention("1h")
    kept = chore(jobs)
    monkeypatch.setattr(engine, "LOOK", -1.0)
    left = []
    for _ in range(100):
        kept.tick()
        left.append(len(numbers(jobs)))
        if not kept.is_unfinished():
            break

    assert left[-1] == 0
    assert {before - after for before, after in zip([25, *left], left, strict=False)} <= {0, 5, 10}
    assert len(left) >= 3


def test_old_jobs_of_other_statuses_are_not_examined_again(jobs, clock):
    """A look continues after the last job of the one before."""
    for _ in range(20):
        ended(jobs, 1)
    jobs.set_retention("1h", statuses="COMPLETE")
    kept = chore(jobs)
    clock.advance(DAY)
    look(kept)
    last = ended(jobs)
    clock.advance(DAY)
    (seen,) = kept._seen.values()
    look(kept)

    assert seen[1] == 20
    assert last not in numbers(jobs)
    assert len(numbers(jobs)) == 20


def test_two_managers_remove_each_job_once(jobs, clock, database):
    """Both look; nobody fails."""
    for _ in range(30):
        ended(jobs)
    clock.advance(DAY)
    with JobManager(database, slots=0, clock=clock) as other:
        jobs.set_retention("1h")
        for _ in range(5):
            chore(jobs).tick()
            chore(other).tick()

    assert numbers(jobs) == []


def test_old_skips_go_with_the_jobs(jobs, clock):
    """As `prune` removes them."""
    made = jobs.create_pipeline("p", ["true"], schedule="@hourly")
    clock.advance(7 * DAY)
    jobs.update_pipeline(made.id, paused=True)
    jobs.set_retention("1d")
    clock.advance(2 * DAY)
    before = jobs.skips(made.id)
    look(chore(jobs))

    assert (len(before), jobs.skips(made.id)) == (1, [])


def test_damaged_setting_removes_nothing(jobs, database, clock):
    """No job is lost to a rule that cannot be read."""
    job = ended(jobs)
    jobs.set_retention(0)
    for value in ("{", "[1]", '[{"statuses": ["NONE"], "keep": 0, "count": null}]', "null"):
        with closing(sqlite3.connect(database, isolation_level=None)) as connection:
            connection.execute("UPDATE setting SET value = ?", (value,))
        clock.advance(DAY)
        look(chore(jobs))
        assert (jobs.retention(), numbers(jobs)) == ([], [job])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keep": "soon"}, "keep must be a number of seconds, or a text"),
        ({"keep": -1}, "keep must be 0 to"),
        ({"keep": 1, "count": -1}, "count must be an integer"),
        ({"keep": 1, "statuses": "QUEUED"}, "not QUEUED"),
        ({"keep": 1, "statuses": []}, "statuses must name at least one"),
    ],
)
def test_wrong_rules_are_refused(jobs, arguments, message):
    """The earlier rule stays."""
    before = jobs.set_retention("1d")
    with pytest.raises(ArgumentError, match=message):
        jobs.set_retention(**arguments)

    assert jobs.retention() == before


def test_retention_on_the_command_line(jobs, database):
    """Shown, set by status, and turned off."""
    verbs = [
        ["retention"],
        ["retention", "--keep", "30d"],
        ["retention", "--keep", "90d", "--status", "error", "--count", "5"],
        ["retention", "--json"],
        ["retention", "--off"],
    ]
    *texts, err = in_a_pipe(database, verbs)

    assert texts[:2] == ["", f"COMPLETE, ERROR, STOPPED\t{30 * DAY}\t-\n"]
    assert texts[2].splitlines()[1] == f"ERROR\t{90 * DAY}\t5"
    assert json.loads(texts[3])[1] == {"statuses": ["ERROR"], "keep": 90 * DAY, "count": 5}
    assert (texts[4], err, jobs.retention()) == ("", "", [])


def test_terminal_shows_retention_in_days(jobs, database):
    """As one types it, not in seconds."""
    jobs.set_retention("30d")
    (shown,) = on_a_terminal(database, [["retention"]])

    assert "30d" in shown
    assert str(int(30 * DAY)) not in shown
