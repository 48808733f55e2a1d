"""Django: the view and the middleware that README prints, in a project of one file."""

from __future__ import annotations

import subprocess
import sys

import pytest

from jobcore import JobManager
from tests.processes import PATIENCE, ROOT
from tests.texts import between, blocks

(RECIPE,) = blocks("python", between("django"))
PROJECT = """
import django
from django.conf import settings
from django.urls import path

settings.configure(
    ALLOWED_HOSTS=["*"], ROOT_URLCONF="project", MIDDLEWARE=["project.JobErrors"], SECRET_KEY="x"
)
django.setup()
urlpatterns = [path("builds/<str:job_id>", look)]
"""
#: Asks for paths, and prints the status, the type and the text of each answer.
MAIN = """
from django.test import Client
for one in sys.argv[1:]:
    answer = Client().get(one)
    print(answer.status_code, answer.headers['Content-Type'], answer.content.decode())
"""


@pytest.fixture
def answers(tmp_path):
    """Return what asks the project in a process of its own: Django is set up once in each."""
    (tmp_path / "project.py").write_text(RECIPE + PROJECT)

    def ask(*paths):
        done = subprocess.run(
            [sys.executable, "-c", f"import sys, project; sys.argv[1:] = {paths!r}; {MAIN}"],
            cwd=tmp_path,
            env={"PYTHONPATH": f"{ROOT}:{tmp_path}"},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return [line.split(" ", 2) for line in done.stdout.splitlines()]

    return ask


def test_a_view_shows_a_job_and_errors_have_their_status(tmp_path, answers):
    """A job is the JSON of its model; an id that no job has is 404 with a message."""
    with JobManager(tmp_path / "jobs.db", slots=0) as jobs:
        job = jobs.submit(["true"])
        shown, missing = answers(f"/builds/{job.id}", "/builds/none")

    assert shown == ["200", "application/json", shown[2]]
    assert type(job).model_validate_json(shown[2]) == job
    assert missing[:2] == ["404", "application/json"]
    assert '"path": "/builds/none"' in missing[2]
