"""Singer messages of a tap are piped into target-jsonl, as the command of a pipeline."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from jobcore import Status
from tests.processes import ROOT, carrying, until
from tests.real.conftest import LONG

TARGET = shutil.which("target-jsonl")
pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(
        not TARGET,
        reason="target-jsonl is not on PATH: install it in a virtual environment of its own",
    ),
]

TAP = str(ROOT / "tests" / "real" / "tap_orders.py")
GOOD = "id,item\n1,tea\n2,Käse\n3,milk\n"
BROKEN = "id,item\n1,tea\n2,Käse\nthree,milk\n"
ROWS = [{"id": 1, "item": "tea"}, {"id": 2, "item": "Käse"}, {"id": 3, "item": "milk"}]


@pytest.fixture
def pipeline(manager, folder, env):
    """Return a pipeline of tap and target, which fails if either does."""
    config = {"destination_path": "out", "do_timestamp_file": False}
    (folder / "target.json").write_text(json.dumps(config))
    python = Path(TARGET).with_name("python")  # it has singer-python, which the target needs, too
    piped = f"{python} {TAP} orders.csv | {TARGET} --config target.json"
    return manager.create_pipeline(
        "orders",
        ["bash", "-o", "pipefail", "-c", piped],
        cwd=str(folder),
        env=env,
        max_retries=1,
    )


def arrived(folder):
    """Return the rows that the target has written."""
    written = folder / "out" / "orders.jsonl"
    return (
        [json.loads(line) for line in written.read_text().splitlines()] if written.exists() else []
    )


def counted(lines):
    """Return how many rows the tap says it has read."""
    found = [re.search(r'METRIC: (\{.*"record_count".*\})', line) for line in lines]
    return [json.loads(one[1])["value"] for one in found if one]


def test_the_rows_arrive_and_the_state_is_in_the_log(manager, pipeline, folder, text_of):
    """A sync is COMPLETE with its rows there; the log has the tap's metric and the state."""
    (folder / "orders.csv").write_text(GOOD)
    job = manager.wait(manager.create_job(pipeline_id=pipeline.id).id, timeout=LONG)
    lines = text_of(job)

    assert (job.status, job.exit_code) == (Status.COMPLETE, 0), "\n".join(lines)
    assert arrived(folder) == ROWS
    assert counted(lines) == [3]
    assert '{"orders": 3}' in lines


def test_a_tap_that_fails_is_retried_and_then_succeeds(manager, pipeline, folder, text_of, retried):
    """A broken row makes ERROR with the tap's code and traceback; mended, the retry succeeds."""
    (folder / "orders.csv").write_text(BROKEN)
    failed = manager.wait(manager.create_job(pipeline_id=pipeline.id).id, timeout=LONG)
    lines = text_of(failed)

    assert (failed.status, failed.exit_code) == (Status.ERROR, 3), "\n".join(lines)
    assert arrived(folder) == ROWS[:2]
    assert "Traceback (most recent call last):" in lines
    assert any(line.startswith("ValueError: ") and "'three'" in line for line in lines), lines
    assert not any(line.startswith('{"orders"') for line in lines), lines

    (folder / "orders.csv").write_text(GOOD)
    shutil.rmtree(folder / "out")
    again = retried(failed)

    assert (again.status, again.exit_code) == (Status.COMPLETE, 0), "\n".join(text_of(again))
    assert arrived(folder) == ROWS
    assert '{"orders": 3}' in text_of(again)


def test_a_sync_that_is_stopped_leaves_no_process(manager, pipeline, folder, env, feed):
    """Stopped while rows arrive, shell, tap and target are all gone."""
    endless = feed(folder / "orders.csv")
    endless.write("id,item\n1,tea\n")
    job = manager.create_job(pipeline_id=pipeline.id)
    until(lambda: arrived(folder) == ROWS[:1], "the first row", LONG)
    running = len(carrying(env["JOBCORE_TEST"]))

    manager.stop_job(job.id)
    stopped = manager.wait(job.id, timeout=LONG)

    assert running == 3
    assert (stopped.status, stopped.reason) == (Status.STOPPED, "stopped")
    assert carrying(env["JOBCORE_TEST"]) == []
    assert arrived(folder) == ROWS[:1]
    assert manager.list_jobs(pipeline_id=pipeline.id, status="QUEUED") == []
