"""Events: the feed of all transitions, in the one order of their commits, for any process."""

from __future__ import annotations

import json
import threading
from contextlib import closing
from datetime import datetime, timezone
from itertools import islice, pairwise
from uuid import UUID

import pytest

from jobcore import (
    FINAL,
    Event,
    JobManager,
    PipelineNotFound,
    Reason,
    Status,
    StoreError,
    Trigger,
    WorkspaceNotFound,
)
from jobcore.operations import events as feed
from jobcore.testing.parts import parts
from tests.jobfiles import sql
from tests.processes import PATIENCE, Child, in_child, until
from tests.programs import KILLS_ITSELF
from tests.tasks import task

#: Events that are read at once in these tests; otherwise 500.
PAGE = 20

WALL = "2023-11-14T22:13:20.000000Z"  # of the clock that stands still


@pytest.fixture(autouse=True)
def _short_pages(monkeypatch):
    monkeypatch.setattr(feed, "PAGE", PAGE)


def ids(events):
    """Return the ids of events."""
    return [event.id for event in events]


def told(events):
    """Return what happened to which job, by its number."""
    return [(event.job_number, str(event.trigger), str(event.to_status)) for event in events]


def test_each_transition_is_an_event(jobs):
    """Creation, start, stop and end are events, in order, with the facts of their job."""
    job = task(jobs)
    other = jobs.create_job("TASK")
    jobs.cancel_job(other.id)
    jobs.finish_job(job.id, 3)
    events = list(jobs.events())

    assert ids(events) == [1, 2, 3, 4, 5]
    assert told(events) == [
        (1, "create", "QUEUED"), (1, "start", "RUNNING"), (2, "create", "QUEUED"),
        (2, "cancel", "STOPPED"), (1, "finish", "ERROR"),
    ]  # fmt: skip
    assert [event.from_status for event in events] == [
        None, Status.QUEUED, None, Status.QUEUED, Status.RUNNING,
    ]  # fmt: skip
    assert [event.job_id for event in events] == [job.id, job.id, other.id, other.id, job.id]
    assert [event.reason for event in events] == [None, None, None, Reason.CANCELLED, Reason.EXITED]
    assert {event.type for event in events} == {"TASK"}
    assert {event.workspace_id for event in events} == {job.workspace_id}
    assert {event.at for event in events} == {
        datetime(2023, 11, 14, 22, 13, 20, tzinfo=timezone.utc)
    }


def test_events_match_the_history(jobs):
    """The events of a job and its history are the same entries."""
    job = task(jobs)
    jobs.stop_job(job.id)
    facts = ("at", "trigger", "from_status", "to_status", "reason", "actor")

    def of(entries):
        return [tuple(getattr(entry, fact) for fact in facts) for entry in entries]

    assert of(jobs.events()) == of(jobs.history(job.id))
    assert len(jobs.history(job.id)) == 4  # create, start, stop, finish


def test_only_the_final_event_has_the_exit_code(jobs):
    """Earlier events have no exit code, even if they are read after the end."""
    jobs.finish_job(task(jobs).id, 7)

    assert [event.exit_code for event in jobs.events()] == [None, None, 7]


def test_an_event_is_json_in_camel_case(jobs):
    """An event can be sent as it is."""
    pipeline = jobs.create_pipeline("nightly", ["true"])
    job = jobs.create_job("TASK", pipeline_id=pipeline.id, name="load", key="k", group="g")
    jobs.start_job(job.id)
    jobs.finish_job(job.id)
    *_, last = jobs.events()

    assert json.loads(last.model_dump_json()) == {
        "id": 3, "jobId": str(job.id), "jobNumber": 1, "type": "TASK", "name": "load",
        "key": "k", "group": "g",
        "workspaceId": str(job.workspace_id), "pipelineId": str(pipeline.id), "at": WALL,
        "trigger": "finish", "fromStatus": "RUNNING", "toStatus": "COMPLETE", "reason": "exited",
        "exitCode": 0, "signal": None, "actor": last.actor,
    }  # fmt: skip
    assert Event.model_validate_json(last.model_dump_json()).job_id == job.id


def test_only_the_final_event_has_the_signal(running_jobs):
    """A job's name is in each of its events, its signal and code in the one that has them."""
    job = running_jobs.submit(KILLS_ITSELF, name="victim")
    running_jobs.wait(job.id, PATIENCE)
    events = list(running_jobs.events())

    assert [event.name for event in events] == ["victim"] * 3
    assert [(event.exit_code, event.signal) for event in events] == [
        (None, None), (None, None), (137, 9),
    ]  # fmt: skip


def test_after_now_skips_existing_events(jobs):
    """A reader that starts now gets later events only."""
    jobs.create_job("TASK")
    coming = jobs.events(after="now", follow=True, limit=1)
    nothing = list(jobs.events(after="now"))
    later = jobs.create_job("TASK")

    assert nothing == []
    assert [event.job_id for event in coming] == [later.id]
    with pytest.raises(ValueError, match='"now"'):
        jobs.events(after="then")


# --- going on, and choosing -------------------------------------------------------


def test_reader_continues_after_the_last_event(jobs):
    """From any id on the rest of the feed comes, in order, over any number of pages."""
    count = 2 * PAGE + 3
    jobs.submit_many([["true"]] * count)

    for after in (0, 1, PAGE - 1, PAGE, PAGE + 1, 2 * PAGE, count - 1, count):
        assert ids(jobs.events(after)) == list(range(after + 1, count + 1))


@pytest.mark.parametrize("limit", [0, 1, PAGE, PAGE + 1, 10 * PAGE, None])
def test_a_limit_is_kept(jobs, limit):
    """At most so many events come, be it followed or not."""
    jobs.submit_many([["true"]] * (PAGE + 5))
    expected = list(range(1, PAGE + 6))[:limit]

    assert ids(jobs.events(limit=limit)) == expected
    followed = jobs.events(limit=limit, follow=True)
    assert ids(islice(followed, len(expected))) == expected
    assert limit is None or limit > len(expected) or list(followed) == []


def test_cursor_moves_on_past_what_does_not_match(jobs):
    """It follows the returned events and, once the iterator has ended, the examined ones."""
    for kind in "ABABB":
        jobs.create_job(kind)
    found = jobs.events(type="A")

    assert found.after == 0
    assert (next(found).id, found.after) == (1, 1)
    assert ids(found) == [3]
    assert found.after == 5
    first = jobs.events(type="A", limit=1)
    assert (ids(first), first.after) == ([1], 1)
    jobs.create_job("A")
    assert ids(jobs.events(found.after, type="A")) == [6]


def test_cursor_stays_before_events_committed_after_the_call(jobs):
    """An event that was committed while the iterator ran belongs to the next call."""
    jobs.create_job("A")
    found = jobs.events()
    jobs.create_job("A")

    assert ids(found) == [1]
    assert found.after == 1
    assert ids(jobs.events(found.after)) == [2]


@pytest.mark.parametrize("follow", [False, True])
@pytest.mark.parametrize("scan_limit", [1, 2, 3, PAGE, PAGE + 1])
def test_pages_of_a_scan_limit_have_each_event_once(jobs, scan_limit, follow):
    """A call returns some of the events, and the next one continues from its cursor."""
    jobs.submit_many([["true"]] * (PAGE + 20))
    wanted = [jobs.create_job("A").id for _ in range(5)]
    if rest := -(PAGE + 25) % scan_limit:
        jobs.submit_many([["true"]] * rest)  # the last call does not wait for more to examine
    after, seen, calls = 0, [], 0
    while len(seen) < len(wanted):
        found = jobs.events(after, type="A", scan_limit=scan_limit, follow=follow, timeout=60)
        seen += [event.job_id for event in found]
        assert after < found.after <= after + scan_limit
        after, calls = found.after, calls + 1

    assert seen == wanted
    assert calls == -(-(PAGE + 25) // scan_limit)
    assert ids(jobs.events(scan_limit=0)) == []


def test_after_none_skips_existing_events(jobs):
    """`after=None` returns the events after this call."""
    task(jobs)
    followed = jobs.events(None, follow=True)
    assert list(jobs.events(None)) == []
    job = jobs.create_job("TASK")

    assert next(followed).job_id == job.id


def test_iteration_without_follow_ends_at_the_last_event_of_the_call(jobs):
    """Without `follow` a feed that grows while it is read is read to its end, not for ever."""
    jobs.submit_many([["true"]] * (PAGE + 1))
    got = []
    for event in jobs.events():
        got.append(event.id)
        if event.id % 100 == 1:
            jobs.submit(["true"])

    assert got == list(range(1, PAGE + 2))


@pytest.fixture
def various(jobs):
    """Return two workspaces and pipelines with jobs of two types, and different endings."""
    other = jobs.create_workspace("other")
    pipelines = [
        jobs.create_pipeline("a", ["true"]),
        jobs.create_pipeline("b", ["true"], workspace_id=other.id),
    ]
    for pipeline in pipelines:
        jobs.finish_job(task(jobs, pipeline_id=pipeline.id).id)
        jobs.cancel_job(jobs.create_job("CHORE", pipeline_id=pipeline.id).id)
    return other, pipelines


@pytest.mark.parametrize("follow", [False, True])
def test_filters_are_those_of_a_listing(jobs, various, follow):
    """Workspace, pipeline, type and the status that was reached choose, alone and together."""
    other, (first, second) = various

    def chosen(**filters):
        return ids(jobs.events(follow=follow, timeout=0 if follow else None, **filters))

    assert chosen() == list(range(1, 11))
    assert chosen(workspace_id=other.id) == [6, 7, 8, 9, 10]
    assert chosen(pipeline_id=str(first.id)) == [1, 2, 3, 4, 5]
    assert chosen(pipeline_id=second.id, workspace_id=first.workspace_id) == []
    assert chosen(type="CHORE") == [4, 5, 9, 10]
    assert chosen(type=["CHORE", "TASK"], status=Status.RUNNING) == [2, 7]
    assert chosen(status=FINAL) == [3, 5, 8, 10]
    assert chosen(status="STOPPED", pipeline_id=second.id) == [10]
    assert chosen(status=[]) == []


def test_matching_events_are_found_across_pages_without_any(jobs):
    """Pages without any event that is wanted are passed over."""
    jobs.submit_many([["true"]] * 2 * PAGE)
    job = jobs.create_job("TASK")
    jobs.submit_many([["true"]] * 2 * PAGE)

    assert ids(jobs.events(type="TASK")) == [2 * PAGE + 1]
    assert next(jobs.events(type="TASK", follow=True)).job_id == job.id


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"after": -1}, ValueError),
        ({"after": "1"}, ValueError),
        ({"after": True}, ValueError),
        ({"after": 3}, ValueError),
        ({"after": 2**70}, ValueError),
        ({"limit": -1}, ValueError),
        ({"timeout": float("nan")}, ValueError),
        ({"status": "DONE"}, ValueError),
        ({"type": 1}, ValueError),
        ({"workspace_id": "no such"}, WorkspaceNotFound),
        ({"pipeline_id": UUID(int=0)}, PipelineNotFound),
    ],
    ids=repr,
)
def test_wrong_event_arguments_raise_at_the_call(jobs, arguments, error):
    """An invalid argument or a future id raises before the first `next`."""
    task(jobs)

    with pytest.raises(error):
        jobs.events(**arguments)


# --- following ------------------------------------------------------------------


def test_a_followed_feed_has_what_another_process_does(jobs, database):
    """A commit of any process comes at once, and the feed goes on for ever."""
    task(jobs)
    followed = jobs.events(follow=True)
    first = list(islice(followed, 2))

    def other():
        with JobManager(database, slots=0) as theirs:
            return str(theirs.create_job("TASK").id)

    their_id = in_child(other)
    third = next(followed)
    jobs.cancel_job(their_id)

    assert ids(first) == [1, 2]
    assert (str(third.job_id), third.trigger) == (their_id, Trigger.CREATE)
    assert next(followed).trigger is Trigger.CANCEL


def test_a_time_out_ends_a_followed_feed(jobs):
    """The iterator ends after the time-out and the present events."""
    task(jobs)

    assert ids(jobs.events(follow=True, timeout=0.05)) == [1, 2]
    assert ids(jobs.events(follow=True, timeout=-1)) == [1, 2]


def test_a_time_out_ends_a_feed_that_never_rests(jobs):
    """A feed that always has one more event ends in time all the same."""
    task(jobs)
    got = 0
    for _ in jobs.events(follow=True, timeout=0.2):
        got += 1
        jobs.submit_many([["true"]] * 2)

    assert got > 2


def test_no_table_is_touched_until_something_is_committed(jobs, monkeypatch):
    """A follower checks only the file's version, and reads when it has changed."""
    database = parts(jobs).database
    looks, reads = [], []
    version, read = database.version, database.read
    monkeypatch.setattr(database, "version", lambda *within: looks.append(1) or version(*within))
    got = []
    follower = threading.Thread(
        target=lambda: got.extend(islice(jobs.events(follow=True, timeout=PATIENCE), 1))
    )
    follower.start()
    until(lambda: len(looks) > 3, "a look at the version")
    monkeypatch.setattr(database, "read", lambda: reads.append(len(looks)) or read())
    seen = len(looks)
    until(lambda: len(looks) > seen + 5, "more looks at it")
    untouched = list(reads)
    jobs.create_job("TASK")
    follower.join(PATIENCE)

    assert untouched == []
    assert len(reads) > 0
    assert ids(got) == [1]


def test_a_reader_holds_no_transaction(jobs):
    """A suspended iterator does not keep the write-ahead log from shrinking."""
    jobs.submit_many([["true"]] * 2 * PAGE)
    halfway = jobs.events(follow=True)
    next(halfway)

    assert parts(jobs).database.checkpoint() is True
    assert next(halfway).id == 2


def test_a_closed_manager_ends_it_typed(database, clock):
    """If the manager is closed, `next` raises an error of jobcore."""
    with JobManager(database, slots=0, clock=clock) as jobs:
        task(jobs)
        followed = jobs.events(follow=True)
        assert ids(islice(followed, 2)) == [1, 2]

    with pytest.raises(StoreError, match="closed"):
        next(followed)


# --- deletion -------------------------------------------------------------------


def test_events_go_with_their_job(jobs):
    """A deleted job has no events, its end by the deletion neither, and no id comes again."""
    first, second = task(jobs), task(jobs)
    begun = jobs.events()
    jobs.delete_job(second.id)
    rest = list(begun)
    third = task(jobs)

    assert ids(rest) == [1, 2]
    assert [event.job_id for event in jobs.events()] == [first.id] * 2 + [third.id] * 2
    assert ids(jobs.events())[2] > 4


def test_reader_continues_after_the_newest_events_were_deleted(jobs):
    """That the newest events are gone does not make an id of theirs a wrong one."""
    task(jobs)
    job = task(jobs)
    last = ids(jobs.events())[-1]
    jobs.delete_job(job.id)

    assert list(jobs.events(last)) == []
    assert told(jobs.events(last)) == []
    new = task(jobs)
    assert {event.job_id for event in jobs.events(last)} == {new.id}


def test_a_job_that_is_being_deleted_has_no_events(jobs, database):
    """From the start of a deletion on, the job's events are hidden."""
    task(jobs)
    job = task(jobs)
    sql(database, "UPDATE job SET deleted_at = 1 WHERE id = ?", job.id.hex)

    assert ids(jobs.events()) == [1, 2]
    assert ids(jobs.events(follow=True, timeout=0)) == [1, 2]


# --- several writers ----------------------------------------------------------------


def _write(database, count):
    with JobManager(database, slots=0) as jobs:
        for index in range(count):
            if index % 3:
                jobs.cancel_job(jobs.create_job("TASK").id)
            else:
                jobs.submit_many([["true"]] * 3)


def _read(database, total, after=0):
    with JobManager(database, slots=0) as jobs:
        return ids(islice(jobs.events(after, follow=True, timeout=PATIENCE), total - after))


def test_event_ids_only_grow_for_followers(database):
    """With four processes writing at once, each follower sees every id, each in its turn."""
    JobManager(database, slots=0).close()
    count, writers = 45, 4
    total = writers * (count // 3 * 2 * 2 + count // 3 * 3)
    readers = [Child(_read, database, total) for _ in range(2)]
    children = [Child(_write, database, count, held=True) for _ in range(writers)]
    for child in children:
        child.go()
    for child in children:
        child.result()

    (stored,) = sql(database, "SELECT count(*) AS count FROM transition")
    assert stored["count"] == total
    assert [reader.result() for reader in readers] == [list(range(1, total + 1))] * 2


def test_killed_reader_resumes_from_its_stored_id(database, tmp_path):
    """A reader that stores each id and is killed anywhere misses no event."""
    JobManager(database, slots=0).close()
    cursor = tmp_path / "cursor"
    done = tmp_path / "done"

    def read_on():
        with JobManager(database, slots=0) as jobs:
            after = int(cursor.read_text()) if cursor.exists() else 0
            if after >= 60:
                return  # the one before came to the end before it was killed
            for event in jobs.events(after, follow=True, timeout=PATIENCE):
                with done.open("a") as file:
                    file.write(f"{event.id}\n")
                with closing(open(tmp_path / "next", "w")) as file:
                    file.write(str(event.id))
                (tmp_path / "next").replace(cursor)
                if event.id == 60:
                    return

    writer = Child(_write, database, 30)
    for goal in (5, 20, 40):
        reader = Child(read_on)
        until(lambda goal=goal: cursor.exists() and int(cursor.read_text()) >= goal, f"id {goal}")
        reader.kill()
    read_on()
    writer.result()
    dealt_with = [int(line) for line in done.read_text().split()]

    assert sorted(set(dealt_with)) == list(range(1, 61))
    again = [one for one, two in pairwise(dealt_with) if two <= one]
    assert len(again) <= 3  # at the most the one that each killed reader was at
