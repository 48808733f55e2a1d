"""dlt loads files into DuckDB, as the script of a pipeline."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec

import pytest

from jobcore import Status
from tests.processes import ROOT, carrying, until
from tests.real.conftest import LONG
from tests.texts import between, blocks

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(
        not (find_spec("dlt") and find_spec("duckdb")),
        reason="dlt and DuckDB are not installed: pip install '.[integration]'",
    ),
]

ORDERS = [{"id": 1, "item": "tea"}, {"id": 2, "item": "Käse"}, {"id": 3, "item": "milk"}]
CUSTOMERS = [("Ann", "Berlin"), ("Bob", "Oslo")]


def of_readme(name):
    """Return the code that README has between the marks `name`."""
    return blocks("python", between(f"{name}:", f"end of {name}"))[0]


@pytest.fixture
def shop(folder):
    """Return the folder, with README's script, the files that it loads and a `python` for it."""
    python = folder / "home" / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="$HOME" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    # As root dlt writes to /var/dlt, whatever else it is told: so nobody is root there.
    (folder / "home" / "sitecustomize.py").write_text("import os\nos.geteuid = lambda: 65534\n")
    (folder / "load.py").write_text(of_readme("load.py"))
    write_orders(folder)
    rows = "".join(f"{name},{city}\n" for name, city in CUSTOMERS)
    (folder / "customers.csv").write_text("name,city\n" + rows)
    return folder


@pytest.fixture
def pipeline(manager, shop, env):
    """Return a pipeline that runs the script, and again if it fails."""
    return manager.create_pipeline(
        "shop", script="python load.py", cwd=str(shop), env=env, max_retries=1
    )


def write_orders(shop):
    (shop / "orders.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ORDERS))


def loaded(shop, query):
    """Return the rows that a query of the warehouse has."""
    import duckdb  # noqa: PLC0415 - it is there only with the extra

    with duckdb.connect(str(shop / "warehouse.duckdb"), read_only=True) as connection:
        return connection.execute(query).fetchall()


def orders_in(shop):
    return loaded(shop, "SELECT id, item FROM shop.orders ORDER BY id")


def assert_all_loaded(shop):
    assert orders_in(shop) == [(row["id"], row["item"]) for row in ORDERS]
    assert loaded(shop, "SELECT name, city FROM shop.customers ORDER BY name") == CUSTOMERS


def test_the_rows_arrive_and_the_log_is_the_tools_progress(manager, pipeline, shop, text_of):
    """A load is COMPLETE with its rows there; each line of dlt's progress is a line of the log."""
    job = manager.wait(manager.create_job(pipeline_id=pipeline.id).id, timeout=LONG)
    lines = text_of(job)

    assert (job.status, job.exit_code) == (Status.COMPLETE, 0), "\n".join(lines)
    assert_all_loaded(shop)
    steps = [
        found[1] for line in lines if (found := re.fullmatch(r"-+ (\w+) load_shop.* -+", line))
    ]
    assert [step for step, _ in itertools.groupby(steps)] == ["Extract", "Normalize", "Load"]
    for counted in ("orders: 3", "customers: 2"):
        assert [line for line in lines if re.fullmatch(rf"{counted}  \| Time: .*/s", line)], lines
    assert any(line.startswith("Load package ") and "LOADED" in line for line in lines), lines


def test_a_load_that_fails_is_retried_and_then_succeeds(manager, pipeline, shop, text_of, retried):
    """A broken file makes ERROR, with code and traceback of dlt; mended, the retry loads it all."""
    with open(shop / "orders.jsonl", "a") as file:
        file.write('{"id": 4, "item":\n')
    failed = manager.wait(manager.create_job(pipeline_id=pipeline.id).id, timeout=LONG)
    lines = text_of(failed)

    assert (failed.status, failed.exit_code) == (Status.ERROR, 1), "\n".join(lines)
    assert failed.attempt == 1
    assert "Traceback (most recent call last):" in lines
    assert any(line.startswith("json.decoder.JSONDecodeError: ") for line in lines), lines
    assert any("Pipeline execution failed at `step=extract`" in line for line in lines), lines

    write_orders(shop)
    again = retried(failed)

    assert (again.status, again.exit_code) == (Status.COMPLETE, 0), "\n".join(text_of(again))
    assert_all_loaded(shop)
    assert text_of(failed) == lines


def test_a_load_that_is_stopped_leaves_no_process_and_runs_again(
    manager, pipeline, shop, env, text_of, feed
):
    """In the middle of a load its progress is in the log; stopped, it is gone, and not retried."""
    (shop / "orders.jsonl").unlink()
    endless = feed(shop / "orders.jsonl")
    job = manager.create_job(pipeline_id=pipeline.id)

    def counts_orders():
        endless.write(json.dumps({"id": 0, "item": "endless"}) + "\n")
        return any(line.startswith("orders: ") for line in text_of(job))

    until(counts_orders, "dlt's own count of rows", LONG)
    assert manager.get_job(job.id).status is Status.RUNNING
    assert carrying(env["JOBCORE_TEST"])

    manager.stop_job(job.id)
    stopped = manager.wait(job.id, timeout=LONG)

    assert (stopped.status, stopped.reason) == (Status.STOPPED, "stopped")
    assert carrying(env["JOBCORE_TEST"]) == []
    assert manager.list_jobs(pipeline_id=pipeline.id, status="QUEUED") == []

    (shop / "orders.jsonl").unlink()
    write_orders(shop)
    again = manager.wait(manager.create_job(pipeline_id=pipeline.id).id, timeout=LONG)

    assert again.status is Status.COMPLETE, "\n".join(text_of(again))
    assert_all_loaded(shop)


def test_readme_shows_what_happens(shop, env):
    """The host's program in README prints the tool's progress, and how it ended."""
    done = subprocess.run(
        [sys.executable, "-c", of_readme("host")],
        capture_output=True,
        text=True,
        timeout=LONG,
        cwd=shop,
        env={**os.environ, **env, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    lines = done.stdout.splitlines()

    assert done.returncode == 0, done.stderr
    assert lines[-1] == "COMPLETE 0"
    assert [int(line.split(" ")[0]) for line in lines[:-1]] == list(range(len(lines) - 1))
    assert any(re.fullmatch(r"\d+ -+ Load load_shop .*", line) for line in lines), lines
    assert_all_loaded(shop)
