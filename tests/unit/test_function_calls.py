"""Function: what can be called in a fresh interpreter, how it travels, and who gets to see it."""

from __future__ import annotations

import base64
import functools
import importlib.util
import json
import math
import operator
import os
import pickle
import statistics
import sys
import traceback
import types
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobcore import (
    Command,
    CommandError,
    CommandExecutor,
    DatabaseCorrupt,
    FunctionExecutor,
    PipelineExecutor,
    function_command,
)
from jobcore.engine.executors import default_executors
from jobcore.functions import call as calls
from jobcore.functions.encoding import DIRECTORY, this_python
from jobcore.models import ClaimedJob
from tests import functions
from tests.cases import each
from tests.jobfiles import sql
from tests.processes import PATIENCE, run_python
from tests.unit.test_encoding import ANY, EXACT, TEXT, in_main, same

SECRET = "s3cret-hunter2"


def payload(command):
    """Return what the fresh interpreter is told."""
    return json.loads(command.stdin)


def call(command):
    """Return target, arguments and arguments by name, as the fresh interpreter has them."""
    told = payload(command)
    arguments = told["arguments"]
    if told["encoding"] == "pickle":
        arguments = pickle.loads(base64.b64decode(arguments))
    return arguments


# --- arguments ----------------------------------------------------------------------


@given(st.lists(EXACT, max_size=3), st.dictionaries(TEXT, EXACT, max_size=3))
def test_exact_arguments_travel_as_json(args, kwargs):
    """Arguments that JSON keeps are readable, and arrive equal."""
    command = function_command(functions.gives_back, [args], kwargs)

    assert payload(command)["encoding"] == "json"
    assert same(call(command), [None, [args], kwargs])


@given(st.lists(ANY, max_size=3))
def test_all_other_arguments_travel_as_pickles(args):
    """Any picklable value arrives equal after it was stored and read."""
    command = Command.from_json(function_command(functions.gives_back, [((1,), args)]).to_json())

    assert payload(command)["encoding"] == "pickle"
    assert same(call(command), [None, [((1,), args)], {}])


def test_a_call_is_stored_as_any_command():
    """It is a Command as others are, with all its options, and stored and read back as one."""
    command = function_command(
        functions.adds, (1, 2), {"c": 3}, timeout=60, grace=1, env={"A": "b"}, cwd="/",
        output_limit=100, separate_streams=True, redact=["x"], umask=0o077, inherit_env=False,
    )  # fmt: skip
    plain = Command(
        ["true"], timeout=60, grace=1, env={"A": "b"}, cwd="/",
        output_limit=100, separate_streams=True, redact=["x"], umask=0o077, inherit_env=False,
    )  # fmt: skip

    assert replace(command, argv=["true"], stdin=None) == plain
    assert Command.from_json(command.to_json()) == command
    assert calls.is_function(command)
    assert not calls.is_function(plain)


def test_the_path_is_that_of_the_submitter(monkeypatch, tmp_path):
    """It is sent as at the call, absolute; invalid or missing entries do no harm."""
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path)
    hook = "__editable__.thing.finder.__path_hook__"
    monkeypatch.setattr(sys, "path", ["", "below", "/not/there", hook, None, 7])
    told = payload(function_command("somewhere:f", cwd="/"))

    assert told["path"] == [str(tmp_path), str(tmp_path / "below"), "/not/there", hook]
    assert told["python"] == this_python()


# --- what can be called ---------------------------------------------------------------


@each(
    ("target", "name"),
    [
        (functions.gives_back, "tests.functions:gives_back"),
        (functions.Basket, "tests.functions:Basket"),
        (functions.Basket.of_apples, "tests.functions:Basket.of_apples"),
        (functions.Basket.weighs, "tests.functions:Basket.weighs"),
        (functions.Basket.count, "tests.functions:Basket.count"),
        (functions.is_given_more, "tests.functions:is_given_more"),
        (functions.sleeps_a_little, "tests.functions:sleeps_a_little"),
        (math.sqrt, "math:sqrt"),
        (len, "builtins:len"),
        (statistics.mean, "statistics:mean"),
        ("some.package:Class.method", "some.package:Class.method"),
    ],
)
def test_named_callable_is_sent_by_name(target, name):
    """Functions, classes and methods of classes travel by name, and are not pickled."""
    told = payload(Command.from_json(function_command(target, [1]).to_json()))

    assert (told["name"], told["encoding"]) == (name, "json")
    assert told["arguments"] == [None, [1], {}]
    assert calls.describe(target) == name


@pytest.mark.parametrize(
    ("target", "args", "value"),
    [
        (functions.Basket("fig").count, [], 1),
        (functools.partial(functions.adds, 1, c=3), [2], 6),
        (functions.Basket("fig"), [], ["fig"]),
        (operator.itemgetter(1), ["ab"], "b"),
        ([3, 1].index, [1], 1),
    ],
)
def test_unnamed_callable_is_pickled(target, args, value):
    """A bound method, a partial call or a callable object is pickled with its arguments."""
    carried, positional, named = call(function_command(target, args))

    assert (positional, named) == (args, {})
    assert carried(*positional) == value


def hand_made():
    """Return a function of a module that nothing was imported for."""
    module = types.ModuleType("hand_made")
    exec("def f(): pass", vars(module))
    sys.modules["hand_made"] = module
    return module.f


NO_NAMES = ["print", "a:", ":f", "a..b:f", "a:f()", "a b:f", "__main__:f", "a:f:g", ""]
REFUSED = "cannot be called in a fresh interpreter: "
UNPICKLABLE = "an object of type _thread.lock cannot be pickled"
LAMBDA = "a lambda has no name: write a function in a module"
LOCAL = "is defined inside a function: move it to the top of its module"
MAIN = (
    "is defined in __main__, the program itself, "
    "which a fresh interpreter does not run: move it into a module"
)
NAMED = 'a function must be named "package.module:function", not'
HERE = "tests.functions"


@each(
    ("target", "args", "reason"),
    [
        (lambda: 1, [], REFUSED + LAMBDA),
        (
            functions.makes_a_local(),
            [],
            f"{REFUSED}{HERE}:makes_a_local.<locals>.local {LOCAL}",
        ),
        (
            type(functions.makes_a_local_object()),
            [],
            f"{REFUSED}{HERE}:makes_a_local_object.<locals>.Local {LOCAL}",
        ),
        (in_main()["f"], [], f"{REFUSED}f {MAIN}"),
        (in_main()["C"], [], f"{REFUSED}C {MAIN}"),
        (
            functions.was_replaced,
            [],
            (
                f"{REFUSED}{HERE}:replaced now names another object, "
                "which has replaced the given one"
            ),
        ),
        (hand_made(), [], f"{REFUSED}the module hand_made was not imported from anywhere"),
        (
            functions.HoldsALock().method,
            [],
            f"{HERE}:HoldsALock.method: what is to be called cannot be sent: {UNPICKLABLE}",
        ),
        (
            in_main()["C"]().__init__,
            [],
            f"method-wrapper: what is to be called cannot be sent: C {MAIN}",
        ),
        (
            functools.partial(functions.adds, functions.HoldsALock()),
            [1],
            f"functools.partial: what is to be called cannot be sent: {UNPICKLABLE}",
        ),
        (
            functions.gives_back,
            [functions.HoldsALock()],
            f"{HERE}:gives_back: argument 0 cannot be sent: {UNPICKLABLE}",
        ),
        (
            functions.adds,
            [1, lambda: SECRET],
            f"{HERE}:adds: argument 1 cannot be sent: {LAMBDA}",
        ),
        (
            functions.gives_back,
            [functions.QuotedByPickle(SECRET)],
            (
                f"{HERE}:gives_back: argument 0 cannot be sent: "
                f"an object of type {HERE}.QuotedByPickle cannot be pickled"
            ),
        ),
        (
            functions.gives_back,
            [SECRET * 100_000],
            (
                f"{HERE}:gives_back: the arguments take 1400014 bytes, more than 1048576: "
                "put them into a file, and send its path"
            ),
        ),
        (
            functions.adds,
            [SECRET],
            f"the arguments do not fit {HERE}:adds: missing a required argument: 'b'",
        ),
        (
            functions.Basket("fig").count,
            [SECRET],
            f"the arguments do not fit {HERE}:Basket.count: too many positional arguments",
        ),
        (17, [], "an object of type int cannot be called"),
        (None, [], "an object of type NoneType cannot be called"),
        *((name, [], f"{NAMED} {name!r}") for name in NO_NAMES),
        ("a:f", SECRET, "args must be a list of arguments, not str"),
        ("a:f", {"a": SECRET}, "args must be a list of arguments, not dict"),
    ],
)
def test_uncallable_target_is_refused_with_the_reason(target, args, reason):
    """The error has the reason and the place, and shows no argument."""
    with pytest.raises(CommandError) as caught:
        function_command(target, args)

    assert str(caught.value) == reason
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


PROGRAM = """
from jobcore import CommandError, JobManager, function_command

class Order:
    def send(self):
        pass

def work(order=None):
    pass

with JobManager(DATABASE, slots=0) as jobs:
    for target, *args in (
        [work], [Order], [Order().send], [print, Order()], [print, [{"a": work}]], [print, Order],
    ):
        try:
            jobs.submit_function(target, *args)
        except CommandError as error:
            print(error)
    print(jobs.list_jobs())
"""


def test_function_of_main_is_refused(database):
    """Pickle would accept a function of `__main__`, but a new interpreter would not find it."""
    told = run_python(PROGRAM.replace("DATABASE", repr(database))).splitlines()
    print_0 = "builtins:print: argument 0 cannot be sent:"

    assert told == [
        f"{REFUSED}work {MAIN}",
        f"{REFUSED}Order {MAIN}",
        f"__main__:Order.send: what is to be called cannot be sent: Order {MAIN}",
        f"{print_0} Order {MAIN}",
        f"{print_0} work {MAIN}",
        f"{print_0} Order {MAIN}",
        "[]",
    ]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"kwargs": {1: SECRET}}, "kwargs must be a mapping of names to arguments"),
        ({"kwargs": [SECRET]}, "kwargs must be a mapping of names to arguments"),
        ({"kwargs": {"x": open}}, "got an unexpected keyword argument 'x'"),
        ({"stdin": SECRET, "shell": True}, "a function has no shell, stdin"),
        ({"argv": [SECRET]}, "a function has no argv"),
        ({"timeout": 0}, "timeout must be a number of seconds above 0"),
        ({"surprise": SECRET}, "unexpected keyword argument 'surprise'"),
    ],
)
def test_options_are_checked(options, reason):
    """An unknown option of a call is refused by name, without its value."""
    with pytest.raises(CommandError) as caught:
        function_command(functions.adds, [1, 2], **options)

    assert reason in str(caught.value)
    assert SECRET not in str(caught.value)


def test_unpicklable_keyword_argument_is_named():
    """The error for a keyword argument that cannot be sent has its name."""
    with pytest.raises(CommandError, match="argument 'second' cannot be sent"):
        function_command(functions.gives_back, [], {"first": 1, "second": functions.HoldsALock()})


@pytest.mark.parametrize("target", [lambda: 1, "no name", functions.HoldsALock().method])
def test_refused_function_creates_no_job(jobs, target):
    """After a refusal there is no job."""
    with pytest.raises(CommandError):
        jobs.submit_function(target)

    assert jobs.list_jobs() == []


# --- who gets to see it -----------------------------------------------------------------


def test_arguments_are_shown_nowhere(jobs):
    """Command, job and history do not show the arguments of a function."""
    command = function_command(functions.gives_back, [SECRET], {"key": SECRET})
    job = jobs.submit_function(functions.gives_back, SECRET)
    shown = [
        repr(command), str(command), repr(command.argv), repr(job), job.model_dump_json(),
        repr(jobs.history(job.id)), *map(repr, jobs.list_jobs()),
    ]  # fmt: skip

    assert [text for text in shown if SECRET in text] == []
    assert SECRET.encode() in command.stdin
    assert (job.name, job.type) == ("tests.functions:gives_back", "FUNCTION")


def test_an_error_of_the_database_shows_no_argument(jobs, database):
    """Not even an error that the database has for the statement shows its values."""
    jobs.get_workspace()
    sql(database, "CREATE TRIGGER no BEFORE INSERT ON job BEGIN SELECT RAISE(ABORT, 'no'); END")
    with pytest.raises(DatabaseCorrupt) as caught:
        jobs.submit_function(functions.gives_back, SECRET)

    assert SECRET not in "".join(traceback.format_exception(caught.value))


# --- what is run for it -----------------------------------------------------------------


def claimed(jobs, command):
    """Return the job as an executor sees it."""
    job = ClaimedJob.model_validate(jobs.submit(["true"]).model_dump())
    job._command = command
    job._directory = "/jobs/1"
    return job


@pytest.mark.parametrize("kind", [FunctionExecutor, CommandExecutor, PipelineExecutor])
def test_a_call_is_run_by_an_interpreter(jobs, kind):
    """Every shipped executor runs it; argv shows only that it is a function."""
    command = function_command(functions.gives_back, [SECRET], env={"A": "b"}, timeout=5)
    run = kind().command(claimed(jobs, command))
    other = kind("/other/python").command(claimed(jobs, command))

    assert (run.argv[0], other.argv[0]) == (sys.executable, "/other/python")
    assert [word for word in run.argv if SECRET in word or "gives_back" in word] == []
    assert run.env == {"A": "b", "NO_COLOR": "1", DIRECTORY: "/jobs/1"}
    assert (run.stdin, run.timeout, run.cwd) == (command.stdin, 5, os.getcwd())


def test_a_command_may_ask_for_colours(jobs):
    """The colour variables of its environment are not changed."""
    command = function_command(functions.gives_back, env={"NO_COLOR": ""})

    assert FunctionExecutor().command(claimed(jobs, command)).env["NO_COLOR"] == ""


def test_other_commands_are_left_as_they_are(jobs):
    """An executor of functions does not change a command that is not a call."""
    plain = Command(["true"])

    assert CommandExecutor().command(claimed(jobs, plain)) is plain
    for command in (plain, None):
        with pytest.raises(CommandError, match="created without a function"):
            FunctionExecutor().command(claimed(jobs, command))


def test_without_an_interpreter_nothing_is_run(jobs, monkeypatch):
    """A process without a known interpreter needs the argument."""
    monkeypatch.setattr(sys, "executable", "")
    command = function_command(functions.gives_back)

    with pytest.raises(CommandError, match="knows no Python interpreter"):
        FunctionExecutor().command(claimed(jobs, command))
    assert FunctionExecutor("/a/python").command(claimed(jobs, command)).argv[0] == "/a/python"


def test_the_interpreter_of_the_manager_is_that_of_functions():
    """The manager's interpreter runs functions, too."""
    executors = default_executors("/a/python")

    assert {executor._python for executor in executors.values()} == {"/a/python"}
    assert sorted(executors) == ["COMMAND", "FUNCTION", "PIPELINE_RUN"]


def loaded_by_path(name, path):
    """Return a module as hosts load plugins, and pytest test files: by its path."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


SOURCE = "class Order:\n    pass\n\n\ndef ship(order=None):\n    return 7\n"


@pytest.mark.parametrize("name", ["by_path_alone", "tests.by_path_below_a_package"])
def test_a_module_loaded_by_its_path_is_refused_with_the_remedy(tmp_path, monkeypatch, name):
    """A fresh interpreter would not find it, nor the class of an argument in it."""
    path = tmp_path / "plugin.py"
    path.write_text(SOURCE)
    monkeypatch.setitem(sys.modules, name, None)  # taken away at the end
    module = loaded_by_path(name, path)

    with pytest.raises(CommandError, match=r"does not find the module .*plugin.py.*sys\.path"):
        function_command(module.ship)
    with pytest.raises(
        CommandError, match=r"argument 0 cannot be sent: .*does not find the module"
    ):
        function_command("tests.functions:add", [module.Order()])


def test_a_module_loaded_by_its_path_is_called_where_its_name_leads_there(
    tmp_path, monkeypatch, running_jobs
):
    """It is found by its name on sys.path, so it works; another file of this name does not."""
    (tmp_path / "by_path_too.py").write_text(SOURCE)
    other = tmp_path / "elsewhere.py"
    other.write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "by_path_too", None)
    module = loaded_by_path("by_path_too", tmp_path / "by_path_too.py")
    job = running_jobs.submit_function(module.ship, module.Order())

    assert running_jobs.wait(job.id, PATIENCE).exit_code == 0
    assert running_jobs.result(job.id) == 7
    module = loaded_by_path("by_path_too", other)
    with pytest.raises(CommandError, match=r"finds another one, .*by_path_too\.py"):
        function_command(module.ship)
