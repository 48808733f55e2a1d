"""Wire: logs as bytes that a host sends on."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import threading
import time
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobcore import (
    ArgumentError,
    InvalidParameter,
    JobcoreError,
    JobDeleted,
    JobNotFound,
    LogLine,
    NotAcceptable,
    TooManyFollowers,
    WaitTimeout,
    errors,
    wire,
)
from jobcore.supervisor import frames
from tests.cases import each
from tests.unit.test_errors import EXAMPLES

TIME = 1_700_000_000_123_456_789


def test_ndjson_has_the_named_fields():
    """Each line is one JSON object with number, time, stream and message; partial where true."""
    lines = [
        LogLine(0, TIME, "output", b"a\n"),
        LogLine(1, TIME, "stderr", "é\U0001f600\r\n".encode()),
        LogLine(2, TIME + 10**9, "output", b"piece", partial=True),
        LogLine(3, TIME + 10**9, "system", b"said\n"),
    ]
    expected = [
        {"sequence": 0, "timestamp": "2023-11-14T22:13:20.123Z", "stream": "output",
         "message": "a"},
        {"sequence": 1, "timestamp": "2023-11-14T22:13:20.123Z", "stream": "stderr",
         "message": "é\U0001f600"},
        {"sequence": 2, "timestamp": "2023-11-14T22:13:21.123Z", "stream": "output",
         "message": "piece", "partial": True},
        {"sequence": 3, "timestamp": "2023-11-14T22:13:21.123Z", "stream": "system",
         "message": "said"},
    ]  # fmt: skip
    sent = list(wire.ndjson(lines))

    assert [json.loads(one) for one in sent] == expected
    assert [list(json.loads(one)) for one in sent] == [list(one) for one in expected]


@given(st.lists(st.binary(max_size=40)))
def test_ndjson_is_one_line_each_whatever_the_bytes(raws):
    """No byte of a job breaks the framing: one object, one line feed, valid UTF-8."""
    sent = list(wire.ndjson(LogLine(n, TIME, "output", raw) for n, raw in enumerate(raws)))

    for index, one in enumerate(sent):
        assert one.count(b"\n") == 1
        assert one.endswith(b"}\n")
        assert json.loads(one.decode("utf-8"))["sequence"] == index
    assert len(sent) == len(raws)


def test_line_separators_of_unicode_do_not_break_lines():
    """Characters that some readers take for line ends arrive inside the message."""
    text = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\rh"
    (one,) = wire.ndjson([LogLine(0, TIME, "output", text.encode() + b"\n")])

    assert json.loads(one)["message"] == text


def test_text_is_every_byte(jobs, scripted):
    """The text is what the command wrote: pieces join up, the last line gets no terminator."""
    run = scripted()
    run.write(b"a\n", b"\xff\r\n")
    run.write(b"long ", flags=frames.PARTIAL)
    run.write(b"line\n")
    run.write(b"no end", flags=frames.OPEN_END)

    assert b"".join(jobs.log_text(run.id)) == b"a\n\xff\r\nlong line\nno end"
    assert b"".join(jobs.log_text(run.id, 2)) == b"long line\nno end"
    assert [json.loads(one)["sequence"] for one in jobs.log_ndjson(run.id, 3)] == [3, 4]
    assert [json.loads(one).get("partial") for one in jobs.log_ndjson(run.id)] == [
        None, None, True, None, None,
    ]  # fmt: skip


# --- the answer to a request for a log --------------------------------------------


@pytest.fixture
def task(jobs):
    """Return a RUNNING job without a process, and three lines of log."""
    job = jobs.start_job(jobs.create_job("TASK").id)
    jobs.append_log(job.id, "a", "b", "c")
    return job


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        (None, "text/plain; charset=utf-8"),
        ("application/x-ndjson", "application/x-ndjson"),
        ("application/stream+json", "application/stream+json"),
    ],
)
@pytest.mark.parametrize("sequence", [0, 1, "0", "2"])
def test_log_in_the_form_that_is_asked_for(jobs, task, accept, content_type, sequence):
    """The answer is the log from that line on, in that form, under that name."""
    form = jobs.log_text if accept is None else jobs.log_ndjson
    got = wire.log_response(jobs, task.id, sequence=sequence, accept=accept)

    assert got.content_type == content_type
    assert b"".join(got.body) == b"".join(form(task.id, int(sequence))) != b""


@pytest.mark.parametrize("sequence", [3, "3", "99", str(10**40)])
def test_log_response_without_lines_is_none(jobs, task, sequence):
    """Without such a line there is no answer, and with `follow` only when none can come."""
    assert wire.log_response(jobs, task.id, sequence=sequence) is None
    assert wire.log_response(jobs, task.id, sequence=sequence, follow=True) is not None

    jobs.finish_job(task.id)

    assert wire.log_response(jobs, task.id, sequence=sequence, follow=True) is None


def test_a_followed_log_has_the_lines_that_come(jobs, task):
    """Each line is yielded as soon as it is written; the body ends with the job."""
    body = wire.log_response(jobs, task.id, sequence=2, follow=True).body
    first = next(body)
    jobs.append_log(task.id, "d")
    second = next(body)
    jobs.finish_job(task.id)

    assert (first, second, list(body)) == (b"c\n", b"d\n", [])


def test_followed_log_ends_at_its_timeout_and_can_continue(jobs, task):
    """A client that continues after its last line gets the whole log."""
    got, asked = b"", 0
    while True:
        sequence = got.count(b"\n")
        part = wire.log_response(jobs, task.id, sequence=sequence, follow=True, timeout=0)
        if part is None:
            break
        got += b"".join(part.body)
        asked += 1
        if asked < 3:
            jobs.append_log(task.id, f"asked {asked}")
        elif asked == 3:
            jobs.finish_job(task.id)

    assert got == b"a\nb\nc\nasked 1\nasked 2\n"


@pytest.mark.parametrize("follow", [False, True])
@pytest.mark.parametrize("accept", ["text/plain", "application/x-ndjson"])
def test_body_of_a_deleted_job_ends_after_a_whole_line(jobs, accept, follow):
    """If the job is deleted, the reader gets whole lines, and then the end."""
    job = jobs.start_job(jobs.create_job("TASK").id)
    lines = [f"{n} " + "x" * 10_000 for n in range(360)]
    for n in range(12):  # more segments than are read at once
        jobs.append_log(job.id, *lines[30 * n :][:30])
    body = wire.log_response(jobs, job.id, accept=accept, follow=follow).body
    got = next(body)
    jobs.delete_job(job.id)
    got += b"".join(body)
    read = got.splitlines()
    if accept != "text/plain":
        read = [json.loads(one)["message"].encode() for one in read]

    assert got.endswith(b"\n")
    assert 0 < len(read) < len(lines)
    assert read == [line.encode() for line in lines[: len(read)]]


def test_a_job_deleted_before_the_first_line_is_not_found(jobs, task):
    """As long as nothing has been sent, an error is raised."""

    class LateDelete:
        get_job, follow = jobs.get_job, jobs.follow

        def logs(self, job_id, sequence=0, **_):
            found = jobs.logs(job_id, sequence)
            jobs.delete_job(job_id)
            return found

    with pytest.raises(JobDeleted):
        wire.log_response(LateDelete(), task.id)


def test_other_errors_do_not_look_like_an_end(jobs, task):
    """What is broken breaks the body: a server then cuts the connection."""

    class Broken:
        get_job, logs = jobs.get_job, jobs.logs

        def follow(self, *_, **__):
            yield LogLine(0, TIME, "output", b"a\n")
            raise errors.DatabaseGone("gone")

    body = wire.log_response(Broken(), task.id, follow=True).body

    assert next(body) == b"a\n"
    with pytest.raises(errors.DatabaseGone):
        next(body)


@pytest.mark.parametrize("follow", [False, True])
@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"job_id": "no uuid"}, JobNotFound),
        ({"sequence": "-1"}, InvalidParameter),
        ({"sequence": -1}, InvalidParameter),
        ({"accept": "application/json"}, NotAcceptable),
    ],
)
def test_a_bad_request_is_refused_at_the_call(jobs, task, options, error, follow):
    """An invalid request raises before anything is sent, not in the iterator."""
    with pytest.raises(error):
        wire.log_response(jobs, **{"job_id": task.id, "follow": follow, **options})


def test_a_log_is_sent_in_few_pieces(jobs, task):
    """A stored log of many short lines is few items, each whole lines."""
    jobs.append_log(task.id, *(f"line {n}" for n in range(30_000)))
    items = list(wire.log_response(jobs, task.id).body)

    assert len(items) < 10
    assert [item for item in items if not item.endswith(b"\n")] == []
    assert b"".join(items) == b"".join(jobs.log_text(task.id))


# --- a quiet job ------------------------------------------------------------------


class Quiet:
    """A manager whose job is RUNNING and says what it is told to, in turns."""

    def __init__(self, jobs, *turns):
        self.get_job, self.logs = jobs.get_job, jobs.logs
        self.turns = list(turns)
        self.asked = []

    def follow(self, _job_id, sequence, timeout, **_):
        self.asked.append((sequence, timeout))
        turn = self.turns.pop(0)
        yield from (line for line in turn if isinstance(line, LogLine))
        if turn[-1:] == ["waits"]:
            time.sleep(max(timeout, 0))
            raise WaitTimeout("later")

    async def follow_async(self, job_id, sequence, timeout, **_):
        for line in self.follow(job_id, sequence, timeout):
            yield line


def collected(jobs, job, form, **options):
    """Return all items of a followed body: of the form for threads, or of that for loops."""
    options = {"follow": True, "heartbeat": 0.001, **options}
    if form == "threads":
        return list(wire.log_response(jobs, job.id, **options).body)

    async def all_of_it():
        found = await wire.log_response_async(jobs, job.id, **options)
        return [item async for item in found.body]

    return asyncio.run(all_of_it())


@pytest.mark.parametrize("form", ["threads", "loop"])
@pytest.mark.parametrize(
    ("accept", "begin", "beat"),
    [
        ("text/plain", b"", b""),
        ("application/x-ndjson", b"", b"\n"),
        ("text/event-stream", b":\n\n", b":\n\n"),
    ],
)
def test_a_quiet_follower_gets_heartbeats(jobs, form, accept, begin, beat):
    """A body gives an item at once and at each heartbeat, and lines go on where they were."""
    job = jobs.start_job(jobs.create_job("TASK").id)
    line = LogLine(0, TIME, "output", b"a\n")
    quiet = Quiet(jobs, ["waits"], [line, "waits"], [])
    got = collected(quiet, job, form, accept=accept)
    (sent,) = {"text/plain": wire.text, "application/x-ndjson": wire.ndjson}.get(accept, wire.sse)(
        [line]
    )

    assert got == [begin, beat, sent, beat]
    assert [sequence for sequence, _ in quiet.asked] == [0, 0, 1]


@pytest.mark.parametrize("form", ["threads", "loop"])
def test_heartbeats_do_not_outlast_the_time(jobs, task, form):
    """`timeout` holds for the whole body, and the last turn is as long as there is time."""
    got = collected(jobs, task, form, sequence=3, timeout=1, heartbeat=0.3)

    assert 1 < len(got) < 7  # at most 4, and the last turn
    assert b"".join(got) == b""


def test_a_body_ends_when_the_client_has_left(jobs, task):
    """A text has no heartbeat, so the server is asked whether the client is there."""
    left = iter([False, False, True])
    got = collected(jobs, task, "threads", sequence=3, is_gone=lambda: next(left))

    assert got == [b"", b"", b""]


@pytest.mark.parametrize("heartbeat", [0, -1, float("nan"), float("inf"), None, "x", True])
def test_a_heartbeat_is_a_number_of_seconds(jobs, task, heartbeat):
    """What would never come, or all the time, is refused at the call."""
    with pytest.raises(ArgumentError, match="heartbeat"):
        wire.log_response(jobs, task.id, follow=True, heartbeat=heartbeat)


@pytest.mark.parametrize("form", ["threads", "loop"])
def test_event_source_continues_after_its_last_event(jobs, task, form):
    """Last-Event-ID wins over the number in the address; after the end, it is 204."""
    jobs.finish_job(task.id)
    options = {"accept": "text/event-stream", "sequence": 0, "last_event_id": "1"}
    (item,) = collected(jobs, task, form, **options)
    head, data = item.split(b"\n")[:2]

    assert head == b"id: 2"
    assert json.loads(data.removeprefix(b"data: "))["message"] == "c"
    assert wire.log_response(jobs, task.id, follow=True, last_event_id="2") is None
    with pytest.raises(InvalidParameter, match="Last-Event-ID"):
        wire.log_response(jobs, task.id, last_event_id="-1")


def test_an_event_is_one_whatever_the_bytes():
    """Whatever bytes a job writes, they neither end a server-sent event nor begin a field."""
    raw = b"data: x\r\n\nid: 7\r\xff\n"
    (event,) = wire.sse([LogLine(5, TIME, "output", raw)])
    lines = event.splitlines()

    assert lines[0] == b"id: 5"
    assert [line for line in lines[1:] if line] == [lines[1]]
    assert event.endswith(b"\n\n")
    assert json.loads(lines[1].removeprefix(b"data: "))["message"] == raw[:-1].decode(
        "utf-8", "replace"
    )


# --- as many followers as there are threads for ------------------------------------


def test_more_followers_than_threads_are_refused(jobs, task):
    """Each counts until its body is closed, exhausted or dropped, begun or not."""
    followers = wire.Followers(2)
    options = {"follow": True, "followers": followers, "sequence": 3}
    first, second = (wire.log_response(jobs, task.id, **options).body for _ in range(2))
    with pytest.raises(TooManyFollowers) as refused:
        wire.log_response(jobs, task.id, **options)
    assert (refused.value.status, refused.value.most, len(followers)) == (503, 2, 2)
    assert wire.log_response(jobs, task.id, followers=followers) is not None  # it does not wait

    first.close()
    first.close()
    third = wire.log_response(jobs, task.id, **options).body
    assert next(third) == b""
    jobs.finish_job(task.id)
    assert (list(third), len(followers)) == ([], 1)
    del second
    gc.collect()
    assert len(followers) == 0


def test_a_forked_child_counts_its_own_followers(jobs, task):
    """Followers of the parent do not count in a forked child."""
    followers = wire.Followers(1)
    body = wire.log_response(jobs, task.id, follow=True, followers=followers).body
    child = os.fork()
    if child == 0:
        here = len(followers)
        followers.enter()
        os._exit(10 * here + len(followers))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    assert len(followers) == 1
    body.close()


def test_those_who_come_at_once_get_each_a_place():
    """However many threads ask, no place is given twice, and no free one is refused."""
    followers = wire.Followers(8)
    ready = threading.Barrier(16)
    got = []

    def enter():
        ready.wait()
        try:
            got.append(followers.enter())
        except TooManyFollowers:
            got.append(None)

    threads = [threading.Thread(target=enter) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sum(leave is not None for leave in got) == len(followers) == 8
    for leave in got:
        if leave is not None:
            leave()
    assert len(followers) == 0


# --- messages ---------------------------------------------------------------------


@each("error", EXAMPLES)
def test_error_as_an_object(error):
    """An error of the client's says what is wrong; one of the service's only that it is."""
    form = wire.error_to_object(error, "/api/jobs/1")

    assert list(form) == ["timestamp", "status", "error", "message", "path"]
    assert (form["status"], form["path"]) == (error.status, "/api/jobs/1")
    assert form["error"] == {
        400: "Bad Request", 404: "Not Found", 406: "Not Acceptable", 409: "Conflict",
        500: "Internal Server Error", 503: "Service Unavailable", 504: "Gateway Timeout",
    }[error.status]  # fmt: skip
    assert (form["message"] == str(error)) == (error.status < 500)
    assert type(error).__name__ in form["message"] or error.status < 500
    assert json.loads(json.dumps(form)) == form


def test_a_wrong_argument_is_the_clients_and_a_foreign_one_is_not(jobs, task):
    """What jobcore refuses is 400 with its text; a ValueError of the host stays 500."""
    with pytest.raises(ValueError) as refused:
        jobs.list_jobs(limit=-1)
    form = wire.error_to_object(refused.value)
    with pytest.raises(WaitTimeout) as late:
        jobs.wait(task.id, 0)

    assert (form["status"], form["message"]) == (400, str(refused.value))
    assert "-1" in form["message"]
    assert wire.error_to_object(late.value)["status"] == 504
    assert wire.error_to_object(ValueError("canary"))["status"] == 500


def test_other_errors_give_nothing_away():
    """Whatever else is raised is 500, and its text stays here."""
    for error in (ValueError("canary"), KeyError("canary"), OSError(5, "canary", "/canary")):
        form = wire.error_to_object(error)

        assert list(form) == ["timestamp", "status", "error", "message"]
        assert (form["status"], form["error"]) == (500, "Internal Server Error")
        assert "canary" not in json.dumps(form)
        assert datetime.fromisoformat(form["timestamp"].replace("Z", "+00:00")).tzinfo


def test_a_hosts_own_error_with_its_own_status():
    """An error that a host derives is answered like jobcore's, also with an unnamed status."""

    class Teapot(JobcoreError):
        status = 418

    class Odd(JobcoreError):
        status = 499

    assert wire.error_to_object(Teapot("short and stout"))["message"] == "short and stout"
    assert wire.error_to_object(Odd("gone"))["error"] == "Unknown"


def test_stop_message(jobs, task, scripted):
    """The message says that it was asked, or, of a job without a process, that it is STOPPED."""
    run = scripted()
    asked = wire.stop_to_object(jobs.stop_job(run.id))
    ended = wire.stop_to_object(jobs.stop_job(task.id))

    assert (asked["status"], ended["status"]) == (202, 202)
    assert asked["message"] == f"job {run.id} has been asked to stop"
    assert ended["message"] == f"job {task.id} is STOPPED"


def test_everything_is_in_one_place():
    """What a host needs to serve jobs is named by the module, and is there."""
    assert [name for name in wire.__all__ if not hasattr(wire, name)] == []
    assert sorted(wire.__all__) == sorted(set(wire.__all__))


def test_unfinished_lines_get_no_number():
    """They are left out of text and JSON; where they are wanted, the next object replaces them."""
    lines = [
        LogLine(0, TIME, "output", b"a\n"),
        LogLine(None, TIME, "output", b'{"b": 1}', partial=True),
    ]

    assert list(wire.text(lines)) == [b"a\n"]
    assert [json.loads(one)["sequence"] for one in wire.ndjson(lines)] == [0]
    _, last = (json.loads(one) for one in wire.ndjson(lines, unfinished=True))
    assert last == {
        "timestamp": "2023-11-14T22:13:20.123Z",
        "stream": "output",
        "message": '{"b": 1}',
        "unfinished": True,
    }
