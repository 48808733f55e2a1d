"""Gunicorn: the service that README prints, preloaded, with two workers and the queue beside it."""

from __future__ import annotations

import configparser
import os
import shlex
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager

import pytest
import requests

from jobcore import JobManager
from tests.faults.invariants import check
from tests.processes import PATIENCE, ROOT, until
from tests.texts import between, blocks

WSGI, CONFIGURATION = blocks("python", between("gunicorn"))
(WORK,) = blocks("sh", between("gunicorn"))
(UNIT,) = blocks("ini", between("systemd"))

#: Says a line, and goes on until it is stopped or somebody makes the file.
BUILD = "echo built by $$; while [ ! -e go ]; do sleep 0.02; done; exit 5\n"


class Service:
    """The processes of the service, and requests to it."""

    def __init__(self, folder):
        self.folder = folder
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/builds"
        self._processes = []
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        python = [sys.executable, "-m"]
        # The socket is here before the server, so no request comes too early.
        bind = ["--bind", f"fd://{self._socket.fileno()}", "--graceful-timeout", "5"]
        self.server = self._start([*python, "gunicorn", *bind], environment)
        self.work = self._start([*python, *shlex.split(WORK)], environment)

    def _start(self, command, environment):
        with (self.folder / f"log {len(self._processes)}").open("wb") as log:
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=environment,
                stdout=log,
                stderr=log,
                pass_fds=[self._socket.fileno()],
            )
        self._processes.append(process)
        return process

    def __call__(self, method, path=""):
        """Return what the service answers, a new connection for each request."""
        answer = requests.request(method, self._url + path, timeout=PATIENCE)
        assert answer.status_code < 300, answer.text
        return answer

    def workers(self):
        """Return the pids of the server's workers."""
        path = f"/proc/{self.server.pid}/task/{self.server.pid}/children"
        with open(path) as children:
            return {int(pid) for pid in children.read().split()}

    def close(self):
        """End all of it, whatever has become of it."""
        for process in self._processes:
            if process.poll() is None:
                process.terminate()
        for process in self._processes:
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._socket.close()

    def told(self):
        """Return what its processes have said."""
        logs = sorted(self.folder.glob("log *"))
        return "\n".join(log.read_text() for log in logs)


@contextmanager
def serving(folder):
    """Give the service; nothing of it is there afterwards."""
    (folder / "wsgi.py").write_text(WSGI)
    (folder / "gunicorn.conf.py").write_text(CONFIGURATION)
    (folder / "build.sh").write_text(BUILD)
    service = Service(folder)
    try:
        yield service
    finally:
        service.close()
        print(service.told())


def test_a_preloaded_service_and_its_queue_keep_true_jobs(tmp_path):
    """Workers submit, read and stop jobs; a death or restart of workers costs no job anything."""
    with serving(tmp_path) as service, JobManager(tmp_path / "jobs.db", slots=0) as jobs:
        kept, stopped = (service("POST").json()["id"] for _ in range(2))
        for job_id in (kept, stopped):
            next(jobs.follow(job_id, timeout=PATIENCE))
        assert service("GET", f"/{kept}/log").text.startswith("built by")
        service("DELETE", f"/{stopped}")
        first = until(lambda: len(found := service.workers()) == 2 and found, "two workers")
        os.kill(min(first), signal.SIGKILL)
        until(lambda: len(service.workers() - {min(first)}) == 2, "another worker")
        first |= service.workers()
        os.kill(service.server.pid, signal.SIGHUP)
        until(lambda: not service.workers() & first and len(service.workers()) == 2, "new workers")
        later = service("POST").json()["id"]
        (tmp_path / "go").touch()
        for job_id in (kept, stopped, later):
            jobs.wait(job_id, PATIENCE)
        ended = [service("GET", f"/{job_id}").json() for job_id in (kept, stopped, later)]
        assert [(job["status"], job["exitCode"]) for job in ended[::2]] == [("ERROR", 5)] * 2
        assert ended[1]["status"] == "STOPPED"
        service.server.terminate()
        assert service.server.wait(PATIENCE) == 0

    assert "Traceback" not in service.told()
    with JobManager(tmp_path / "jobs.db", slots=0) as jobs:
        assert sum(jobs.count_jobs().values()) == 3
        check(jobs)


def test_the_unit_runs_the_queue_and_leaves_jobs_alone():
    """What README has for systemd is the command of the example, and ends that process alone."""
    unit = configparser.ConfigParser()
    unit.optionxform = str
    unit.read_string(UNIT)
    program, *arguments = shlex.split(unit["Service"]["ExecStart"])

    assert os.path.basename(program) == "jobcore"
    assert ["jobcore", *arguments] == shlex.split(WORK)
    assert unit["Service"]["KillMode"] == "process"


@pytest.mark.parametrize("name", ["preload_app", "workers", "wsgi_app"])
def test_the_configuration_is_one_of_gunicorn(name):
    """The names are gunicorn's own, which would take any others in silence."""
    from gunicorn.config import KNOWN_SETTINGS  # noqa: PLC0415 - slow to load

    known = {setting.name for setting in KNOWN_SETTINGS}
    given = {}
    exec(CONFIGURATION, given)

    assert name in given
    assert set(given) - {"__builtins__"} <= known
