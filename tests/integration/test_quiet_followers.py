"""Quiet followers: README's services answer all else while fifty clients follow a silent job."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import pytest
import requests

from jobcore import JobManager
from tests.processes import PATIENCE, ROOT, until
from tests.programs import SLEEPS
from tests.texts import between, blocks

FOLLOWERS = 50
#: In front of a service, so that a test need not wait for 15 seconds.
OFTEN = """\
import functools
from jobcore import wire
for name in ("log_response", "log_response_async"):
    setattr(wire, name, functools.partial(getattr(wire, name), heartbeat=0.1))
"""
FLASK = """\
from http_adapter import create_app
from jobcore import JobManager
app = create_app(JobManager("jobs.db", slots=0, busy_timeout=5))
"""


def flask(folder, descriptor):
    """Return what runs README's adapter as README's gunicorn.conf.py has it."""
    (folder / "wsgi.py").write_text(OFTEN + FLASK)
    adapter = (ROOT / "tests/integration/http_adapter.py").read_text()
    (folder / "http_adapter.py").write_text(adapter)
    (folder / "gunicorn.conf.py").write_text(blocks("python", between("gunicorn"))[1])
    return ["gunicorn", "--bind", f"fd://{descriptor}", "--graceful-timeout", "1"]


def fastapi(folder, descriptor):
    """Return what runs README's example, as README says."""
    (folder / "service.py").write_text(OFTEN + blocks("python", between("fastapi"))[0])
    (command,) = blocks("sh", between("fastapi"))
    return [*shlex.split(command), "--fd", str(descriptor)]


class Service:
    """A service in a process of its own, and its clients."""

    def __init__(self, server, process, port, job):
        self.server = server
        self.process = process
        self.job = job
        self._port = port
        job_path = "/api/jobs/{}" if server is flask else "/builds/{}"
        log_path = "/api/jobs/{}/logs" if server is flask else "/builds/{}/log"
        self.look = job_path.format(job)
        self.log = log_path.format(job)

    def get(self, path, **headers):
        """Return the answer to an ordinary request."""
        url = f"http://127.0.0.1:{self._port}{path}"
        if self.server is fastapi:  # uvicorn keeps the connection for five seconds
            headers["Connection"] = "close"
        return requests.get(url, headers=headers, timeout=PATIENCE)

    def follow(self, accept="text/plain"):
        """Return a connection that has asked to follow the job from its second line on."""
        client = socket.create_connection(("127.0.0.1", self._port), PATIENCE)
        client.sendall(
            f"GET {self.log}?follow=true&sequence=1 HTTP/1.1\r\nHost: localhost\r\n"
            f"Accept: {accept}\r\n\r\n".encode()
        )
        return client

    def code(self, client):
        """Return the status of an answer that begins."""
        return int(client.recv(65536).split()[1])

    @property
    def sockets(self):
        """How many connections the service's processes have with clients."""
        pids = [self.process.pid, *children(self.process.pid)]
        port = f":{self._port:04X}"
        with open("/proc/net/tcp") as table:
            rows = [line.split() for line in table]
        established = {row[9] for row in rows if row[1].endswith(port) and row[3] in ("01", "08")}
        return sum(
            link.removeprefix("socket:[").removesuffix("]") in established
            for pid in pids
            for link in links(pid)
        )


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as listed:
        return [int(child) for child in listed.read().split()]


def links(pid):
    folder = f"/proc/{pid}/fd"
    for name in os.listdir(folder):
        try:
            yield os.readlink(f"{folder}/{name}")
        except FileNotFoundError:
            continue


@contextmanager
def serving(folder, server):
    """Give a service with a quiet job; nothing of it is left."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    with listener, JobManager(folder / "jobs.db", slots=1, on_exit="stop") as jobs:
        job = jobs.submit(SLEEPS)
        assert next(jobs.follow(job.id, timeout=PATIENCE)).text == "ready"
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", *server(folder, listener.fileno())],
                cwd=folder,
                env={**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(folder)},
                stdout=log,
                stderr=log,
                pass_fds=[listener.fileno()],
            )
        try:
            yield Service(server, process, listener.getsockname()[1], job.id)
            process.terminate()
            process.wait(PATIENCE)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            print((folder / "log").read_text())


@pytest.mark.parametrize("server", [flask, fastapi])
def test_a_service_answers_beside_quiet_followers(tmp_path, server):
    """It answers requests, refuses followers above the limit, and drops those that left."""
    with serving(tmp_path, server) as service:
        # Fifty once; for the other forms as many as are more than the limit.
        crowds = {"text/plain": FOLLOWERS, "application/x-ndjson": 10, "text/event-stream": 10}
        for accept, crowd in crowds.items():
            clients = [service.follow(accept) for _ in range(crowd)]
            codes = [service.code(client) for client in clients]
            with ThreadPoolExecutor(10) as pool:
                answers = list(pool.map(service.get, [service.look] * 20))
            most = 6 if server is flask else crowd
            assert [answer.status_code for answer in answers] == [200] * 20, accept
            # gunicorn's workers share them as they like
            assert 2 < codes.count(200) <= most, accept
            assert set(codes) <= {200, 503}, accept
            assert server is flask or codes == [200] * crowd, accept

            for client in clients:
                client.close()
            until(lambda: service.sockets == 0, "followers that are noticed to be gone")
            with service.follow(accept) as another:
                assert service.code(another) == 200, accept
            until(lambda: service.sockets == 0, "the last one, too")


@pytest.mark.parametrize("server", [flask, fastapi])
def test_browser_continues_after_its_last_event(tmp_path, server):
    """Events have the numbers of the lines as ids, and one that reconnects gets the next one."""
    with serving(tmp_path, server) as service:
        url = f"{service.log}?follow=true"
        with requests.get(
            f"http://127.0.0.1:{service._port}{url}",
            headers={"Accept": "text/event-stream"},
            stream=True,
            timeout=PATIENCE,
        ) as answer:
            fields = (line for line in answer.iter_lines() if line and not line.startswith(b":"))
            first, data = next(fields), next(fields)
        with JobManager(tmp_path / "jobs.db", slots=0) as jobs:
            jobs.stop_job(service.job)
            last = jobs.wait(service.job, PATIENCE).line_count - 1
        again, ended = (
            service.get(url, **{"Accept": "text/event-stream", "Last-Event-ID": str(seen)})
            for seen in (0, last)
        )

    assert answer.headers["Content-Type"].startswith("text/event-stream")
    assert answer.headers["Cache-Control"] == "no-cache"
    assert first == b"id: 0"
    assert json.loads(data.removeprefix(b"data: "))["message"] == "ready"
    assert re.findall(rb"^id: (.*)$", again.content, re.MULTILINE) == [
        b"%d" % number for number in range(1, last + 1)
    ]
    assert (ended.status_code, ended.content) == (204, b"")


def test_the_loop_service_answers_as_the_others_do(tmp_path):
    """Jobs are made, shown and stopped, and what goes wrong is an object with its status."""
    with serving(tmp_path, fastapi) as service:
        url = f"http://127.0.0.1:{service._port}/builds"
        send = partial(requests.request, timeout=PATIENCE)
        made = send("POST", url)
        shown = service.get(service.look).json()
        missing = service.get("/builds/none")
        wrong = service.get(f"{service.log}?sequence=-1")
        conflict = send("DELETE", f"{url}/{made.json()['id']}")
        stopped = send("DELETE", f"{url}/{service.job}")
        described = service.get("/openapi.json").json()

    assert (made.status_code, made.json()["status"]) == (201, "QUEUED")
    assert (shown["id"], shown["status"], shown["exitCode"]) == (
        str(service.job), "RUNNING", None,
    )  # fmt: skip
    assert (missing.status_code, missing.json()["path"]) == (404, "/builds/none")
    assert (wrong.status_code, "sequence" in wrong.json()["message"]) == (400, True)
    assert conflict.status_code == 409
    assert stopped.status_code == 202
    assert "exitCode" in described["components"]["schemas"]["Job"]["properties"]
