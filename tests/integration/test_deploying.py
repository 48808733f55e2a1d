"""Deploying: releases behind a link, as README's operating part describes it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys

import pytest

from jobcore import Command, JobManager, Status
from tests.processes import PATIENCE, ROOT, forked, open_gate

pytestmark = pytest.mark.cold_supervisors

MODULE = """
import os, time

def names_release(gate=None):
    if gate is not None:
        print("ready", flush=True)
        open(gate, "rb").read()
    return {release!r}
"""


@pytest.fixture
def site(tmp_path):
    """Return a place with two releases, each with a script and a module, and `current -> 1`."""
    for release in ("1", "2"):
        folder = tmp_path / "releases" / release
        folder.mkdir(parents=True)
        (folder / "report.sh").write_text(
            f'if [ -n "$1" ]; then echo ready; read -r _ < "$1"; fi; echo release {release}\n'
        )
        (folder / "shop.py").write_text(MODULE.format(release=release))
    os.mkdir(tmp_path / "data", 0o700)
    switch(tmp_path, "1")
    return tmp_path


def switch(site, release):
    """Have the link name another release, in one step."""
    os.symlink(f"releases/{release}", site / "next")
    os.replace(site / "next", site / "current")


class Worker:
    """`jobcore work`, started in the current release, as a unit of systemd does."""

    def __init__(self, site):
        environment = {**os.environ, "PYTHONPATH": f"{site}/current:{ROOT}"}
        database = f"{site}/data/jobs.db"
        words = ["-m", "jobcore", "--db", database, "work", "--slots", "2"]
        self.process = subprocess.Popen(
            [sys.executable, *words], cwd=site / "current", env=environment
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(PATIENCE) == 0


def submit_function(site, *args):
    """Submit a call from the current release, in a process of its own; return the job's id."""

    def program():
        sys.path.insert(0, f"{site}/current")
        import shop  # noqa: PLC0415 - it is a release's

        with JobManager(f"{site}/data/jobs.db", slots=0) as jobs:
            print(jobs.submit_function(shop.names_release, *args).id)

    process = forked(
        program, dict(os.environ), cwd=site / "data", stdout=subprocess.PIPE, text=True
    )
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said
    return said.strip()


def test_new_release_is_used_by_the_next_job_and_the_old_one_by_what_runs(site, gate):
    """A job that runs while the link is switched and the worker restarted ends as it began."""
    script = Command(["sh", "report.sh"], cwd=f"{site}/current")
    long = Command(["sh", "report.sh", str(gate)], cwd=f"{site}/current")
    with JobManager(f"{site}/data/jobs.db", slots=0) as jobs:
        pipeline = jobs.create_pipeline("report", script)
        with Worker(site):
            running = jobs.submit(long)
            assert next(jobs.follow(running.id, timeout=PATIENCE)).text == "ready"
            first = [jobs.create_job(pipeline_id=pipeline.id).id, jobs.submit(script).id]
            first = jobs.wait_all(first, PATIENCE)
            queued = submit_function(site)
            assert jobs.result(jobs.wait(queued, PATIENCE).id) == "1"
        late = submit_function(site)  # waits for the next worker
        switch(site, "2")
        with Worker(site):
            later = [jobs.create_job(pipeline_id=pipeline.id).id, jobs.submit(script).id]
            later = jobs.wait_all(later, PATIENCE)
            assert jobs.result(jobs.wait(late, PATIENCE).id) == "2"
            assert jobs.get_job(running.id).status is Status.RUNNING
            open_gate(gate)
            running = jobs.wait(running.id, PATIENCE)
        said = [[line.text for line in jobs.logs(one.id)] for one in (*first, *later, running)]

    assert said == [*[["release 1"]] * 2, *[["release 2"]] * 2, ["ready", "release 1"]]
    assert {one.status for one in (*first, *later, running)} == {Status.COMPLETE}


def test_directory_that_was_kept_by_itself_stays_the_old_release(site, monkeypatch):
    """Without the link's name, jobs go on in the old release, and fail once that is deleted."""
    monkeypatch.chdir(site / "current")
    with JobManager(f"{site}/data/jobs.db", slots=0) as jobs:
        pipeline = jobs.create_pipeline("report", ["sh", "report.sh"])
        switch(site, "2")
        with Worker(site):
            old = jobs.wait(jobs.create_job(pipeline_id=pipeline.id).id, PATIENCE)
            monkeypatch.chdir(site)
            shutil.rmtree(site / "releases" / "1")
            gone = jobs.wait(jobs.create_job(pipeline_id=pipeline.id).id, PATIENCE)
            jobs.update_pipeline(
                pipeline.id, command=Command(["sh", "report.sh"], cwd=f"{site}/current")
            )
            new = jobs.wait(jobs.create_job(pipeline_id=pipeline.id).id, PATIENCE)
        said = [[line.text for line in jobs.logs(one.id)][-1] for one in (old, new)]

    assert said == ["release 1", "release 2"]
    assert (gone.status, gone.exit_code) == (Status.ERROR, 126)


def test_new_worker_replaces_one_whose_environment_was_deleted(site, gate):
    """The new worker adopts the running jobs and starts the queued ones."""
    python = shutil.copytree(os.path.dirname(sys.executable), site / "venv" / "bin", symlinks=True)
    shutil.copy(f"{sys.prefix}/pyvenv.cfg", site / "venv")
    libraries = next(path for path in sys.path if path.endswith("site-packages"))
    program = (
        "import sys; from jobcore import JobManager\n"
        "with JobManager(sys.argv[1], slots=1) as jobs:\n"
        "    print(flush=True); sys.stdin.read()\n"
    )
    with JobManager(f"{site}/data/jobs.db", slots=0) as jobs:
        old = subprocess.Popen(
            [f"{python}/python", "-c", program, f"{site}/data/jobs.db"],
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{libraries}"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        with old:
            old.stdout.readline()
            running = jobs.submit(["sh", f"{site}/current/report.sh", str(gate)])
            assert next(jobs.follow(running.id, timeout=PATIENCE)).text == "ready"
            shutil.rmtree(site / "venv")
            queued = jobs.submit(["true"])
            with Worker(site):
                assert jobs.wait(queued.id, PATIENCE).status is Status.COMPLETE
                old.stdin.close()
                assert old.wait(PATIENCE) == 0
                open_gate(gate)
                assert jobs.wait(running.id, PATIENCE).status is Status.COMPLETE
