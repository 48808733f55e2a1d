"""HTTP: Matatika's Jobs API over real sockets, by an adapter that README prints."""

from __future__ import annotations

import gc
import json
import threading
from contextlib import contextmanager
from datetime import datetime
from uuid import UUID, uuid4

import pytest
import requests
from werkzeug.serving import WSGIRequestHandler, make_server

from jobcore import Command, Status
from tests.integration.http_adapter import create_app
from tests.processes import PATIENCE, ROOT, open_gate
from tests.programs import HELD
from tests.texts import TEXT, between

UNKNOWN = "f8a00cdb-4c65-4668-9112-add1fa9d9b97"

#: The Python example of each request, as Matatika's Jobs API prints it, but for the address.
EXAMPLE = """\
import requests

url = "{url}"

headers = {{
  'Authorization': ACCESS_TOKEN
}}

response = requests.request("{method}", url, headers=headers)

print(response.text.encode('utf8'))
"""


class _Handler(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"  # with chunks, so that a client sees where a body ends

    def log(self, *_):
        """Say nothing."""


class Service:
    """The adapter on a loopback port, with a manager and what the tests ask of it."""

    def __init__(self, jobs, address, gate):
        self.jobs = jobs
        self.api = f"http://127.0.0.1:{address[1]}/api"
        self.session = requests.Session()
        self.gate = gate

    def __call__(self, method, path, code, **options):
        """Return the response to a request, which must have this code."""
        got = self.session.request(method, self.api + path, timeout=PATIENCE, **options)
        assert got.status_code == code, got.text
        return got

    def example(self, method, path):
        """Return the response that the printed example gets, and what it prints."""
        printed = []
        names = {"ACCESS_TOKEN": "Bearer token", "print": printed.append}
        exec(EXAMPLE.format(method=method, url=self.api + path), names)
        return names["response"], printed

    def pipeline(self, script=HELD, name="p"):
        """Return the id of a pipeline that runs a script."""
        command = Command(["sh", "-c", script], env={"GATE": self.gate})
        return str(self.jobs.create_pipeline(name, command).id)

    def start(self, script=HELD):
        """Return the id of a job, run from a pipeline of its own."""
        pipeline = self.pipeline(script, name=uuid4().hex)
        return self("POST", f"/pipelines/{pipeline}/jobs", 201).json()["id"]

    def start_held(self):
        """Return the id of a HELD job that has said its first line."""
        job = self.start()
        assert next(self.jobs.follow(job, timeout=PATIENCE)).text == "ready"
        return job

    def done(self, script):
        """Return the id of a job that has ended."""
        job = self.start(script)
        self.jobs.wait(job, PATIENCE)
        return job

    @contextmanager
    def streamed(self, job, accept="application/x-ndjson"):
        """Give the lines of a log as they come."""
        options = {"stream": True, "headers": {"Accept": accept}}
        got = self("GET", f"/jobs/{job}/logs?follow=true", 200, **options)
        with got:
            yield got.iter_lines(chunk_size=1)


@pytest.fixture
def service(running_jobs, gate, monkeypatch):
    """Return the service; when it is shut down no thread of it is left."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")  # nobody between this process and itself
    before = set(threading.enumerate())
    app = create_app(running_jobs)
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=_Handler)
    server.daemon_threads = False  # so that closing it waits for all requests
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), name="http")
    thread.start()
    made = Service(running_jobs, server.server_address, gate)
    yield made
    made.session.close()
    server.shutdown()
    thread.join(PATIENCE)
    server.server_close()
    # Where a client leaves at the wrong moment, Werkzeug drops its selector without closing it.
    gc.collect()
    left = set(threading.enumerate()) - before
    assert [one for one in left if not one.name.startswith("jobcore-")] == []


def check_error(got, path, part):
    """An error is an object that says the code, its name, what is wrong and where."""
    form = got.json()

    assert got.headers["Content-Type"] == "application/json"
    assert set(form) == {"timestamp", "status", "error", "message", "path"}
    assert (form["status"], form["error"]) == (got.status_code, got.reason.title())
    assert (form["path"], part in form["message"]) == (path, True), form
    assert datetime.fromisoformat(form["timestamp"].replace("Z", "+00:00")).tzinfo is not None


def test_readme_prints_the_adapter():
    """README shows the file that is tested here, and it is short."""
    source = (ROOT / "tests/integration/http_adapter.py").read_text()
    shown = between("adapter")

    assert shown.partition("```python\n")[2] == f"{source}```\n"
    assert len(source.splitlines()) <= 120


def test_jobcore_knows_no_web_framework():
    """The adapter's libraries are the tests' alone."""
    sources = [path.read_text() for path in (ROOT / "jobcore").rglob("*.py")]

    for name in ("flask", "werkzeug", "requests"):
        assert [s for s in sources if f"import {name}" in s or f"from {name}" in s] == []


def test_the_printed_examples(service):
    """Each printed example of the API gets the promised code and body."""
    pipeline = service.pipeline()
    created, _ = service.example("POST", f"/pipelines/{pipeline}/jobs")
    job = created.json()["id"]
    assert next(service.jobs.follow(job, timeout=PATIENCE)).text == "ready"
    workspace = created.json()["workspaceId"]
    viewed, printed = service.example("GET", f"/jobs/{job}")
    of_workspace, _ = service.example("GET", f"/workspaces/{workspace}/jobs")
    of_pipeline, _ = service.example("GET", f"/pipelines/{pipeline}/jobs")
    logs, log = service.example("GET", f"/jobs/{job}/logs?sequence=0")
    stopped, _ = service.example("PUT", f"/jobs/{job}/stopped")
    service.jobs.wait(job, PATIENCE)
    deleted, nothing = service.example("DELETE", f"/jobs/{job}")

    assert [one.status_code for one in (created, viewed, of_workspace, of_pipeline, logs)] == [
        201, 200, 200, 200, 200,
    ]  # fmt: skip
    assert (stopped.status_code, deleted.status_code) == (202, 204)
    assert created.headers["Location"] == f"{service.api}/jobs/{job}"
    assert printed == [viewed.text.encode()]
    assert of_workspace.json()["_embedded"] == of_pipeline.json()["_embedded"]
    assert [one["id"] for one in of_pipeline.json()["_embedded"]["jobs"]] == [job]
    assert log == [b"ready\n"]
    assert set(stopped.json()) == {"timestamp", "status", "message"}
    assert job in stopped.json()["message"]
    assert nothing == [b""]


def test_a_job_in_each_state(service):
    """Its fields and links fit its status: `stop job` is there while it is RUNNING."""
    job = service.start_held()
    running = service("GET", f"/jobs/{job}", 200)
    open_gate(service.gate)
    service.jobs.wait(job, PATIENCE)
    final = service("GET", f"/jobs/{job}", 200).json()
    form = running.json()
    own = f"{service.api}/jobs/{job}"

    assert running.headers["Content-Type"] == "application/hal+json"
    assert list(form)[:7] == [
        "id", "created", "type", "exitCode", "status", "startTime", "endTime",
    ]  # fmt: skip
    assert (UUID(form["id"]).version, form["type"]) == (4, "PIPELINE_RUN")
    assert (form["status"], form["exitCode"], form["endTime"]) == ("RUNNING", None, None)
    assert form["_embedded"]["pipeline"]["id"] == form["pipelineId"]
    assert form["_links"]["stop job"] == {"href": f"{own}/stopped", "type": "PUT"}
    assert (final["status"], final["exitCode"], final["reason"]) == ("ERROR", 4, "exited")
    assert final["startTime"] <= final["endTime"]
    assert "stop job" not in final["_links"]
    assert final["_links"]["delete job"] == {"href": own, "type": "DELETE"}


def test_every_link_leads_somewhere(service):
    """Each GET link of a job works."""
    job = service.done("echo hello")
    links = service("GET", f"/jobs/{job}", 200).json()["_links"]
    names = {name for name, link in links.items() if "type" not in link}
    assert names == {"self", "workspace", "pipeline", "logs"}

    for name in names:
        got = service("GET", links[name]["href"].removeprefix(service.api), 200)
        if name != "logs":
            assert got.json()["_links"]["self"] == links[name]


def test_running_or_completed(service):
    """A listing has the jobs that are past the queue, in whatever way they ended."""
    pipeline = service.pipeline()
    of_pipeline = service("POST", f"/pipelines/{pipeline}/jobs", 201).json()
    assert next(service.jobs.follow(of_pipeline["id"], timeout=PATIENCE)).text == "ready"
    workspace = of_pipeline["workspaceId"]
    tasks = [str(service.jobs.create_job("PROFILE_IMPORT").id) for _ in range(4)]
    for task, code in zip(tasks[1:], (0, 1, None), strict=True):
        service.jobs.start_job(task)
        if code is not None:
            service.jobs.finish_job(task, code)
    service.jobs.stop_job(tasks[3])
    got = service("GET", f"/workspaces/{workspace}/jobs", 200).json()["_embedded"]["jobs"]

    assert [(one["id"], one["status"]) for one in got] == [
        (tasks[3], "STOPPED"), (tasks[2], "ERROR"), (tasks[1], "COMPLETE"),
        (of_pipeline["id"], "RUNNING"),
    ]  # fmt: skip
    assert service.jobs.get_job(tasks[0]).status is Status.QUEUED


def test_pages_by_their_links(service):
    """Following `next` from page to page gives every job once, newest first."""
    tasks = [service.jobs.create_job("PROFILE_IMPORT") for _ in range(5)]
    for task in tasks:
        service.jobs.start_job(task.id)
    path = f"/workspaces/{tasks[0].workspace_id}/jobs?limit=2"
    seen, pages = [], 0
    while path:
        page = service("GET", path, 200).json()
        assert page["_links"]["self"]["href"] == service.api + path
        seen += [one["id"] for one in page["_embedded"]["jobs"]]
        path = page["_links"].get("next", {"href": ""})["href"].removeprefix(service.api)
        pages += 1

    assert seen == [str(task.id) for task in reversed(tasks)]
    assert pages == 3
    for wrong in ("limit=x", "before=-1", "limit="):
        where = f"/workspaces/{tasks[0].workspace_id}/jobs"
        check_error(service("GET", f"{where}?{wrong}", 400), f"/api{where}", wrong.split("=")[0])


@pytest.mark.parametrize("accept", [None, "*/*", "text/plain", "text/*", "image/png, */*;q=0.1"])
def test_logs_as_text(service, accept):
    """Whoever takes text, or anything, gets the bytes that the job wrote."""
    job = service.done(r"printf 'a\n\303\251\n\377\nno end'")
    got = service("GET", f"/jobs/{job}/logs", 200, headers={"Accept": accept})

    assert got.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert got.content == b"a\n\xc3\xa9\n\xff\nno end"
    assert service("GET", f"/jobs/{job}/logs?sequence=2", 200).content == b"\xff\nno end"


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("application/x-ndjson", "application/x-ndjson"),
        ("application/stream+json", "application/stream+json"),
        ("application/*", "application/x-ndjson"),
        ("text/plain;q=0.5, application/stream+json", "application/stream+json"),
    ],
)
def test_logs_as_ndjson(service, accept, expected):
    """Whoever prefers NDJSON gets an object a line, under the name that was asked for."""
    job = service.done("echo a; echo b")
    got = service("GET", f"/jobs/{job}/logs?sequence=1", 200, headers={"Accept": accept})
    (line,) = got.iter_lines()
    form = json.loads(line)

    assert got.headers["Content-Type"] == expected
    assert list(form) == ["sequence", "timestamp", "stream", "message"]
    assert (form["sequence"], form["stream"], form["message"]) == (1, "output", "b")


def test_readmes_line_object_is_the_real_one(service):
    """The object that README shows, and its table, have the fields that are sent."""
    shown = json.loads(between("ndjson").partition("```json\n")[2].partition("\n")[0])
    table = TEXT.partition("| Field | Is |")[2].partition("\n\n")[0]
    job = service.done("echo extract")
    options = {"headers": {"Accept": "application/x-ndjson"}}
    sent = service("GET", f"/jobs/{job}/logs", 200, **options).json()

    assert {**sent, "timestamp": shown["timestamp"]} == shown
    assert list(sent) == list(shown)
    for name in [*shown, "fields", "partial"]:
        assert f"| `{name}` |" in table


def test_nothing_to_return(service):
    """A log without such a line, yet or at all, is answered with 204 and no body."""
    silent, job = service.done("true"), service.start_held()

    for path in (
        f"/jobs/{silent}/logs", f"/jobs/{silent}/logs?follow=true",
        f"/jobs/{job}/logs?sequence=1", f"/jobs/{job}/logs?sequence={10**30}",
    ):  # fmt: skip
        got = service("GET", path, 204)
        assert (got.content, "Transfer-Encoding" in got.headers) == (b"", False)


@pytest.mark.parametrize("sequence", ["-1", "x", "", "1.0", "%2B1", "%201", "1_0", "%D9%A3"])
def test_a_bad_sequence(service, sequence):
    """An invalid line number is 400, even if there is no such job."""
    for job in (str(service.jobs.create_job("TASK").id), UNKNOWN):
        path = f"/jobs/{job}/logs"
        check_error(service("GET", f"{path}?sequence={sequence}", 400), f"/api{path}", "sequence")


@pytest.mark.parametrize("accept", ["application/json", "text/html", "text/plain;q=0", "junk"])
def test_not_acceptable(service, accept):
    """If no offered type is accepted, the answer is 406 and lists the types."""
    path = f"/jobs/{service.jobs.create_job('TASK').id}/logs"
    got = service("GET", path, 406, headers={"Accept": accept})

    check_error(got, f"/api{path}", "application/x-ndjson")


@pytest.mark.parametrize("wrong", [UNKNOWN, "not-a-uuid", "0", "%00", UNKNOWN + "0", "é"])
def test_no_such_thing(service, wrong):
    """An id that nothing has, or that is no UUID at all, is 404 for every request."""
    requested = [
        ("GET", f"/workspaces/{wrong}/jobs"), ("GET", f"/pipelines/{wrong}/jobs"),
        ("GET", f"/jobs/{wrong}"), ("GET", f"/jobs/{wrong}/logs"),
        ("GET", f"/jobs/{wrong}/logs?follow=true"), ("POST", f"/pipelines/{wrong}/jobs"),
        ("PUT", f"/jobs/{wrong}/stopped"), ("DELETE", f"/jobs/{wrong}"),
    ]  # fmt: skip

    for method, path in requested:
        got = service(method, path, 404)
        check_error(got, got.json()["path"], "")
        assert got.json()["path"].startswith("/api/")


def test_no_such_path_or_method(service):
    """The framework's own errors have the same form."""
    check_error(service("GET", "/nothing", 404), "/api/nothing", "")
    refused = service("PATCH", f"/jobs/{UNKNOWN}", 405)

    check_error(refused, f"/api/jobs/{UNKNOWN}", "")
    assert {"GET", "DELETE"} <= set(refused.headers["Allow"].split(", "))


def test_conflicts(service):
    """A second job of a running pipeline and a stop of an ended job are 409."""
    pipeline = service.pipeline()
    path = f"/pipelines/{pipeline}/jobs"
    job = service("POST", path, 201).json()["id"]
    check_error(service("POST", path, 409), f"/api{path}", job)
    queued = str(service.jobs.create_job("TASK").id)
    check_error(service("PUT", f"/jobs/{queued}/stopped", 409), f"/api/jobs/{queued}/stopped", "")
    open_gate(service.gate)
    service.jobs.wait(job, PATIENCE)
    check_error(service("PUT", f"/jobs/{job}/stopped", 409), f"/api/jobs/{job}/stopped", "ERROR")
    again = service("POST", path, 201).json()["id"]

    assert again != job
    open_gate(service.gate)
    service.jobs.wait(again, PATIENCE)


def test_stop(service):
    """A stop is accepted while the job runs, and it ends STOPPED."""
    job = service.start("echo ready; exec sleep 300")
    next(service.jobs.follow(job, timeout=PATIENCE))
    options = {"headers": {"Content-Type": "application/json"}}  # and no body, as cURL sends it
    form = service("PUT", f"/jobs/{job}/stopped", 202, **options).json()
    service.jobs.wait(job, PATIENCE)

    assert (form["status"], job in form["message"]) == (202, True)
    assert service("GET", f"/jobs/{job}", 200).json()["status"] == "STOPPED"


def test_delete(service):
    """A deleted job has been stopped, and is nowhere any more."""
    job = service.start("echo ready; exec sleep 300")
    next(service.jobs.follow(job, timeout=PATIENCE))
    got = service("DELETE", f"/jobs/{job}", 204)

    assert got.content == b""
    for method, path in (("GET", ""), ("GET", "/logs"), ("PUT", "/stopped"), ("DELETE", "")):
        service(method, f"/jobs/{job}{path}", 404)


@pytest.mark.parametrize("accept", ["application/x-ndjson", "text/plain"])
def test_a_log_that_still_grows(service, accept):
    """A client reads the first line while the job runs, and the stream ends with the job."""
    job = service.start()
    with service.streamed(job, accept) as lines:
        first = next(lines)
        status = service("GET", f"/jobs/{job}", 200).json()["status"]
        open_gate(service.gate)
        rest = list(lines)
    said = [first, *rest]
    if accept != "text/plain":
        said = [json.loads(line)["message"].encode() for line in said]

    assert status == "RUNNING"
    assert said == [b"ready", b"going"]
    assert service("GET", f"/jobs/{job}", 200).json()["exitCode"] == 4


def test_a_job_deleted_while_its_log_streams(service):
    """The stream ends behind a whole line, as a complete response; the next request is 404."""
    job = service.start_held()
    with service.streamed(job) as lines:
        first = json.loads(next(lines))
        service("DELETE", f"/jobs/{job}", 204)
        rest = [json.loads(line) for line in lines]  # an unfinished body or line would raise

    assert (first["sequence"], first["message"]) == (0, "ready")
    assert [line["sequence"] for line in rest] == list(range(1, len(rest) + 1))
    service("GET", f"/jobs/{job}/logs?follow=true&sequence={len(rest) + 1}", 404)


def test_a_client_that_goes_away(service):
    """A reader that leaves in the middle disturbs neither the job nor the service."""
    job = service.start("i=0; while [ $i -lt 2000 ]; do i=$((i+1)); echo line $i; done")
    with service.streamed(job) as lines:
        next(lines)
    done = service.jobs.wait(job, PATIENCE)

    assert (done.status, done.line_count) == (Status.COMPLETE, 2000)
    assert service("GET", f"/jobs/{job}/logs?sequence=1999", 200).text == "line 2000\n"


def test_a_large_log(service):
    """A log of many chunks arrives whole and in order."""
    job = service.done("i=0; while [ $i -lt 30000 ]; do i=$((i+1)); echo line $i; done")
    got = service("GET", f"/jobs/{job}/logs", 200)

    assert got.content == b"".join(b"line %d\n" % n for n in range(1, 30001))
    assert got.headers["Transfer-Encoding"] == "chunked"


def test_internal_errors_are_not_shown_to_clients():
    """An internal error is 500 without details, and complete in the log."""
    app = create_app(None)  # so that every request fails in an unforeseen way
    with app.test_client() as client:
        got = client.get(f"/api/jobs/{uuid4()}")

    assert got.status_code == 500
    assert "NoneType" not in got.text
    assert (got.json["error"], got.json["status"]) == ("Internal Server Error", 500)
