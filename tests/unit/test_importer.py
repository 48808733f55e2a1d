"""Importer: every line of a job directory lands in the database exactly once."""

from __future__ import annotations

import os
import random
import threading
import zlib

import pytest

from jobcore import JobManager, Reason, Status, tuning, wire
from jobcore.embedding import failpoints
from jobcore.engine import importer
from jobcore.storage.database import Database
from jobcore.supervisor import frames, job_directory
from jobcore.testing.parts import parts
from tests.cases import every
from tests.jobfiles import log_of, sql, stored_run
from tests.processes import PATIENCE, Child, at_once, join, until

MEBIBYTE = 2**20


def dense(log):
    """Tell whether lines are numbered from 0 without a hole."""
    return [sequence for sequence, _, _ in log] == list(range(len(log)))


def holes(log):
    """Return how many lines stand in for each loss: its note, and the empty ones behind."""
    found = []
    for _, stream, raw in log:
        if stream == "system" and b"lost from here" in raw:
            found.append(1)
        elif stream == "system" and raw == b"\n":
            found[-1] += 1
    return found


def test_lines_arrive_as_they_are_written(jobs, scripted):
    """Output of a running job can be read at once, byte for byte."""
    run = scripted()
    run.write(b"a\n", b"\xff\x00\r\n")
    first = log_of(jobs, run.id)
    run.write(b"err\n", stream=frames.STDERR)
    run.write(b"no end", flags=frames.OPEN_END)
    run.write()  # a frame without lines is legal
    run.write(b"said\n", stream=frames.SYSTEM)
    second = log_of(jobs, run.id)

    assert first == run.lines_written[:2]
    assert second == run.lines_written
    assert jobs.get_job(run.id).status is Status.RUNNING
    assert jobs.get_job(run.id).line_count == 5
    assert run.row()["spool_offset"] == run.end


@pytest.fixture
def backlog(scripted, monkeypatch):
    """Return a job of 40 lines of 64 KiB, of which a read imports eight at once."""
    monkeypatch.setattr(tuning, "READ_BYTES", 8 * 65536)
    monkeypatch.setattr(importer, "BATCH_BYTES", 2 * 65536)
    run = scripted()
    run.started()
    for number in range(40):
        run.write(b"%05d" % number + b"x" * 65400 + b"\n")
    return run


def test_read_imports_a_limited_part_of_much_output(jobs, backlog):
    """`get_job` and a listing import some of it, and the next call more."""
    counts = [jobs.get_job(backlog.id).line_count for _ in range(3)]
    jobs.refresh()
    counts.append(jobs.list_jobs()[0].line_count)

    assert 8 <= counts[0] <= 12
    assert counts[0] < counts[1] < counts[2] < counts[3]


def test_log_of_much_output_is_whole(jobs, backlog):
    """`logs` imports it as it is read, up to where it ended at the call, and `text` does too."""
    lines = jobs.logs(backlog.id)
    first = next(lines)
    imported = backlog.row()["next_sequence"]
    text = wire.text(jobs.logs(backlog.id))
    backlog.write(b"later\n")
    numbers = [first.sequence, *(line.sequence for line in lines)]

    assert imported < 20
    assert numbers[:40] == list(range(40))
    assert b"".join(text).count(b"\n") >= 40


def test_limited_log_imports_no_more_than_it_returns(jobs, backlog):
    """The lines are there after the first part."""
    assert [line.sequence for line in jobs.logs(backlog.id, 3, 10)] == list(range(3, 13))
    assert backlog.row()["next_sequence"] < 30


def test_tail_of_much_output_is_its_end(jobs, backlog):
    """The last lines that were written, and following continues after them."""
    last = [line.sequence for line in jobs.tail(backlog.id, 3)]
    backlog.write(b"next\n")

    assert last == [37, 38, 39]
    assert next(jobs.follow(backlog.id, 40)).text == "next"


def test_log_of_much_output_ends_with_its_unfinished_line(database, monkeypatch):
    """A prompt comes after all of the output, also if that is imported meanwhile."""
    monkeypatch.setattr(tuning, "READ_BYTES", 65536)
    monkeypatch.setattr(importer, "BATCH_BYTES", 2 * 65536)
    script = "seq 100000; printf 'sure? '; exec sleep 1000"
    with JobManager(database, slots=1) as jobs:
        job = jobs.submit(["sh", "-c", script])
        until(lambda: jobs.get_job(job.id).status is Status.RUNNING, "the start")
    directory = os.open(f"{database}.jobs/{job.id.hex}", os.O_RDONLY)
    until(lambda: b"sure? " in b"".join(job_directory.read_tail(directory)), "the prompt")
    os.close(directory)
    with JobManager(database, slots=0) as jobs:
        limited = [line.text for line in jobs.logs(job.id, 99_990, 100)]
        last = [line.text for line in jobs.tail(job.id, 2)]
        jobs.stop_job(job.id, grace=0)
        jobs.wait(job.id)

    assert limited == [*map(str, range(99_991, 100_001)), "sure? "]
    assert last == ["100000", "sure? "]


@pytest.mark.parametrize("look", ["get_job", "list_jobs"])
def test_job_that_ended_with_much_output_is_settled_at_once(jobs, backlog, look):
    """All of it is stored before the first look returns, and the end is seen."""
    backlog.exit(0)
    backlog.die()
    jobs.refresh() if look == "list_jobs" else None
    job = jobs.list_jobs()[0] if look == "list_jobs" else jobs.get_job(backlog.id)

    assert (job.status, job.line_count) == (Status.COMPLETE, 40)


def test_dead_job_with_much_output_is_settled_at_once(jobs, backlog):
    """All of its output is stored before it is lost."""
    backlog.die()
    job = jobs.get_job(backlog.id)

    assert (job.status, job.line_count) == (Status.ERROR, 41)


def test_read_of_a_job_that_writes_on_ends_though_its_lock_is_gone(jobs, backlog, monkeypatch):
    """It imports what was written by then, and does not follow the job."""
    recovery = parts(jobs).recovery
    has_ended = recovery.has_ended

    def write_on(run):
        for _ in range(9):
            backlog.write(b"y" * 65400 + b"\n")
        return has_ended(run)

    os.unlink(f"{backlog.path}/lock")
    monkeypatch.setattr(recovery, "has_ended", write_on)
    assert jobs.get_job(backlog.id).line_count >= 40


def test_frame_without_lines_does_not_block_later_ones(jobs, scripted):
    """A frame of no lines, imported by itself, keeps no later one from being stored."""
    run = scripted()
    for _ in range(3):
        run.write()
        jobs.get_job(run.id)
        run.write(b"line\n")
        jobs.get_job(run.id)
    run.write()
    jobs.get_job(run.id)
    run.write()
    run.exit()
    run.die()

    assert jobs.get_job(run.id).status is Status.COMPLETE
    assert log_of(jobs, run.id) == run.lines_written


def test_time_and_marks_are_the_frames(jobs, scripted):
    """Each line has the time of its frame, and a piece of a longer line is marked."""
    run = scripted()
    run.write(b"x" * 100, flags=frames.PARTIAL, time_ns=1_000_000_000)
    run.write(b"y\n", time_ns=2_000_000_000)
    one, two = jobs.logs(run.id)

    assert (one.partial, two.partial) == (True, False)
    assert (one.timestamp.timestamp(), two.timestamp.timestamp()) == (1.0, 2.0)


def test_verdict_is_copied(jobs, scripted, clock):
    """The row has the facts of the exit record, and the directory is gone."""
    run = scripted()
    run.write(b"last words\n")
    run.exit(
        3 << 8, cpu_us=1_500_000, max_rss=4096, dropped=7, errno=2, unreaped=(11, 12),
        ended_ns=(clock.now() + 5_000_000) * 1000,
    )  # fmt: skip
    run.die()
    job = jobs.get_job(run.id)
    row = run.row()

    assert (job.status, job.exit_code, job.reason) == (Status.ERROR, 3, Reason.EXITED)
    assert (job.cpu_seconds, job.max_rss, job.dropped) == (1.5, 4096, 7)
    assert (job.end_time - job.start_time).total_seconds() == 5
    assert (row["errno"], row["unreaped"], row["wait_status"]) == (2, "11 12", 3 << 8)
    assert log_of(jobs, run.id) == run.lines_written
    assert run.gone()


def test_job_never_ends_before_its_start(jobs, scripted, clock):
    """A wall clock that was set back during the run does not make an end before the start."""
    run = scripted()
    run.exit(0, ended_ns=(clock.now() - 86_400_000_000) * 1000)
    run.die()
    job = jobs.get_job(run.id)

    assert job.end_time == job.start_time
    assert job.status is Status.COMPLETE


def test_final_status_comes_with_the_whole_log(jobs, scripted):
    """A reader that sees a final status can read every line."""
    run = scripted()
    for _ in range(40):
        run.write(*[b"x" * 99 + b"\n"] * 600)
    run.exit()
    run.die()
    job = jobs.get_job(run.id)

    assert run.end > 2 * MEBIBYTE
    assert (job.status, job.line_count) == (Status.COMPLETE, len(run.lines_written))
    assert log_of(jobs, run.id) == run.lines_written


def test_backlog_lands_in_segments_of_bounded_size(jobs, scripted, database):
    """A backlog of several MiB becomes segments of at most 256 KiB, dense and in order."""
    run = scripted()
    chance = random.Random(7)
    for _ in range(200):
        count = chance.randrange(1, 300)
        run.write(*[chance.randbytes(40).replace(b"\n", b" ") + b"\n" for _ in range(count)])
    while run.end < 3 * MEBIBYTE:
        run.write(b"z" * 65535 + b"\n")
    run.exit()
    run.die()
    jobs.get_job(run.id)
    segments = sql(database, "SELECT * FROM log_segment ORDER BY first_sequence")
    firsts = [segment["first_sequence"] for segment in segments]
    counts = [segment["line_count"] for segment in segments]

    assert firsts == [sum(counts[:index]) for index in range(len(counts))]
    assert sum(counts) == len(run.lines_written)
    assert max(segment["raw_bytes"] for segment in segments) <= 256 * 1024
    assert sum(segment["raw_bytes"] for segment in segments) == run.end
    assert all(len(zlib.decompress(s["data"])) == s["raw_bytes"] for s in segments)
    assert log_of(jobs, run.id) == run.lines_written


def test_trickle_is_merged(jobs, scripted, database):
    """A job that wrote a line now and then ends with few segments, not with one a line."""
    run = scripted()
    for index in range(60):
        run.write(b"line %d\n" % index)
        assert jobs.get_job(run.id).line_count == index + 1
    run.exit()
    run.die()
    jobs.get_job(run.id)
    (count,) = sql(database, "SELECT count(*) FROM log_segment")[0]

    assert count == 1
    assert log_of(jobs, run.id) == run.lines_written


def test_torn_tail_is_not_yet_there(jobs, scripted):
    """Half a frame of a living supervisor is waited for, wherever it is cut, and is no damage."""
    run = scripted()
    run.write(b"whole\n")
    data = run.frame(b"torn\n", b"in two\n")
    written = 0
    for cut in (1, 10, frames.HEADER_SIZE, frames.HEADER_SIZE + 3, len(data) - 1):
        run.append(data[written:cut])
        written = cut
        assert log_of(jobs, run.id) == run.lines_written[:1]
    run.append(data[written:])

    assert log_of(jobs, run.id) == run.lines_written
    assert jobs.get_job(run.id).status is Status.RUNNING


def test_bad_frame_of_the_living_is_waited_for(jobs, scripted):
    """While the supervisor lives a bad frame is `not yet`; once there is a verdict, damage."""
    run = scripted()
    run.write(b"before\n")
    bad = bytearray(run.frame(b"bad\n", b"lines\n"))
    bad[-1] ^= 0xFF
    run.append(bytes(bad))
    run.write(b"after\n")
    waiting = log_of(jobs, run.id)
    run.exit()
    run.die()
    job = jobs.get_job(run.id)
    log = log_of(jobs, run.id)

    assert waiting == run.lines_written[:1]
    assert (job.status, job.exit_code, job.line_count) == (Status.COMPLETE, 0, 4)
    assert (log[0], log[3]) == (run.lines_written[0], run.lines_written[3])
    assert holes(log) == [2]
    assert dense(log)


@pytest.mark.parametrize("count", [1, 2, 100])
@pytest.mark.parametrize("where", ["magic", "first", "count", "length", "time", "crc", "payload"])
def test_damaged_frame_becomes_one_hole(jobs, scripted, where, count):
    """A damaged frame of n lines becomes one system frame of n lines; nothing is renumbered."""
    run = scripted()
    run.write(b"before\n")
    bad = bytearray(run.frame(*[b"lost %d\n" % index for index in range(count)]))
    at = {"magic": 0, "first": 8, "count": 16, "length": 20, "time": 24, "crc": 32, "payload": -3}
    bad[at[where]] ^= 0x55
    run.append(bytes(bad))
    run.write(b"after\n", b"more\n")
    run.exit(5 << 8)
    run.die()
    job = jobs.get_job(run.id)
    log = log_of(jobs, run.id)

    assert (job.status, job.exit_code, job.line_count) == (Status.ERROR, 5, count + 3)
    assert [log[0], *log[-2:]] == [run.lines_written[0], *run.lines_written[-2:]]
    assert holes(log) == [count]
    assert b"%d lines are lost" % count in log[1][2]
    assert dense(log)


@pytest.mark.parametrize("size", [2**20 - 1, 2**20, 3 * 2**20 + 17])
def test_damage_larger_than_a_transaction_is_one_hole(jobs, scripted, size):
    """Mebibytes of damage are skipped, and the first good frame after them is found."""
    run = scripted()
    run.write(b"before\n")
    run.frame(b"lost\n", b"lost too\n")
    run.append(random.Random(size).randbytes(size))
    run.write(b"after\n", b"more\n")
    run.exit(5 << 8)
    run.die()
    job = jobs.get_job(run.id)
    log = log_of(jobs, run.id)

    assert (job.status, job.exit_code, job.line_count) == (Status.ERROR, 5, 5)
    assert [log[0], *log[-2:]] == [run.lines_written[0], *run.lines_written[-2:]]
    assert holes(log) == [2]
    assert dense(log)


def test_hole_at_the_end_has_its_numbers(jobs, scripted):
    """If the spool is shorter than recorded, the missing lines get numbers."""
    run = scripted()
    run.write(b"there\n")
    whole = run.end
    run.write(b"lost\n", b"lost too\n", b"and this\n")
    os.truncate(f"{run.path}/spool.0", whole + 20)
    run.exit(1 << 8)
    run.die()
    job = jobs.get_job(run.id)
    log = log_of(jobs, run.id)

    assert (job.status, job.exit_code, job.line_count) == (Status.ERROR, 1, 4)
    assert log[0] == run.lines_written[0]
    assert holes(log) == [3]
    assert dense(log)


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_missing_spool_file_becomes_a_hole(jobs, scripted, missing):
    """If a spool file was removed, only its lines are missing."""
    run = scripted()
    begins = []
    for part in range(3):
        begins.append(run.begin)
        run.write(*[b"part %d line %d\n" % (part, index) for index in range(10)])
        run.rotate()
    os.unlink(f"{run.path}/spool.{begins[missing]}")
    run.exit()
    run.die()
    job = jobs.get_job(run.id)
    log = log_of(jobs, run.id)
    kept = [line for line in run.lines_written if line[0] // 10 != missing]

    assert (job.status, job.line_count) == (Status.COMPLETE, 30)
    assert [line for line in log if line[1] != "system"] == kept
    assert holes(log) == [10]
    assert dense(log)


def test_missing_directory_after_the_verdict_keeps_the_numbers(jobs, scripted):
    """All spool files gone: the verdict stands, every number is there as lost."""
    run = scripted()
    run.write(b"a\n", b"b\n")
    os.unlink(f"{run.path}/spool.0")
    run.exit(7 << 8)
    run.die()
    job = jobs.get_job(run.id)

    assert (job.status, job.exit_code, job.line_count) == (Status.ERROR, 7, 2)
    assert holes(log_of(jobs, run.id)) == [2]


def test_output_that_looks_like_a_frame_is_output(jobs, scripted):
    """Output bytes that are a valid frame stay output, even among damage."""
    run = scripted()
    run.write(b"before\n")
    forged = [
        frames.encode_header(frames.SYSTEM, 0, first, 1, 0, b"forged\n") + b"forged\n"
        for first in (0, 10**15, 2**64 - 2)
    ]
    bad = bytearray(run.frame(*[b"x" * 70 + one for one in forged]))
    bad[33] ^= 0x55
    run.append(bytes(bad))
    run.write(b"after\n")
    run.exit()
    run.die()
    job = jobs.get_job(run.id)
    log = log_of(jobs, run.id)

    assert (job.status, job.line_count) == (Status.COMPLETE, 5)
    assert (log[0], log[4]) == (run.lines_written[0], run.lines_written[4])
    assert holes(log) == [3]
    assert dense(log)


def test_undamaged_output_that_looks_like_a_frame_stays_whole(jobs, scripted):
    """A job may print a spool: its bytes are lines like any other."""
    run = scripted()
    inner = frames.encode_header(frames.SYSTEM, 0, 0, 1, 0, b"forged\n") + b"forged\n"
    lines = inner.splitlines(keepends=True)
    for _ in range(3):
        run.write(*b"".join(lines).split(b"\n")[0:1], b"\n", flags=0)
    run.exit()
    run.die()
    jobs.get_job(run.id)

    assert b"".join(raw for _, _, raw in log_of(jobs, run.id)) == b"".join(
        raw for _, _, raw in run.lines_written
    )
    assert {stream for _, stream, _ in log_of(jobs, run.id)} == {"output"}


@pytest.mark.parametrize("what", ["wrong token", "torn", "empty", "noise", "directory entry"])
def test_invalid_exit_record_is_ignored(jobs, scripted, what):
    """While the lock is held an exit record that is torn or another run's is as good as none."""
    run = scripted()
    run.write(b"running\n")
    if what == "wrong token":
        run.exit(0, token="f" * 32)
    else:
        run.exit(0)
        path = f"{run.path}/exit"
        with open(path, "rb") as file:
            whole = file.read()
        data = {"torn": whole[:-3], "empty": b"", "noise": os.urandom(300)}.get(what)
        if data is None:
            os.unlink(path)
        else:
            with open(path, "wb") as file:
                file.write(data)
    job = jobs.get_job(run.id)
    run.exit(9 << 8)
    run.die()
    done = jobs.get_job(run.id)

    assert (job.status, job.exit_code, job.line_count) == (Status.RUNNING, None, 1)
    assert (done.status, done.exit_code) == (Status.ERROR, 9)


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("what", ["frame", "exit", "run"])
def test_newer_protocol_is_left_alone(jobs, scripted, monkeypatch, what, held):
    """Files of a newer jobcore are not used or changed, whether its supervisor lives or not."""
    run = scripted()
    run.write(b"old\n")
    jobs.get_job(run.id)
    module = frames if what == "frame" else job_directory
    monkeypatch.setattr(module, "PROTOCOL_VERSION", 2)
    if what == "frame":
        run.write(b"new\n")
    elif what == "exit":
        run.exit()
    else:
        run.started()
    monkeypatch.undo()
    if not held:
        run.die()
    before = run.files()
    job = jobs.get_job(run.id)
    jobs.recover()

    if held and what == "run":
        before = run.files()  # a living one is none of our business anyway
    assert (job.status, job.line_count) == (Status.RUNNING, 1)
    assert run.row()["status"] == "RUNNING"
    assert run.files() == before


def test_imported_spool_files_go_while_the_job_runs(jobs, scripted):
    """A spool file is given back to the disk once it is imported; the one written to stays."""
    run = scripted()
    begins = []
    for part in range(4):
        begins.append(run.begin)
        run.write(b"part %d\n" % part)
        assert jobs.get_job(run.id).line_count == part + 1
        spools = [name for name in run.files() if name.startswith("spool.")]
        assert spools == [f"spool.{begins[-1]}"]
        run.rotate()
    run.exit()
    run.die()

    assert jobs.get_job(run.id).status is Status.COMPLETE
    assert log_of(jobs, run.id) == run.lines_written
    assert run.gone()


def test_directory_removed_by_another_manager_needs_no_cleaning(jobs, scripted, database):
    """After a commit, another manager may settle the job and remove its directory."""
    run = scripted()
    run.write(b"first\n")
    run.rotate()
    run.write(b"second\n")

    def settle_behind(point, _host):
        if point == failpoints.IMPORTED and not run.gone():
            failpoints.disarm(settle_behind)
            run.exit(4 << 8)
            run.die()
            with JobManager(database, slots=0) as other:
                assert other.get_job(run.id).exit_code == 4

    found = stored_run(jobs, run)
    failpoints.arm(settle_behind)
    try:
        after = parts(jobs).importer.import_all(found)  # its errors are not postponed
    finally:
        failpoints.disarm(settle_behind)

    assert run.gone()
    assert after.next_sequence == 2
    job = jobs.get_job(run.id)
    assert (job.exit_code, log_of(jobs, run.id)) == (4, run.lines_written)


def test_power_may_take_back_lines_but_no_verdict(jobs, scripted, monkeypatch):
    """Lines alone are written NORMAL; a verdict, or the last trace of a spool file, FULL."""
    written = []
    real = Database.write

    def write(self, change, *, durable=True, **options):
        written.append(durable)
        return real(self, change, durable=durable, **options)

    run = scripted()
    monkeypatch.setattr(Database, "write", write)
    run.write(b"in the spool still\n")
    jobs.get_job(run.id)
    run.rotate()
    run.write(b"and the file before goes\n")
    jobs.get_job(run.id)
    run.write(b"in the spool still\n")
    jobs.get_job(run.id)
    run.exit()
    run.die()
    jobs.get_job(run.id)

    assert written == [False, True, False, True]


def test_spool_file_that_is_not_imported_stays(jobs, scripted):
    """No spool file goes before its last frame is in the database."""
    run = scripted()
    run.write(b"whole\n")
    half = run.frame(b"half\n")
    run.append(half[:20])
    jobs.get_job(run.id)
    kept = [name for name in run.files() if name.startswith("spool.")]
    run.append(half[20:])
    run.rotate()
    run.write(b"next\n")
    jobs.get_job(run.id)

    assert kept == ["spool.0"]
    assert log_of(jobs, run.id) == run.lines_written


def test_racing_processes_import_each_line_once(jobs, scripted, database):
    """Four processes that import one growing job at once store each line once, and all settle."""
    run = scripted()
    for index in range(200):
        run.write(*[b"early %d\n" % index] * 20)

    def follow(path, job_id):
        with JobManager(path, slots=0) as mine:
            until(lambda: mine.get_job(job_id).status.final)
            return log_of(mine, job_id)

    run.die()
    with run.open():
        pass
    children = [Child(follow, database, run.id, held=True) for _ in range(4)]
    run.live()
    for child in children:
        child.go()
    for index in range(300):
        run.write(b"late %d\n" % index)
        if index % 50 == 0:
            run.rotate()
    run.exit(4 << 8)
    run.die()
    logs = [child.result() for child in children]

    assert [log == run.lines_written for log in logs] == [True] * 4
    assert jobs.get_job(run.id).exit_code == 4
    assert [entry.trigger for entry in jobs.history(run.id)] == ["create", "start", "finish"]


def test_racing_threads_import_each_line_once(jobs, scripted, database):
    """Two managers and two threads of one process are no different."""
    run = scripted()
    failures = []
    with JobManager(database, slots=0) as other:

        def follow(manager):
            try:
                until(lambda: manager.get_job(run.id).status.final)
                assert log_of(manager, run.id) == run.lines_written
            except BaseException as error:  # noqa: BLE001 - told below
                failures.append(error)

        threads = [threading.Thread(target=follow, args=(m,)) for m in (jobs, jobs, other, other)]
        for thread in threads:
            thread.start()
        for index in range(300):
            run.write(b"line %d\n" % index)
        run.exit()
        run.die()
        join(*threads)

    assert failures == []


def test_killed_importers_lose_and_double_nothing(jobs, scripted, database):
    """However many importing processes are SIGKILLed, each line is stored once, in order."""
    run = scripted()
    chance = random.Random(11)

    def follow(path, job_id):
        with JobManager(path, slots=0) as mine:
            while True:
                mine.get_job(job_id)

    run.die()
    for _ in range(8):
        child = Child(follow, database, run.id, held=True)
        run.live()
        child.go()
        for _ in range(chance.randrange(20, 60)):
            run.write(*[b"x" * 40 + b"\n"] * chance.randrange(1, 30))
        child.kill()
        run.rotate()
        run.die()
    run.exit()
    job = jobs.get_job(run.id)

    assert (job.status, job.line_count) == (Status.COMPLETE, len(run.lines_written))
    assert log_of(jobs, run.id) == run.lines_written
    assert sql(database, "PRAGMA integrity_check")[0][0] == "ok"


@every(seed=range(25))
def test_random_damage_never_renumbers(jobs, scripted, seed):
    """Whatever is damaged, stored lines keep the numbers of their bytes."""
    chance = random.Random(seed)
    run = scripted()
    for _ in range(chance.randrange(5, 40)):
        lines = [chance.randbytes(chance.randrange(30)).replace(b"\n", b"J") + b"\n"] * (
            chance.randrange(0, 12)
        )
        data = bytearray(run.frame(*lines, stream=chance.choice([1, 2, 3])))
        roll = chance.random()
        if roll < 0.15:
            for _ in range(chance.randrange(1, 4)):
                data[chance.randrange(len(data))] = chance.randrange(256)
        elif roll < 0.2:
            data = bytearray(len(data))
        run.append(bytes(data))
        if chance.random() < 0.15:
            run.rotate()
        if chance.random() < 0.1:
            jobs.get_job(run.id)
    if chance.random() < 0.4:
        spools = [name for name in run.files() if name.startswith("spool.")]
        victim = f"{run.path}/{chance.choice(spools)}"
        if chance.random() < 0.5:
            os.unlink(victim)
        else:
            os.truncate(victim, chance.randrange(os.path.getsize(victim) + 1))
    run.exit(2 << 8)
    run.die()
    job = jobs.get_job(run.id)
    log = log_of(jobs, run.id)
    written = {sequence: (stream, raw) for sequence, stream, raw in run.lines_written}

    assert (job.status, job.exit_code) == (Status.ERROR, 2)
    assert job.line_count == len(log) == len(written)
    assert dense(log)
    for sequence, stream, raw in log:
        assert stream == "system" or (stream, raw) == written[sequence]


def test_crowd_settles_once(jobs, scripted, database, monkeypatch):
    """Eight processes that all see the verdict write one ending into the history."""
    # Else a read that waits for the writes of the others returns the row as it is stored.
    monkeypatch.setattr(tuning, "READ_PATIENCE", PATIENCE)
    run = scripted()
    run.write(b"x\n")
    run.exit(6 << 8)
    run.die()

    def look(path, job_id):
        with JobManager(path, slots=0) as mine:
            job = mine.get_job(job_id)
            return str(job.status), job.exit_code, job.line_count

    answers = at_once(look, [(database, run.id)] * 8)

    assert answers == [("ERROR", 6, 1)] * 8
    assert [entry.trigger for entry in jobs.history(run.id)] == ["create", "start", "finish"]
    assert run.gone()
