"""Keys: a call that creates a job can be repeated, in any process, and one job comes of it."""

from __future__ import annotations

import pytest

from jobcore import (
    Command,
    CommandError,
    DuplicateKey,
    JobManager,
    JobNotFound,
    Status,
    Submission,
    function_command,
)
from jobcore.testing.parts import parts
from tests.faults.hosts import host
from tests.processes import at_once, in_child
from tests.tasks import end


def test_same_key_returns_the_same_job(jobs):
    """The second call returns the first job as it is, whatever its other arguments."""
    first = jobs.submit(["true"], key="nightly", name="a")
    assert (first.key, first.name) == ("nightly", "a")

    assert jobs.submit(["false"], key="nightly", name="b").id == first.id
    jobs.start_job(first.id)
    again = jobs.submit(["false"], key="nightly")

    assert (again.id, again.status) == (first.id, Status.RUNNING)
    assert [job.id for job in jobs.list_jobs()] == [first.id]


def test_conflict_can_raise(jobs):
    """DuplicateKey names key and job, and nothing is created."""
    first = jobs.submit(["true"], key="nightly")

    with pytest.raises(DuplicateKey, match="already has the key 'nightly'") as caught:
        jobs.submit(["true"], key="nightly", on_conflict="raise")

    assert (caught.value.key, caught.value.job_id) == ("nightly", first.id)
    assert caught.value.status == 409
    assert len(jobs.list_jobs()) == 1


def test_key_is_free_when_its_job_is_final(jobs):
    """COMPLETE, ERROR, STOPPED and deleted jobs release their keys."""
    seen = []
    for release in (
        lambda job: end(jobs, job),
        lambda job: end(jobs, job, 1),
        lambda job: jobs.cancel_job(job.id),
        lambda job: jobs.delete_job(job.id),
        lambda job: (jobs.start_job(job.id), jobs.stop_job(job.id)),
    ):
        seen.append(jobs.submit(["true"], key="nightly", on_conflict="raise"))
        release(seen[-1])

    assert len({job.id for job in seen}) == len(seen)


def test_unique_for_holds_the_key_after_the_end(jobs, clock):
    """It counts from the creation; a deleted job holds nothing."""
    first = jobs.submit(["true"], key="nightly", unique_for=60)
    clock.advance(30)
    end(jobs, first)

    assert jobs.submit(["true"], key="nightly").id == first.id
    clock.advance(29.9)
    assert jobs.submit(["true"], key="nightly").id == first.id
    clock.advance(0.2)
    second = jobs.submit(["true"], key="nightly", unique_for=60)
    assert second.id != first.id

    end(jobs, second)
    jobs.delete_job(second.id)
    assert jobs.submit(["true"], key="nightly").id not in (first.id, second.id)


def test_long_job_holds_its_key_beyond_unique_for(jobs, clock):
    """A job that is not final holds its key at any time."""
    first = jobs.submit(["true"], key="nightly", unique_for=1)
    jobs.start_job(first.id)
    clock.advance(3600)

    assert jobs.submit(["true"], key="nightly").id == first.id


def test_keys_of_workspaces_are_apart(jobs):
    """A key is unique in its workspace only."""
    place = jobs.create_workspace("other")
    first = jobs.submit(["true"], key="nightly")
    second = jobs.submit(["true"], key="nightly", workspace_id=place.id)

    assert first.id != second.id
    assert jobs.submit(["true"], key="nightly", workspace_id=place.id).id == second.id


def test_retry_takes_the_key_over(jobs, clock):
    """The next attempt holds the key; so does a waiting one."""
    first = end(jobs, jobs.submit(["true"], key="nightly", unique_for=60), 1)
    again = jobs.retry_job(first.id)
    assert again.key == "nightly"
    assert jobs.submit(["true"], key="nightly").id == again.id

    end(jobs, again, 1)
    assert jobs.submit(["true"], key="nightly").id == again.id  # until 60 s after the first
    clock.advance(61)
    assert jobs.submit(["true"], key="nightly").id not in (first.id, again.id)


def test_retry_is_refused_while_another_job_holds_the_key(jobs):
    """The key stays with the job that has it."""
    first = end(jobs, jobs.submit(["true"], key="nightly"), 1)
    second = jobs.submit(["true"], key="nightly")

    with pytest.raises(DuplicateKey) as caught:
        jobs.retry_job(first.id)

    assert caught.value.job_id == second.id


def test_automatic_retry_holds_the_key(jobs):
    """While a job waits for its next attempt, no other job gets the key."""
    line = jobs.create_pipeline("line", ["true"], max_retries=1)
    first = end(jobs, jobs.create_job(pipeline_id=line.id, key="nightly"), 1)
    again = jobs.submit(["true"], key="nightly")

    assert (again.retry_of, again.attempt, again.status) == (first.id, 2, Status.QUEUED)
    assert again.next_attempt == again.not_before
    assert again.waits_for == "time"


def start_and_die(database):
    """Start a task with a key, and end without finishing it."""
    jobs = JobManager(database, slots=0)
    return jobs.start_job(jobs.create_job("TASK", key="nightly").id).id


def test_job_that_has_ended_unsettled_holds_no_key(database):
    """A call with the key of a task of a dead process settles that task first."""
    left = in_child(start_and_die, database)
    with JobManager(database, slots=0) as jobs:
        again = jobs.submit(["true"], key="nightly")

        assert again.id != left
        assert jobs.get_job(left).status == Status.ERROR


def submit_each(database):
    """Submit 40 jobs with keys, and return their ids."""
    with JobManager(database, slots=0) as jobs:
        return [jobs.submit(["true"], key=f"k{n}").id for n in range(40)]


def test_two_processes_that_race_get_one_job(database):
    """Both get the same jobs, one for each key."""
    JobManager(database, slots=0).close()
    found = at_once(submit_each, [(database,)] * 2)

    assert found[0] == found[1]
    assert len(set(found[0])) == 40
    with JobManager(database, slots=0) as jobs:
        assert len(jobs.list_jobs(limit=100)) == 40


def submit_and_say(say, database):
    """Submit 240 jobs with keys; say each round."""
    with JobManager(database, slots=0) as jobs:
        for n in range(60):
            jobs.submit(["true"], key=f"k{n}")
            jobs.submit_many([Submission(["true"], key=f"k{n}-{m}") for m in range(3)])
            say(str(n))


def test_repeated_after_kills_leaves_one_job_for_each_key(database):
    """A program that is killed and run again, as often as it takes, creates each job once."""
    for line in ("5", "30"):
        with host(submit_and_say, database) as program:
            while program.hear() != line:
                pass
            program.kill()
        assert program.end() == -9
    with host(submit_and_say, database) as program:
        assert program.end() == 0
    with JobManager(database, slots=0) as jobs:
        keys = [job.key for job in jobs.list_jobs(limit=1000)]

    assert len(keys) == len(set(keys)) == 240


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("count", [3, 23])
def test_submit_many_with_keys(jobs, count):
    """Jobs whose keys others hold are returned in their place; the rest is created."""
    first = jobs.submit(["true"], key="k1")
    made = jobs.submit_many(
        [Submission(["true"], key=f"k{n}", name=f"n{n}", priority=n) for n in range(count)],
        group="g",
    )

    assert made[1].id == first.id
    assert [job.key for job in made] == [f"k{n}" for n in range(count)]
    assert (made[2].name, made[2].priority, made[2].group) == ("n2", 2, "g")
    assert jobs.count_jobs()["QUEUED"] == count
    assert jobs.submit(["true"], key="k2").id == made[2].id
    again = jobs.submit_many([Submission(["true"], key=f"k{n}") for n in range(count)])
    assert [job.id for job in again] == [job.id for job in made]
    assert jobs.count_jobs()["QUEUED"] == count


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("count", [3, 23])
def test_submit_many_can_raise(jobs, count):
    """With one conflict, no job is created."""
    first = jobs.submit(["true"], key="k2")

    with pytest.raises(DuplicateKey) as caught:
        jobs.submit_many(
            [Submission(["true"], key=f"k{n}") for n in range(count)], on_conflict="raise"
        )

    assert caught.value.job_id == first.id
    assert len(jobs.list_jobs()) == 1
    jobs.submit(["true"], key="k1", on_conflict="raise")


def test_batch_takes_over_keys_whose_time_is_over(jobs, clock, small_batches):
    """A staged batch releases the keys of final jobs, as a single job does."""
    first = end(jobs, jobs.submit(["true"], key="k1", unique_for=10))
    clock.advance(20)
    made = jobs.submit_many([Submission(["true"], key=f"k{n}") for n in range(small_batches + 1)])

    assert made[1].id != first.id


def test_same_key_twice_in_a_call_is_refused(jobs):
    """It would create one job for two."""
    with pytest.raises(CommandError, match="two jobs of this call have the key 'a'"):
        jobs.submit_many([Submission(["true"], key="a"), Submission(["false"], key="a")])
    assert jobs.list_jobs() == []


def test_functions_have_keys(jobs):
    """`submit_function` takes them beside the function's own arguments."""
    first = jobs.submit_function("time:sleep", 0, key="nap", priority=2, group="g", expires=60)

    assert jobs.submit_function("time:sleep", 1, key="nap").id == first.id
    assert (first.priority, first.group, first.key) == (2, "g", "nap")
    with pytest.raises(DuplicateKey):
        jobs.submit_function("time:sleep", 1, key="nap", on_conflict="raise")
    with pytest.raises(CommandError, match="key is an argument of submit_function, and"):
        jobs.submit_function(sorted_by, [1], key="x")


def sorted_by(values, key=None):
    """Have a parameter that `submit_function` has too."""


def test_stored_environment_goes_with_the_job_that_is_not_created(jobs):
    """The environment of a call that returns another job is not kept."""
    jobs.submit(["true"], key="a")
    jobs.submit(["true"], key="a", env_from="submitter")

    with parts(jobs).database.read() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM environment").scalar() == 0


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"key": ""}, "key must have 1 to 255 characters, not 0"),
        ({"key": "x" * 256}, "key must have 1 to 255 characters, not 256"),
        ({"key": 5}, "key must be a string, not 5"),
        ({"group": ""}, "group must have 1 to 255 characters"),
        ({"priority": 1.5}, "priority must be an integer"),
        ({"priority": 2**31}, "priority must be an integer"),
        ({"unique_for": 5}, "unique_for needs a key"),
        ({"key": "a", "unique_for": -1}, "unique_for must be 0 to"),
        ({"expires": -1}, "expires must be 0 to"),
        ({"expires": "soon"}, "expires must be 0 to"),
    ],
)
def test_wrong_arguments_create_nothing(jobs, given, text):
    """The text names the argument and the value."""
    with pytest.raises(CommandError, match=text):
        jobs.submit(["true"], **given)
    assert jobs.list_jobs() == []


def test_queue_fields_of_a_job_are_shown(jobs):
    """Priority, group and expiry are stored, and copied by a retry."""
    made = jobs.submit(["true"], priority=-3, group="gpu", expires=60)

    assert (made.priority, made.group, made.waits_for) == (-3, "gpu", None)
    assert (made.expires - made.created).total_seconds() == 60
    again = jobs.retry_job(end(jobs, made, 1).id)
    assert (again.priority, again.group, again.expires) == (-3, "gpu", None)
    assert made.duration is None
    assert jobs.get_job(made.id).duration == 0.0


def test_keys_of_jobs_that_wait_for_others(jobs, small_batches):
    """A job that is returned in place of another is what the others then wait for."""
    held = jobs.submit(["true"], key="a")
    first = jobs.submit(["true"], after=[held.id], key="b")
    assert jobs.submit(["true"], after=[held.id], key="b").id == first.id

    for count in (0, small_batches):
        made = jobs.submit_many(
            [
                Submission(["true"], key="a", ref="up"),
                Submission(["true"], after=["up"]),
                *([["true"]] * count),
            ]
        )
        assert made[0].id == held.id
        assert made[1].waits_for == "dependencies"
        waiting = made[1].id
    end(jobs, held)

    assert jobs.get_job(waiting).waits_for is None
    assert jobs.get_job(first.id).waits_for is None


def test_unknown_holder_is_not_invented(jobs):
    """A deleted holder is nobody's answer."""
    first = jobs.submit(["true"], key="a")
    jobs.delete_job(first.id)
    with pytest.raises(JobNotFound):
        jobs.get_job(first.id)

    assert jobs.submit(["true"], key="a").status == Status.QUEUED


def test_commands_and_functions_in_submissions(jobs):
    """A submission takes what `submit` takes as a command."""
    made = jobs.submit_many(
        [Submission(Command(["true"]), name="a"), ["true"], Submission(function_command("m:f"))],
        name="b",
    )

    assert [job.name for job in made] == ["a", "b", "b"]
