"""The command line in daily use: short ids, long lists, options anywhere, any terminal."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys

import pytest
import typer.main

import jobcore
from jobcore import JobManager, Status
from jobcore.cli import commands
from jobcore.cli.app import app
from tests.integration.verbs_harness import fork, in_a_pipe, on_a_terminal
from tests.processes import PATIENCE, ROOT, open_gate, run_python, stop_host, until
from tests.texts import GUIDES

commands.load_all()
COMMANDS = typer.main.get_command(app).commands
#: Runs the verbs that it is given, with an empty word after each.
EACH = """
import sys
from tests.verbs import call_each
verbs = [[]]
for word in sys.argv[1:]:
    if word:
        verbs[-1].append(word)
    else:
        verbs.append([])
call_each(verbs[:-1])
"""
ODD = "ünïcode ✓ 日本 \N{PILE OF POO}"


def environment(database, **more):
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return {**inherited, "PYTHONPATH": str(ROOT), "JOBCORE_DB": database, **more}


def plain(shown):
    """Return a text without its colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", shown)


def start(database, *words, **options):
    """Return a running `jobcore`, its output in pipes."""
    usual = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return fork([words], environment(database), text=True, **{**usual, **options})


def ended(process, code=0):
    """Return stdout and stderr of a process that has to exit with `code`."""
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, "Traceback" in err) == (code, False), f"{out}\n{err}"
    return out, err


# --- ids ---------------------------------------------------------------------------


def test_any_unique_beginning_of_any_id_names_its_job(jobs, database):
    """However old the job, however many there are, in either case, with hyphens or without."""
    jobs.submit_many([["true"]] * 1100)
    (oldest,) = jobs.list_jobs(before=2)
    least = next(n for n in range(1, 33) if len(jobs.find_jobs(oldest.id.hex[:n])) == 1)
    beginnings = [oldest.id.hex[:length] for length in range(least, 33)]
    # Digits that are the number of a job mean that job.
    beginnings = [one for one in beginnings if not one.isdecimal() or int(one) > 1100]
    beginnings += [str(oldest.id)[:length] for length in (8, 9, 13, 14, 20, 35, 36)]
    beginnings += [oldest.id.hex[:12].upper(), str(oldest.id).upper(), f"{{{oldest.id}}}"]
    *shown, err = in_a_pipe(database, [["show", "--json", one] for one in beginnings])

    assert {json.loads(one)["id"] for one in shown} == {str(oldest.id)}
    assert err == ""


def test_number_names_its_job(jobs, database):
    """With `#` or without; digits that are no job's number are the beginning of an id."""
    made = jobs.submit_many([["true"]] * 3)
    verbs = [["show", "--json", one] for one in ("2", "#2", made[1].id.hex)]
    *shown, err = in_a_pipe(database, verbs)

    assert {json.loads(one)["id"] for one in shown} == {str(made[1].id)}
    assert err == ""
    for unknown in ("#4", "#0", "99999999999999999999"):
        _, err = ended(start(database, "show", unknown), 1)
        assert err == f"jobcore: no job has the number, name or ID {unknown!r}\n"


def test_find_jobs_walks_the_ids_in_order(jobs):
    """It finds jobs by their first digits, except those that are being deleted."""
    made = sorted(job.id.hex for job in jobs.submit_many([["true"]] * 300))
    digit = made[150][0]
    same = [one for one in made if one.startswith(digit)]

    assert [job.id.hex for job in jobs.find_jobs(digit)] == same[:100]
    assert [job.id.hex for job in jobs.find_jobs(digit.upper(), limit=2)] == same[:2]
    assert jobs.find_jobs(digit, limit=0) == []
    assert [job.id.hex for job in jobs.find_jobs(made[7])] == [made[7]]

    jobs.delete_job(made[7])
    assert jobs.find_jobs(made[7]) == []


@pytest.mark.parametrize("prefix", ["", "-", "xyz", "0" * 33, None, 7, b"3f", "3f%", "٣"])
def test_find_jobs_refuses_what_begins_no_id(jobs, prefix):
    """No empty beginning, and no pattern: only digits of an id."""
    with pytest.raises(ValueError, match="id_prefix must be 1 to 32 hexadecimal digits"):
        jobs.find_jobs(prefix)


# --- lists -------------------------------------------------------------------------


def test_pipe_gets_all_jobs_and_a_terminal_a_screenful(jobs, database):
    """Nothing is cut in silence: a pipe gets every job once, a terminal a hint at the rest."""
    made = [str(job.id) for job in jobs.submit_many([["true"]] * 2300)]
    lists = [["list"], ["list", "--json"], ["list", "--limit", "120"], ["list", "--before", "1201"]]
    lines, objects, some, older, err = in_a_pipe(database, lists)

    assert [line.split("\t")[0] for line in lines.splitlines()] == made[::-1]
    assert [one["id"] for one in json.loads(objects)] == made[::-1]
    assert len(some.splitlines()) == 120
    assert [line.split("\t")[0] for line in older.splitlines()] == made[1199::-1]
    assert err == ""

    short, filtered, asked, last = on_a_terminal(
        database,
        [
            ["list"],
            ["list", "--status", "QUEUED"],
            ["list", "--limit", "101"],
            ["list", "--before", "101"],
        ],
        LINES="24",
    )
    assert re.findall(r"^ *(\d+) +[0-9a-f]{8}", plain(short), re.MULTILINE) == [
        str(n) for n in range(1, 21)
    ]  # those that start next, as many as fit
    assert "jobcore: 2,280 more: see --limit and the filters\r\n" in short
    assert len(re.findall("QUEUED", filtered)) == 100
    assert "jobcore: there are older ones: --before 2201, or --limit\r\n" in filtered
    assert len(re.findall("QUEUED", asked)) == 101
    assert "older ones" not in asked + last  # it was told how many, and these are the last


def test_empty_list_is_an_empty_document(jobs, database):
    """A filter that nothing fits gives no line, and an empty JSON array."""
    jobs.create_job("TASK")
    verbs = [["list", "--status", "ERROR"], ["list", "--status", "ERROR", "--json"]]

    assert in_a_pipe(database, verbs) == ["", "[]\n", ""]


def test_reader_of_a_list_may_go_away(jobs, database):
    """`list | head -1` ends with 141 and nothing on stderr."""
    jobs.submit_many([["true"]] * 3000)
    process = start(database, "list")
    assert process.stdout.readline()
    process.stdout.close()

    assert process.wait(PATIENCE) == 141
    assert process.stderr.read() == ""
    process.stderr.close()


# --- terminals ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "ascii:strict"},
        {"PYTHONIOENCODING": "latin-1"},
        {"LC_ALL": "C", "LANG": "C"},
        {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"COLUMNS": "0"},
        {"COLUMNS": "20", "PYTHONIOENCODING": "ascii"},
        {"TERM": "dumb"},
        {"TERM": ""},
        {"NO_COLOR": "1"},
    ],
    ids=str,
)
def test_any_terminal_is_shown_everything(running_jobs, database, settings):
    """Characters that a terminal cannot show are escaped; JSON stays JSON."""
    job = running_jobs.submit(["printf", f"{ODD}\\n"], name=ODD)
    assert running_jobs.wait(job.id, PATIENCE).exit_code == 0
    words = (
        ["list"], ["show"], ["history"], ["logs"], ["show", "--json"], ["logs", "--format=ndjson"]
    )  # fmt: skip
    verbs = [[*one, *([] if one == ["list"] else [str(job.id)])] for one in words]
    listed, shown, history, logged, document, line = on_a_terminal(database, verbs, **settings)

    for text in (listed, shown, history, logged):
        assert "Traceback" not in text
        assert "UTF-8" not in text
    assert "COMPLETE" in shown + logged + listed or settings.get("COLUMNS") == "20"
    assert json.loads(document)["name"] == ODD
    assert json.loads(line)["message"] == ODD
    if "ascii" in settings.get("PYTHONIOENCODING", ""):
        assert f"{listed}{shown}{history}{logged}{document}{line}".isascii()
        assert logged == "\\xfcn\\xefcode \\u2713 \\u65e5\\u672c \\U0001f4a9\r\n"


@pytest.mark.parametrize("verb", ["run", "list", "show", "logs"])
def test_pipe_gets_utf_8_whatever_the_locale(running_jobs, database, verb):
    """Data in a pipe do not depend on the terminal's encoding."""
    job = running_jobs.submit(["printf", ODD], name=ODD)
    assert running_jobs.wait(job.id, PATIENCE).exit_code == 0
    words = {"run": ["run", "--", "printf", ODD], "list": ["list"]}.get(verb, [verb, str(job.id)])
    out, err = in_a_pipe(database, [words], PYTHONIOENCODING="ascii")

    assert (ODD in out, err) == (True, "")


def test_terminal_gets_local_times_and_a_pipe_utc(database):
    """`list`, `show` and `history` agree on the times of a job."""
    with JobManager(database, slots=0) as now:
        job = now.create_job("TASK")
    words = [["list"], ["show", str(job.id)], ["history", str(job.id)]]
    tokyo = job.created.timestamp() + 9 * 3600
    local = job.created.fromtimestamp(tokyo, job.created.tzinfo).strftime("%Y-%m-%d %H:%M:%S")
    utc = job.created.strftime("%Y-%m-%dT%H:%M:%S.")

    first, *others = on_a_terminal(database, words, TZ="JST-9")
    assert "STARTED" not in first  # it has not started
    for shown in others:
        assert f"{local} JST" in shown
        assert utc[:-1].replace("T", " ") not in shown
    in_utc = [[*one, "--utc"] for one in words] + [["--utc", *one] for one in words]
    for shown in on_a_terminal(database, in_utc[1:3] + in_utc[4:], TZ="JST-9"):
        assert job.created.strftime("%Y-%m-%d %H:%M:%S UTC") in shown
    for piped in in_a_pipe(database, words, TZ="JST-9")[:3]:
        assert re.search(re.escape(utc) + r"\d+Z", piped)
        assert local not in piped


def test_elapsed_time_of_a_running_job_is_shown(database):
    """A terminal sees how long a job has been running; one that is queued has no time yet."""
    with JobManager(database, slots=0) as now:
        queued = now.create_job("TASK")
        job = now.start_job(now.create_job("TASK").id, owner=None)
    listed, shown, waits = on_a_terminal(
        database, [["list"], ["show", str(job.id)], ["show", str(queued.id)]]
    )
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in listed.splitlines()[1:]]
    (running,) = [line for line in lines if "RUNNING" in line]
    (queue,) = [line for line in lines if "QUEUED" in line]

    assert re.search(r"RUNNING +\d+\.\ds +\d\d:\d\d:\d\d ", running)
    assert re.search(r"QUEUED +TASK", queue)
    assert re.search(r"elapsed +\d+\.\d s", shown)
    assert "elapsed" not in waits


# --- options -----------------------------------------------------------------------


def test_database_option_works_after_the_command(tmp_path):
    """`--db` works on both sides of the command's name, and the last one is taken."""
    other, mine = str(tmp_path / "other.db"), str(tmp_path / "mine.db")
    with JobManager(mine, slots=0) as jobs:
        job = jobs.create_job("TASK")
    verbs = [
        ["list", "--db", mine],
        ["list", f"--db={mine}"],
        ["--db", mine, "list"],
        ["--db", other, "list", "--db", mine],
        ["show", "--json", "--db", mine, str(job.id)],
        ["show", str(job.id), "--db", mine, "--json"],
        ["run", "--db", mine, "--trust-directory", "--", "echo", "--db", other],
    ]
    *found, ran, err = in_a_pipe(other, verbs)

    assert [str(job.id) in one for one in found] == [True] * 6
    assert (ran, err) == (f"--db {other}\n", "")
    assert not os.path.exists(other)


def test_version_is_printed(database):
    """`--version` prints the facts for a bug report, and makes no database."""
    shown, err = in_a_pipe(database, [["--version"]])

    assert re.fullmatch(
        rf"jobcore {re.escape(jobcore.__version__)} \(Python 3\.\d+\.\S+, SQLite 3\.\d+\.\d+\)\n",
        shown,
    )
    assert err == ""
    assert not os.path.exists(database)


def test_help_is_in_our_own_words(database):
    """Nothing of the framework shows: no types, ranges or braces; each value has its place."""
    words = [["--help"], *([name, "-h"] for name in COMMANDS)]
    *texts, err = in_a_pipe(database, words)

    assert err == ""
    for text in texts:
        assert re.findall(r"<\w+|x>=|\{(?!\})|\[required\]|\[default:|env var|list\[", text) == []
        assert text.startswith("Usage: jobcore")
    for name, text in zip(COMMANDS, texts[1:], strict=True):
        for option in COMMANDS[name].params:
            if option.param_type_name == "option" and not option.is_flag:
                assert re.search(rf"{max(option.opts, key=len)} \[?[A-Z]+(=[A-Z]+)?\b", text), (
                    option
                )
        assert "--db FILE" in text
    assert "Usage: jobcore show [OPTIONS] ID\n" in texts[1 + list(COMMANDS).index("show")]


@pytest.mark.parametrize(
    "words", [["--help"], ["submit", "--help"], ["pipeline", "-h"], ["pipeline", "create", "-h"]]
)
def test_help_loads_no_database(words):
    """Printing help imports neither the manager, nor SQLAlchemy, nor pydantic."""
    loaded = run_python(
        f"import sys\nfrom jobcore.cli import main\nsys.argv = ['jobcore', *{words!r}]\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print(*{'sqlalchemy', 'sqlmodel', 'pydantic', 'jobcore.manager'} & {*sys.modules}, '.')"
    )

    assert loaded.splitlines()[-1] == "."
    assert loaded.startswith("Usage: " + " ".join(["jobcore", *words[:-1]]))


def test_help_of_an_unknown_command_is_an_error(database):
    """The word is named, in a group of commands, too; a job's command keeps its `--help`."""
    for words, known in ((["bogus"], "jobcore"), (["pipeline", "bogus"], "jobcore pipeline")):
        _, err = ended(start(database, *words, "--help"), code=2)
        assert re.match(rf"jobcore: No such command 'bogus'.*; see {known} --help\n", err)
    words = ["run", "sh", "-c", 'echo "$1"', "sh", "--help"]
    assert ended(start(database, *words)) == ("--help\n", "")


def test_commands_collect_garbage_but_not_what_they_import(database, jobs):
    """The collector is off during imports, and does not visit imported objects afterwards."""
    job = jobs.submit(["true"])
    shown = run_python(
        "import atexit, gc, sys\n"
        "from jobcore.cli import main\n"
        f"sys.argv = ['jobcore', '--db', {database!r}, 'list']\n"
        "atexit.register(lambda: print(gc.isenabled(), gc.get_freeze_count() > 50_000))\n"
        "main()"
    )

    listed, found = shown.splitlines()
    assert str(job.id) in listed
    assert found == "True True"


# --- run ---------------------------------------------------------------------------


def test_run_prints_the_id_on_request(database):
    """`--print-id` names the job on stderr, and leaves stdout to its log."""
    out, err = ended(start(database, "run", "--print-id", "--", "echo", "hi"))
    with JobManager(database, slots=0) as jobs:
        (job,) = jobs.list_jobs()

    assert (out, err) == ("hi\n", f"jobcore: job {job.id}\n")


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["echo hi | wc"], "'echo hi | wc' is taken as a program's name; a shell's line needs"),
        (["echo hi"], "--shell"),
        (["true&&true"], "--shell"),
        (["LEVEL=debug", "make"], "LEVEL=... is taken as a program's name; a variable needs --env"),
        (["no-such-program"], None),
        (["no such program", "argument"], None),
    ],
)
def test_run_hints_at_what_was_meant(database, words, hint):
    """The error says if a line for a shell, or a variable, was given as the program."""
    _, err = ended(start(database, "run", "--", *words), code=127)

    assert "program not found" in err or "cannot start" in err
    if hint is None:
        assert "taken as" not in err
    else:
        assert hint in err


def test_name_is_utf_8_in_every_locale(database):
    """Its bytes are stored as typed. If they are not UTF-8, the error names the argument."""

    def cli(*program):
        return subprocess.run(
            [sys.executable, *program],
            capture_output=True,
            env=environment(database, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0"),
            timeout=2 * PATIENCE,
            check=False,
        )

    stored = cli("-m", "jobcore", "run", "--name", "Müll €".encode(), "--", "true")
    assert stored.returncode == 0, stored
    with JobManager(database, slots=0) as jobs:
        assert [job.name for job in jobs.list_jobs()] == ["Müll €"]
    # The interpreter decodes each word; one interpreter does so for all the other verbs.
    verbs = [
        ["run", "--name", "Müll".encode("latin-1"), "--", "true"],
        ["show", "Müll €"],
        ["list", "--name", "Müll*"],
        ["list", "--workspace", "default"],
        ["pipeline", "create", "Müll", "--", "true"],
        ["pipeline", "pause", "MÜLL"],
    ]
    done = cli("-c", EACH, *(word for verb in verbs for word in (*verb, "")))
    refused, *shown, rest = re.split(rb"--- exit (?=\d+\n)", done.stdout)

    assert refused == b""
    assert b"'--name': it must be UTF-8 text, not b'M\\xfcll'" in done.stderr
    assert [one[:2] for one in (*shown, rest)] == [b"2\n", *[b"0\n"] * 5]
    assert ["Müll €".encode() in one for one in shown[:3]] == [True] * 3
    with JobManager(database, slots=0) as jobs:
        assert [(one.name, bool(one.paused)) for one in jobs.list_pipelines()] == [("Müll", True)]


@pytest.mark.parametrize("paused", [True, False], ids=["paused", "limited"])
def test_run_says_what_keeps_its_job_waiting(database, paused):
    """After a second, once; when the job may start, it runs."""
    with JobManager(database, slots=0) as jobs:
        if paused:
            jobs.pause("gpu")
        else:
            jobs.set_limit("gpu", 1)
            held = jobs.start_job(jobs.create_job("TASK", group="gpu").id)
        process = start(database, "run", "--group", "gpu", "--", "echo", "ran")
        said = process.stderr.readline()
        if paused:
            jobs.resume("gpu")
        else:
            jobs.finish_job(held.id)
        out, err = ended(process)

    expected = "the queue is paused, or" if paused else "as many jobs run as a limit allows"
    assert said.startswith(f"jobcore: waiting: {expected}")
    assert (out, err) == ("ran\n", "")


def test_run_waits_for_the_end_of_another_job(database):
    """It says so after a second, and starts when that job is COMPLETE."""
    with JobManager(database, slots=0) as jobs:
        held = jobs.start_job(jobs.create_job("TASK", name="load").id)
        process = start(database, "run", "--after", "load", "--", "echo", "ran")
        said = process.stderr.readline()
        jobs.finish_job(held.id)
        out, err = ended(process)

    assert said == "jobcore: waiting: a job of --after has not ended; see jobcore list\n"
    assert (out, err) == ("ran\n", "")


@pytest.mark.parametrize("detach", [[], ["--detach"]], ids=["shown", "detached"])
def test_run_after_a_job_that_failed_runs_nothing(database, detach):
    """It says why and exits with 1; with the other condition the command runs."""
    with JobManager(database, slots=0) as jobs:
        failed = jobs.create_job("TASK")
        jobs.start_job(failed.id)
        jobs.finish_job(failed.id, 3)
    words = ["run", *detach, "--after", "1"]
    out, err = ended(start(database, *words, "--", "echo", "ran"), code=1)
    ran, _ = ended(start(database, "run", "--after", "1", "--run-if", "failed", "--", "echo", "a"))

    assert "ran" not in out
    assert bool(out) == bool(detach)
    assert re.fullmatch(r"jobcore: job .* is STOPPED: upstream\n", err)
    assert ran == "a\n"


def test_run_with_a_key_runs_one_job_at_a_time(database, gate):
    """The second one names the first and runs nothing; when that has ended, the next one runs."""
    words = ["run", "--key", "nightly", "--print-id", "--"]
    first = start(database, *words, "sh", "-c", 'read -r _ < "$0"; echo', str(gate))
    job_id = first.stderr.readline().split()[-1]
    out, err = ended(start(database, *words, "echo", "ran"), code=1)
    open_gate(gate)
    ended(first)
    ran, _ = ended(start(database, *words, "echo", "ran"))

    assert (out, err) == ("", f"jobcore: job {job_id} already has the key 'nightly'\n")
    assert ran == "ran\n"


def test_program_with_spaces_in_its_name_runs(database, tmp_path):
    """Words with spaces are no mistake by themselves."""
    (tmp_path / "my program").write_text("#!/bin/sh\necho ran\n")
    (tmp_path / "my program").chmod(0o755)

    assert ended(start(database, "run", "--", str(tmp_path / "my program"))) == ("ran\n", "")


def test_stopping_run_itself_leaves_the_job_running(database, gate):
    """Ctrl-Z does this: the job goes on, and its output is shown afterwards."""
    process = start(database, "run", "--", "sh", "-c", f"echo ready; read x <'{gate}'; echo done")
    assert process.stdout.readline() == "ready\n"
    stop_host(process.pid, database)
    open_gate(gate)
    with JobManager(database, slots=0) as jobs:
        (job,) = jobs.list_jobs()
        until(lambda: jobs.get_job(job.id).status is Status.COMPLETE, "the end of the job")
    process.send_signal(signal.SIGCONT)

    assert ended(process) == ("done\n", "")


# --- guides --------------------------------------------------------------------------


def test_docs_lists_and_prints_the_guides(tmp_path):
    """Each guide that comes with the package is listed and printed, without the marks of tests."""
    database = str(tmp_path / "jobs.db")

    assert ended(start(database, "docs"))[0].splitlines() == sorted(GUIDES)
    for name in ("changelog", "service"):
        printed, _ = ended(start(database, "docs", name))
        assert printed == re.sub(r"<!-- .*? -->\n", "", GUIDES[name])
    _, error = ended(start(database, "docs", "sevrice"), 2)
    assert "there is no guide 'sevrice': choose one of changelog" in error
    assert list(tmp_path.iterdir()) == []
