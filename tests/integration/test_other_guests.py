"""Other guests: what else lives in a host's process neither breaks jobcore nor sees its secrets."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from jobcore import JobManager, SpawnError, Status
from tests.processes import PATIENCE, run_python

#: Listeners as hosts and their tracers have them, each on a class, before and after the manager.
LISTENERS = """
import sys
from sqlalchemy import Engine, event
from sqlalchemy.engine import Connection, Dialect
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.pool import NullPool, Pool

seen = []

def spoil(*_, **__):
    seen.append("called")
    raise RuntimeError("a listener of the host")

def listen():
    for target in (Engine, Connection):
        for name in ("before_execute", "after_execute", "before_cursor_execute",
                     "after_cursor_execute", "begin", "commit", "rollback", "savepoint",
                     "engine_connect", "set_connection_execution_options"):
            event.listen(target, name, spoil)
    for target in (Engine, Pool, NullPool):
        for name in ("connect", "first_connect", "checkout", "checkin", "close", "reset",
                     "invalidate", "close_detached", "detach"):
            event.listen(target, name, spoil)
    for target in (Engine, DefaultDialect):
        for name in ("do_connect", "do_execute", "do_executemany", "do_execute_no_params",
                     "handle_error"):
            event.listen(target, name, spoil)
"""
WORK = """
from jobcore import JobManager, StoreError

def work():
    with JobManager("jobs.db", slots=1) as jobs:
        listen()
        pipeline = jobs.create_pipeline("p", ["true"], schedule="0 0 * * *")
        job = jobs.submit(["sh", "-c", "echo $SECRET"], env={"SECRET": "canary"})
        assert [line.text for line in jobs.follow(job.id)] == ["canary"]
        assert jobs.wait(job.id).exit_code == 0
        assert len(jobs.list_jobs()) == 1 and len(list(jobs.events())) == 3
        jobs.delete_pipeline(pipeline.id)
        jobs.prune(0)

work()
listen()
work()
assert seen == [], seen

# The host's own engines have them all the same.
from sqlalchemy import create_engine, text
engine = create_engine("sqlite://")
try:
    engine.connect()
except RuntimeError:
    pass
assert seen == ["called"], seen
"""
#: A host that logs all that its libraries say, and replaces what makes engines.
LOGS = """
import io, logging
import sqlalchemy
told = io.StringIO()
logging.basicConfig(level=logging.DEBUG, stream=told)
for name in ("sqlalchemy", "sqlalchemy.engine", "sqlalchemy.pool"):
    logging.getLogger(name).setLevel(logging.DEBUG)

def traced(*_, **__):
    raise RuntimeError("a tracer of the host")

sqlalchemy.create_engine = traced
from jobcore import JobManager
with JobManager("jobs.db", slots=1) as jobs:
    job = jobs.submit(["sh", "-c", "true"], env={"SECRET": "canary"})
    jobs.wait(job.id)
    assert len(jobs.list_jobs()) == 1
assert "canary" not in told.getvalue()
assert "SELECT" not in told.getvalue(), told.getvalue()[:2000]
"""


@pytest.mark.parametrize("source", [LISTENERS + WORK, LOGS], ids=["listeners", "logs"])
def test_listeners_of_the_host_do_not_see_jobcore(tmp_path, source):
    """Listeners on SQLAlchemy's classes and its loggers concern the host's own engines alone."""
    run_python(f"import os; os.chdir({str(tmp_path)!r})\n{source}")


def test_a_host_whose_threads_stand_still_runs_no_jobs(database, monkeypatch):
    """Under uWSGI without `enable-threads` slots are refused at once, and queueing works."""
    monkeypatch.setitem(sys.modules, "uwsgi", SimpleNamespace(opt={b"master": True}))
    with pytest.raises(SpawnError, match="enable-threads") as refused:
        JobManager(database, slots=1)
    with JobManager(database, slots=0) as jobs:
        assert jobs.submit(["true"]).status is Status.QUEUED
    sys.modules["uwsgi"].opt[b"enable-threads"] = True
    with JobManager(database, slots=1) as jobs:
        jobs.drain(PATIENCE)

    assert refused.value.lasting
