"""The command line, as people and scripts use it: real processes from outside."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import sqlite3
import struct
import subprocess
import sys
import termios
import threading
import time
import uuid

import pytest

from jobcore import JobManager, Status
from tests.integration.verbs_harness import fork
from tests.processes import (
    PATIENCE,
    ROOT,
    Child,
    carrying,
    debug,
    end,
    end_of_python,
    hear_a_terminal,
    join,
    open_gate,
    state,
    until,
)
from tests.programs import HELD, SAVES_ON_INTERRUPT

CATCHES_TERM_SLOWLY = (
    "n=0; trap 'n=$((n + 1)); sleep 0.5; echo stopping $n; exit 7' TERM; echo ready"
)
CATCHES_TERM = 'trap "echo stopping; exit 7" TERM; echo ready; sleep 3600 & wait'
IGNORES_TERM = 'trap "" TERM; echo ready; sleep 3600'
TELLS_ITS_SUPERVISOR = 'trap "" TERM; echo "$PPID"; sleep 3600'


class Cli:
    """`python -m jobcore` on a database of its own; everything it starts carries a mark."""

    def __init__(self, folder, gate):
        self.folder = folder
        self.database = str(folder / "jobs.db")
        self.mark = f"JOBCORE_TEST={uuid.uuid4().hex}"
        self.gate = gate
        self.started = []
        name, _, value = self.mark.partition("=")
        self.env = {
            **os.environ,
            name: value,
            "PYTHONPATH": str(ROOT),
            "JOBCORE_DB": self.database,
            "GATE": self.gate,
            "COLUMNS": "120",
            "TERM": "xterm",
        }
        self.env.pop("PYTHONUNBUFFERED", None)  # buffers must work, too
        self.env.pop("LINES", None)  # that of whoever runs the tests, not of our terminal

    def start(self, *words, **options):
        """Return the running process, a new interpreter."""
        usual = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "preexec_fn": hear_a_terminal,
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "jobcore", *words],
            cwd=self.folder,
            env=self.env,
            **{**usual, **options},
        )
        self.started.append(process)
        return process

    def give_up(self):
        """End what was started: a test that waits for a line of it reads the end of it then."""
        for process in self.started:
            if process.poll() is None:
                process.kill()

    def fork(self, *words, **options):
        """
        Return the running process, a fork of this one, which has all of it loaded.

        A new interpreter takes half a second until it has, a hundred times over.
        """

        usual = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
        }
        process = fork([words], self.env, cwd=self.folder, **{**usual, **options})
        self.started.append(process)
        return process

    def __call__(self, *words, code=0):
        """Return stdout and stderr of a command that must exit with `code`."""
        return finish(self.fork(*words), code)

    def on_terminal(self, *words, code=None):
        """Return what a terminal of 120 columns gets; `code`: what the command must exit with."""
        ours, theirs = pty.openpty()
        process = self.fork(*words, stdout=theirs, stderr=theirs)
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # EIO: the last one has closed it
            while data := os.read(ours, 65536):
                shown += data
        os.close(ours)
        assert process.wait(PATIENCE) == code or code is None, shown
        return shown.decode()

    def ids(self, *filters):
        """Return the ids that `list` gives."""
        return [line.split("\t")[0] for line in self("list", *filters)[0].splitlines()]

    def only_job(self):
        """Return the one job there is, as a library sees it: quicker than a process."""
        with JobManager(self.database, slots=0) as jobs:
            (job,) = jobs.list_jobs()
            return jobs.get_job(job.id)

    def wait(self):
        """Return the one job there is once it is final."""
        with JobManager(self.database, slots=0) as jobs:
            return jobs.wait(self.only_job().id, PATIENCE)


def interrupt_again(process):
    """Send SIGINT until it counts as another one, a second after the last; return what it says."""
    while process.poll() is None:
        process.send_signal(signal.SIGINT)
        if select.select([process.stderr], [], [], 0.1)[0]:
            said = process.stderr.readline()
            if said.startswith(b"jobcore: "):  # or it is a line of the job's
                return said
    return b""


def finish(process, code):
    out, err = process.communicate(timeout=PATIENCE)
    told = f"exit {process.returncode}\n{out}\n{err}"
    assert process.returncode == code, told
    assert b"Traceback" not in err, told
    return (out or b"").decode(), err.decode()


@pytest.fixture
def cli(tmp_path, gate):
    """Return the command line; it may leave no process behind."""
    cli = Cli(tmp_path, gate)
    watchdog = threading.Timer(2 * PATIENCE, cli.give_up)
    watchdog.start()
    yield cli
    watchdog.cancel()
    join(watchdog)
    try:
        until(lambda: not carrying(cli.mark), "the end of all that the test started")
    finally:
        end(*cli.started)


@pytest.fixture
def queue(cli):
    """Return a manager in this process that only keeps books."""
    with JobManager(cli.database, slots=0) as manager:
        yield manager


# --- run ----------------------------------------------------------------------


def test_run_passes_on_both_lines_in_order_and_the_exit_code(cli):
    """`run` shows stdout and stderr in the order of writing, and exits as the command did."""
    out, err = cli("run", "--", "sh", "-c", "echo out; echo err >&2; exit 3", code=3)

    assert (out, err) == ("out\nerr\n", "")

    job_id = str(cli.only_job().id)
    shown = dict(line.split("\t") for line in cli("show", job_id)[0].splitlines())

    assert (shown["status"], shown["exitCode"], shown["reason"]) == ("ERROR", "3", "exited")

    history = [line.split("\t")[1:5] for line in cli("history", job_id)[0].splitlines()]

    assert history == [
        ["create", "-", "QUEUED", "-"],
        ["start", "QUEUED", "RUNNING", "-"],
        ["finish", "RUNNING", "ERROR", "exited"],
    ]


def test_run_gives_a_pipe_the_bytes_as_they_are(cli):
    """Escapes, bytes that are no text and a last line without an end pass a pipe unchanged."""
    wild = r"\033[31mred\033[0m \377 \r\n\ttab"
    process = cli.start("run", "--", "printf", wild)
    out, err = process.communicate(timeout=PATIENCE)

    assert (out, err) == (b"\x1b[31mred\x1b[0m \xff \r\n\ttab", b"")


def test_run_shows_much_output_completely(cli):
    """200,000 lines arrive, each once and in order."""
    out, _ = cli("run", "--", "seq", "200000")

    assert out == "".join(f"{n}\n" for n in range(1, 200001))


def test_run_takes_directory_environment_name_and_shell(cli):
    """`--cwd`, `--env`, `--name` and `--shell` reach the command and the job."""
    (cli.folder / "below").mkdir()
    out, _ = cli(
        *("run", "--cwd", "below", "--env", "A=1=2", "--env", "B=", "--name", "a name", "--shell"),
        'echo "${PWD##*/} $A $B." | cat',
    )

    assert out == "below 1=2 .\n"
    assert cli.only_job().name == "a name"


@pytest.mark.parametrize(
    ("options", "shown"), [((), "1"), (("--buffered",), ""), (("--env", "PYTHONUNBUFFERED="), "")]
)
def test_run_leaves_python_its_buffers_on_request(cli, options, shown):
    """`--buffered` also ignores the inherited variable; an empty value does the same."""
    cli.env["PYTHONUNBUFFERED"] = "x"
    out, _ = cli("run", *options, "--", "sh", "-c", 'echo "$PYTHONUNBUFFERED"')

    assert out == f"{shown}\n"


def test_a_command_line_in_a_job_uses_the_database_of_the_job(cli):
    """`JOBCORE_DB` is the absolute path, wherever the command stands; `--db` comes before it."""
    (cli.folder / "below").mkdir()
    line = [sys.executable, "-m", "jobcore"]
    out, _ = cli("run", "--cwd", "below", "--", *line, "list")
    other, _ = cli("run", "--cwd", "below", "--", *line, "--db", "own.db", "list", code=1)

    assert out.splitlines()[0].split("\t")[2] == "RUNNING"
    assert "no database own.db" in other


def test_run_gives_its_own_environment_umask_and_directory_beside_a_worker(cli, queue):
    """A worker with another environment starts the queued jobs, and never the job of `run`."""
    cli.env["WHO"] = "worker"
    worker = cli.fork("work", "--slots", "4")
    cli.env["WHO"] = "me"
    before = os.umask(0o027)
    try:
        for _ in range(5):
            queue.submit_many([["true"]] * 4)
            shown, _ = cli("run", "--", "sh", "-c", 'echo "$WHO $(umask) $(pwd)"')
            assert shown == f"me 0027 {cli.folder}\n"
    finally:
        os.umask(before)
    queue.drain(PATIENCE)
    worker.send_signal(signal.SIGTERM)
    finish(worker, 0)


def test_run_keeps_the_streams_apart_on_request(cli):
    """With `--separate-streams`, the command's stderr goes to stderr."""
    out, err = cli("run", "--separate-streams", "sh", "-c", "echo out; echo err >&2")

    assert (out, err) == ("out\n", "err\n")


def test_run_stops_at_the_time_out(cli):
    """A job beyond its time-out is STOPPED, and its exit code is the kernel's."""
    out, err = cli("run", "--timeout", "0.2", "--", "sleep", "60", code=143)

    assert out == ""
    assert "STOPPED: timeout" in err
    assert (cli.only_job().status, cli.only_job().reason) == ("STOPPED", "timeout")


def test_run_never_exits_0_for_a_job_that_is_not_complete(cli):
    """A stopped job whose command ends with 0 makes `run` and `wait` exit with 1."""
    script = "trap 'exit 0' TERM; echo ready; while :; do sleep 0.01; done"
    process = cli.fork("run", "--", "sh", "-c", script)
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGTERM)
    finish(process, 1)
    job = cli.only_job()

    assert (job.status, job.exit_code) == ("STOPPED", 0)
    cli("wait", str(job.id), code=1)


@pytest.mark.parametrize(
    ("number", "name"),
    [(32, "signal 32"), (34, "SIGRTMIN"), (37, "signal 37"), (64, "SIGRTMAX")],
)
def test_real_time_signal_makes_the_exit_code_128_plus_its_number(cli, number, name):
    """`run` and `wait` exit with it, in a pipe and on a terminal; a nameless one has its number."""
    source = f"import os; os.kill(os.getpid(), {number})"
    _, err = cli("run", "--", sys.executable, "-c", source, code=128 + number)
    job = cli.only_job()

    assert (job.status, job.reason, job.signal) == ("ERROR", "signaled", number)
    assert f"signaled, {name}\n" in err
    cli("wait", str(job.id), code=128 + number)
    assert f"signaled, {name}" in cli.on_terminal("wait", str(job.id), code=128 + number)
    cli.on_terminal("run", "--", sys.executable, "-c", source, code=128 + number)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["no-such-program"], 127, "not found"),
        (["/etc/passwd"], 126, "not executable"),
        (["--cwd", "/no/such/directory", "--", "true"], 126, "/no/such/directory"),
    ],
)
def test_run_prints_why_a_command_cannot_start(cli, words, code, said):
    """The reason is a line on stderr, the exit code that of a shell; stdout stays clean."""
    out, err = cli("run", *words, code=code)

    assert out == ""
    assert said in err
    assert (cli.only_job().status, cli.only_job().reason) == ("ERROR", "spawn_failed")


def test_a_job_that_cannot_be_started_now_is_not_started_some_day(cli):
    """If no supervisor can start, `run` says so and cancels the job that it queued."""
    source = """
import sys
from jobcore.cli import main
sys.executable, sys.argv = "/bin/true", ["jobcore", "run", "--", "true"]
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", source],
        cwd=cli.folder,
        env=cli.env,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )

    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done.stderr
    assert (cli.only_job().status, cli.only_job().reason) == ("STOPPED", "cancelled")


@pytest.mark.parametrize(
    ("words", "out", "hint"),
    [
        (["--stdin", "--", "cat"], "given\n", False),
        (["--stdin", "--timeout", "60", "cat"], "given\n", False),
        (["--stdin", "-", "cat"], "given\n", False),
        (["--stdin", "input", "cat"], "of a file\n", False),
        (["--stdin=input", "--", "cat"], "of a file\n", False),
        (["echo", "--stdin"], "--stdin\n", True),
        (["--name", "--stdin", "cat"], "", True),
    ],
)
def test_run_reads_its_standard_input_when_asked_to(cli, words, out, hint):
    """A file, or all that there is; without `--stdin` nothing is taken from a loop around it."""
    (cli.folder / "input").write_text("of a file\n")
    reader, writer = os.pipe()
    os.write(writer, b"given\n")
    os.close(writer)
    process = cli.fork("run", *words, stdin=reader)
    said, err = finish(process, 0)
    rest = os.read(reader, 100)
    os.close(reader)

    assert said == out
    assert rest == (b"" if out == "given\n" else b"given\n")
    assert ("standard input is not read" in err) == hint


def test_run_without_a_command_names_what_stdin_took(cli):
    """The file that an optional value has taken is named, and the remedy."""
    _, err = cli("run", "--stdin", "cat", code=2)

    assert "no command is given: --stdin took 'cat' as its file; write --" in err


def test_run_stops_by_the_signal_it_is_told(cli):
    """A program that saves on KeyboardInterrupt saves at the first signal."""
    process = cli.fork("run", "--stop-signal", "int", "--", *SAVES_ON_INTERRUPT)
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGTERM)
    out, _ = finish(process, 1)

    assert out == "saved\n"
    assert (cli.only_job().status, cli.only_job().exit_code) == ("STOPPED", 0)


def test_the_first_interrupt_stops_the_job_and_shows_its_end(cli):
    """Ctrl-C is a stop: the command's own farewell is seen, and its exit code passed on."""
    process = cli.start("run", "--", "sh", "-c", CATCHES_TERM)
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGINT)
    out, err = finish(process, 7)

    assert out == "stopping\n"
    assert "stopping job" in err
    assert (cli.only_job().status, cli.only_job().reason) == ("STOPPED", "stopped")


def test_two_signals_within_a_second_are_one(cli):
    """`timeout` and service managers send two: the job is stopped once, and has its grace."""
    script = f"{CATCHES_TERM_SLOWLY}; while :; do sleep 0.01; done"
    process = cli.fork("run", "--grace", "3600", "--", "sh", "-c", script)
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGTERM)
    assert b"stopping job" in process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    out, err = finish(process, 7)

    assert out == "stopping 1\n"
    assert "killing" not in err


def test_the_second_interrupt_kills_the_job(cli):
    """A command that ignores SIGTERM is killed by the second signal, whatever its grace is."""
    process = cli.fork("run", "--grace", "3600", "--", "sh", "-c", IGNORES_TERM)
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGTERM)
    assert b"stopping" in process.stderr.readline()
    assert b"killing job" in interrupt_again(process)
    finish(process, 137)


def test_the_third_interrupt_leaves_the_job(cli):
    """When even killing does not help, because its supervisor hangs, `run` lets go."""
    process = cli.fork("run", "--", "sh", "-c", TELLS_ITS_SUPERVISOR)
    supervisor = int(process.stdout.readline())
    debugger = Child(debug, supervisor)
    until(lambda: state(supervisor) == "t" or state(debugger.pid) in "ZX", "it is attached")
    if state(supervisor) != "t":
        debugger.kill()
        pytest.skip("no process may be debugged here")
    process.send_signal(signal.SIGINT)
    assert b"stopping" in process.stderr.readline()
    assert b"killing" in interrupt_again(process)
    interrupt_again(process)
    finish(process, 130)
    debugger.kill()

    assert cli.wait().exit_code == 137


def test_a_hangup_leaves_the_job_running(cli):
    """When its terminal goes, `run` goes, and the job ends by itself with its true code."""
    process = cli.start("run", "--", "sh", "-c", HELD)
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGHUP)
    finish(process, -signal.SIGHUP)
    assert cli.only_job().status == "RUNNING"
    open_gate(cli.gate)

    assert cli.wait().exit_code == 4
    assert cli("logs", str(cli.only_job().id))[0] == "ready\ngoing\n"


def test_a_reader_that_goes_away_does_not_end_the_job(cli):
    """`run | head` exits 141, and says whether the job goes on or has ended."""
    process = cli.start("run", "--", "sh", "-c", HELD)
    assert process.stdout.readline() == b"ready\n"
    process.stdout.close()
    process.stdout = None
    open_gate(cli.gate)
    _, err = process.communicate(timeout=PATIENCE)

    assert process.returncode == 141
    assert b"keeps running" in err or b"is ERROR: exited" in err
    assert cli.wait().exit_code == 4


def test_run_survives_removal_of_the_database(cli):
    """After `git clean -fdx` in a build, `run` ends with an error, and the build goes on."""
    survived = cli.folder / "survived"
    removes = (
        f'rm -rf {cli.database}*; echo building; read line < "$GATE"; echo more; touch {survived}'
    )
    process = cli.fork("run", "--", "sh", "-c", removes)
    _, err = finish(process, 1)
    before = survived.exists()
    open_gate(cli.gate)
    until(survived.exists, "the end of the command")

    assert "is no longer watched" in err
    assert "keeps running" not in err
    assert not before


def test_detach_prints_the_id_once_the_job_runs(cli):
    """`run --detach` prints nothing but the id, and the job it leaves is RUNNING."""
    out, err = cli("run", "--detach", "--", "sh", "-c", HELD)

    assert err == ""
    job_id = str(uuid.UUID(out.strip()))
    assert cli.only_job().status == "RUNNING"

    cli("wait", "--timeout", "0.1", job_id, code=124)
    open_gate(cli.gate)
    cli("wait", job_id, code=4)


def test_detach_prints_the_id_of_a_job_that_could_not_start(cli):
    """A failed start belongs to the job, so `run` prints its id."""
    out, _ = cli("run", "--detach", "--", "no-such-program")

    assert out == f"{cli.only_job().id}\n"
    assert cli.wait().exit_code == 127


# --- work -----------------------------------------------------------------------


def test_work_drains_the_queue(cli, queue):
    """`work --drain` runs all queued jobs in order, and exits."""
    queued = [queue.submit(["echo", str(n)]) for n in range(3)]
    out, err = cli("work", "--slots", "1", "--drain")
    ended = [queue.get_job(job.id) for job in queued]

    assert (out, err.count("\n")) == ("", 6)  # the starts and ends of three jobs
    assert [job.status for job in ended] == ["COMPLETE"] * 3
    assert sorted(ended, key=lambda job: job.start_time) == ended


def test_work_leaves_what_may_not_start_yet(cli, queue):
    """`work --drain` waits for no retry: that may be an hour away, and stays queued."""
    pipeline = queue.create_pipeline("nightly", ["false"], max_retries=1)
    first = queue.create_job(pipeline_id=pipeline.id)
    cli("work", "--slots", "1", "--drain")
    (retry,) = queue.list_jobs(status=Status.QUEUED)

    assert queue.get_job(first.id).status is Status.ERROR
    assert (retry.retry_of, retry.attempt) == (first.id, 2)


@pytest.mark.parametrize("times", [1, 2])
def test_work_ends_at_a_signal_and_leaves_what_runs(cli, queue, times):
    """At SIGTERM nothing more is started; the running job lives on, the next one waits."""
    first = queue.submit(["sh", "-c", HELD])
    second = queue.submit(["true"])
    process = cli.fork("work", "--slots", "1")
    until(lambda: queue.get_job(first.id).line_count, "the first job's line")
    for _ in range(times):
        process.send_signal(signal.SIGTERM)
    _, err = finish(process, 0)

    assert "1 running" in err
    assert queue.get_job(second.id).status == "QUEUED"
    open_gate(cli.gate)
    assert queue.wait(first.id, PATIENCE).exit_code == 4


# --- looking ----------------------------------------------------------------------


def test_list_filters_and_pages(cli, queue):
    """`list` gives the newest first, by status, by type and in pages."""
    made = [queue.create_job("TASK", name=str(n)) for n in range(3)]
    other = queue.create_job("OTHER")
    queue.start_job(made[0].id)
    newest_first = [str(job.id) for job in reversed(made)]

    assert cli.ids() == [str(other.id), *newest_first]
    assert cli.ids("--type", "TASK", "--status", "queued") == newest_first[:2]

    page = json.loads(cli("list", "--type", "TASK", "--limit", "2", "--json")[0])
    assert [job["id"] for job in page] == newest_first[:2]
    assert cli.ids("--type", "TASK", "--before", str(page[-1]["number"])) == newest_first[2:]


def test_list_is_true_after_a_host_has_died(cli):
    """A job that ended after its host was killed is listed as it ended."""
    process = cli.fork("run", "--", "sh", "-c", HELD)
    assert process.stdout.readline() == b"ready\n"
    process.kill()
    process.communicate()
    open_gate(cli.gate)

    until(lambda: cli.ids("--status", "ERROR"), "the job is listed as ERROR")


def test_fields_in_a_pipe_never_break(cli, queue):
    """A name or message with tabs and line ends stays one field of one line."""
    job = queue.create_job("TASK", name="a\tb\nc")
    queue.start_job(job.id)
    queue.report_progress(job.id, 3, 10, "d\te\nf")
    out, _ = cli("list")

    assert out.count("\n") == 1
    assert out.rstrip("\n").split("\t")[10:12] == ["a b c", "3/10 d e f"]
    assert out.rstrip("\n").split("\t")[12:] == ["-", "0", "-", "-"]


def test_progress_is_shown(cli, queue):
    """`list` shows the progress on a terminal, and `show` the whole report."""
    job = queue.create_job("TASK", name="import")
    queue.start_job(job.id)
    queue.report_progress(job.id, 3, 10, "loading\x1b[2J")
    table = re.sub(r"\x1b\[[0-9;]*m", "", cli.on_terminal("list")).splitlines()
    shown = json.loads(cli("show", str(job.id), "--json")[0])["progress"]
    lines = dict(line.split("\t") for line in cli("show", str(job.id))[0].splitlines())

    assert re.split("  +", table[1].strip())[-3:] == ["NOTE", "STARTED UTC", "WHAT"]
    assert table[2].split()[-3::2] == ["30%", "import"]
    assert (shown["done"], shown["total"], shown["message"]) == (3, 10, "loading\x1b[2J")
    assert json.loads(lines["progress"]) == shown


def test_logs_by_number_tail_and_format(cli, queue):
    """`logs` begins at a line number or so many lines before the end, as text or as NDJSON."""
    job = queue.create_job("TASK")
    queue.start_job(job.id)
    queue.append_log(job.id, *(f"line {n}" for n in range(5)))
    queue.finish_job(job.id)
    job_id = str(job.id)

    assert cli("logs", job_id, "--sequence", "3")[0] == "line 3\nline 4\n"
    assert cli("logs", job_id, "--tail", "1")[0] == "line 4\n"
    assert cli("logs", job_id, "-f", "--tail", "9")[0].count("\n") == 5

    (line,) = cli("logs", "--format", "ndjson", "--tail", "1", job_id)[0].splitlines()
    entry = json.loads(line)
    assert (entry["sequence"], entry["message"], entry["stream"]) == (4, "line 4", "output")


def test_logs_follow_a_job_that_has_not_started_yet(cli, queue):
    """`logs -f` waits for the start, gives each line as it comes, and ends with the job."""
    job = queue.create_job("TASK")
    process = cli.fork("logs", "-f", str(job.id))
    queue.start_job(job.id)
    queue.append_log(job.id, "one")
    assert process.stdout.readline() == b"one\n"
    queue.append_log(job.id, "two")
    assert process.stdout.readline() == b"two\n"
    queue.finish_job(job.id)

    assert finish(process, 0) == ("", "")


def test_job_is_found_by_the_beginning_of_its_id(cli, queue):
    """A unique beginning is enough; for others, the error lists the ids."""
    jobs = [queue.create_job("TASK") for _ in range(2)]
    beginning = jobs[0].id.hex[:6]
    assert json.loads(cli("show", "--json", str(jobs[0].id)[:12])[0])["id"] == str(jobs[0].id)

    twin = beginning + jobs[1].id.hex[6:]
    with contextlib.closing(sqlite3.connect(cli.database)) as connection, connection:
        connection.execute("DROP TRIGGER job_keeps_its_id")
        connection.execute("UPDATE job SET id = ? WHERE number = ?", (twin, jobs[1].number))
    _, err = cli("show", beginning, code=2)

    told = ", ".join(sorted([str(jobs[0].id), str(uuid.UUID(twin))]))
    assert err == f"jobcore: several jobs have an id that begins with '{beginning}': {told}\n"


# --- ending ---------------------------------------------------------------------


def test_stop_returns_when_the_job_has_ended(cli):
    """`stop` from another process kills after its grace, and answers with the final job."""
    job_id = cli("run", "--detach", "--", "sh", "-c", IGNORES_TERM)[0].strip()
    asked = json.loads(cli("stop", "--no-wait", "--grace", "3600", "--json", job_id)[0])
    ended = json.loads(cli("stop", "--grace", "0", "--json", job_id)[0])

    assert asked["stopRequested"] is not None
    assert (ended["status"], ended["reason"], ended["exitCode"]) == ("STOPPED", "stopped", 137)
    out, err = cli("stop", job_id, code=1)
    assert (out, err) == ("", f"jobcore: job {job_id} is STOPPED: cannot stop\n")


def test_stop_takes_a_queued_job_from_the_queue(cli, queue):
    """Whoever stops a job need not know whether it has started."""
    queued = queue.submit(["true"])
    ended = json.loads(cli("stop", "--json", str(queued.id))[0])

    assert (ended["status"], ended["reason"]) == ("STOPPED", "cancelled")


def test_cancel_takes_a_queued_job_and_stops_a_running_one(cli, queue):
    """A queued job is STOPPED without an exit code; a running one is stopped; silence in a pipe."""
    queued = queue.submit(["true"])
    running = cli("run", "--detach", "--", "sh", "-c", CATCHES_TERM)[0].strip()

    assert cli("cancel", str(queued.id)) == ("", "")
    assert json.loads(cli("cancel", "--grace", "60", "--json", running)[0])["reason"] == "stopped"
    cancelled = queue.get_job(queued.id)
    assert (cancelled.status, cancelled.exit_code, cancelled.reason) == (
        "STOPPED",
        None,
        "cancelled",
    )


def test_delete_removes_a_running_job(cli):
    """After `delete`, the job is not found, and its processes have ended."""
    job_id = cli("run", "--detach", "--", "sh", "-c", CATCHES_TERM)[0].strip()

    assert cli("delete", job_id) == ("", "")
    _, err = cli("delete", job_id, code=1)
    assert err == f"jobcore: no job has the number, name or ID '{job_id}'\n"
    assert not carrying(f"JOBCORE_JOB_ID={job_id}")


# --- terminals -------------------------------------------------------------------


@pytest.fixture
def ended(cli, clock):
    """Return a maker of jobs that ended some seconds ago."""

    def make(seconds, exit_code):
        clock.set_wall(round((time.time() - seconds) * 1e6))
        with JobManager(cli.database, slots=0, clock=clock) as jobs:
            job = jobs.create_job("TASK", name=f"ended {seconds} s ago")
            jobs.start_job(job.id)
            return jobs.finish_job(job.id, exit_code)

    return make


def test_prune_dry_run_lists_the_jobs_that_prune_removes(cli, ended):
    """A dry run lists jobs like `list`; the real one prints how many went."""
    week, day, now = ended(8 * 86_400, 1), ended(2 * 86_400, 0), ended(0, 1)

    assert cli("prune", "--older-than", "9d")[0] == "0\n"

    listed = cli("prune", "--older-than", "1.5d", "--dry-run")[0].splitlines()

    assert [line.split("\t")[0] for line in listed] == [str(week.id), str(day.id)]
    assert cli("prune", "--older-than", "1w", "--status", "complete")[0] == "0\n"

    shown = json.loads(cli("prune", "--older-than", "1h", "--keep", "2", "--dry-run", "--json")[0])

    assert [job["id"] for job in shown] == [str(week.id)]
    assert json.loads(cli("prune", "--older-than", "24h", "--json")[0]) == {"pruned": 2}
    assert cli.ids() == [str(now.id)]


@pytest.mark.parametrize("age", ["-1", "30 d", "nan", "1e3", "soon", "", "1y"])
def test_prune_refuses_an_invalid_age(cli, queue, ended, age):
    """A mistyped age is one line and removes nothing."""
    ended(60, 0)
    out, err = cli("prune", f"--older-than={age}", code=2)

    assert out == ""
    assert err.startswith(
        "jobcore: Invalid value for '--older-than': an age must be a number and s, m, h"
    )
    assert f"not {age!r}" in err
    assert len(queue.list_jobs()) == 1


def test_doctor_prints_a_line_for_each_check_and_exits_by_them(cli, queue):
    """`doctor` exits with 0 if nothing is wrong, else with 1; with `--json` it prints a list."""
    queue.create_job("TASK")
    rows = [line.split("\t") for line in cli("doctor")[0].splitlines()]

    assert {len(row) for row in rows} == {3}
    assert ["schema", "ok"] in [row[:2] for row in rows]

    os.chmod(cli.database, 0o644)
    found = json.loads(cli("doctor", "--json", code=1)[0])

    assert [one["check"] for one in found] == [row[0] for row in rows]
    assert [one["check"] for one in found if one["verdict"] == "wrong"] == ["modes"]


def test_doctor_examines_missing_and_foreign_files(cli):
    """A file that is missing, or no database, has its finding; nothing is made."""
    assert "No such file" in cli("doctor", code=1)[0]
    assert os.listdir(cli.folder) == ["gate"]

    make_text(cli.folder / "jobs.db")

    assert "not a database" in cli("doctor", code=1)[0]
    assert sorted(os.listdir(cli.folder)) == ["gate", "jobs.db"]


class Watched:
    """`jobcore watch` on a terminal of 12 lines, with all that it has shown."""

    def __init__(self, cli):
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 12, 120, 0, 0))
        self._process = cli.fork("watch", stdin=theirs, stdout=theirs, start_new_session=True)
        os.close(theirs)
        self.raw = ""

    @property
    def text(self):
        """What it has shown, without colours and moves of the cursor."""
        return re.sub(r"\x1b\[[0-?]*[@-~]", "", self.raw)

    def sees(self, pattern):
        """Return once that is on the screen."""
        until(lambda: self._read() or re.search(pattern, self.text), f"{pattern} on the screen")

    def _read(self):
        while select.select([self._ours], [], [], 0.05)[0]:
            try:
                self.raw += os.read(self._ours, 65536).decode()
            except OSError:  # EIO: it has ended
                return

    def ends(self, number):
        """Return its exit code after a signal, and what it said on stderr."""
        self._process.send_signal(number)
        _, err = self._process.communicate(timeout=PATIENCE)
        self._read()
        return self._process.returncode, err

    def close(self):
        """End it, whatever the test did."""
        self._process.kill()
        self._process.communicate(timeout=PATIENCE)
        os.close(self._ours)


@pytest.fixture
def watched(cli, queue):
    """Return `jobcore watch`, which has begun to look."""
    del queue  # there is a database
    watched = Watched(cli)
    yield watched
    watched.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_watch_shows_the_queue_as_it_changes(queue, watched, number):
    """It shows counts and jobs until a signal, without the control characters of jobs."""
    watched.sees("QUEUED 0 +RUNNING 0 ")
    job = queue.create_job("TASK", name="first \x1b[31mjob\x1b]0;title\x07")
    watched.sees("QUEUED 1 +RUNNING 0 ")
    watched.sees(r"1 +" + job.id.hex[:8] + " +QUEUED .* first job")
    queue.start_job(job.id)
    watched.sees("QUEUED 0 +RUNNING 1 ")
    queue.finish_job(job.id)
    watched.sees("COMPLETE 1 ")

    assert watched.ends(number) == (0, b"")
    assert "title" not in watched.raw
    assert watched.raw.rstrip().endswith("\x1b[?25h\x1b[?1049l")  # as it was before


def test_watch_shows_what_fits_and_running_jobs_first(queue, watched):
    """On a screen of 12 lines there is room for 9 jobs, whatever number there is."""
    oldest, *_ = [queue.create_job("TASK") for _ in range(20)]
    queue.start_job(oldest.id)
    watched.sees("QUEUED 19 +RUNNING 1 (?s:.)*" + oldest.id.hex[:8])
    watched.ends(signal.SIGINT)
    screen = watched.text.rpartition("QUEUED 19")[2]

    rows = re.findall(r"^ *(\d+) +[0-9a-f]{8} +(RUNNING|QUEUED)", screen, re.MULTILINE)
    assert rows == [("1", "RUNNING"), *((str(n), "QUEUED") for n in range(2, 10))]


def test_watch_needs_a_terminal(cli, queue):
    """In a pipe, it is refused with the reason."""
    del queue
    _, err = cli("watch", code=2)

    assert "watch needs a terminal" in err


def test_a_terminal_gets_a_table_and_no_escapes_of_jobs(cli):
    """Tables have titles; texts of jobs cannot colour, move or rename the terminal."""
    shown = cli.on_terminal("run", "--", "printf", r"a\033[2J\033]0;title\007\tb\rc\n")

    assert shown == "c\tb\r\n"

    job_id = str(cli.only_job().id)
    table = re.sub(r"\x1b\[[0-9;]*m", "", cli.on_terminal("list"))

    assert re.search("^JOB +ID +STATUS +TIME ", table, re.MULTILINE)
    assert job_id[:8] in table
    assert job_id not in table
    assert cli.on_terminal("logs", job_id) == "c\tb\r\n"
    assert "COMPLETE" in cli.on_terminal("show", job_id)
    assert "TRIGGER" in cli.on_terminal("history", job_id)
    assert "is COMPLETE" in cli.on_terminal("wait", job_id)


# --- errors -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "--"], "argv is empty"),
        (["run", "--", ""], "argv[0] is empty"),
        (["run", "--env", "SECRET", "true"], "--env needs KEY=VALUE"),
        (["run", "--env", "=SECRET", "true"], "--env needs KEY=VALUE"),
        (["run", "--shell", "two", "words"], "--shell needs one string"),
        (["logs", "--tail", "1", "--sequence", "1", "1234"], "cannot be combined"),
    ],
    ids=" ".join,
)
def test_a_wrong_use_is_one_line_and_makes_nothing(cli, words, said):
    """It exits with 2, prints nothing on stdout, and makes no database."""
    out, err = cli(*words, code=2)

    assert out == ""
    assert err.startswith("jobcore: ")
    assert said in err
    assert err.count("\n") == 1
    assert not os.path.exists(cli.database)


def test_command_of_a_removed_directory(cli, tmp_path):
    """The error names the directory; with another one it runs."""

    def remove_own_directory():
        os.mkdir(tmp_path / "gone")
        os.chdir(tmp_path / "gone")
        os.rmdir(tmp_path / "gone")

    out, err = finish(cli.start("run", "--", "pwd", preexec_fn=remove_own_directory), 2)
    assert (out, "the current directory was removed" in err) == ("", True), err
    assert "--stop-signal" not in err

    words = ("run", "--cwd", "/", "--", "pwd")
    assert finish(cli.start(*words, preexec_fn=remove_own_directory), 0)[0] == "/\n"


@pytest.mark.parametrize(
    ("words", "allowed"),
    [
        *(
            (["run", "--timeout", one, "true"], "seconds above 0")
            for one in ("x", "nan", "0", "-1")
        ),
        *((["run", "--grace", one, "true"], "seconds, 0 or more") for one in ("x", "inf", "-1")),
        (["run", "--timeout", "1h 30m", "true"], "1h30m"),
        (["run", "--linger", "1 s", "true"], "seconds, 0 or more"),
        (["run", "--stop-signal", "FOO", "true"], "a signal, its number or its name"),
        (["run", "--stop-signal", "SIGKILL", "true"], "no program can handle"),
        (["run", "--stop-scope", "all", "true"], "'main', 'group'"),
        (["work", "--slots", "0"], "integer, 1 or more"),
        (["work", "--slots", "two"], "integer, 1 or more"),
        (["list", "--limit", "1.5"], "integer, 1 or more"),
        (["list", "--before", "0"], "integer, 1 or more"),
        (["list", "--status", "FOO"], "stopped"),
        (["logs", "1234", "--tail", "-1"], "integer, 0 or more"),
        (["logs", "1234", "--sequence", "x"], "integer, 0 or more"),
        (["logs", "1234", "--format", "xml"], "'text', 'ndjson'"),
        (["stop", "1234", "--grace", "nan"], "seconds, 0 or more"),
        (["cancel", "1234", "--grace", "-0.5"], "seconds, 0 or more"),
        (["wait", "1234", "--timeout", "0"], "seconds above 0"),
        (["prune", "--older-than", "1d", "--keep", "-1"], "integer, 0 or more"),
        (["prune", "--older-than", "1d", "--status", "GONE"], "stopped"),
    ],
    ids=lambda one: " ".join(one) if isinstance(one, list) else "",
)
def test_error_of_a_wrong_value_names_option_and_choices(cli, words, allowed):
    """It is one line, with the value as given and a hint to the help."""
    place = next(
        n for n, word in enumerate(words) if word.startswith("--") and word != "--older-than"
    )
    out, err = cli(*words, code=2)

    assert out == ""
    assert err.startswith(f"jobcore: Invalid value for '{words[place]}': ")
    assert repr(words[place + 1]) in err
    assert allowed in err.lower() or allowed in err
    assert err.endswith(f"; see jobcore {words[0]} --help\n")
    assert err.count("\n") == 1
    assert not os.path.exists(cli.database)


@pytest.mark.parametrize(
    "words",
    [["unknown"], ["--unknown"], ["list", "--unknown"], ["show"], ["show", "a", "b"], ["prune"],
     ["run", "--timeout"], ["doctor", "--repair", "x"], ["--db"]],
)  # fmt: skip
def test_a_wrong_option_is_explained(cli, words):
    """Unknown verbs and malformed options exit with 2, in one line without a traceback."""
    out, err = cli(*words, code=2)

    assert out == ""
    assert re.fullmatch(r"jobcore: .+; see jobcore.* --help\n", err)


def test_missing_stdin_file_is_reported_in_the_log(cli):
    """The log says that it is missing, without its path, which may be a secret."""
    cli("run", "--stdin", "no such", "--", "cat", code=126)
    log, _ = cli("logs", str(cli.only_job().id))

    assert "cannot provide its standard input: no such file" in log


@pytest.mark.parametrize("job_id", ["zzz", str(uuid.UUID(int=1)), "", "\udcff"])
def test_an_unknown_id_is_one_line(cli, queue, job_id):
    """Unknown and malformed ids are the same to every verb that takes one."""
    del queue  # there is a database
    verb = {"zzz": "stop", "": "logs"}.get(job_id, "show")
    out, err = cli(verb, job_id, code=1)

    assert out == ""
    assert re.fullmatch(r"jobcore: no job has the number, name or ID .*\n", err)


def make_text(path):
    path.write_text(
        "no database at all, but long enough to have a header in its first hundred bytes\n" * 9
    )


def make_other(path):
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE other (program)")


def make_newer(path):
    JobManager(path, slots=0).close()
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("PRAGMA user_version = 9999")


@pytest.mark.parametrize(
    ("make", "verb"),
    [
        (make_text, ("run", "true")),
        (make_other, ("list",)),
        (make_newer, ("run", "true")),
        (os.mkdir, ("list",)),
    ],
)
def test_a_file_that_is_not_ours_is_refused(cli, make, verb):
    """No database, another program's, a newer one, a directory: not a byte is changed."""
    path = cli.folder / "strange"
    make(path)
    before = path.read_bytes() if path.is_file() else None
    out, err = cli("--db", str(path), *verb, code=1)

    assert out == ""
    assert err.startswith("jobcore: ")
    assert err.count("\n") == 1
    assert (path.read_bytes() if path.is_file() else None) == before


def test_looking_makes_no_database(cli):
    """A mistyped `--db` is an error, not an empty list."""
    out, err = cli("--db", "mistyped.db", "list", code=1)

    assert out == ""
    assert "mistyped.db" in err
    assert not (cli.folder / "mistyped.db").exists()


@pytest.mark.parametrize(
    "verb", ["list", "show a", "logs a", "history a", "stop a", "prune --older-than 0", "doctor"]
)
def test_looking_leaves_an_empty_file_alone(cli, verb):
    """It may be another program's file, such as a lock. Its mode stays unchanged, too."""
    path = cli.folder / "empty"
    path.touch(0o644)
    before = path.stat()
    out, err = cli("--db", str(path), *verb.split(), code=1)

    assert "empty" in (out if verb == "doctor" else err)
    after = path.stat()
    assert (after.st_mode, after.st_size, after.st_mtime_ns) == (
        before.st_mode, 0, before.st_mtime_ns,
    )  # fmt: skip
    assert list(cli.folder.glob("empty*")) == [path]


def test_running_makes_an_empty_file_a_database(cli):
    """An empty file from `touch` becomes a database at the first run, as with SQLite."""
    (cli.folder / "touched.db").touch()
    cli("--db", "touched.db", "run", "true")
    out, _ = cli("--db", "touched.db", "list")

    assert "COMPLETE" in out


@pytest.mark.parametrize("words", [["limit", "gpu", "1"], ["pause"], ["retention", "--keep", "3d"]])
def test_settings_can_be_made_before_there_are_jobs(cli, words):
    """They make the database, as the first job does; what only reads them does not."""
    if words[0] != "pause":
        cli("--db", "new.db", words[0], code=1)
    cli("--db", "new.db", *words)

    assert (cli.folder / "new.db").stat().st_size > 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_directory_is_one_line(cli):
    """If no database can be made, `run` prints one line."""
    closed = cli.folder / "closed"
    closed.mkdir(0o500)
    _, err = cli("--db", str(closed / "jobs.db"), "run", "true", code=1)

    assert err.count("\n") == 1


def test_a_full_output_is_one_line(cli, queue):
    """If stdout cannot be written, the command prints one line of error."""
    queue.create_job("TASK")
    with open("/dev/full", "wb") as full:
        _, err = finish(cli.start("list", stdout=full), 1)

    assert err == "jobcore: [Errno 28] No space left on device\n"


def test_closed_stdout_does_not_disturb_run(cli):
    """With stdout closed by the shell, `run` does its work, and the database stays one."""
    line = f'"{sys.executable}" -m jobcore run -- echo unheard >&-'
    subprocess.run(["sh", "-c", line], env=cli.env, cwd=cli.folder, check=True, timeout=PATIENCE)
    assert cli.only_job().status == "COMPLETE"
    assert cli("logs", str(cli.only_job().id))[0] == "unheard\n"


def test_without_the_extra_there_is_one_clear_line():
    """Without typer or rich, it says what to install, and exits with 2."""
    for missing in ("typer", "rich"):
        done = end_of_python(
            f"import sys; sys.modules['{missing}'] = None; from jobcore.cli import main; main()"
        )
        assert done.returncode == 2
        needed = f"jobcore: the command line needs {missing}: pip install typer rich\n"
        assert done.stderr == needed


ASKS = (
    'printf "sure? "; read -r _ < "$GATE"; printf "10%%\\r20%%\\r"; read -r _ < "$GATE"; echo end'
)
ASKED = b"sure? 10%\r20%\rend\n"


def read_until(stream, text):
    """Return what comes from a pipe or a terminal up to `text`."""
    seen = b""
    while text not in seen:
        assert select.select([stream], [], [], PATIENCE)[0], seen
        seen += os.read(stream, 4096)
    return seen


def test_run_shows_a_prompt_in_a_pipe_and_each_byte_once(cli):
    """Text without a newline is printed at once, and not repeated."""
    process = cli.fork("run", "--", "sh", "-c", ASKS)
    seen = read_until(process.stdout.fileno(), b"sure? ")
    open_gate(cli.gate)
    seen += read_until(process.stdout.fileno(), b"20%\r")
    open_gate(cli.gate)
    rest, said = process.communicate(timeout=PATIENCE)

    assert (seen + rest, said) == (ASKED, b"")


@pytest.mark.parametrize("words", [["run", "--"], ["logs", "-f"], ["logs", "-f", "--tail", "1"]])
def test_terminal_redraws_an_unfinished_line(cli, words):
    """A prompt is seen while it stands, a bar is drawn in its row, and the whole line stays."""
    command = ["sh", "-c", ASKS]
    if words[0] == "logs":
        words = [*words, cli("run", "--detach", "--", *command)[0].strip()]
        command = []
    ours, theirs = pty.openpty()
    process = cli.fork(*words, *command, stdout=theirs, stderr=theirs)
    os.close(theirs)
    seen = read_until(ours, b"sure? ")
    open_gate(cli.gate)
    seen += read_until(ours, b"20%")
    open_gate(cli.gate)
    seen += read_until(ours, b"\n")
    process.wait(PATIENCE)
    os.close(ours)

    assert seen == b"sure? \r20%e? 10%\x1b[K\rende? 10%\x1b[K\r\n"


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.parametrize("words", [["run"], ["logs", "-f"]])
def test_prompt_is_printed_beside_a_busy_stream(cli, words, stream):
    """It comes though there are more lines each time that some were printed, and once."""
    prompt, other = ("", ">&2") if stream == "stdout" else (">&2", "")
    script = (
        f'(printf "sure? " {prompt}; read -r _ < "$GATE"; echo yes {prompt}; : > "$GATE.end") &'
        f'while [ ! -e "$GATE.end" ]; do echo warning {other}; done'
    )
    command = ["--separate-streams", "--", "sh", "-c", script]
    if words[0] == "logs":
        words = [*words, cli("run", "--detach", *command)[0].strip()]
        command = []
    process = cli.fork(*words, *command, stderr=subprocess.STDOUT)
    seen, end = [], b""
    while b"sure? " not in end:
        assert select.select([process.stdout], [], [], PATIENCE)[0], end
        seen.append(os.read(process.stdout.fileno(), 65536))
        end = end[-10:] + seen[-1]
    open_gate(cli.gate)
    rest, _ = process.communicate(timeout=PATIENCE)

    assert (b"".join(seen) + rest).replace(b"warning\n", b"") == b"sure? yes\n"
    assert process.returncode == 0


def test_terminal_shows_a_prompt_again_below_lines_of_the_other_stream(cli):
    """They take its row."""
    script = 'printf "sure? "; read -r _ < "$GATE"; echo warning >&2; read -r _ < "$GATE"; echo'
    ours, theirs = pty.openpty()
    command = ["run", "--separate-streams", "--", "sh", "-c", script]
    process = cli.fork(*command, stdout=theirs, stderr=theirs)
    os.close(theirs)
    seen = read_until(ours, b"sure? ")
    open_gate(cli.gate)
    seen += read_until(ours, b"warning\r\nsure? ")
    open_gate(cli.gate)
    seen += read_until(ours, b"\r\n")
    process.wait(PATIENCE)
    os.close(ours)

    assert seen == b"sure? \r\x1b[Kwarning\r\nsure? \r\n"


def test_logs_shows_a_prompt_and_ends(cli):
    """Without `-f`, an unfinished line is printed last; JSON has only finished lines."""
    job_id = cli("run", "--detach", "--", "sh", "-c", "echo first; " + ASKS)[0].strip()
    until(lambda: cli("logs", job_id)[0] == "first\nsure? ", "the prompt")

    assert cli("logs", "--tail", "1", job_id)[0] == "sure? "
    assert cli("logs", "--tail", "2", job_id)[0] == "first\nsure? "
    assert cli("logs", "--tail", "0", job_id)[0] == ""
    assert cli("logs", "--format", "ndjson", job_id)[0].count("\n") == 1
    open_gate(cli.gate)
    until(lambda: cli("logs", job_id)[0].endswith("20%\r"), "the bar")
    open_gate(cli.gate)
    cli.wait()
    assert cli("logs", job_id)[0].encode() == b"first\n" + ASKED


def test_tail_counts_lines_and_not_their_pieces(cli):
    """A line that was cut into pieces is one."""
    program = "print('before'); print('x' * 200_000); print('after')"
    cli("run", "--", sys.executable, "-c", program)
    job = cli.only_job()

    assert job.line_count == 6
    assert cli("logs", "--tail", "2", str(job.id))[0] == "x" * 200_000 + "\nafter\n"
