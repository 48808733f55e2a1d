"""Functions: called in a fresh interpreter, their values kept, their ends told as they were."""

from __future__ import annotations

import functools
import importlib
import os
import signal
import sys
from pathlib import Path
from subprocess import CalledProcessError, run

import pytest

from jobcore import (
    FunctionExecutor,
    JobManager,
    JobNotFound,
    NoResult,
    Reason,
    Status,
    function_command,
)
from jobcore.engine.executors import default_executors
from jobcore.functions import encoding
from jobcore.supervisor import result_file
from jobcore.testing.parts import parts
from tests import functions
from tests.jobfiles import sql
from tests.processes import PATIENCE, ROOT, in_child, open_gate
from tests.programs import EXIT_0, EXIT_3, SLEEPS

#: Leaves, in the directory of its own job, what it is told to.
MAKE_RESULT = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
from jobcore.supervisor import result_file
root, elsewhere, what = sys.argv[1:]
directory = os.path.join(root, os.environ["JOBCORE_JOB_ID"].replace("-", ""))
place = elsewhere if what == "a link" else directory
result_file.write(place, result_file.identify(place), "pickle", b"N.")
path = os.path.join(directory, "result")
if what == "a link":
    os.symlink(os.path.join(elsewhere, "result"), path)
elif what == "a FIFO":
    os.unlink(path)
    os.mkfifo(path)
elif what == "one of a newer jobcore":
    with open(path, "r+b") as file:
        file.seek(4)
        file.write(b"\x63")
"""


def interpreter(minor):
    """Return the path of another version of Python, or skip the test."""
    if minor == sys.version_info[1]:
        pytest.skip("this is no other version")
    try:
        told = run(
            [f"python3.{minor}", "-c", "import sys; print(sys.executable)"],
            capture_output=True, check=True, text=True,
        )  # fmt: skip
    except (OSError, CalledProcessError):
        pytest.skip("it is not installed here")
    return told.stdout.strip()


def ended(jobs, job):
    """Return the job when it has ended."""
    return jobs.wait(job.id, timeout=60)


def call(jobs, target, *args, **kwargs):
    """Call a function to its end, and return the job."""
    return ended(jobs, jobs.submit_function(target, *args, **kwargs))


def lines(jobs, job):
    """Return the log as texts."""
    return [line.text for line in jobs.logs(job.id)]


def outcome(job):
    return job.status, job.exit_code, job.reason


DONE = (Status.COMPLETE, 0, Reason.EXITED)
FAILED = (Status.ERROR, 1, Reason.EXITED)


# --- what it returns ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "encoding"),
    [
        (None, "json"), (True, "json"), (0, "json"), (-1.5e300, "json"), ("é\n", "json"),
        ([1, [2, {"a": None}]], "json"), ((1, 2), "pickle"), ({1: "a"}, "pickle"),
        ({1, 2}, "pickle"), (b"\0\xff", "pickle"), (functions.Basket("fig"), "pickle"),
        (functions.adds, "pickle"), (ValueError("a"), "pickle"), ("\ud800", "pickle"),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_a_value_comes_back_as_it_was(running_jobs, database, value, encoding):
    """What a function returns is there, of its own type, None as well; so are its arguments."""
    job = call(running_jobs, functions.gives_back, value)
    returned = running_jobs.result(job.id)

    assert outcome(job) == DONE
    assert type(returned) is type(value)
    assert repr(returned) == repr(value) or returned == value
    assert [tuple(row) for row in sql(database, "SELECT job, encoding FROM result")] == [
        (job.number, encoding)
    ]


@pytest.mark.parametrize(
    ("target", "args", "kwargs", "value"),
    [
        (functions.adds, [1, 2], {"c": 3}, 6),
        ("tests.functions:adds", [1, 2], {}, 3),
        (functions.gives_back, [], {"self": 1, "target": 2, "command": 3},
         {"self": 1, "target": 2, "command": 3}),
        (functions.Basket, ["fig"], {}, functions.Basket("fig")),
        (functions.Basket("fig").count, [], {}, 1),
        (functions.Basket.of_apples, [2], {}, functions.Basket("apple", "apple")),
        (functools.partial(functions.adds, 1), [2], {"c": 3}, 6),
        (functions.is_given_more, [1], {}, ["from the decorator", 1]),
        (functions.sleeps_a_little, [1], {}, [1, True]),
        (functools.partial(functions.sleeps_a_little, 1), [], {}, [1, True]),
        (functions.uses_a_pool, [], {}, 3),
        (functions.imports_jobcore, [], {}, ["jobcore", True]),
        (functions.closes_all_descriptors, [], {}, "closed"),
        (functions.forks_and_returns, [], {}, "parent"),
    ],
)  # fmt: skip
def test_every_kind_of_callable_is_called(running_jobs, target, args, kwargs, value):
    """Functions, classes, methods, partial calls and coroutines return their values."""
    job = running_jobs.submit_function(target, *args, **kwargs)

    assert (outcome(ended(running_jobs, job)), lines(running_jobs, job)) == (DONE, [])
    assert running_jobs.result(job.id) == value


def test_options_are_those_of_a_command(running_jobs, tmp_path):
    """Directory, environment, name and data of a call are given as those of any command."""
    command = function_command(functions.looks_around, cwd=tmp_path, env={"A": "b"})
    job = ended(running_jobs, running_jobs.submit(command, type="FUNCTION", name="n", data=[1]))
    seen = running_jobs.result(job.id)

    assert (job.name, job.data, job.type) == ("n", [1], "FUNCTION")
    assert seen["cwd"] == str(tmp_path)


def test_a_function_sees_nothing_of_its_caller(running_jobs):
    """Standard input is empty, no module, path, variable or descriptor of jobcore is in sight."""
    secret = "s3cret-hunter2"
    job = running_jobs.submit(
        function_command(functions.looks_around, [secret], env={"PYTHONPATH": "/added"}),
        type="FUNCTION",
    )
    seen = running_jobs.result(ended(running_jobs, job).id)
    package = str(Path(encoding.__file__).parent)

    assert seen["stdin"] == ["/dev/null", ""]
    assert seen["jobcore"] == []
    assert seen["argv"] == ["-c"]
    assert seen["path"][: len(sys.path)] == [os.path.abspath(entry) for entry in sys.path]
    assert "/added" in seen["path"]
    assert [entry for entry in seen["path"] if entry in ("", package)] == []
    assert set(seen["environment"]) - set(os.environ) == {
        "JOBCORE_ATTEMPT", "JOBCORE_DB", "JOBCORE_JOB_ID", "JOBCORE_PROGRESS_FD", "JOBCORE_RUN",
        "JOBCORE_WORKSPACE_ID",
    }  # fmt: skip
    # As of any job: that of progress, and that of the look itself.
    assert len(seen["descriptors"]) == 5
    assert [word for word in (secret, "looks_around") if word in seen["public"]] == []


def test_a_call_can_be_the_command_of_a_pipeline(running_jobs):
    """A pipeline that calls a function runs it, within its own time-out, and keeps its value."""
    pipeline = running_jobs.create_pipeline("p", function_command(functions.adds, [1, 2]))
    job = ended(running_jobs, running_jobs.create_job(pipeline_id=pipeline.id))

    assert (outcome(job), job.type) == (DONE, "PIPELINE_RUN")
    assert running_jobs.result(job.id) == 3


def test_a_call_runs_under_whatever_type(running_jobs):
    """Submitted without a type, or many at once, it is called all the same."""
    command = function_command(functions.adds, [1, 2])
    several = [running_jobs.submit(command), *running_jobs.submit_many([command, command])]

    assert [running_jobs.result(ended(running_jobs, job).id) for job in several] == [3, 3, 3]


# --- where it is found ------------------------------------------------------------------


def test_a_module_is_found_where_the_submitter_finds_it(running_jobs, tmp_path, monkeypatch):
    """A module that only the submitter's path leads to is imported, by name and by pickle."""
    (tmp_path / "only_here.py").write_text("class C:\n    x = 5\n\ndef f(c): return (c, c.x)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    only_here = importlib.import_module("only_here")

    job = call(running_jobs, only_here.f, only_here.C())
    with JobManager(parts(running_jobs).database.path, slots=1) as elsewhere:
        found, number = elsewhere.result(job.id)

    assert outcome(job) == DONE
    assert (type(found), number) == (only_here.C, 5)


@pytest.mark.parametrize("name", ["logs", "command", "values", "errors", "naming", "jobcore"])
def test_a_module_called_like_one_of_jobcores_is_the_programs_own(
    running_jobs, tmp_path, monkeypatch, name
):
    """Modules of the program are not taken for jobcore's, nor jobcore's for the program's."""
    (tmp_path / f"{name}.py").write_text(
        "import importlib.util\n"
        "def f(): return [__name__, __file__, importlib.util.find_spec('resultfile')]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    job = call(running_jobs, f"{name}:f")

    assert (lines(running_jobs, job), outcome(job)) == ([], DONE)
    assert running_jobs.result(job.id) == [name, str(tmp_path / f"{name}.py"), None]


def test_nothing_in_the_current_directory_gets_between(running_jobs, tmp_path):
    """A file called like a module of the standard library is no module of the caller's."""
    for name in ("json", "os", "logging", "re", "binascii", "types"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported by mistake')\n")
    command = function_command(functions.adds, [1, 2], cwd=tmp_path)
    job = ended(running_jobs, running_jobs.submit(command, type="FUNCTION"))

    assert (outcome(job), lines(running_jobs, job)) == (DONE, [])


@pytest.mark.parametrize("minor", [10, 11, 12, 13, 14])
def test_another_version_of_python_calls_it(database, tmp_path, monkeypatch, minor):
    """It is found along the submitter's path, with the other version's standard library."""
    (tmp_path / "anywhere.py").write_text(
        "import sys, json, ssl, decimal\ndef f(*a): return (sys.version_info[:2], a)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    executors = {**default_executors(), "FUNCTION": FunctionExecutor(interpreter(minor))}
    with JobManager(database, slots=1, executors=executors) as jobs:
        job = call(jobs, "anywhere:f", 1, (2,))

        assert (lines(jobs, job), outcome(job)) == ([], DONE)
        assert jobs.result(job.id) == ((3, minor), (1, (2,)))


# --- how it ends --------------------------------------------------------------------------

HERE = functions.__file__


def frames(log):
    """Return the files and functions of the tracebacks in a log."""
    return [(line.split('"')[1], line.split()[-1]) for line in log if "  File " in line]


def test_exception_is_logged_with_its_traceback(running_jobs):
    """The job is ERROR with exit code 1; its log ends with the function's own frames alone."""
    job = call(running_jobs, functions.fails, "no such key")
    log = lines(running_jobs, job)

    assert outcome(job) == FAILED
    assert log[0] == "Traceback (most recent call last):"
    assert frames(log) == [(HERE, "fails"), (HERE, "inner_failure")]
    assert log[-1] == "LookupError: no such key"


def test_exception_causes_are_logged(running_jobs):
    """An exception raised from another one shows both."""
    log = lines(running_jobs, call(running_jobs, functions.fails_in_turn))

    assert [line for line in log if "Error" in line and "raise" not in line] == [
        "LookupError: first", "RuntimeError: second",
    ]  # fmt: skip
    assert {file for file, _ in frames(log)} == {HERE}


@pytest.mark.skipif(sys.version_info < (3, 11), reason="there are no groups yet")
def test_exception_groups_are_logged_completely(running_jobs):
    """Each member of a group is in the log."""
    job = call(running_jobs, functions.fails_in_groups)
    log = "\n".join(lines(running_jobs, job))

    assert outcome(job) == FAILED
    assert [
        word for word in ("several", "ValueError: one", "OSError: two") if word not in log
    ] == []


@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("no_such_module:f", "ModuleNotFoundError: No module named 'no_such_module'"),
        (
            "tests.functions:no_such",
            "AttributeError: module 'tests.functions' has no attribute 'no_such'",
        ),
        ("tests.functions:log", "TypeError: 'Logger' object is not callable"),
    ],
)
def test_missing_function_is_an_error(running_jobs, name, last):
    """A text that leads nowhere makes the job ERROR, without a frame of the caller's."""
    job = call(running_jobs, name)
    log = lines(running_jobs, job)

    assert outcome(job) == FAILED
    assert (log[-1], frames(log)) == (last, [])


@pytest.mark.parametrize(
    ("code", "exit_code", "log"),
    [(0, 0, []), (None, 0, []), (3, 3, []), ("a text", 1, ["a text"]), (256 + 4, 4, [])],
)
def test_an_exit_keeps_its_meaning(running_jobs, code, exit_code, log):
    """SystemExit ends the job as it ends a program; one that exits with 0 has returned nothing."""
    job = call(running_jobs, functions.exits, code)

    assert (job.exit_code, job.reason, lines(running_jobs, job)) == (exit_code, Reason.EXITED, log)
    assert job.status is (Status.ERROR if exit_code else Status.COMPLETE)
    with pytest.raises(NoResult) as caught:
        running_jobs.result(job.id)
    assert (caught.value.job_id, caught.value.job_status) == (job.id, job.status)


def test_an_interrupt_ends_it_as_it_ends_a_program(running_jobs):
    """SIGINT prints a traceback, and the job ends by that signal."""
    job = call(running_jobs, functions.is_interrupted)
    log = lines(running_jobs, job)

    assert (job.status, job.signal, job.exit_code) == (Status.ERROR, 2, 130)
    assert (frames(log), log[-1]) == ([(HERE, "is_interrupted")], "KeyboardInterrupt")


def test_the_true_exit_code_wins_over_a_value(running_jobs, database):
    """If the interpreter fails after the return, the job failed and has no value."""
    job = call(running_jobs, functions.leaves_a_failing_end)

    assert outcome(job) == (Status.ERROR, 9, Reason.EXITED)
    assert sql(database, "SELECT * FROM result") == []


def test_a_stop_ends_it(running_jobs):
    """SIGTERM ends a function in the middle, as any program; there is no value."""
    job = running_jobs.submit_function(functions.waits)
    assert next(running_jobs.follow(job.id, timeout=60)).text == "ready"
    running_jobs.stop_job(job.id)
    job = ended(running_jobs, job)

    assert (job.status, job.reason, job.signal) == (Status.STOPPED, Reason.STOPPED, 15)
    with pytest.raises(NoResult, match="is STOPPED, and has no result"):
        running_jobs.result(job.id)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(("how", "code"), [("returns", 0), ("raises", 1), ("exits", 3)])
def test_stop_that_comes_in_atexit_does_not_interrupt_it(running_jobs, tmp_path, how, code, number):
    """However the function has ended, its handlers run to their end, and so does the process."""
    path = tmp_path / "said"
    command = function_command(
        functions.cleans_up_after_its_end, [str(path), how], grace=60, stop_signal=number
    )
    job = running_jobs.submit(command, type="FUNCTION")
    texts = (line.text for line in running_jobs.follow(job.id, timeout=60))
    assert "cleaning up" in texts
    running_jobs.stop_job(job.id)
    job = ended(running_jobs, job)

    assert path.read_text() == "atexit"
    assert outcome(job) == (Status.STOPPED, code, Reason.STOPPED)


def test_stop_ends_the_waiting_for_threads_of_a_function_that_has_ended(running_jobs, tmp_path):
    """A thread that does not end does not keep `atexit` handlers from running."""
    path = tmp_path / "said"
    command = function_command(functions.leaves_a_thread, [str(path)], grace=60)
    job = running_jobs.submit(command, type="FUNCTION")
    assert next(running_jobs.follow(job.id, timeout=60)).text == "ready"
    running_jobs.stop_job(job.id)
    job = ended(running_jobs, job)

    assert path.read_text() == "atexit"
    assert (job.status, job.reason) == (Status.STOPPED, Reason.STOPPED)


@pytest.mark.parametrize("how", ["stop", "time-out"])
def test_ended_function_runs_its_clean_up(running_jobs, tmp_path, how):
    """`finally`, threads, `atexit` and buffers are finished, despite a second SIGTERM."""
    path = tmp_path / "said"
    timeout = 3 if how == "time-out" else None
    command = function_command(functions.cleans_up, [str(path)], timeout=timeout, grace=60)
    job = running_jobs.submit(command, type="FUNCTION")
    if how == "stop":
        assert next(running_jobs.follow(job.id, timeout=60)).text == "ready"
        running_jobs.stop_job(job.id)
    job = ended(running_jobs, job)

    assert (job.status, job.exit_code, job.signal) == (Status.STOPPED, 143, 15)
    assert path.read_text().split() == ["finally", "thread", "atexit"]
    assert [line.text for line in running_jobs.logs(job.id)][-1] == "cleaned up"


@pytest.mark.parametrize(
    ("target", "last"),
    [
        (functions.cleans_up_in_an_event_loop, "cancelled"),
        (functions.waits_in_a_pool, "3"),
        (functions.waits_beside_a_generator, "closed"),
    ],
)
def test_stopped_function_finishes_its_clean_up(running_jobs, target, last):
    """Tasks of a loop are cancelled, a pool still works, and a generator is closed."""
    job = running_jobs.submit(function_command(target, grace=60), type="FUNCTION")
    assert next(running_jobs.follow(job.id, timeout=60)).text == "ready"
    running_jobs.stop_job(job.id)
    job = ended(running_jobs, job)

    assert (job.status, job.signal) == (Status.STOPPED, 15)
    assert [line.text for line in running_jobs.logs(job.id)][-1] == last


def test_children_of_a_function_end_by_sigterm(running_jobs):
    """Its children are as they would be without jobcore."""
    job = call(running_jobs, functions.forks_what_waits)

    assert running_jobs.result(job.id) == signal.SIGTERM


def test_a_stopped_function_has_no_value_though_it_returns(running_jobs, database):
    """One that takes SIGTERM and returns all the same is STOPPED, and its value is not kept."""
    job = running_jobs.submit_function(functions.returns_although_asked_to_stop)
    assert next(running_jobs.follow(job.id, timeout=60)).text == "ready"
    running_jobs.stop_job(job.id, grace=60)
    job = ended(running_jobs, job)

    assert (job.status, job.exit_code) == (Status.STOPPED, 0)
    assert sql(database, "SELECT * FROM result") == []


def test_a_time_out_ends_it(running_jobs):
    """A call has the time-out of its command."""
    command = function_command(functions.waits, timeout=0.5, grace=5)
    job = ended(running_jobs, running_jobs.submit(command, type="FUNCTION"))

    assert (job.status, job.reason) == (Status.STOPPED, Reason.TIMEOUT)


# --- values that cannot be kept -------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "args", "last"),
    [
        (
            functions.returns_a_lock, [],
            ("TypeError: tests.functions:returns_a_lock returned a value that cannot be stored: "
            "an object of type _thread.lock cannot be pickled"),
        ),
        (
            functions.makes_a_local, [],
            ("TypeError: tests.functions:makes_a_local returned a value that cannot be stored: "
            "tests.functions:makes_a_local.<locals>.local is defined inside a function: "
            "move it to the top of its module"),
        ),
        (
            functions.returns_many_bytes, [result_file.LARGEST - 1],
            ("ValueError: tests.functions:returns_many_bytes returned a value of 4194305 bytes, "
            "more than 4194304: write it to a file, and return the path"),
        ),
        (
            functions.returns_on_a_full_disk, [],
            ("OSError: [Errno 27] the return value of "
            "tests.functions:returns_on_a_full_disk could not be stored: File too large"),
        ),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_kept_is_an_error(running_jobs, database, target, args, last):
    """No value is lost silently: the job is ERROR, with the reason in its log."""
    job = call(running_jobs, target, *args)

    assert outcome(job) == FAILED
    assert lines(running_jobs, job) == [last]
    assert sql(database, "SELECT * FROM result") == []


def test_the_largest_value_is_kept(running_jobs):
    """A value of exactly the limit comes back whole."""
    number = result_file.LARGEST - 2  # the quotes of a JSON text

    job = call(running_jobs, functions.returns_many_bytes, number)

    assert outcome(job) == DONE
    assert running_jobs.result(job.id) == "x" * number


# --- what it says -----------------------------------------------------------------------------


def test_records_arrive_from_info_up(running_jobs):
    """Without logging configuration, records are lines with level and logger."""
    job = call(running_jobs, functions.logs_at_every_level)

    assert lines(running_jobs, job) == [
        "INFO:tests.functions:info speaks",
        "WARNING:tests.functions:warning speaks",
        "ERROR:tests.functions:error speaks",
    ]


def test_records_of_several_lines_arrive_whole(running_jobs):
    """A text of several lines, and the traceback with it, are as many lines of the log."""
    log = lines(running_jobs, call(running_jobs, functions.logs_several_lines))

    assert log[:3] == [
        "ERROR:tests.functions:first", "second", "Traceback (most recent call last):",
    ]  # fmt: skip
    assert log[-1] == "LookupError: inside"


def test_records_are_errors_where_streams_are_apart(running_jobs):
    """Records and tracebacks go to stderr, and printed text to stdout."""
    several = []
    for target, args in ((functions.logs_at_every_level, []), (functions.prints, ["a"])):
        command = function_command(target, args, separate_streams=True)
        job = ended(running_jobs, running_jobs.submit(command, type="FUNCTION"))
        several.append({line.stream for line in running_jobs.logs(job.id)})

    assert several == [{"stderr"}, {"stdout"}]


BEFORE = "INFO:tests.functions:before"


@pytest.mark.parametrize(
    ("how", "log", "level", "handlers"),
    [
        ("basicConfig", ["own warning"], 30, 1),
        ("basicConfig at INFO", ["own info", "own warning"], 20, 1),
        ("basicConfig to stdout at DEBUG", ["own debug", "own info", "own warning"], 10, 1),
        ("a handler on the root", ["own warning"], 30, 1),
        ("a level on the root, then a handler", ["own info", "own warning"], 20, 1),
        ("a level on the root", [], 40, 0),
        ("dictConfig", ["own warning"], 30, 1),
        ("a null handler", [], 30, 1),
        ("a handler of its own", ["own info", "own warning"], 20, 0),
    ],
)
def test_a_function_configures_logging_as_any_program_does(
    running_jobs, how, log, level, handlers
):  # fmt: skip
    """From its configuration on, all is as if the caller had done nothing: level, form, place."""
    job = call(running_jobs, functions.configures_logging, how)

    assert lines(running_jobs, job) == [BEFORE, *log]
    assert running_jobs.result(job.id) == [level, handlers]


def test_structlog_output_has_no_colours(running_jobs, monkeypatch):
    """An unconfigured structlog is plain text, though the host's environment forces colours."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    log = lines(running_jobs, call(running_jobs, functions.logs_by_structlog))

    assert len(log) == 1
    assert log[0].split()[2:] == ["[info", "]", "loaded", "rows=3"]


def test_unflushed_output_is_in_the_log(running_jobs):
    """Text that is not flushed, and has no end of line, is in the log all the same."""
    job = call(running_jobs, functions.leaves_text_unflushed)

    assert lines(running_jobs, job) == ["written", "no line end"]


def test_processes_that_a_function_forks_mix_no_lines(running_jobs):
    """Each process writes whole lines at once."""
    job = call(running_jobs, functions.prints_from_processes, 4, 300)
    said = [line.fields for line in running_jobs.logs(job.id)]

    assert None not in said
    expected = [{"worker": worker, "n": n} for worker in range(4) for n in range(300)]
    assert sorted(said, key=lambda one: (one["worker"], one["n"])) == expected


def test_a_printed_line_is_there_while_the_function_runs(running_jobs, gate):
    """Each line of stdout is handed over once it ends, though the host's Python buffers."""
    job = running_jobs.submit_function(functions.prints_and_waits, gate)
    assert next(running_jobs.follow(job.id, timeout=PATIENCE)).text == "said"
    open_gate(gate)

    assert lines(running_jobs, ended(running_jobs, job)) == ["said", "more"]


def test_redaction_masks_output_of_a_function(running_jobs):
    """A secret that a function prints or fails with is masked."""
    command = function_command(functions.fails, ["hunter2"], redact=["hunter2"])
    job = ended(running_jobs, running_jobs.submit(command, type="FUNCTION"))

    assert lines(running_jobs, job)[-1] == "LookupError: ***"


# --- where its value is -------------------------------------------------------------------------


def result_elsewhere(database, job_id):
    with JobManager(database, slots=0) as jobs:
        return jobs.result(job_id)


def test_any_process_reads_it(running_jobs, database):
    """Another process, and another manager that runs nothing, have the value, again and again."""
    job = call(running_jobs, functions.gives_back, (1, 2))

    assert in_child(result_elsewhere, database, job.id) == (1, 2)
    assert in_child(result_elsewhere, database, str(job.id)) == (1, 2)
    assert running_jobs.result(job.id) == (1, 2)


@pytest.mark.parametrize(("program", "status"), [(EXIT_0, Status.COMPLETE), (EXIT_3, Status.ERROR)])
def test_commands_have_no_result(running_jobs, program, status):
    """A command's end is not a value."""
    job = ended(running_jobs, running_jobs.submit(program))
    with pytest.raises(NoResult) as caught:
        running_jobs.result(job.id)

    assert (caught.value.job_id, caught.value.job_status) == (job.id, status)
    assert str(caught.value) == f"job {job.id} is {status}, and has no result"


@pytest.mark.parametrize("what", ["a pickle", "one of a newer jobcore", "a FIFO", "a link"])
def test_result_file_of_a_command_is_not_unpickled(running_jobs, database, tmp_path, what):
    """Only a function leaves a result: that of another command would be unpickled by the host."""
    make = tmp_path / "make.py"
    make.write_text(MAKE_RESULT)
    job = running_jobs.submit(
        [sys.executable, str(make), f"{database}.jobs", str(tmp_path), what], type="COMMAND"
    )

    assert running_jobs.wait(job.id, PATIENCE).status is Status.COMPLETE
    assert sql(database, "SELECT * FROM result") == []
    with pytest.raises(NoResult):
        running_jobs.result(job.id)


def test_unfinished_job_has_no_result(running_jobs, jobs):
    """QUEUED and RUNNING jobs and tasks have no result; an unknown job is not found."""
    running = running_jobs.submit(SLEEPS)
    next(running_jobs.follow(running.id, timeout=60))
    queued = jobs.create_job("TASK")
    found = []
    for job in (queued, running):
        with pytest.raises(NoResult) as caught:
            running_jobs.result(job.id)
        found.append(caught.value.job_status)

    assert found == [Status.QUEUED, Status.RUNNING]
    with pytest.raises(JobNotFound):
        running_jobs.result("no such id")


def test_result_is_deleted_with_its_job(running_jobs, database):
    """A deleted job leaves no value."""
    job = call(running_jobs, functions.gives_back, 1)
    kept = call(running_jobs, functions.gives_back, 2)
    running_jobs.delete_job(job.id)

    assert [row["job"] for row in sql(database, "SELECT job FROM result")] == [kept.number]
    with pytest.raises(JobNotFound):
        running_jobs.result(job.id)


def test_a_function_is_retried_as_it_was(running_jobs, tmp_path):
    """A retry makes the same call; the job that was stopped stays unchanged."""
    flag = tmp_path / "flag"
    job = running_jobs.submit_function(functions.waits_for, str(flag))
    assert next(running_jobs.follow(job.id, timeout=60)).text == "ready"
    running_jobs.stop_job(job.id)
    job = ended(running_jobs, job)
    flag.touch()
    again = ended(running_jobs, running_jobs.retry_job(job.id))

    assert (job.status, outcome(again)) == (Status.STOPPED, DONE)
    assert (again.attempt, again.retry_of, again.name) == (2, job.id, job.name)
    assert running_jobs.result(again.id) == {"saw": str(flag)}


def test_a_value_that_needs_a_missing_module_stays(running_jobs, tmp_path, monkeypatch):
    """Without the module, reading raises; the value can be read later."""
    (tmp_path / "far_away.py").write_text("class C: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    job = call(running_jobs, "far_away:C")
    monkeypatch.undo()
    with pytest.raises(ModuleNotFoundError, match="far_away"):
        running_jobs.result(job.id)
    monkeypatch.syspath_prepend(str(tmp_path))

    assert type(running_jobs.result(job.id)).__name__ == "C"
