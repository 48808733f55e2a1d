"""Output limit: what is beyond it is dropped and counted; the command never notices."""

from __future__ import annotations

import pytest

from jobcore import Command, Reason, Status
from tests.processes import PATIENCE
from tests.programs import python

#: 100 lines of 10 bytes.
_LINES = 'i=0; while [ $i -lt 100 ]; do printf "line %04d\\n" $i; i=$((i + 1)); done'
LINES = [b"line %04d\n" % number for number in range(100)]


def said(limit):
    """Return the line that says so."""
    return f"output limit of {limit} bytes reached: the lines that follow are dropped"


def run(jobs, argv, **options):
    """Run a command to its end, and return the job, what it said, and what jobcore said."""
    job = jobs.wait(jobs.submit(Command(argv, **options)).id, PATIENCE)
    log = list(jobs.logs(job.id))
    assert [line.sequence for line in log] == list(range(job.line_count))
    own = [line.raw for line in log if line.stream != "system"]
    return job, own, [line.text for line in log if line.stream == "system"]


@pytest.mark.parametrize("separate", [False, True], ids=["merged", "separate"])
@pytest.mark.parametrize(
    ("end", "status", "code"),
    [
        ("exit 0", Status.COMPLETE, 0),
        ("exit 3", Status.ERROR, 3),
        ("exit 255", Status.ERROR, 255),
        ("kill -KILL $$", Status.ERROR, 137),
    ],
)
def test_ten_times_the_limit(running_jobs, separate, end, status, code):
    """The first lines are kept, the others counted in one line, and the job ends normally."""
    job, own, system = run(
        running_jobs,
        ["sh", "-c", f"{_LINES}; {end}"],
        output_limit=100,
        separate_streams=separate,
    )

    assert own == LINES[:10]
    assert system == [said(100)]
    assert job.dropped == 90
    assert (job.status, job.exit_code) == (status, code)
    assert job.reason is (Reason.SIGNALED if code == 137 else Reason.EXITED)
    assert '"dropped":90' in job.model_dump_json()


@pytest.mark.parametrize(
    ("limit", "kept"), [(0, 0), (1, 0), (9, 0), (10, 1), (999, 99), (1000, 100), (2**62, 100)]
)
def test_the_limit_is_exact(running_jobs, limit, kept):
    """A line is kept if it fits completely; if all fit, no line mentions a limit."""
    job, own, system = run(running_jobs, ["sh", "-c", _LINES], output_limit=limit)

    assert own == LINES[:kept]
    assert job.dropped == 100 - kept
    assert system == ([said(limit)] if kept < 100 else [])


def test_both_streams_count_for_one_limit(running_jobs):
    """Lines of stdout and stderr use the same room, and their losses are one number."""
    script = f"{_LINES} >&2; {_LINES}"
    job, own, system = run(
        running_jobs, ["sh", "-c", script], output_limit=500, separate_streams=True
    )

    assert (len(own), job.dropped) == (50, 150)
    assert system == [said(500)]


def test_a_command_is_not_blocked(running_jobs):
    """Much more than fits into pipe and limit is written to its end, without a pause."""
    script = "yes 0123456 | head -c 33554432; echo; echo behind it >&2; exit 9"
    job, own, system = run(running_jobs, ["sh", "-c", script], output_limit=1000)

    assert (job.exit_code, job.reason) == (9, Reason.EXITED)
    assert own == [b"0123456\n"] * 125
    assert job.dropped == 33554432 // 8 - 125 + 2
    assert system == [said(1000)]


def test_a_line_without_an_end_is_one_line(running_jobs):
    """The pieces of it that fit are kept, as pieces; the line is counted once, as dropped."""
    script = "head -c 300000 /dev/zero | tr '\\0' x; echo; echo short; printf open"
    job, own, _ = run(running_jobs, ["sh", "-c", script], output_limit=140_000)

    assert own == [b"x" * 65536] * 2
    assert job.dropped == 3


def test_a_stop_beyond_the_limit_is_a_stop(running_jobs):
    """A stop and a time-out work although output is dropped."""
    talks = python("while True: print('y' * 70, flush=True)")
    job_id = running_jobs.submit(Command(talks, output_limit=100)).id
    lines = running_jobs.follow(job_id, timeout=PATIENCE, unfinished=False)
    assert [next(lines).stream, next(lines).text] == ["output", said(100)]

    running_jobs.stop_job(job_id)
    stopped = running_jobs.wait(job_id, PATIENCE)
    over, _, system = run(running_jobs, talks, output_limit=100, timeout=2)

    assert (stopped.status, stopped.reason) == (Status.STOPPED, Reason.STOPPED)
    assert stopped.dropped > 0
    assert next(lines).text.startswith("stopping: asked by")
    assert (over.status, over.reason) == (Status.STOPPED, Reason.TIMEOUT)
    assert over.dropped > 0
    assert system[0] == said(100)
    assert len(system) == 2


def test_masks_count_as_they_are_kept(running_jobs):
    """The output limit counts a masked line as it is stored, not as it was written."""
    script = "for i in 1 2 3 4 5 6; do echo a-very-long-secret; done"
    job, own, _ = run(
        running_jobs, ["sh", "-c", script], output_limit=12, redact=["a-very-long-secret"]
    )

    assert own == [b"***\n"] * 3
    assert job.dropped == 3
