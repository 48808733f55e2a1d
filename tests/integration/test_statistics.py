"""Statistics: numbers about a file, for people and for Prometheus."""

from __future__ import annotations

import json
import re
from datetime import timedelta

import pytest

from jobcore import ArgumentError, Status, wire
from jobcore.clock import to_datetime
from jobcore.operations import statistics
from tests.integration.verbs_harness import in_a_pipe, on_a_terminal
from tests.tasks import end


def run_for(jobs, clock, seconds, *, wait=0.0, exit_code=0):
    """Run a task that waits and takes so long."""
    job = jobs.create_job("TASK")
    clock.advance(wait)
    jobs.start_job(job.id)
    clock.advance(seconds)
    return jobs.finish_job(job.id, exit_code)


def test_numbers_are_those_of_the_jobs(jobs, clock):
    """By status, by reason, by quantile."""
    for seconds in range(1, 11):
        run_for(jobs, clock, seconds, wait=2, exit_code=int(seconds == 1))
    jobs.cancel_job(jobs.create_job("TASK").id)
    running = jobs.create_job("TASK")
    jobs.start_job(running.id)
    clock.advance(5)
    jobs.create_job("TASK")
    clock.advance(7)
    found = jobs.statistics()

    assert found.jobs == {"QUEUED": 1, "RUNNING": 1, "COMPLETE": 9, "ERROR": 1, "STOPPED": 1}
    assert found.ended == {"COMPLETE": 9, "ERROR": 1, "STOPPED": 1}
    assert found.reasons == {"exited": 10, "cancelled": 1}
    assert found.durations == {"0.5": 5.0, "0.9": 9.0, "0.99": 10.0, "1": 10.0}
    assert found.waits == dict.fromkeys(("0.5", "0.9", "0.99", "1"), 2.0)
    assert (found.queue_age, found.running_age) == (7.0, 12.0)
    assert found.created == 13
    assert (found.at, found.since) == (
        to_datetime(clock.now()), to_datetime(clock.now()) - timedelta(days=1),
    )  # fmt: skip
    assert min(found.file_size, found.log_size) > 0


def test_empty_file_has_no_ages_and_no_quantiles(jobs):
    """An unknown age or quantile of an empty file is None, not 0."""
    found = jobs.statistics()

    assert (found.created, found.queue_age, found.running_age) == (0, None, None)
    assert (found.durations, found.waits, found.reasons) == ({}, {}, {})
    assert set(found.jobs.values()) == {0}


def test_the_window_is_for_what_ended(jobs, clock):
    """Jobs that ended before it count by status only; deleted jobs do not count."""
    run_for(jobs, clock, 1)
    clock.advance(100)
    last = run_for(jobs, clock, 3)
    jobs.delete_job(run_for(jobs, clock, 5).id)
    found = jobs.statistics(50)

    assert found.ended == {"COMPLETE": 1, "ERROR": 0, "STOPPED": 0}
    assert found.durations["1"] == 3.0
    assert found.jobs[Status.COMPLETE] == 2
    assert found.created == 3
    assert last.end_time > found.since


def test_job_that_waits_for_its_time_makes_the_queue_no_older(jobs, clock):
    """It begins to wait when it may start."""
    due = to_datetime(clock.now()) + timedelta(seconds=100)
    jobs.submit(["true"], not_before=due)
    clock.advance(60)
    before = jobs.statistics().queue_age
    clock.advance(60)

    assert (before, jobs.statistics().queue_age) == (None, 20.0)


def test_very_many_ended_jobs_shorten_the_span(jobs, clock, monkeypatch):
    """The work is bounded; the span says what was counted."""
    monkeypatch.setattr(statistics, "MOST_ENDED", 3)
    ended = [run_for(jobs, clock, 1) for _ in range(5)]
    found = jobs.statistics()

    assert sum(found.ended.values()) == 3
    assert found.since == ended[2].end_time


@pytest.mark.parametrize("window", [-1, "1h", float("nan"), None])
def test_wrong_windows_are_refused(jobs, window):
    """It is a number of seconds."""
    with pytest.raises(ArgumentError, match="window must be"):
        jobs.statistics(window)


LINE = re.compile(r"jobcore_[a-z_]+(\{[a-z]+=\"[\w.]+\"\})? -?[0-9.e+-]+")


def test_text_for_prometheus_has_each_number(jobs, clock):
    """Each metric has its help and type before its values."""
    run_for(jobs, clock, 2.5)
    jobs.create_job("TASK")
    lines = wire.prometheus(jobs.statistics()).splitlines()
    names = []
    for line in lines:
        if line.startswith("# HELP "):
            names.append(line.split()[2])
        elif line.startswith("# TYPE "):
            assert line.split()[2:] in ([names[-1], "gauge"], [names[-1], "counter"])
        else:
            assert LINE.fullmatch(line), line
            assert line.startswith(names[-1])

    assert len(names) == len(set(names)) == 12
    assert 'jobcore_jobs{status="QUEUED"} 1' in lines
    assert 'jobcore_job_duration_seconds{quantile="0.5"} 2.5' in lines
    assert "jobcore_jobs_created_total 2" in lines
    assert wire.METRICS_TYPE.startswith("text/plain")


def test_stats_on_a_terminal_are_for_people(jobs, database):
    """Counts in words, times and sizes with units, and nothing that is empty."""
    (before,) = on_a_terminal(database, [["stats"]])
    end(jobs, jobs.create_job("TASK"))
    jobs.create_job("TASK")
    (shown,) = on_a_terminal(database, [["stats", "--window", "9999d"]])

    assert "waited" not in before
    assert re.search(r"^ended +none\b", before, re.MULTILINE)
    assert re.search(r"^jobs +1 QUEUED, 1 COMPLETE\b", shown, re.MULTILINE)
    assert re.search(r"^ran +median \d\.\ds, 90 % within .*, longest \d\.\ds", shown, re.MULTILINE)
    assert re.search(r"^file +\d+\.\d KiB, ", shown, re.MULTILINE)


def test_stats_on_the_command_line(jobs, database):
    """In fields, as JSON, and for Prometheus."""
    end(jobs, jobs.create_job("TASK"))
    fields, document, text, err = in_a_pipe(
        database, [["stats"], ["stats", "--window", "1h", "--json"], ["stats", "--prometheus"]]
    )

    assert dict(line.split("\t") for line in fields.splitlines())["jobs.COMPLETE"] == "1"
    assert json.loads(document)["jobs"]["COMPLETE"] == 1
    assert 'jobcore_jobs{status="COMPLETE"} 1\n' in text
    assert err == ""
