"""Errors: one tree, built-in bases that callers already catch, facts that survive pickling."""

from __future__ import annotations

import copy
import inspect
import pickle
import re

import pytest

from jobcore import errors
from jobcore.errors import JobcoreError
from tests.cases import each

CLASSES = [
    kind
    for kind in vars(errors).values()
    if inspect.isclass(kind) and issubclass(kind, JobcoreError)
]

EXAMPLES = [
    JobcoreError("something"),
    errors.JobNotFound("no-such-id"),
    errors.JobDeleted("an-id"),
    errors.WorkspaceNotFound("a-workspace"),
    errors.PipelineNotFound("a-pipeline"),
    errors.InvalidTransition("an-id", "COMPLETE", "start", "it is over"),
    errors.JobNotRunning("an-id", "QUEUED", "stop"),
    errors.Stopped("an-id", "STOPPED"),
    errors.PipelineAlreadyRunning("a-pipeline", "an-id"),
    errors.PipelineExists("nightly", "a-pipeline"),
    errors.DuplicateKey("nightly", "an-id"),
    errors.NoResult("an-id", "RUNNING"),
    errors.ArgumentError("no number"),
    errors.CommandError("no argv"),
    errors.ScheduleError("no time"),
    errors.PipelineCycle("nightly"),
    errors.PipelineFileError([(("pipelines", "nightly"), "it is wrong")]),
    errors.InvalidParameter("sequence", "-1"),
    errors.NotAcceptable("image/png", ("text/plain",)),
    errors.SpawnError("no process", 11),
    errors.TooManyFollowers(3),
    errors.WaitTimeout("too long"),
    errors.StoreError("no"),
    errors.DatabaseBusy("busy"),
    errors.DatabaseFull("full"),
    errors.DatabaseCorrupt("corrupt"),
    errors.DatabaseGone("gone"),
    errors.NotAJobcoreDatabase("other"),
    errors.ReadOnlyDatabase("read-only"),
    errors.SchemaTooNew("newer"),
    errors.StoreMismatch("mismatch"),
    errors.UnsupportedFileSystem("nfs"),
]


def drawn_tree():
    """Return name, parent, built-in base and status of each class as the docstring draws them."""
    drawn, path = [], []
    for line in inspect.getdoc(errors).splitlines():
        found = re.fullmatch(r"([ │├└─]*)(\w+)(?: \((\w+)\))?(?: +(\d+))?", line)
        if not found or ("Error" not in line and "──" not in line):
            continue
        depth = len(found[1].lstrip(" ")) // 4 if "─" in found[1] else 0
        if "─" in found[1]:
            depth = (len(found[1]) - 4) // 4
        path[depth:] = [found[2]]
        drawn.append((found[2], path[depth - 1] if depth else None, found[3], found[4]))
    return drawn


def real_tree():
    """Return the same of the real classes."""
    real = []
    for kind in CLASSES:
        ours = next((base for base in kind.__bases__ if issubclass(base, JobcoreError)), None)
        others = [base for base in kind.__bases__ if base is not ours and base is not Exception]
        shown = str(kind.status) if "status" in vars(kind) and kind is not JobcoreError else None
        real.append(
            (kind.__name__, ours and ours.__name__, others[0].__name__ if others else None, shown)
        )
    return real


def test_drawn_tree_is_the_real_one():
    """The tree in the docstring shows every class with its parent, built-in base and status."""
    expected = sorted(real_tree(), key=str)

    assert sorted(drawn_tree(), key=str) == expected


def test_every_class_has_an_example():
    """The examples here are all classes there are."""
    expected = {kind.__name__ for kind in CLASSES}

    assert {type(error).__name__ for error in EXAMPLES} == expected


@each("error", EXAMPLES)
def test_error_survives_pickling(error):
    """An error that crosses a process boundary has its message and its facts."""
    expected = (type(error), str(error), error.args, vars(error))

    for back in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert (type(back), str(back), back.args, vars(back)) == expected


@each(
    ("kind", "status"),
    [
        (errors.JobNotFound, 404),
        (errors.JobDeleted, 404),
        (errors.WorkspaceNotFound, 404),
        (errors.PipelineNotFound, 404),
        (errors.InvalidTransition, 409),
        (errors.JobNotRunning, 409),
        (errors.Stopped, 409),
        (errors.PipelineAlreadyRunning, 409),
        (errors.NoResult, 409),
        (errors.ArgumentError, 400),
        (errors.CommandError, 400),
        (errors.ScheduleError, 400),
        (errors.PipelineCycle, 400),
        (errors.InvalidParameter, 400),
        (errors.NotAcceptable, 406),
        (errors.SpawnError, 503),
        (errors.TooManyFollowers, 503),
        (errors.WaitTimeout, 504),
        (errors.DatabaseBusy, 503),
        (errors.UnsupportedFileSystem, 503),
    ],
)
def test_status_is_what_a_service_answers(kind, status):
    """Every class has the HTTP status with which a service would answer."""
    assert kind.status == status


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (errors.JobNotFound, LookupError),
        (errors.WorkspaceNotFound, LookupError),
        (errors.PipelineNotFound, LookupError),
        (errors.CommandError, ValueError),
        (errors.ScheduleError, ValueError),
        (errors.PipelineCycle, ValueError),
        (errors.InvalidParameter, ValueError),
        (errors.WaitTimeout, TimeoutError),
    ],
)
def test_builtin_base_catches_it(kind, builtin):
    """A caller that catches the built-in error catches ours."""
    assert issubclass(kind, builtin)


def test_facts_are_attributes():
    """The facts of an error are attributes, so nobody has to parse its text."""
    refused = errors.InvalidTransition("an-id", "COMPLETE", "start")
    busy = errors.PipelineAlreadyRunning("a-pipeline", "an-id")
    failed = errors.SpawnError("no process", 11)

    assert (refused.job_id, refused.job_status, refused.trigger) == ("an-id", "COMPLETE", "start")
    assert (busy.pipeline_id, busy.job_id) == ("a-pipeline", "an-id")
    assert failed.errno == 11
    assert errors.JobNotFound(None).job_id is None
