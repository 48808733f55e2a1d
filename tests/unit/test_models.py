"""Models: what callers get, how it looks in JSON, and tables that nobody else sees."""

from __future__ import annotations

import copy
import json
import pickle
from datetime import datetime, timezone
from uuid import UUID, uuid4

import pydantic
import pytest
import sqlmodel
from fastapi.encoders import jsonable_encoder
from hypothesis import given
from hypothesis import strategies as st

from jobcore import (
    Command,
    Event,
    Job,
    JobManager,
    LogLine,
    Pipeline,
    Progress,
    Reason,
    Retries,
    Status,
    Transition,
    Workspace,
    wire,
)
from jobcore.models import ClaimedJob
from jobcore.storage import tables
from tests.cases import each

MOMENT = datetime(2024, 5, 6, 7, 8, 9, 123456, tzinfo=timezone.utc)


def make_job(**fields):
    """Return a job as it could have been read."""
    return Job(
        **{
            "id": UUID(int=1, version=4), "created": MOMENT, "type": "COMMAND", "exit_code": 143,
            "status": Status.STOPPED, "start_time": MOMENT, "end_time": MOMENT, "number": 7,
            "workspace_id": UUID(int=2, version=4), "pipeline_id": None, "name": None,
            "data": {"someKey": [1, None]}, "reason": Reason.TIMEOUT, "signal": 15, "attempt": 1,
            "retry_of": None, "not_before": None, "env_from": "worker", "stop_requested": None,
            "progress": Progress(done=3, total=10, message="loading", at=MOMENT), "line_count": 3,
            "dropped": 0, "left_processes": 0, "cpu_seconds": 0.25, "max_rss": 1024,
            "key": "nightly", "priority": 3, "group": "gpu", "expires": MOMENT,
            "hook_of": UUID(int=3, version=4), "run_if": "ended", "retries": Retries(2),
            "next_attempt": MOMENT, "waits_for": "time",
            **fields,
        }
    )  # fmt: skip


def test_job_in_json():
    """A job's JSON has the seed's names, camelCase beside them, ISO times in UTC, and its nulls."""
    expected = {
        "id": "00000000-0000-4000-8000-000000000001",
        "created": "2024-05-06T07:08:09.123456Z",
        "type": "COMMAND",
        "exitCode": 143,
        "status": "STOPPED",
        "startTime": "2024-05-06T07:08:09.123456Z",
        "endTime": "2024-05-06T07:08:09.123456Z",
        "number": 7,
        "workspaceId": "00000000-0000-4000-8000-000000000002",
        "pipelineId": None,
        "name": None,
        "data": {"someKey": [1, None]},
        "reason": "timeout",
        "signal": 15,
        "attempt": 1,
        "retryOf": None,
        "notBefore": None,
        "envFrom": "worker",
        "stopRequested": None,
        "progress": {
            "done": 3.0, "total": 10.0, "message": "loading", "at": "2024-05-06T07:08:09.123456Z",
        },
        "lineCount": 3,
        "dropped": 0,
        "leftProcesses": 0,
        "cpuSeconds": 0.25,
        "maxRss": 1024,
        "key": "nightly",
        "priority": 3,
        "group": "gpu",
        "expires": "2024-05-06T07:08:09.123456Z",
        "hookOf": "00000000-0000-4000-8000-000000000003",
        "runIf": "ended",
        "retries": {
            "max": 2, "delay": 10.0, "factor": 2.0, "maxDelay": 3600.0, "jitter": 0.0,
            "on": ["error", "lost"],
        },
        "nextAttempt": "2024-05-06T07:08:09.123456Z",
        "waitsFor": "time",
    }  # fmt: skip

    assert json.loads(make_job().model_dump_json()) == expected
    assert make_job().model_dump(mode="json") == expected
    assert list(json.loads(make_job().model_dump_json())) == list(expected)


def test_job_schema_names_the_same_fields():
    """The JSON schema that a web framework shows has the fields that the JSON has."""
    expected = set(make_job().model_dump(mode="json"))

    assert set(Job.model_json_schema(mode="serialization")["properties"]) == expected


def test_job_comes_back_from_its_own_forms():
    """A job read back from a dump, or from its JSON, is the same job."""
    job = make_job()

    assert Job.model_validate(job.model_dump()) == job
    assert Job.model_validate(job.model_dump(by_alias=False)) == job
    assert Job.model_validate_json(job.model_dump_json()) == job


def test_model_is_frozen():
    """A model cannot be changed."""
    job = make_job()

    for name in ("status", "exit_code", "id"):
        with pytest.raises(pydantic.ValidationError):
            setattr(job, name, None)


def test_python_form_keeps_its_types():
    """In Python a job has enums, UUIDs and aware datetimes."""
    job = make_job()

    assert job.status is Status.STOPPED
    assert job.reason is Reason.TIMEOUT
    assert job.created.tzinfo is not None
    assert job.model_dump()["created"] == MOMENT


@pytest.mark.parametrize("model", [Job, ClaimedJob, Progress, Workspace, Pipeline, Transition])
def test_every_field_has_a_camel_case_name(model):
    """No field is in JSON under a name with an underscore."""
    names = set(model.model_json_schema(mode="serialization")["properties"])

    assert [name for name in names if "_" in name] == []


def test_stored_job_comes_back_as_it_was(jobs, clock):
    """The database returns the created job, exact to the microsecond."""
    clock.set_wall(1_700_000_000_123_456)
    data = {"a": [1, 2.5, None, "é\U0001f600"], "b": {"c": True}}
    job = jobs.create_job("TASK", name="é\0b", data=data)
    clock.advance(1.5)
    jobs.start_job(job.id)
    clock.advance(2.25)
    done = jobs.finish_job(job.id, 3)
    got = jobs.get_job(str(job.id).upper())

    assert got == done
    assert (got.data, got.name) == (data, "é\0b")
    assert got.created == datetime(2023, 11, 14, 22, 13, 20, 123456, tzinfo=timezone.utc)
    assert (got.start_time - got.created).total_seconds() == 1.5
    assert (got.end_time - got.start_time).total_seconds() == 2.25
    assert (got.status, got.exit_code, got.reason) == (Status.ERROR, 3, Reason.EXITED)
    assert jobs.list_jobs() == [got]


@pytest.mark.parametrize("data", [None, 0, "", [], {}, False, 1.5, "null", [None]], ids=repr)
def test_any_json_is_data(jobs, data):
    """A host's JSON comes back equal, also empty values and None."""
    job = jobs.create_job("TASK", data=data)

    assert jobs.get_job(job.id).data == data


def test_secrets_are_in_no_public_form(jobs):
    """Neither the repr nor the JSON of a job or pipeline shows its command's secrets."""
    canary = "s3cr3t-canary"
    command = Command(["true"], env={"A": canary}, stdin=canary.encode(), redact=[canary])
    job = jobs.submit(command)
    pipeline = jobs.create_pipeline("p", command)
    claimed = ClaimedJob.model_validate(job.model_dump())
    claimed._command = command
    shown = [
        *(repr(one) for one in (job, pipeline, claimed)),
        *(str(one) for one in (job, pipeline, claimed)),
        *(one.model_dump_json() for one in (job, pipeline, claimed)),
        repr(jobs.history(job.id)),
    ]

    assert [text for text in shown if canary in text] == []
    assert pipeline.command == command


def test_tables_are_not_in_the_hosts_metadata():
    """A host's `create_all` does not make jobcore's tables, nor does jobcore make the host's."""
    ours = {
        "store", "batch", "workspace", "pipeline", "link", "pipeline_note", "skip", "job",
        "environment", "log_segment", "result", "transition", "workspace_count", "pipeline_count",
        "requirement", "dependency", "undecided", "job_limit", "setting",
    }  # fmt: skip

    assert set(tables.METADATA.tables) == ours
    assert set(sqlmodel.SQLModel.metadata.tables) & ours == set()


def test_host_may_have_tables_of_the_same_name():
    """A host's own model called `job` is no conflict."""

    class JobRow(sqlmodel.SQLModel, table=True):
        __tablename__ = "job"
        id: int | None = sqlmodel.Field(default=None, primary_key=True)

    try:
        assert JobRow.__table__ is not tables.job
        assert "job" in sqlmodel.SQLModel.metadata.tables
    finally:
        sqlmodel.SQLModel.metadata.remove(JobRow.__table__)


@each(
    ("raw", "text"),
    [
        (b"a\n", "a"),
        (b"a\r\n", "a"),
        (b"a\r", "a\r"),
        (b"a", "a"),
        (b"\n", ""),
        (b"\r\n", ""),
        (b"", ""),
        (b"a\n\n", "a\n"),
        (b"a\r\r\n", "a\r"),
        (b"\xff\xfe\n", "��"),
        ("é\U0001f600\n".encode(), "é\U0001f600"),
        (b"a\0b\n", "a\0b"),
        (b"\xe2\x82", "�"),
    ],
)
def test_text_is_the_line_without_one_terminator(raw, text):
    """A line's text lacks one LF or CRLF and nothing else; raw has every byte."""
    line = LogLine(0, 0, "output", raw)

    assert (line.text, line.raw) == (text, raw)


@given(st.binary())
def test_text_of_any_bytes_can_be_sent(raw):
    """Whatever a command writes, its text is valid Unicode."""
    LogLine(0, 0, "output", raw).text.encode("utf-8")


def test_line_has_the_time_of_its_reading():
    """A line's time stamp is an aware UTC datetime."""
    line = LogLine(5, 1_700_000_000_123_456_789, "stderr", b"x\n", partial=True)
    expected = datetime(2023, 11, 14, 22, 13, 20, 123456, tzinfo=timezone.utc)

    assert line.timestamp == expected
    assert (line.sequence, line.stream, line.partial) == (5, "stderr", True)
    assert repr(line) == "LogLine(5, stderr, 'x')"


def test_lines_are_equal_when_all_of_them_is():
    """Two lines are equal only when number, time, stream, bytes and mark are."""
    facts = (1, 2, "output", b"x\n")
    line = LogLine(*facts)
    others = [
        LogLine(2, 2, "output", b"x\n"), LogLine(1, 3, "output", b"x\n"),
        LogLine(1, 2, "stderr", b"x\n"), LogLine(1, 2, "output", b"x"),
        LogLine(*facts, partial=True),
    ]  # fmt: skip

    assert line == LogLine(*facts)
    assert hash(line) == hash(LogLine(*facts))
    assert [other for other in others if other == line] == []
    assert line != (*facts, False)
    for again in (copy.copy(line), copy.deepcopy(line), pickle.loads(pickle.dumps(line))):
        assert (again, repr(again)) == (line, repr(line))


def test_line_is_frozen():
    """A line that was read does not change."""
    line = LogLine(1, 2, "output", b"x\n")

    for name in ("sequence", "stream", "raw", "partial", "other", "__class__"):
        with pytest.raises(AttributeError):
            setattr(line, name, 9)
        with pytest.raises(AttributeError):
            delattr(line, name)


def test_unknown_columns_are_not_shown():
    """A newer file's further columns are no part of a job."""
    job = Job.model_validate({**make_job().model_dump(), "id": uuid4(), "token": "x"})

    assert not hasattr(job, "token")


def test_a_log_line_is_an_object_in_json():
    """Pydantic makes the object of NDJSON from a line, and its schema agrees."""
    line = LogLine(3, 1_700_000_000_123_456_789, "output", b'{"a": 1}\n')
    lines = pydantic.TypeAdapter(list[LogLine])
    sent = json.loads(lines.dump_json([line]))

    assert sent == [line.to_object()] == [json.loads(next(wire.ndjson([line])))]
    assert sent[0]["fields"] == {"a": 1}
    assert lines.dump_python([line]) == [line]
    assert lines.validate_python([line])[0] is line
    (schema,) = [lines.json_schema(mode="serialization")["items"]]
    assert set(schema["required"]) <= set(sent[0]) <= set(schema["properties"])


@pytest.mark.parametrize("raw", [b'{"a": 1}\n', b"\xff\r\n", b"", "é\n".encode()])
@pytest.mark.parametrize("sequence", [3, None])
def test_a_log_line_is_nowhere_an_array_in_json(raw, sequence):
    """FastAPI makes an object of one without being told its type, and `json` refuses it by name."""
    line = LogLine(sequence, 1_700_000_000_123_456_789, "output", raw, partial=sequence is None)
    sent = line.to_object()

    assert json.loads(json.dumps(sent)) == sent == dict(line)
    assert jsonable_encoder([line]) == [sent]
    assert json.loads(json.dumps([line], default=dict)) == [sent]
    with pytest.raises(TypeError, match="LogLine is not JSON serializable"):
        json.dumps([line])


@pytest.mark.parametrize("model", [Job, Pipeline, Workspace, Event, Transition])
def test_a_services_documentation_names_fields_as_they_are_sent(model):
    """Titles are words, and each description is at the field that is sent."""
    schema = model.model_json_schema(mode="serialization")
    shown = json.dumps(schema["description"])

    assert "Attributes" not in shown
    for name, field in schema["properties"].items():
        assert field["description"].strip()
        title = field.get("title", "")
        assert title.replace(" ", "").lower() in (name.lower(), "")
        assert title[:1].isupper() or not title
    assert "_" not in "".join(schema["properties"])


def test_the_status_of_a_pipeline_is_one_of_three():
    """A client's generator sees which words there are."""
    schema = Pipeline.model_json_schema()

    assert schema["$defs"]["PipelineStatus"]["enum"] == ["READY", "PROVISIONING", "FAILED"]
    assert schema["properties"]["catchUp"]["enum"] == ["skip", "last", "all"]


def test_job_read_from_json_equals_the_original(database):
    """A round trip through JSON loses the command, which no service returns, and nothing else."""
    with JobManager(database, slots=0) as jobs:
        job = jobs.submit(["true"])

    copy = type(job).model_validate_json(job.model_dump_json())

    assert (copy, hash(copy)) == (job, hash(job))
    assert str(job.command) == "true"
    assert copy.command is None
