"""Logs: any line of any log, from any number on."""

from __future__ import annotations

import os
import random

import pytest

from jobcore import InvalidTransition, JobDeleted, JobNotFound, Status, WaitTimeout
from jobcore.storage import log_segments
from jobcore.supervisor import frames
from jobcore.testing.parts import parts
from tests.jobfiles import log_of, sql


def texts(lines):
    """Return number and text of each line."""
    return [(line.sequence, line.text) for line in lines]


def test_host_appends_lines(jobs, own):
    """Lines that a host appends are numbered on, text is split at line ends."""
    counts = [
        jobs.append_log(own.id, "a"),
        jobs.append_log(own.id, "b\n", b"c\xff"),
        jobs.append_log(own.id, "d\ne\n"),
        jobs.append_log(own.id),
        jobs.append_log(own.id, ""),
        jobs.append_log(own.id, "f\r\n"),
    ]
    expected = [(0, "a"), (1, "b"), (2, "c�"), (3, "d"), (4, "e"), (5, ""), (6, "f")]

    assert counts == [1, 3, 5, 5, 6, 7]
    assert texts(jobs.logs(own.id)) == expected
    assert jobs.get_job(own.id).line_count == 7
    assert {line.stream for line in jobs.logs(own.id)} == {"output"}


def test_names_of_files_are_appended_as_the_bytes_they_are(jobs, own):
    """The surrogates of `os.fsdecode` become bytes again; other lone surrogates become `?`."""
    jobs.append_log(own.id, os.fsdecode(b"a\x80b"), "c\ud800d", "e\ud800\udc80")

    assert [line.raw for line in jobs.logs(own.id)] == [b"a\x80b\n", b"c?d\n", b"e??\n"]


def test_lines_need_a_running_job_without_a_process(jobs, own, scripted):
    """Only the supervisor writes the log of a process; a final log takes no lines."""
    run = scripted()
    queued = jobs.create_job("TASK")
    jobs.append_log(own.id, "last")
    jobs.finish_job(own.id)

    for job_id in (run.id, queued.id, own.id):
        with pytest.raises(InvalidTransition):
            jobs.append_log(job_id, "no")
    assert texts(jobs.logs(own.id)) == [(0, "last")]


def test_finished_log_is_one_segment(jobs, own, database):
    """Many small appends end as few segments, with every line."""
    for index in range(50):
        jobs.append_log(own.id, f"line {index}")
    before = texts(jobs.logs(own.id))
    jobs.finish_job(own.id)
    (count,) = sql(database, "SELECT count(*) FROM log_segment")[0]

    assert count == 1
    assert texts(jobs.logs(own.id)) == before == [(n, f"line {n}") for n in range(50)]


def test_a_long_log_of_small_appends_is_merged_as_it_grows(jobs, own, database):
    """Its end has little to merge, and a reader before it few segments to look at."""
    line = "x" * 4000
    for _ in range(200):
        jobs.append_log(own.id, line)
    running, raw = sql(database, "SELECT count(*), sum(raw_bytes) FROM log_segment")[0]
    loose = sql(database, "SELECT loose_sequence, loose_bytes FROM job")[0]
    before = texts(jobs.logs(own.id))
    jobs.finish_job(own.id)
    (final,) = sql(database, "SELECT count(*) FROM log_segment")[0]

    assert raw > 3 * log_segments.SEGMENT_BYTES
    assert loose["loose_sequence"] > 100
    assert 0 < loose["loose_bytes"] < log_segments.SEGMENT_BYTES
    assert running < 70  # of them 64 loose ones at the most
    assert final < 10
    assert texts(jobs.logs(own.id)) == before == [(n, line) for n in range(200)]


def test_any_slice_is_the_same_lines(jobs, scripted):
    """From any number on, and any number of lines, the log reads the same."""
    chance = random.Random(42)
    run = scripted()
    for _ in range(300):
        count = chance.randrange(0, 60)
        run.write(*[b"%d\n" % chance.randrange(10**9) for _ in range(count)])
        if chance.random() < 0.1:
            jobs.get_job(run.id)
    whole = log_of(jobs, run.id)
    assert whole == run.lines_written
    total = len(whole)
    for _ in range(60):
        start = chance.randrange(total + 20)
        limit = chance.choice([None, 0, 1, 2, chance.randrange(total)])
        found = [(line.sequence, line.stream, line.raw) for line in jobs.logs(run.id, start, limit)]
        assert found == whole[start:][:limit]
    for n in (0, 1, 5, total - 1, total, total + 5):
        tail = [(line.sequence, line.stream, line.raw) for line in jobs.tail(run.id, n)]
        assert tail == (whole[-n:] if n else [])
    run.exit()
    run.die()
    jobs.get_job(run.id)

    assert log_of(jobs, run.id, total - 3) == whole[-3:]
    assert log_of(jobs, run.id) == whole


def test_long_lines_and_many_lines_of_one_call(jobs, own):
    """One call may append a hundred thousand lines, or one of a megabyte."""
    many = jobs.append_log(own.id, *["x"] * 100_000)
    one = jobs.append_log(own.id, "y" * 10**6)

    assert (many, one) == (100_000, 100_001)
    assert [line.sequence for line in jobs.logs(own.id, 99_999)] == [99_999, 100_000]
    assert [len(line.raw) for line in jobs.tail(own.id, 1)] == [10**6 + 1]
    jobs.finish_job(own.id)
    assert sum(1 for _ in jobs.logs(own.id)) == 100_001


@pytest.mark.parametrize("sequence", [-1, 1.5, "0", None, True])
def test_line_number_is_checked(jobs, own, sequence):
    """An invalid line number raises at the call."""
    for read in (jobs.logs, jobs.follow, jobs.log_text, jobs.log_ndjson):
        with pytest.raises(ValueError, match="sequence must be"):
            read(own.id, sequence)


@pytest.mark.parametrize("limit", [-1, 1.5, "1", True])
def test_limit_is_checked(jobs, own, limit):
    """An invalid number of lines raises at the call."""
    with pytest.raises(ValueError, match="limit"):
        jobs.logs(own.id, 0, limit)
    with pytest.raises(ValueError, match="n must be"):
        jobs.tail(own.id, limit)


def test_unknown_job_raises_at_the_call(jobs):
    """The log of an unknown job raises at the call, not at the first line."""
    for read in (jobs.logs, jobs.follow, jobs.log_text, jobs.log_ndjson):
        with pytest.raises(JobNotFound):
            read("no-such-job")
    with pytest.raises(JobNotFound):
        jobs.tail("no-such-job", 1)


def test_reader_of_a_deleted_job_gets_job_deleted(jobs, own):
    """If a job is deleted while its log is read, the reader gets JobDeleted."""
    jobs.append_log(own.id, *["x" * 300] * 10_000)  # more segments than are read at once
    lines = jobs.logs(own.id)
    following = jobs.follow(own.id)
    read = [next(lines), next(following)]
    jobs.delete_job(own.id)

    assert [line.sequence for line in read] == [0, 0]
    for reader in (lines, following):
        with pytest.raises(JobDeleted):
            list(reader)


def test_a_reader_gets_what_was_there_at_the_call(jobs, own):
    """Reading a growing log ends at the last line of the time of the call."""
    jobs.append_log(own.id, "a", "b")
    readers = [
        jobs.logs(own.id),
        jobs.logs(own.id, 1),
        jobs.logs(own.id, limit=9),
        jobs.log_text(own.id),
        jobs.log_ndjson(own.id),
        jobs.logs(own.id, 7),
    ]
    counts = []
    for reader in readers:
        count = 0
        for _ in reader:
            count += 1
            jobs.append_log(own.id, "more")
        counts.append(count)

    assert counts == [2, 1, 2, 2, 2, 0]


def test_follow_ends_with_the_job(jobs, own):
    """It yields the present lines, then new ones, and ends with the job."""
    jobs.append_log(own.id, "a", "b")
    lines = jobs.follow(own.id)
    first = [next(lines).text, next(lines).text]
    jobs.append_log(own.id, "c")
    jobs.finish_job(own.id)

    assert first == ["a", "b"]
    assert [line.text for line in lines] == ["c"]


def test_follow_sees_what_a_supervisor_writes(jobs, scripted):
    """A follower imports the lines of a job while it runs."""
    run = scripted()
    run.write(b"a\n")
    lines = jobs.follow(run.id)
    seen = [next(lines).raw]
    run.write(b"b\n")
    seen.append(next(lines).raw)
    run.write(b"c\n")
    run.exit(0)
    run.die()
    seen += [line.raw for line in lines]

    assert seen == [b"a\n", b"b\n", b"c\n"]
    assert jobs.get_job(run.id).status is Status.COMPLETE


@pytest.mark.parametrize("timeout", [0, 0.01])
def test_following_and_waiting_are_bounded(jobs, own, timeout):
    """The time-out ends the call, and the job goes on."""
    jobs.append_log(own.id, "a")
    with pytest.raises(WaitTimeout):
        list(jobs.follow(own.id, timeout=timeout))
    with pytest.raises(TimeoutError):
        jobs.wait(own.id, timeout=timeout)

    assert jobs.get_job(own.id).status is Status.RUNNING


@pytest.mark.parametrize(
    ("timeout", "error"), [(float("nan"), ValueError), (-1, WaitTimeout), ("1", ValueError)]
)
def test_waiting_for_nonsense_is_refused(jobs, own, timeout, error):
    """A time-out that is no number does not wait for ever; one below 0 is over at once."""
    for wait in (
        lambda: jobs.wait(own.id, timeout=timeout),
        lambda: list(jobs.follow(own.id, timeout=timeout)),
    ):
        with pytest.raises(error):
            wait()


def test_deleted_log_is_gone(jobs, own, database):
    """Deleting a job removes its lines."""
    jobs.append_log(own.id, "a")
    jobs.delete_job(own.id)

    assert sql(database, "SELECT * FROM log_segment") == []


def test_streams_keep_their_names(jobs, scripted):
    """Each stream of the supervisor has its name in the log."""
    run = scripted()
    for stream in range(len(frames.STREAM_NAMES)):
        run.write(b"x\n", stream=stream)

    assert [line.stream for line in jobs.logs(run.id)] == [
        "system", "output", "stdout", "stderr", "progress",
    ]  # fmt: skip


def test_segments_of_one_line_are_read_many_at_once(jobs, own, monkeypatch):
    """A log that is not merged yet takes few transactions to read, forwards and from its end."""
    for number in range(200):
        jobs.append_log(own.id, f"line {number}")
    database = parts(jobs).database
    reads, read = [], type(database).read
    monkeypatch.setattr(type(database), "read", lambda self: reads.append(None) or read(self))

    assert [line.sequence for line in jobs.logs(own.id)] == list(range(200))
    assert len(reads) <= 10
    reads.clear()
    assert [line.sequence for line in jobs.tail(own.id, 150)] == list(range(50, 200))
    assert len(reads) <= 12
