"""HAL: jobs as Matatika's Jobs API shows them, with links that say what can be done."""

from __future__ import annotations

import json
import re
from datetime import datetime, timedelta, timezone
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobcore import Job, Progress, Reason, Retries, Status, wire

BASE = "https://app.example.org/api"
#: The fields of Matatika's Jobs API, in its order.
SEVEN = ["id", "created", "type", "exitCode", "status", "startTime", "endTime"]
TIMES = st.datetimes(datetime(1970, 1, 2), datetime(2200, 1, 1)).map(  # noqa: DTZ001 - made aware
    lambda moment: moment.replace(tzinfo=timezone(timedelta(hours=2)))
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False,
    allow_infinity=False) | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner),
    max_leaves=8,
)  # fmt: skip
IDS = st.uuids(version=4)
AMOUNTS = st.floats(0, 1e32, allow_nan=False)
PROGRESS = st.fixed_dictionaries({
    "done": AMOUNTS, "total": st.none() | AMOUNTS,
    "message": st.none() | st.text(st.characters(codec="utf-8")), "at": TIMES,
}).map(lambda fields: Progress(**fields))  # fmt: skip
#: Not `builds`: it would fill in the fields a second time, under their names in JSON.
JOBS = st.fixed_dictionaries({
    "id": IDS, "created": TIMES, "type": st.text(st.characters(codec="utf-8"), min_size=1),
    "exit_code": st.none() | st.integers(0, 255), "status": st.sampled_from(Status),
    "start_time": st.none() | TIMES, "end_time": st.none() | TIMES,
    "number": st.integers(1, 2**53), "workspace_id": IDS, "pipeline_id": st.none() | IDS,
    "name": st.none() | st.text(st.characters(codec="utf-8")), "data": JSON,
    "reason": st.none() | st.sampled_from(Reason), "signal": st.none() | st.integers(1, 64),
    "attempt": st.integers(1, 99), "retry_of": st.none() | IDS, "not_before": st.none() | TIMES,
    "env_from": st.sampled_from(["submitter", "worker"]),
    "stop_requested": st.none() | TIMES, "progress": st.none() | PROGRESS,
    "line_count": st.integers(0, 2**53), "dropped": st.integers(0, 2**53),
    "cpu_seconds": st.none() | st.floats(0, 1e9), "max_rss": st.none() | st.integers(0, 2**53),
    "left_processes": st.none() | st.integers(0, 2**31),
    "key": st.none() | st.text(st.characters(codec="utf-8")), "priority": st.integers(-9, 9),
    "group": st.none() | st.text(st.characters(codec="utf-8")), "expires": st.none() | TIMES,
    "hook_of": st.none() | IDS, "run_if": st.sampled_from([None, "complete", "ended", "failed"]),
    "retries": st.sampled_from([None, Retries(2, jitter=0.5)]),
    "next_attempt": st.none() | TIMES, "waits_for": st.sampled_from([None, "time", "dependencies"]),
}).map(lambda fields: Job(**fields))  # fmt: skip


def seven_fields_with_their_types_and_formats(job):
    """The API's fields come first, by name, type and format; null where there is no answer."""
    form = json.loads(json.dumps(wire.job_to_hal(job, BASE)))

    assert list(form)[:7] == SEVEN
    assert UUID(form["id"]).version == 4
    assert form["id"] == str(job.id)
    assert form["type"] == job.type
    assert form["status"] in {"QUEUED", "RUNNING", "COMPLETE", "ERROR", "STOPPED"}
    assert form["exitCode"] == job.exit_code
    for name, moment in (
        ("created", job.created), ("startTime", job.start_time), ("endTime", job.end_time),
    ):  # fmt: skip
        if moment is None:
            assert form[name] is None
        else:
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", form[name])
            assert datetime.fromisoformat(form[name].replace("Z", "+00:00")) == moment


def the_rest_is_the_jobs_own_json(job):
    """Beside links a job's form is exactly its JSON."""
    form = wire.job_to_hal(job, BASE)
    links = form.pop("_links")

    assert form == json.loads(job.model_dump_json())
    assert list(form) == list(json.loads(job.model_dump_json()))
    assert links


def links_say_what_can_be_done(job):
    """A stop is offered only while it is RUNNING, a pipeline where it has one, the rest always."""
    own = f"{BASE}/jobs/{job.id}"
    expected = {
        "self": {"href": own},
        "workspace": {"href": f"{BASE}/workspaces/{job.workspace_id}"},
        "logs": {"href": f"{own}/logs"},
        "delete job": {"href": own, "type": "DELETE"},
    }
    if job.status is Status.RUNNING:
        expected["stop job"] = {"href": f"{own}/stopped", "type": "PUT"}
    if job.pipeline_id is not None:
        expected["pipeline"] = {"href": f"{BASE}/pipelines/{job.pipeline_id}"}

    assert wire.job_to_hal(job, BASE)["_links"] == expected
    assert wire.job_to_hal(job, BASE + "/")["_links"] == expected


def job_comes_back_from_json_as_it_was(job):
    """A job read back from its JSON is the same, to the microsecond."""
    back = Job.model_validate_json(job.model_dump_json())

    assert back == job
    assert Job.model_validate_json(back.model_dump_json()) == back
    assert Job.model_validate(wire.job_to_hal(job, BASE)) == back  # links are no part of it


@given(JOBS)
def test_forms_of_any_job(job):
    """Its fields, the rest of it, its links, and the way back: of the same jobs, made once."""
    seven_fields_with_their_types_and_formats(job)
    the_rest_is_the_jobs_own_json(job)
    links_say_what_can_be_done(job)
    job_comes_back_from_json_as_it_was(job)


def test_job_is_a_response_model():
    """The schema of a response has the API's names, all required and described."""
    schema = Job.model_json_schema(mode="serialization")
    fields = schema["properties"]

    assert list(fields)[:7] == SEVEN
    assert set(schema["required"]) == set(fields)
    assert fields["id"] == {"format": "uuid", "title": "ID", "type": "string",
        "description": "Version 4 UUID.",
    }  # fmt: skip
    assert schema["$defs"]["Status"]["enum"] == [str(status) for status in Status]
    for name in ("exitCode", "startTime", "endTime"):
        assert {"type": "null"} in fields[name]["anyOf"]
    assert {"type": "string", "format": "date-time"}.items() <= fields["created"].items()
    assert {"type": "integer"} in fields["exitCode"]["anyOf"]


def test_schema_of_what_is_read_has_the_same_names():
    """A client that reads jobs with the model needs the same fields."""
    read, sent = (Job.model_json_schema(mode=mode) for mode in ("validation", "serialization"))

    assert set(read["properties"]) == set(sent["properties"])
    assert read["properties"]["created"]["format"] == "date-time"


def test_embedded_pipeline(jobs):
    """A pipeline is embedded whole where it is given, with its own links, and not else."""
    pipeline = jobs.create_pipeline("p", ["true"], timeout=60, properties={"tap.key": 1})
    job = jobs.create_job(pipeline_id=pipeline.id)
    form = wire.job_to_hal(job, BASE, pipeline=pipeline)
    (embedded,) = form["_embedded"].values()

    assert "_embedded" not in wire.job_to_hal(job, BASE)
    assert embedded == wire.pipeline_to_hal(pipeline, BASE)
    assert form["_links"]["pipeline"] == {"href": embedded["_links"]["self"]["href"]}
    assert (embedded["name"], embedded["timeout"]) == ("p", 60)
    assert embedded["properties"] == {"tap.key": 1}
    assert embedded["_links"]["jobs"]["href"] == f"{BASE}/pipelines/{pipeline.id}/jobs"
    assert embedded["_links"]["new job"] == {
        "href": f"{BASE}/pipelines/{pipeline.id}/jobs", "type": "POST",
    }  # fmt: skip


def test_workspace(jobs):
    """A workspace is its JSON with links to itself and its jobs."""
    workspace = jobs.create_workspace("w", properties={"a": [1]})
    form = wire.workspace_to_hal(workspace, BASE)
    links = form.pop("_links")
    own = f"{BASE}/workspaces/{workspace.id}"

    assert form == json.loads(workspace.model_dump_json())
    assert links == {"self": {"href": own}, "jobs": {"href": f"{own}/jobs"}}


@given(st.lists(JOBS, max_size=5), st.none() | st.integers(0, 7))
def test_collection(jobs, limit):
    """A collection has its jobs in order, and a next page exactly where this one is full."""
    form = wire.jobs_to_hal(jobs, BASE, self_path="/workspaces/w/jobs", limit=limit)

    assert form["_embedded"] == {"jobs": [wire.job_to_hal(job, BASE) for job in jobs]}
    assert form["_links"]["self"] == {"href": f"{BASE}/workspaces/w/jobs"}
    assert ("next" in form["_links"]) == (bool(jobs) and limit is not None and len(jobs) >= limit)


@pytest.mark.parametrize("slash", ["", "/"])
@pytest.mark.parametrize("query", ["", "?limit=9&status=RUNNING&before=5&q=a%26b&empty="])
def test_next_page_continues_after_the_last_job(jobs, slash, query):
    """The cursor is the last job's number; everything else of the query stays."""
    for _ in range(3):
        jobs.create_job("TASK")
    page = jobs.list_jobs(limit=2)
    path = f"{slash}pipelines/p/jobs{query}"
    links = wire.jobs_to_hal(page, BASE + slash, self_path=path, limit=2)["_links"]
    following = urlsplit(links["next"]["href"])
    expected = {"limit": ["2"], "before": [str(page[-1].number)]}
    if query:
        expected |= {"status": ["RUNNING"], "q": ["a&b"], "empty": [""]}

    assert links["self"]["href"] == f"{BASE}/pipelines/p/jobs{query}"
    assert following._replace(query="").geturl() == f"{BASE}/pipelines/p/jobs"
    assert parse_qs(following.query, keep_blank_values=True) == expected


def test_pages_are_every_job_once(jobs):
    """Whoever follows the cursor sees all jobs, newest first, each once."""
    made = [jobs.create_job("TASK") for _ in range(6)]
    seen, query = [], {"limit": "2"}
    while query is not None:
        page = wire.page(query)
        found = jobs.list_jobs(**page)
        seen += found
        links = wire.jobs_to_hal(found, BASE, self_path="/jobs", limit=page["limit"])["_links"]
        following = urlsplit(links["next"]["href"]).query if "next" in links else None
        query = following and {name: value for name, (value,) in parse_qs(following).items()}

    assert seen == made[::-1]
