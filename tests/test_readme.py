"""README and the guides are true: their examples run, their tables and numbers are compared."""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
from contextlib import ExitStack, closing
from pathlib import Path
from uuid import UUID

import anyio
import pytest
import typer.main
from typer.testing import CliRunner

from jobcore import JobManager, LogLine, Reason, Retries, Status, StoreMismatch, lifecycle, wire
from jobcore.cli import commands
from jobcore.cli.app import app
from jobcore.command import DEFAULT_LINGER
from jobcore.functions import call
from jobcore.operations import doctor
from jobcore.operations.pipelines import FIELDS
from jobcore.retries import delay_after
from jobcore.supervisor import capture, progress, result_file, termination
from tests.cases import each
from tests.faults.rounds import campaign
from tests.integration.verbs_harness import fork
from tests.processes import PATIENCE, ROOT, forked
from tests.programs import EXIT_3, SLEEPS
from tests.texts import GUIDES, README, TEXT, between, blocks

commands.load_all()
COMMANDS = typer.main.get_command(app).commands


def printed(source, folder):
    """Return what a program in Python prints in an empty folder, or in one where another ran."""
    process = forked(
        lambda: exec(compile(source, "-c", "exec"), {"__name__": "__main__"}),
        {"PYTHONPATH": str(ROOT)},
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    said, complaints = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, complaints
    return said


def printed_by_an_interpreter(source, folder):
    """Return the same where nothing is loaded."""
    done = subprocess.run(
        [sys.executable, "-c", source],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        cwd=folder,
        env={"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_example_runs_as_printed(tmp_path):
    """The Python example has about ten lines, and prints what README says."""
    section = between("ten lines")
    (source,) = blocks("python", section)

    assert printed_by_an_interpreter(source, tmp_path) == blocks("text", section)[0]
    assert len(source.splitlines()) <= 11


def test_the_examples_of_events_run_as_printed(tmp_path):
    """A subscriber gets events, and a reader continues from its stored id."""
    subscribe, feed = between("subscribe", "end of subscribe"), between("feed", "end of feed")
    (told,), (read,) = blocks("python", subscribe), blocks("python", feed)

    assert printed(told, tmp_path) == blocks("text", subscribe)[0]
    assert printed(read, tmp_path) + printed(read, tmp_path) == blocks("text", feed)[0]


def test_the_example_of_functions_runs_as_printed(tmp_path):
    """What functions return and how they fail is what README says."""
    section = between("function", "end of functions")

    assert printed(blocks("python", section)[0], tmp_path) == blocks("text", section)[0]


def test_the_example_of_warm_functions_runs_as_printed(tmp_path):
    """Calls return the same, fresh or warm."""
    section = between("warm:", "end of warm")

    assert printed(blocks("python", section)[0], tmp_path) == blocks("text", section)[0]


def test_the_example_of_dependencies_runs_as_printed(tmp_path):
    """Jobs wait for others, and are cancelled where these end otherwise."""
    section = between("dependencies:", "end of dependencies")
    (program,), (output,) = blocks("python", section), blocks("text", section)

    said = [line.split() for line in printed(program, tmp_path).splitlines()]
    assert sorted(said) == sorted(line.split() for line in output.splitlines())


def test_the_example_of_a_queue_runs_as_printed(tmp_path):
    """A job that fails in all of its attempts keeps the job that waits for it from running."""
    section = between("queue:", "end of queue")

    assert printed(blocks("python", section)[0], tmp_path) == blocks("text", section)[0]


def test_the_example_of_keys_runs_as_printed(tmp_path):
    """A submission with a key can be repeated."""
    section = between("keys:", "end of keys")

    assert printed(blocks("python", section)[0], tmp_path) == blocks("text", section)[0]


def test_the_example_of_limits_runs_as_printed(tmp_path):
    """A limit and a pause keep jobs in the queue, and priority decides which is next."""
    section = between("limits:", "end of limits")

    assert printed(blocks("python", section)[0], tmp_path) == blocks("text", section)[0]


def test_the_example_of_tasks_runs_as_printed(tmp_path):
    """A block is a job, and a worker's claims end when there is no more."""
    section = between("task:", "end of task")

    assert printed(blocks("python", section)[0], tmp_path) == blocks("text", section)[0]


def test_the_example_of_schedules_runs_as_printed(tmp_path):
    """A pipeline runs by the clock, and another one after it."""
    section = between("schedule:", "end of schedule")

    assert printed(blocks("python", section)[0], tmp_path) == blocks("text", section)[0]


def campaigns():
    """Return what the report calls each campaign, one by one where there are several cases."""
    files = [
        path for path in (ROOT / "tests").rglob("test_*.py") if "@in_rounds(" in path.read_text()
    ]
    words = ["--collect-only", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "faults"]
    process = forked(
        lambda: sys.exit(pytest.main([*words, *map(str, files)])),
        {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    collected, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, collected
    found = re.findall(r"::(\w+)\[(.*)\]$", collected, re.MULTILINE)
    return [campaign(function, case) for function, case in found if "full" in case.split("-")]


def test_the_report_of_campaigns_has_each_of_them_without_a_violation():
    """README's table has every campaign of `pytest -m faults`, without a violation."""
    (report,) = blocks("text", between("campaigns", "end of campaigns"))
    rows = re.findall(r"^(\S.*?) {2,}([\d,]+) +(\d+)(?: +\d+ s)?$", report, re.MULTILINE)

    assert [name for name, _, _ in rows] == [*sorted(campaigns()), "all"]
    assert {violations for _, _, violations in rows} == {"0"}
    assert re.search(r"^seed \d+$", report, re.MULTILINE)
    assert re.search(r"^Linux \S+, .*\d+ cores, Python \S+, SQLite \S+", report, re.MULTILINE)


def test_documented_restore_of_a_backup_works(tmp_path):
    """A backup that is made while a job runs has all, and that job is lost where it is restored."""
    (source,) = blocks("python", between("backup.py", "end of backup.py"))
    database, backup = str(tmp_path / "jobs.db"), str(tmp_path / "backups" / "monday")
    with JobManager(database, slots=1) as jobs:
        ended = jobs.wait(jobs.submit(EXIT_3).id)
        running = jobs.submit(SLEEPS)
        assert next(jobs.follow(running.id)).text == "ready"
        queued = jobs.submit(["echo", "later"])
        subprocess.run([sys.executable, "-c", source, database, backup], check=True)
        jobs.stop_job(running.id)
        jobs.wait(queued.id)
    for end in ("", "-wal", "-shm"):
        Path(database + end).unlink(missing_ok=True)
    shutil.rmtree(f"{database}.jobs")
    for name in os.listdir(backup):
        os.rename(os.path.join(backup, name), tmp_path / name)

    with JobManager(database, slots=1) as jobs:
        jobs.drain(PATIENCE)
        assert jobs.get_job(ended.id) == ended
        assert jobs.get_job(running.id).reason is Reason.LOST
        assert [line.raw for line in jobs.logs(queued.id)] == [b"later\n"]
        assert [one for one in jobs.check() if one.verdict == "wrong"] == []


def test_a_backup_without_the_store_can_be_looked_at(tmp_path):
    """A file with a RUNNING job is shown as it is, and runs nothing beside a new directory."""
    database, copy = str(tmp_path / "jobs.db"), str(tmp_path / "copy.db")
    with JobManager(database, slots=1, on_exit="stop") as jobs:
        job = jobs.submit(SLEEPS)
        assert next(jobs.follow(job.id)).text == "ready"
        with closing(sqlite3.connect(database)) as connection:
            connection.execute("VACUUM INTO ?", (copy,))
        with JobManager(copy, slots=0) as copied:
            copied.refresh()
            seen = copied.get_job(job.id).status, [one.id for one in copied.list_copied_jobs()]
        with pytest.raises(StoreMismatch):
            JobManager(copy, slots=1)
        original = jobs.get_job(job.id).status
    assert seen == (Status.RUNNING, [job.id])
    assert original is Status.RUNNING
    assert not os.path.exists(copy + ".jobs")


def test_the_nightly_line_prunes_and_finds_nothing_wrong(tmp_path):
    """The line for cron runs as it stands, where there is a database."""
    (line,) = blocks("sh", between("nightly", "end of nightly"))
    with JobManager(tmp_path / "jobs.db", slots=1) as jobs:
        jobs.wait(jobs.submit(EXIT_3).id)
    code, out, err = ran(line.rstrip("\n"), tmp_path)

    assert (code, err) == (0, "")
    assert "wrong" not in out


def test_parameters_and_state_are_as_shown(tmp_path):
    """The example of a pipeline's parameters prints what the guide says."""
    shown = between("parameters:", "end of parameters")

    assert printed(blocks("python", shown)[0], tmp_path) == blocks("text", shown)[0]


def test_result_of_a_command_is_as_shown(tmp_path):
    """The example of results prints what the guide says."""
    shown = between("result:", "end of result")

    assert printed(blocks("python", shown)[0], tmp_path) == blocks("text", shown)[0]


def test_jobs_come_as_they_end_as_shown(tmp_path):
    """The example of waiting prints what the guide says."""
    shown = between("waiting:", "end of waiting")

    assert printed(blocks("python", shown)[0], tmp_path) == blocks("text", shown)[0]


def logged():
    """Return the levels of each event that jobcore logs, by its name, as the table has them."""
    found = {}
    for path in (ROOT / "jobcore").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            if called == "telemetry.event":
                level, name, *_ = node.args
                if path.name == "postponement.py":
                    continue  # by what it was called with
                assert re.fullmatch(r"logging\.[A-Z]+", ast.unparse(level)), (path, node.lineno)
                levels = ast.unparse(level).removeprefix("logging.")
            elif called.endswith("postponed.fail") or called == "self._damaged.fail":
                name = node.args[2]
                levels = "WARNING or ERROR"
            else:
                continue
            for one in [name.body, name.orelse] if isinstance(name, ast.IfExp) else [name]:
                found.setdefault(ast.literal_eval(one), set()).add(levels)
    return found


def test_the_table_of_log_events_has_each_of_them():
    """Each event that jobcore logs is in the table with its level, and no other is."""
    rows = re.findall(
        r"^\| `([^`]+)` \| (DEBUG|INFO|WARNING|ERROR|WARNING or ERROR) \| .+? \| .+? \|$",
        between("log events"),
        re.MULTILINE,
    )
    # One that is logged directly, too, has a level that the rule allows.
    wanted = {name: max(levels, key=len) for name, levels in logged().items()}

    assert len(rows) == len(dict(rows))
    assert dict(rows) == wanted


def test_the_numbers_are_those_of_the_code():
    """What README says in numbers is what the code does, whatever other tests take from there."""
    said = {
        "up to 1,000 characters of text": progress.MAX_MESSAGE == 1000,
        "at most four a second are passed on": capture.REPORT_EVERY == 1 / 4,
        "The descriptor is number 8": progress.DESCRIPTOR == 8,
        "up to 1 MiB of arguments": call.MOST_ARGUMENT_BYTES == 2**20,
        "returns up to 4 MiB": result_file.LARGEST == 4 * 2**20,
        "`Command.linger` seconds later, 2 by default": DEFAULT_LINGER == 2,
        "still run a second after its end get SIGTERM": termination.PAUSE == 1,
        "A process that no SIGKILL ends within 10 seconds": termination.KILL_FOR == 10,
        "starts 10 seconds later": Retries(1).delay == 10,
        "10, 20, 40 seconds and so on, up to an hour": (
            [delay_after(Retries(99), attempt, UUID(int=0)) for attempt in (1, 2, 3, 99)]
            == [10, 20, 40, 3600]
        ),
        "it stays above 64 MiB": doctor.LARGE_LOG == 64 * 2**20,
    }

    assert [words for words in said if words not in TEXT] == []
    assert [words for words, is_so in said.items() if not is_so] == []


def test_the_ndjson_is_what_is_sent():
    """The lines of NDJSON in README are what such lines are sent as."""
    first, second = (1_700_000_000_123_000_000, 1_700_000_001_456_000_000)
    lines = [
        LogLine(0, first, "output", b"extract\n"),
        LogLine(1, second, "output", b'{"event": "loaded", "rows": 200}\n'),
    ]

    shown = blocks("json", between("ndjson", "end of ndjson"))

    assert shown == [b"".join(wire.ndjson(lines)).decode()]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_example_for_event_loops_runs_under_each(backend, database, capsys):
    """What README awaits prints the log, and returns the final job."""
    known = {}
    exec(between("event loop", "end of event loop").split("```")[1].removeprefix("python"), known)
    with JobManager(database, slots=1) as jobs:
        job = jobs.submit(["sh", "-c", "echo hello; exit 3"])
        ended = anyio.run(known["build"], jobs, job.id, backend=backend)

    assert capsys.readouterr().out == "hello\n"
    assert ended.exit_code == 3


def in_asyncio(source, folder):
    """Return what the body of a coroutine prints that has `jobs`."""
    body = "".join(f"        {line}\n" for line in source.splitlines())
    begun = """
import asyncio
from jobcore import JobManager

async def main():
    with JobManager("jobs.db", slots=1) as jobs:
"""
    return printed(f"{begun}{body}asyncio.run(main(), debug=True)\n", folder)


def test_documented_call_in_a_thread_works(tmp_path):
    """What README calls in a thread makes a job."""
    (call,) = re.findall(r"`(await asyncio\.to_thread\(.*\))`", TEXT)

    assert in_asyncio(f"print(({call}).status)", tmp_path) == "QUEUED\n"


def test_documented_hand_over_of_events_to_a_loop_works(tmp_path):
    """The callback that README has for asyncio brings the events into a queue of the loop."""
    (call,) = re.findall(r"`(jobs\.subscribe\(.*\))`", TEXT)
    source = f"""
loop, queue = asyncio.get_running_loop(), asyncio.Queue()
{call}
await asyncio.to_thread(jobs.submit, ["sh", "-c", "exit 3"])
print(*[str((await queue.get()).trigger) for _ in range(3)])
"""

    assert in_asyncio(source, tmp_path) == "create start finish\n"


def test_each_example_names_the_test_that_has_it():
    """No code without a mark around it; what that names is there, and some test asks for it."""
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    unmarked, mark = [], None
    for line in TEXT.splitlines():
        if begin := re.fullmatch(r"<!-- (?!end of )(.+?): (.+) -->", line):
            mark = begin[1]
            (place,) = re.findall(r"\btests(?:/\w+)+(?:\.py)?|\bjobcore\.lifecycle\b", begin[2])
            assert (ROOT / place).exists() or mark == "diagram", place
            assert f"<!-- end of {mark}" in TEXT
            assert re.search(rf'(?:"|<!-- ){re.escape(mark)}\b', tests), mark
        elif line.startswith("<!-- end of "):
            mark = None
        elif re.match(r"```(?!text)\w", line) and mark is None:
            unmarked.append(line)

    assert unmarked == []


def test_the_first_command_runs_a_job(tmp_path):
    """What a newcomer pastes shows the job's lines and exits with its code, once it is set up."""
    (line,) = blocks("sh", between("first line", "end of first line"))
    setup, _, command = line.rpartition(" && ")
    (tmp_path / ".venv").symlink_to(sys.prefix)
    done = subprocess.run(
        ["sh", "-c", command.replace("sleep 1", "sleep 0")],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )

    assert setup.endswith("pip install --quiet '.[cli]'")
    assert (done.returncode, done.stdout) == (0, "line 1\nline 2\nline 3\n"), done.stderr


def test_the_two_commands_are_single_lines():
    """A newcomer pastes one line to run a job, and one to pass the tests."""
    (first,) = blocks("sh", between("first line", "end of first line"))
    (second,) = blocks("sh", between("second line", "end of second line"))

    assert (first.count("\n"), second.count("\n")) == (1, 1)
    assert "jobcore run" in first
    assert "pytest" in second
    for line in (first, second):
        subprocess.run(["sh", "-n", "-c", line], check=True)


def test_the_diagram_is_the_machine():
    """The state diagram is what the lifecycle prints."""
    assert between("diagram", "end of diagram").endswith(
        f"-->\n```mermaid\n{lifecycle.diagram()}```\n"
    )


def test_every_reason_is_in_the_table_of_endings():
    """No reason without its row."""
    table = TEXT.partition("| Ending |")[2].partition("\n\n")[0]

    assert [reason for reason in lifecycle.Reason if f"`{reason}`" not in table] == []


def test_every_argument_of_a_pipeline_is_in_its_table():
    """The table of `create_pipeline` has each argument, and no other."""
    table = TEXT.partition("| Argument | Meaning | Default |")[2].partition("\n\n")[0]

    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == {"workspace_id", *FIELDS}


def test_every_method_of_the_manager_is_named():
    """The table of calls has every public method."""
    table = TEXT.partition("| To | Call |")[2].partition("\n\n")[0]
    public = {name for name in vars(JobManager) if not name.startswith("_")} - {"close"}

    assert set(re.findall(r"`(\w+)`", table)) == public


def test_readme_is_short_and_names_every_guide():
    """A newcomer reads it to the end, and finds the rest from there."""
    linked = re.findall(r"^\| \[([\w-]+)\]\(jobcore/docs/\1\.md\)", README, re.MULTILINE)

    assert len(README.splitlines()) <= 250
    assert sorted(linked) == sorted(GUIDES)


def test_links_lead_somewhere():
    """Each link to a file or a heading of the project has its target."""
    wrong = []
    for folder, text in [
        (ROOT, README),
        *((ROOT / "jobcore/docs", text) for text in GUIDES.values()),
    ]:
        for file, anchor in re.findall(r"\]\(([\w./-]*)(?:#([\w-]+))?\)", text):
            target = (folder / file).read_text() if file else text
            heads = [
                re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-")
                for head in re.findall(r"^#+ (.+)$", target, re.MULTILINE)
            ]
            if anchor and anchor not in heads:
                wrong.append(f"{file}#{anchor}")

    assert wrong == []


@each("name", COMMANDS)
def test_each_command_has_help(name):
    """The help of a command has an example, and explains each of its options."""
    command = COMMANDS[name]

    assert f"jobcore {name}" in command.help
    assert [param.name for param in command.params if not param.help and param.name != "help"] == []


def usage(*words):
    """Return what `jobcore ... --help` prints of usage, arguments and options."""
    done = CliRunner().invoke(
        app, [*words, "--help"], env={"COLUMNS": "80"}, prog_name="jobcore", catch_exceptions=False
    )
    first, *others = done.output.split("\n\n")
    kept = [first] if words else []
    for part in others:
        title, _, entries = part.rstrip("\n").partition("\n")
        if title in ("Arguments:", "Options:"):
            found = re.findall(r"^  \S.*(?:\n {3,}.*)*", entries, re.MULTILINE)
            own = [one for one in found if not words or not is_common(one)]
            kept += ["\n".join([title, *own])] if own else []
    return "\n\n".join(kept) + "\n"


def is_common(entry):
    """Tell whether the help of every command has this entry."""
    return entry.split()[0].rstrip(",") in ("--db", "--trust-directory", "--utc", "-h")


def test_table_of_commands_matches_their_help():
    """`jobcore --help` has each command, with the first line of the command's own help."""
    table = {
        name: about
        for section in commands.SECTIONS.values()
        for name, (_, about) in section.items()
    }

    assert table == {name: one.help.partition("\n")[0] for name, one in COMMANDS.items()}


def command_sections():
    """Return the guide's section on each command, by the command's name."""
    _, *parts = re.split(r"^## jobcore (\w+)\n", between("commands"), flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_the_guide_has_each_command_and_its_options():
    """The blocks of the command-line guide are what `--help` prints; if not, paste what is said."""
    sections = command_sections()
    shown = {name: blocks("text", section) for name, section in sections.items()}
    shown["(common options)"] = blocks("text", between("common options"))
    printed = {name: usage(name) for name in COMMANDS} | {"(common options)": usage()}
    # Versions of the framework may break lines elsewhere.
    stale = [
        f"{name}:\n```text\n{text}```\n"
        for name, text in printed.items()
        if [one.split() for one in shown.get(name, [])] != [text.split()]
    ]

    assert stale == [], "paste into jobcore/docs/command-line.md:\n\n" + "\n".join(stale)
    assert set(sections) == set(COMMANDS)


@each("name", COMMANDS)
def test_a_section_names_only_options_of_its_command(name):
    """No section explains an option that its command does not have."""
    among = [COMMANDS[name], *getattr(COMMANDS[name], "commands", {}).values()]
    known = {option for one in among for param in one.params for option in param.opts} | {"--help"}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", command_sections()[name]))

    assert named - known == set()


def ran(line, folder):
    """Return the exit code, stdout and stderr of a line of shell that calls `jobcore`."""
    # A fork begins much sooner than an interpreter, which a shell would start.
    if operator := re.search(r"(?: (&&|\|\|)|;) (?=jobcore )", line):
        code, out, err = ran(line[: operator.start()], folder)
        if operator[1] is None or (code == 0) == (operator[1] == "&&"):
            code, *more = ran(line[operator.end() :], folder)
            out, err = out + more[0], err + more[1]
        return code, out, err
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    environment = {"PATH": path, "PYTHONPATH": str(ROOT)}
    with ExitStack() as stack:
        options = {
            "cwd": folder,
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
        }
        if source := re.search(r" \| (?=jobcore )", line):
            before = ["sh", "-c", line[: source.start()]]
            shell = subprocess.Popen(before, cwd=folder, stdout=subprocess.PIPE)
            options["stdin"] = stack.enter_context(shell).stdout
            line = line[source.end() :]
        words = shlex.split(line)
        if {"|", "||", "&&"} & set(words):
            process = subprocess.Popen(["sh", "-c", line], env=environment, text=True, **options)
        else:
            if words[-2:-1] == [">"]:
                *words, _, target = words
                options["stdout"] = stack.enter_context(open(folder / target, "wb"))
            process = fork([words[1:]], environment, text=True, **options)
        out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out or "", err


def test_the_examples_of_commands_run(tmp_path):
    """Each example of the command-line guide exits with 0, where its job and its file are there."""
    (tmp_path / "orders.csv").write_text("b\na\n")
    (tmp_path / "jobs.ndjson").write_text('{"export": {"version": 1}}\n')
    (tmp_path / "pipelines.yml").write_text('pipelines: {"load": {script: "true"}}\n')
    examples = {
        name: "".join(blocks("sh", section)).splitlines()
        for name, section in command_sections().items()
    }
    with JobManager(tmp_path / "jobs.db", slots=1) as jobs:
        ended = jobs.wait(jobs.submit(["true"]).id).id
        running = jobs.submit(SLEEPS).id
        assert next(jobs.follow(running)).text == "ready"
        queued = jobs.create_job("TASK").id
        meant = {"stop": running, "set": queued, "cancel": queued}
        done = {}
        # Those that end or remove jobs come last.
        for name in sorted(examples, key=["stop", "cancel", "delete", "prune"].__contains__):
            job_id = str(meant.get(name, ended))
            done[name] = [ran(line.replace("3f2a", job_id), tmp_path) for line in examples[name]]

    ((code, _, complaint),) = done.pop("watch")
    assert (code, "needs a terminal" in complaint) == (2, True)
    failed = [(name, one) for name, lines in done.items() for one in lines if one[0] != 0]
    assert failed == []
    hello, level, _, *others, orders = [out for _, out, _ in done["run"]]
    assert (hello, level) == ("hello\n", "debug\n")
    assert others == ["      1 a\n      1 b\n", "", "2\n", "2\n"]
    assert sorted(orders.splitlines()) == ["order 1", "order 2", "order 3"]


def test_the_session_runs(tmp_path):
    """Each line of README's session succeeds, where one of 50 days fails and another hangs."""
    (session,) = blocks("sh", between("session:", "end of session"))
    (tmp_path / "days.txt").write_text("".join(f"{day}\n" for day in range(1, 51)))
    (tmp_path / "load.sh").write_text(
        "echo $1; case $1 in 7) exit 3;; 40) exec sleep 1000;; esac\n"
    )
    for name in ("clean.sh", "report.sh", "orders.csv"):
        (tmp_path / name).touch()
    (tmp_path / "pipelines.yml").write_text('pipelines: {"load": {script: "true"}}\n')
    with JobManager(tmp_path / "jobs.db", slots=4) as jobs:
        lines = [line.partition("  #")[0].rstrip() for line in session.splitlines()]
        done = {line: ran(line, tmp_path) for line in lines}
        jobs.drain(PATIENCE)
        attempts = {
            name: [str(job.status) for job in jobs.list_jobs(name=name)]
            for name in ("day 7", "day 40", "day 50")
        }

    assert {line: one for line, one in done.items() if one[0] != 0} == {}
    assert attempts == {"day 7": ["ERROR"] * 2, "day 40": ["STOPPED"], "day 50": ["COMPLETE"]}


def test_progress_is_reported_as_shown(tmp_path):
    """Every way to report progress that the guide shows works, and the host's example prints it."""
    shown = between("progress:", "end of progress")
    (script,) = re.findall(r"^```sh\n(.*?)^```$", shown, re.DOTALL | re.MULTILINE)
    *programs, host = re.findall(r"^```python\n(.*?)^```$", shown, re.DOTALL | re.MULTILINE)
    commands = [["sh", "-c", script], *([sys.executable, "-c", source] for source in programs)]
    with JobManager(tmp_path / "jobs.db", slots=1) as jobs:
        ended = [jobs.wait(jobs.submit(command).id, PATIENCE) for command in commands]
        said = [(job.progress.done, job.progress.total, job.progress.message) for job in ended]
        lines = printed(host, tmp_path).splitlines()

    assert [(job.exit_code, job.line_count) for job in ended] == [(0, 0)] * 3
    assert said == [
        (3.0, 10.0, "loading orders"),
        (10.0, 10.0, "loading orders"),
        (10.0, 10.0, "all orders are loaded"),
    ]
    assert lines == [
        f"{job.progress.done} {job.progress.total} {job.progress.message} "
        f"{job.progress.at.isoformat()}"
        for job in reversed(ended)
    ]
