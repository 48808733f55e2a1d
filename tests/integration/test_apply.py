"""Pipelines as a file: a workspace becomes equal to it, all of it or nothing."""

from __future__ import annotations

import json

import pytest

from jobcore import Command, JobManager, PipelineFileError, Status, WorkspaceNotFound
from jobcore.embedding import failpoints
from jobcore.pipeline_source import read
from jobcore.testing import crash
from tests.integration.verbs_harness import fork, in_a_pipe, on_a_terminal
from tests.processes import PATIENCE, in_child
from tests.tasks import end
from tests.texts import between, blocks

BOTH = {
    "pipelines": {
        "load": {"command": ["python", "load.py"], "schedule": "@daily", "env": {"KEY": "hunter2"}},
        "report": {"script": "python report.py", "triggered_by": ["load"], "timeout": "5m"},
    }
}


def described(jobs):
    """Return the facts of all pipelines by name."""
    return {one.name: {**dict(one), "command": one.command} for one in jobs.list_pipelines()}


def said(changes):
    return [(one.action, one.name, sorted(one.fields)) for one in changes]


def test_missing_pipelines_are_created_and_the_second_time_changes_nothing(jobs, clock):
    """Not even the time of the last change."""
    first = jobs.apply(BOTH)
    made = [jobs.get_pipeline(one.pipeline_id) for one in first]
    clock.advance(60)
    again = jobs.apply(BOTH)

    assert said(first) == [
        ("create", "load", ["command", "cwd", "env.KEY", "schedule"]),
        ("create", "report", ["cwd", "script", "timeout", "triggered_by"]),
    ]
    assert [one.triggered_by for one in made] == [None, ["load"]]
    assert (made[0].command.argv, made[1].script) == (("python", "load.py"), "python report.py")
    assert again == []
    assert [jobs.get_pipeline(one.id) for one in made] == made


def test_pipeline_gets_exactly_the_fields_of_the_description(jobs):
    """Different fields are changed, missing ones get their default; ids and runs stay."""
    (load, _) = jobs.apply(BOTH)
    run = jobs.create_job(pipeline_id=load.pipeline_id)
    jobs.update_pipeline(load.pipeline_id, timeout=7, group="gpu", properties={"a": 1})
    changed = jobs.apply(
        {"pipelines": {"LOAD": {"command": ["python", "load.py"], "env": {"KEY": "new"}}}}
    )

    assert [(one.action, one.name, one.pipeline_id) for one in changed] == [
        ("update", "LOAD", load.pipeline_id)
    ]
    assert changed[0].fields == {
        "name": ("load", "LOAD"),
        "env.KEY": ("***", "***"),
        "timeout": (7.0, None),
        "schedule": ("@daily", None),
        "group": ("gpu", None),
        "properties": ({"a": 1}, None),
    }
    found = jobs.get_pipeline(load.pipeline_id)
    assert (found.name, found.schedule, found.next_tick, found.group) == ("LOAD", None, None, None)
    assert found.command.env == {"KEY": "new"}
    assert jobs.get_job(run.id).pipeline_id == found.id


def test_no_change_shows_a_value_of_the_environment(jobs):
    """This holds for created and changed pipelines, and for fields that only the API sets."""
    changes = jobs.apply(BOTH)
    jobs.update_pipeline(
        changes[0].pipeline_id,
        command=Command(["x"], env={"KEY": "hunter3"}, redact=["hunter4"], stdin=b"hunter5"),
    )
    changes += jobs.apply(BOTH)
    shown = "".join(one.model_dump_json() + repr(one) for one in changes)

    assert "hunter" not in shown
    assert {"redact", "stdin", "env.KEY", "command"} <= set(changes[-1].fields)


def test_dry_run_returns_the_same_changes_and_writes_nothing(jobs):
    """Not even a workspace is made."""
    told = jobs.apply(BOTH, dry_run=True)
    with pytest.raises(PipelineFileError, match=r"report\.triggered_by"):
        jobs.apply({"pipelines": {"report": BOTH["pipelines"]["report"]}}, dry_run=True)

    assert [one.pipeline_id for one in told] == [None, None]
    assert (jobs.list_pipelines(), jobs.list_workspaces()) == ([], [])
    assert said(jobs.apply(BOTH)) == said(told)


def test_pruning_deletes_the_others_with_their_jobs(jobs):
    """Without it they stay. Those of other workspaces stay in any case."""
    place = jobs.create_workspace("w")
    other = jobs.create_pipeline("old", ["true"], workspace_id=place.id)
    old = jobs.create_pipeline("old", ["true"])
    run = jobs.create_job(pipeline_id=old.id)
    end(jobs, run)
    kept = jobs.apply(BOTH)
    changes = jobs.apply(BOTH, prune=True)

    assert [one.action for one in kept] == ["create", "create"]
    assert said(changes) == [("delete", "old", [])]
    assert {one.name for one in jobs.list_pipelines(workspace_id=old.workspace_id)} == {
        "load", "report",
    }  # fmt: skip
    assert jobs.list_jobs() == []
    assert jobs.get_pipeline(other.id) == other


def test_a_running_job_of_a_pruned_pipeline_is_stopped(running_jobs):
    """As `delete_pipeline` does it."""
    old = running_jobs.create_pipeline("old", ["sh", "-c", "echo ready; exec sleep 300"])
    run = running_jobs.create_job(pipeline_id=old.id)
    assert next(running_jobs.follow(run.id)).text == "ready"
    running_jobs.apply(BOTH, prune=True)

    assert running_jobs.list_jobs(status=Status.RUNNING) == []


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"a": {"script": "x", "triggered_by": ["b"]}}, "a.triggered_by: triggered_by names 'b'"),
        (
            {
                "a": {"script": "x", "triggered_by": ["b"]},
                "b": {"script": "x", "triggered_by": ["a"]},
            },
            "triggered_by: pipeline 'a' would trigger itself",
        ),
        ({"a": {"script": "x", "requires": ["b"]}}, "a.requires: requires names 'b'"),
        (
            {
                "a": {"script": "x", "requires": ["b"]},
                "b": {"script": "x", "triggered_by": ["a"]},
            },
            "a.requires: pipeline 'a' would trigger itself",
        ),
        ({"a": {"script": "x"}, "b": {}}, "b: pipeline 'b' has neither command nor script"),
        ({"a": {"script": "x"}, "load": {"script": "x", "schedule": "?"}}, "load.schedule"),
        ({"a": {"script": "x", "properties": {"x": "y" * 70_000}}}, "a: data is larger"),
    ],
)
def test_one_wrong_pipeline_changes_nothing(jobs, entries, message):
    """All or nothing; the error names the pipeline."""
    jobs.apply(BOTH)
    before = described(jobs)
    with pytest.raises(PipelineFileError, match=message) as caught:
        jobs.apply({"pipelines": entries}, prune=True)

    assert caught.value.problems[0][0][0] == "pipelines"
    assert described(jobs) == before


def test_chains_may_turn_round_and_name_later_pipelines(jobs):
    """The description is judged as a whole, not step by step."""
    jobs.apply(BOTH)
    entries = {
        "load": {"script": "x", "triggered_by": ["report", "deploy"]},
        "report": {"script": "x", "triggered_by": ["first"]},
        "first": {"script": "x"},
    }
    jobs.apply({"pipelines": entries})

    assert {name: one["triggered_by"] for name, one in described(jobs).items()} == {
        "load": ["report", "deploy"], "report": ["first"], "first": None,
    }  # fmt: skip
    assert jobs.apply({"pipelines": entries}) == []


def test_requirements_are_applied_and_keep_what_was_met(jobs):
    """A change of the rest forgets no run of a source."""
    sources = {"a": {"script": "x"}, "b": {"script": "x"}}
    last = {"script": "y", "requires": ["a", "b"]}
    jobs.apply({"pipelines": {"last": last, **sources}})
    ids = {one.name: one.id for one in jobs.list_pipelines()}
    end(jobs, jobs.create_job(pipeline_id=ids["a"]))
    same = jobs.apply({"pipelines": {"last": last, **sources}})
    (change,) = jobs.apply({"pipelines": {"last": {**last, "timeout": 5}}})
    end(jobs, jobs.create_job(pipeline_id=ids["b"]))

    assert same == []
    assert set(change.fields) == {"timeout"}
    assert len(jobs.list_jobs(pipeline_id=ids["last"])) == 1
    (change,) = jobs.apply({"pipelines": {"last": {"script": "y", "triggered_by": ["a"]}}})
    assert change.fields["requires"] == (["a", "b"], None)
    assert jobs.get_pipeline(ids["last"]).triggered_by == ["a"]


def test_pruned_pipeline_is_an_unknown_source(jobs):
    """A name that only a pruned pipeline has is unknown."""
    jobs.apply(BOTH)
    with pytest.raises(PipelineFileError, match=r"report\.triggered_by"):
        jobs.apply({"pipelines": {"report": BOTH["pipelines"]["report"]}}, prune=True)

    assert set(described(jobs)) == {"load", "report"}


def test_pause_and_next_tick_stay(jobs, clock):
    """Applying a file neither resumes a pipeline nor moves a tick that is due."""
    load, _ = jobs.apply(BOTH)
    jobs.update_pipeline(load.pipeline_id, paused=True)
    jobs.apply({"pipelines": {"load": {"script": "other", "schedule": "@daily"}}})
    paused = jobs.get_pipeline(load.pipeline_id)
    resumed = jobs.update_pipeline(load.pipeline_id, paused=False)
    clock.advance(7 * 86_400)
    jobs.apply(BOTH)

    assert (paused.paused is not None, paused.next_tick) == (True, None)
    assert jobs.get_pipeline(load.pipeline_id).next_tick == resumed.next_tick


def test_umask_of_the_caller_is_not_a_difference(jobs, monkeypatch):
    """The same file is the same for each user."""
    jobs.apply(BOTH)
    monkeypatch.setattr("jobcore.command.current_umask", lambda: 0o077)

    assert jobs.apply(BOTH) == []


def test_retries_are_compared_by_meaning(jobs):
    """A number is short for the usual pauses."""
    of = {"command": ["x"]}
    jobs.apply({"pipelines": {"p": {**of, "retries": 2}}})
    same = jobs.apply({"pipelines": {"p": {**of, "retries": {"max": 2, "delay": "10s"}}}})
    (change,) = jobs.apply({"pipelines": {"p": {**of, "max_retries": 3}}})

    assert same == []
    assert change.fields["max_retries"] == (2, 3)
    assert (change.fields["retries"][0]["max"], change.fields["retries"][1]) == (2, None)
    assert jobs.get_pipeline(change.pipeline_id).max_retries == 3


def test_hooks_are_applied(jobs):
    """Words, a line for the shell, or several of them; in the directory of the pipeline."""
    entry = {
        "script": "x",
        "cwd": "/srv",
        "on_error": ["notify", "failed"],
        "on_complete": "echo done >> log",
        "on_stopped": [["a"], "b c"],
    }
    (made,) = jobs.apply({"pipelines": {"p": entry}})
    same = jobs.apply({"pipelines": {"p": entry}})
    (change,) = jobs.apply({"pipelines": {"p": {**entry, "on_error": "notify failed"}}})
    (gone,) = jobs.apply({"pipelines": {"p": {"script": "x", "cwd": "/srv"}}})

    assert same == []
    assert made.fields["on_stopped"] == (None, ["a", "b c"])
    assert change.fields == {"on_error": (["notify failed"], ["notify failed"])}
    assert set(gone.fields) == {"on_error", "on_complete", "on_stopped"}


def test_hooks_of_a_file_run(running_jobs):
    """They are jobs of their own."""
    jobs = running_jobs
    jobs.apply({"pipelines": {"p": {"script": "exit 3", "on_error": "echo $JOBCORE_HOOK_NAME"}}})
    (made,) = jobs.list_pipelines()
    job = jobs.wait(jobs.create_job(pipeline_id=made.id).id, PATIENCE)
    jobs.drain(PATIENCE)

    assert [one.hook_of for one in jobs.list_jobs(status=Status.COMPLETE)] == [job.id]


def test_workspace_can_be_named(jobs):
    """Names are known in it only."""
    place = jobs.create_workspace("w")
    changes = jobs.apply(BOTH, workspace_id=place.id)

    assert {jobs.get_pipeline(one.pipeline_id).workspace_id for one in changes} == {place.id}
    with pytest.raises(WorkspaceNotFound):
        jobs.apply(BOTH, workspace_id="none")


def apply_elsewhere(database):
    """Apply the description in another process; return what was changed."""
    with JobManager(database, slots=0) as jobs:
        return said(jobs.apply(BOTH))


def test_two_processes_apply_it_once(jobs, database):
    """Whoever comes second finds everything as described."""
    children = [in_child(apply_elsewhere, database) for _ in range(2)]

    assert sorted(map(len, children)) == [0, 2]
    assert jobs.apply(BOTH) == []


def test_crash_in_the_middle_leaves_all_or_nothing(database):
    """A host that dies in the transaction has not written any part of the file."""
    host = JobManager(database, slots=0)
    with crash(host, at=failpoints.WRITE_BEGUN):
        host.apply(BOTH)
    with JobManager(database, slots=0) as jobs:
        assert jobs.list_pipelines() == []
        assert len(jobs.apply(BOTH)) == 2


# --- the command line -------------------------------------------------------------


def test_files_of_the_guide_are_applied(jobs, database, tmp_path):
    """With their lines in errors, and a summary on a terminal."""
    for name in ("pipelines.yml", "report_pipeline.yml"):
        (text,) = blocks("yaml", between(name))
        (tmp_path / name).write_text(text)
    first, second = (str(tmp_path / name) for name in ("pipelines.yml", "report_pipeline.yml"))
    (shown,) = on_a_terminal(database, [["apply", first, "--dry-run"]])
    piped, document, again, err = in_a_pipe(
        database, [["apply", first], ["apply", second, "--json"], ["apply", first]]
    )
    (tmp_path / "wrong.yml").write_text("pipelines:\n  a: {shedule: x}\n  b: 5\n")
    wrong = fork([["apply", str(tmp_path / "wrong.yml")]], {"JOBCORE_DB": database}, stderr=-1)
    out = wrong.communicate(timeout=PATIENCE)[1].decode()

    assert "2 to create; nothing was changed" in shown
    assert piped.splitlines()[0] == 'create\tload\tcommand\t-\t["python", "load.py"]'
    assert json.loads(document)[0]["name"] == "report_pipeline"
    assert (again, err) == ("", "")
    assert {one.name: one.timeout for one in jobs.list_pipelines()} == {
        "load": 3600.0, "report": None, "report_pipeline": 300.0,
    }  # fmt: skip
    assert wrong.returncode == 2
    assert out.splitlines() == [
        f"jobcore: {tmp_path}/wrong.yml:{line}"
        for line in (
            "2: a.shedule: there is no such field; did you mean schedule?",
            "3: b: it must be a mapping, not 5",
        )
    ]


def test_file_may_be_applied_from_anywhere(jobs, tmp_path, monkeypatch):
    """The directory of its pipelines is that of the file."""
    (tmp_path / "p.yml").write_text("pipelines: {a: {script: x}, b: {command: [y], cwd: data}}")
    jobs.apply(read(str(tmp_path / "p.yml")).mapping)
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")

    assert jobs.apply(read("../p.yml").mapping) == []
    assert {one.name: str(one.command.cwd) for one in jobs.list_pipelines()} == {
        "a": str(tmp_path), "b": str(tmp_path / "data"),
    }  # fmt: skip
