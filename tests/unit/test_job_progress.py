"""Progress of a job: its last word, live, exactly once, and nothing in the log."""

from __future__ import annotations

import pytest

from jobcore import InvalidTransition, Status
from jobcore.clock import to_datetime
from jobcore.storage import transitions
from jobcore.supervisor import frames
from jobcore.supervisor.progress import MAX_MESSAGE
from jobcore.testing.parts import parts
from tests.jobfiles import log_of, sql
from tests.transactions import transaction

SECOND = 1_000_000_000  # nanoseconds


def report(run, payload, **options):
    """Have the supervisor write a report."""
    header = frames.encode_header(
        frames.PROGRESS, 0, run.next_sequence, 0, options.get("time_ns", SECOND), payload
    )
    data = bytearray(header + payload)
    if "damage" in options:
        data[options["damage"]] ^= 0x55
    run.append(bytes(data))


def said(jobs, job_id):
    """Return done, total and message of a job's progress."""
    progress = jobs.get_job(job_id).progress
    return progress and (progress.done, progress.total, progress.message)


# --- of a job in a process ---


def test_the_latest_is_on_the_job(jobs, scripted, database):
    """Whoever looks sees the last report, with the time at which it came; the log has none."""
    run = scripted()
    before = jobs.get_job(run.id).progress
    run.write(b"a\n")
    report(run, b"1/10 begun")
    report(run, b"3/10 loading", time_ns=5 * SECOND)
    run.write(b"b\n")
    first = jobs.get_job(run.id).progress
    report(run, b"4")
    second = said(jobs, run.id)
    report(run, b"0/7", time_ns=6 * SECOND)
    third = said(jobs, run.id)

    assert before is None
    assert (first.done, first.total, first.message) == (3.0, 10.0, "loading")
    assert first.at == to_datetime(5_000_000)
    assert (second, third) == ((4.0, None, None), (0.0, 7.0, None))
    assert log_of(jobs, run.id) == run.lines_written
    assert run.row()["spool_offset"] == run.end
    rows = sql(database, "SELECT data FROM log_segment")
    assert len(rows) == 1  # the reports that came by themselves left none


def test_the_last_word_stays_when_the_job_is_final(jobs, scripted):
    """A report just before the end is there with the final status."""
    run = scripted()
    report(run, b"1/2")
    jobs.get_job(run.id)
    report(run, b"2/2 done")
    run.exit(0)
    run.die()

    job = jobs.get_job(run.id)
    assert (job.status, job.progress.done) == (Status.COMPLETE, 2.0)
    assert jobs.list_jobs() == [job]


def test_a_late_importer_changes_nothing(jobs, scripted):
    """An older read does not overwrite later imports or the end."""
    run = scripted()
    importer = parts(jobs).importer
    report(run, b"1/9")
    with parts(jobs).database.read() as connection:
        early = transitions.find(connection, jobs.get_job(run.id).number)
    report(run, b"2/9")
    stale = importer.read(early)
    report(run, b"8/9")
    running = said(jobs, run.id)
    with transaction(parts(jobs).database) as connection:
        importer.apply(connection, stale)
    after = said(jobs, run.id)
    report(run, b"9/9")
    run.exit(0)
    run.die()
    jobs.get_job(run.id)
    with transaction(parts(jobs).database) as connection:
        importer.apply(connection, stale)

    assert (stale.report.done, running, after) == (2.0, (8.0, 9.0, None), (8.0, 9.0, None))
    assert said(jobs, run.id) == (9.0, 9.0, None)


@pytest.mark.parametrize("where", [0, 3, 8, 16, 20, 24, 32, -1])
def test_damage_in_a_report_costs_no_line(jobs, scripted, where):
    """A damaged frame of progress is passed over: every line is there, and the reports around."""
    run = scripted()
    run.write(b"a\n")
    report(run, b"1/3")
    report(run, b"2/3 damaged", damage=where)
    run.write(b"b\n")
    report(run, b"3/3")
    report(run, b"9/9 at the end", damage=where)
    run.exit(0)
    run.die()
    job = jobs.get_job(run.id)

    assert (job.status, job.line_count) == (Status.COMPLETE, 2)
    assert log_of(jobs, run.id) == run.lines_written
    assert said(jobs, run.id) == (3.0, 3.0, None)


@pytest.mark.parametrize("payload", [b"", b"later form", b"\xff", b"{}", b"-1"])
def test_a_report_of_another_form_is_passed_over(jobs, scripted, payload):
    """A report that this jobcore cannot read changes nothing, and delays no line."""
    run = scripted()
    report(run, b"1/2")
    report(run, payload)
    run.write(b"a\n")

    assert said(jobs, run.id) == (1.0, 2.0, None)
    assert log_of(jobs, run.id) == run.lines_written


def test_reports_among_many_lines_come_with_them(jobs, scripted):
    """After an import of several transactions, the progress is the last report."""
    run = scripted()
    for number in range(40):
        report(run, b"%d/40" % number)
        run.write(*[b"x" * 99 + b"\n"] * 600)
    run.exit(0)
    run.die()

    assert said(jobs, run.id) == (39.0, 40.0, None)
    assert jobs.get_job(run.id).line_count == 24_000


def test_the_supervisor_is_dead_its_last_report_is_not(jobs, scripted):
    """A lost job keeps its last report."""
    run = scripted()
    run.started()
    report(run, b"7/9 then silence")
    run.die()
    job = jobs.get_job(run.id)

    assert (job.status, said(jobs, run.id)) == (Status.ERROR, (7.0, 9.0, "then silence"))


# --- of a job without a process ---


def test_a_host_reports_for_its_own_job(jobs, own, clock):
    """The last report is on the job with its time, and stays when it is finished."""
    jobs.report_progress(own.id, 1, 4, "first")
    clock.advance(5)
    reported = jobs.report_progress(own.id, 2.5, message="\u00e9\nsecond  ")
    clock.advance(1)
    finished = jobs.finish_job(own.id)

    assert reported.progress.model_dump() == {
        "done": 2.5, "total": None, "message": "\u00e9 second",
        "at": to_datetime(clock.now() - 1_000_000),
    }  # fmt: skip
    assert finished.progress == reported.progress
    assert finished.line_count == 0


def test_a_message_of_a_host_is_cut(jobs, own):
    """A long message is cut, as for a command; an empty one is stored as None."""
    long = jobs.report_progress(own.id, 0, 0, "\u20ac" * 5000).progress
    empty = jobs.report_progress(own.id, 0, 0, " \n").progress

    assert (long.done, long.total, long.message) == (0.0, 0.0, "\u20ac" * MAX_MESSAGE)
    assert empty.message is None


def test_progress_needs_a_running_job_without_a_process(jobs, own, scripted):
    """A job in a process reports itself; one that is queued or final is not on its way."""
    run = scripted()
    queued = jobs.create_job("TASK")
    jobs.report_progress(own.id, 1)
    jobs.finish_job(own.id)

    for job_id in (run.id, queued.id, own.id):
        before = jobs.get_job(job_id)
        with pytest.raises(InvalidTransition):
            jobs.report_progress(job_id, 2)
        assert jobs.get_job(job_id) == before


def test_a_retry_begins_with_no_progress(jobs, own):
    """The progress of one attempt is not copied to the next."""
    jobs.report_progress(own.id, 9, 10)
    jobs.finish_job(own.id, 1)

    assert jobs.retry_job(own.id).progress is None


def test_progress_is_not_in_the_history(jobs, own):
    """Reports are no transitions."""
    for done in range(10):
        jobs.report_progress(own.id, done)

    assert [str(entry.trigger) for entry in jobs.history(own.id)] == ["create", "start"]


def test_update_of_progress_checks_the_owner(jobs, own, scripted):
    """The guard is in the UPDATE: neither a process's job nor a final one is written."""
    run = scripted()
    numbers = [jobs.get_job(run.id).number, own.number]
    jobs.finish_job(own.id)
    with transaction(parts(jobs).database) as connection:
        written = [
            transitions.report_if_own(connection, number, transitions.Report(1.0, None, None, 0))
            for number in numbers
        ]

    assert written == [False, False]
    assert [said(jobs, run.id), said(jobs, own.id)] == [None, None]
