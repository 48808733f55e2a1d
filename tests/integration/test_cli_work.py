"""`work` tells people and logs what it starts and ends, tells systemd, and can drain."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess

import pytest

from jobcore import JobManager, Status
from jobcore.cli import worker
from tests.integration.verbs_harness import fork, in_a_pipe, on_a_terminal
from tests.processes import PATIENCE, ROOT, open_gate, until


@pytest.fixture
def queued(database):
    """Return three jobs: one that ends well, one that does not, and one without a name."""
    with JobManager(database, slots=0) as jobs:
        yield [
            jobs.submit(["true"], name="good"),
            jobs.submit(["sh", "-c", "exit 3"], name="bad\x1b[2J"),
            jobs.submit(["sh", "-c", "kill -9 $$"]),
        ]


def start(database, *words, **variables):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JOBCORE_DB": database, **variables}
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return fork([["work", *words]], environment, text=True, **pipes)


LINES = [
    r"#1 started: good", r"#1 COMPLETE in \d+\.\ds: good",
    r"#2 started: bad", r"#2 ERROR in \d+\.\ds, exit code 3: bad",
    r"#3 started: sh -c 'kill -9 \$\$'", r"#3 ERROR in \d+\.\ds, SIGKILL: sh -c 'kill.*",
]  # fmt: skip


def test_people_see_the_pipeline_of_a_script(database, jobs):
    """A run of it has neither a name nor a command."""
    pipeline = jobs.create_pipeline("nightly", script="exit 3")
    jobs.create_job(pipeline_id=pipeline.id)
    (shown,) = on_a_terminal(database, [["work", "--drain"]])

    assert [line.rpartition(": ")[2] for line in shown.splitlines()] == ["nightly", "nightly"]


@pytest.mark.parametrize("terminal", [True, False])
def test_people_see_what_starts_and_ends(database, queued, terminal):
    """On a terminal, or with `-v`: a line for each, without the control characters of a name."""
    del queued
    words = ["work", "--slots", "1", "--drain"]
    if terminal:
        (shown,) = on_a_terminal(database, [words])
    else:
        shown, err = in_a_pipe(database, [[*words, "-v"]])
        assert err == ""
    lines = shown.splitlines()

    assert len(lines) == len(LINES)
    for line, pattern in zip(lines, LINES, strict=True):
        assert re.fullmatch(rf"\d\d:\d\d:\d\d  {pattern}", line), line


def test_log_gets_json_lines(database, queued):
    """Without a terminal: an object per line on stderr, with ids, endings and durations."""
    out, err = in_a_pipe(database, [["work", "--slots", "1", "--drain"]])
    entries = [json.loads(line) for line in err.splitlines()]
    ends = [one for one in entries if one["event"] == "job ended"]

    assert out == ""
    assert [one["event"] for one in entries] == ["job started", "job ended"] * 3
    assert [one["job"] for one in ends] == [str(job.id) for job in queued]
    assert [(one["status"], one["reason"], one["exit_code"], one["signal"]) for one in ends] == [
        ("COMPLETE", "exited", 0, None),
        ("ERROR", "exited", 3, None),
        ("ERROR", "signaled", 137, 9),
    ]
    assert [one["level"] for one in ends] == ["info", "warning", "warning"]
    assert all(isinstance(one["seconds"], float) for one in ends)
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+Z", one["timestamp"]) for one in entries)


@pytest.mark.parametrize("abstract", [True, False])
def test_systemd_is_notified_of_start_and_stop(database, tmp_path, abstract):
    """READY=1 once the database is open, STOPPING=1 at the signal."""
    address = f"\0{tmp_path}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as service:
        service.bind(address)
        service.settimeout(PATIENCE)
        process = start(database, NOTIFY_SOCKET=address.replace("\0", "@"))
        assert service.recv(100) == b"READY=1"
        assert os.path.exists(database)
        process.send_signal(signal.SIGTERM)
        assert service.recv(100) == b"STOPPING=1"
    _, err = process.communicate(timeout=PATIENCE)

    assert (process.returncode, "no more jobs are started; 0 running" in err) == (0, True)


def test_missing_service_manager_is_only_reported(monkeypatch, capsys, tmp_path):
    """A stale variable does not keep the worker from working."""
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    worker.notify("READY=1")

    assert "cannot send READY=1 to the service manager: No such file" in capsys.readouterr().err

    for value in ("", "relative"):
        monkeypatch.setenv("NOTIFY_SOCKET", value)
        worker.notify("READY=1")
    assert capsys.readouterr().err == ""


def test_drain_on_stop_waits_for_what_runs_and_starts_no_more(database, gate):
    """After the signal, the running job ends and is printed; the next one stays queued."""
    with JobManager(database, slots=0) as jobs:
        first = jobs.submit(["sh", "-c", f"read x <'{gate}'; exit 5"], name="first")
        process = start(database, "--slots", "1", "--drain-on-stop", "-v")
        until(lambda: jobs.get_job(first.id).status is Status.RUNNING, "the start")
        second = jobs.submit(["true"])
        process.send_signal(signal.SIGTERM)
        assert "waiting for 1 running jobs" in process.stderr.readline()
        assert jobs.get_job(first.id).status is Status.RUNNING
        open_gate(gate)
        out, _ = process.communicate(timeout=PATIENCE)

        assert process.returncode == 0
        assert "#1 ERROR" in out
        assert jobs.get_job(first.id).exit_code == 5
        assert jobs.get_job(second.id).status is Status.QUEUED


def test_second_signal_ends_the_drain(database, gate):
    """The job is left to itself then."""
    with JobManager(database, slots=0) as jobs:
        job = jobs.submit(["sh", "-c", f"read x <'{gate}'; exit 5"])
        process = start(database, "--slots", "1", "--drain-on-stop")
        until(lambda: jobs.get_job(job.id).status is Status.RUNNING, "the start")
        process.send_signal(signal.SIGTERM)
        while process.poll() is None:  # those within a second count as one
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(0.2)
            except subprocess.TimeoutExpired:
                pass  # not yet
        process.communicate(timeout=PATIENCE)

        assert process.returncode == 128 + signal.SIGTERM
        assert jobs.get_job(job.id).status is Status.RUNNING
        open_gate(gate)
        assert jobs.wait(job.id, PATIENCE).exit_code == 5
