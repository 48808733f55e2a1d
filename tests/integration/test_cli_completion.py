"""Shells complete commands, options and jobs, and load for it only what they need."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from enum import EnumMeta
from typing import get_args

import pytest
import typer.main
from typer.models import OptionInfo

from jobcore import JobManager
from jobcore.cli import commands, suggestions
from jobcore.cli.app import app
from tests.integration.verbs_harness import in_a_pipe
from tests.processes import PATIENCE, ROOT, run_python


@pytest.fixture
def made(database):
    """Return three jobs: a final one, one with a name, and one whose name a shell would split."""
    with JobManager(database, slots=0) as jobs:
        first = jobs.create_job("TASK", name="over")
        jobs.start_job(first.id)
        jobs.finish_job(first.id)
        yield [first, jobs.create_job("TASK", name="nightly"), jobs.create_job("TASK", name="x y")]


def offered(capsys, *words, shell="bash"):
    """Return the lines that a shell gets for these words, of which the last is incomplete."""
    suggestions.answer(shell, words)
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["sho"], ["show"]),
        (["--"], ["--db", "--trust-directory", "--utc", "--version", "--help"]),
        (["show", ""], ["3", "2", "1"]),
        (["show", "n"], ["nightly"]),
        (["show", "x"], []),
        (["stop", ""], ["3", "2"]),
        (["logs", "-f", ""], ["3", "2", "1"]),
        (["logs", "--fo"], ["--follow", "--format"]),
        (["logs", "--format", ""], ["text", "ndjson"]),
        (["list", "--status", "=", "E"], ["ERROR"]),
        (["list", "--limit", ""], []),
        (["submit", "--after", ""], ["3", "2", "1"]),
        (["submit", "--run-if", "f"], ["failed"]),
        (["completion", ""], ["bash", "zsh", "fish"]),
        (["--db", "/no/such.db", "show", ""], []),
        (["--db", ""], []),
        (["run", "--", "ls", ""], []),
        (["unknown", ""], []),
        ([], list(commands.MODULES)),
    ],
    ids=str,
)
def test_shell_is_offered_what_fits(made, database, capsys, monkeypatch, words, expected):
    """Commands, options, values of options, and the jobs that a command can take."""
    monkeypatch.setenv("JOBCORE_DB", database)

    assert offered(capsys, *words) == expected
    if words == ["show", ""]:
        digits = made[0].id.hex
        assert offered(capsys, "show", digits[:20]) == [digits]
        assert offered(capsys, "show", "n", shell="zsh") == ["nightly:QUEUED nightly"]
        assert offered(capsys, "show", "n", shell="fish") == ["nightly\tQUEUED nightly"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["pipeline", "show", ""], ["fetch", "load"]),
        (["pipeline", "run", "l"], ["load"]),
        (["pipeline", "create", ""], []),
        (["pipeline", "create", "x", "--requires", ""], ["fetch", "load"]),
        (["pipeline", "set", "load", "--after", "f"], ["fetch"]),
        (["pipeline", "set", "load", ""], []),
        (["list", "--pipeline", "l"], ["load"]),
        (["list", "--workspace", ""], ["default", "team"]),
        (["workspace", "rename", "t"], ["team"]),
        (["pause", ""], ["db", "gpu", "io"]),
        (["limit", "g"], ["gpu"]),
        (["limit", "gpu", ""], []),
        (["submit", "--group", ""], ["db", "gpu", "io"]),
        (["list", "--key", ""], ["newer", "older"]),
        (["--db", "/no/such.db", "pipeline", "show", ""], []),
    ],
    ids=str,
)
def test_shell_is_offered_names(jobs, database, capsys, monkeypatch, words, expected):
    """Pipelines, workspaces, groups and keys that need no quotes in a shell."""
    monkeypatch.setenv("JOBCORE_DB", database)
    jobs.create_workspace("team")
    for name, group in (("load", None), ("fetch", "db"), ("two words", "--all")):
        jobs.create_pipeline(name, ["true"], group=group)
    jobs.submit(["true"], group="io", key="older")
    jobs.submit(["true"], key="newer")
    jobs.set_limit("gpu", 1)

    assert offered(capsys, *words) == expected


def test_every_command_that_takes_a_job_offers_jobs():
    """The commands whose argument is a job are those that the completion knows."""
    commands.load_all()
    found = {
        name
        for name, one in typer.main.get_command(app).commands.items()
        for param in one.params
        if param.param_type_name == "argument"
        and (param.metavar or "").strip("[]").startswith("ID")
    }

    assert found == suggestions.OF_JOBS & set(commands.MODULES)


def enums(annotation):
    """Yield the enums in an annotation."""
    if isinstance(annotation, EnumMeta):
        yield annotation
    for one in get_args(annotation):
        yield from enums(one)


def test_every_word_that_an_option_takes_is_offered():
    """The completion loads no enum, so its words are compared with those of the options."""
    commands.load_all()
    found = {}
    for one in app.registered_commands:
        for name, annotation in one.callback.__annotations__.items():
            for enum in enums(annotation):
                (option,) = annotation.__metadata__
                if isinstance(option, OptionInfo):
                    # The framework keeps the first text of an annotation as the default.
                    texts = [option.default, *(option.param_decls or ())]
                    declared = [text for text in texts if str(text).startswith("--")]
                    (long,) = declared or [f"--{name.replace('_', '-')}"]
                    found[long] = {str(word.value) for word in enum}

    assert found == {option: set(words) for option, words in suggestions._VALUES.items()}


def test_completion_of_jobs_loads_neither_framework_nor_manager(made, database):
    """It takes a tenth of the time of `list`, and leaves no file beside the database."""
    del made
    before = sorted(os.listdir(os.path.dirname(database)))
    loaded = run_python(
        "import os, sys\nfrom jobcore.cli import main\n"
        f"os.environ.update(_JOBCORE_COMPLETE='bash', JOBCORE_DB={database!r})\n"
        "sys.argv = ['jobcore', 'show', '']\nmain()\n"
        "heavy = {'typer', 'rich', 'pydantic', 'sqlalchemy', 'jobcore.manager'}\n"
        "print(*heavy & {*sys.modules}, '.')"
    )

    assert loaded.split() == ["3", "2", "1", "."]
    assert sorted(os.listdir(os.path.dirname(database))) == before


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_bash_completes(made, database, tmp_path):
    """The printed script works in bash unchanged."""
    del made
    (script, _) = in_a_pipe(database, [["completion", "bash"]])
    program = tmp_path / "jobcore"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m jobcore "$@"\n')
    program.chmod(0o755)
    line = (
        f'{script}\nCOMP_WORDS=("$@"); COMP_CWORD=$(($#-1)); _jobcore "{program}"; '
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    shown = subprocess.run(
        ["bash", "-c", line, "bash", "jobcore", "show", "ni"],
        env={**os.environ, "JOBCORE_DB": database, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )

    assert shown.stdout == "nightly\n"


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_scripts_of_other_shells_ask_the_same(database, shell):
    """Each script passes on the words up to the cursor, and names its shell."""
    (script, err) = in_a_pipe(database, [["completion", shell]])

    assert f"_JOBCORE_COMPLETE={shell}" in script
    assert err == ""
