"""`submit` and `--each`: jobs for the queue, one by one and by the thousand, all or none."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from datetime import datetime, timedelta, timezone

import pytest

from jobcore import JobManager, Status
from tests.integration.verbs_harness import fork, on_a_terminal
from tests.processes import PATIENCE, ROOT, until


@pytest.fixture
def cli(database, tmp_path):
    """Return a function that runs `jobcore` in an empty folder: its stdout and stderr."""
    folder = tmp_path / "folder"
    folder.mkdir()

    def call(*words, code=0, stdin=b"", **variables):
        process = start(database, folder, words, variables)
        out, err = process.communicate(stdin, timeout=PATIENCE)
        assert (process.returncode, b"Traceback" in err) == (code, False), err.decode()
        return out.decode(), err.decode()

    call.folder = folder
    return call


def start(database, folder, words, variables=None):
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return fork(
        [words],
        {**inherited, "PYTHONPATH": str(ROOT), "JOBCORE_DB": database, **(variables or {})},
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def drained(database):
    """Run all that is due, and return the jobs in the order of their creation."""
    with JobManager(database, slots=2) as jobs:
        jobs.drain(PATIENCE)
        return jobs.list_jobs(limit=10_000)[::-1]


def text(database, job):
    with JobManager(database, slots=0) as jobs:
        return b"".join(line.raw for line in jobs.logs(job.id)).decode()


def test_submitted_command_runs_later_as_the_submitter_meant(cli, database):
    """Environment, directory, umask, stdin and name are those of the call."""
    before = os.umask(0o027)
    try:
        out, err = cli(
            *("submit", "--name", "n", "--env", "B=2", "--stdin", "--"),
            *("sh", "-c", "echo $A $B $(pwd) $(umask); cat; exit 3"),
            stdin=b"input\n",
            A="1",
        )
    finally:
        os.umask(before)
    (job,) = drained(database)

    assert (out, err) == (f"{job.id}\n", "")
    assert (job.name, job.exit_code) == ("n", 3)
    assert text(database, job) == f"1 2 {cli.folder} 0027\ninput\n"


def test_submit_passes_on_what_the_queue_needs(cli, database):
    """Priority, group, key, start, expiry and time-out are those of the job."""
    cli("submit", "--priority", "-5", "--group", "gpu", "--key", "k", "--delay", "1h30m",
        "--expires", "2d", "--timeout", "5m", "--", "true")  # fmt: skip
    cli("submit", "--at", "2099-01-02T03:04Z", "--shell", "--", "echo $HOME | cat")
    with JobManager(database, slots=0) as jobs:
        timed, first = jobs.list_jobs()

    assert (first.priority, first.group, first.key) == (-5, "gpu", "k")
    due = first.created + timedelta(hours=1.5)
    assert abs(first.not_before - due) < timedelta(minutes=1)
    assert first.expires == first.created + timedelta(days=2)
    assert timed.not_before == datetime(2099, 1, 2, 3, 4, tzinfo=timezone.utc)


def test_job_waits_for_others(cli, database):
    """By number or name, however it has to end; a job that cannot run any more is cancelled."""
    cli("submit", "--name", "build", "--", "false")
    cli("submit", "--name", "test", "--after", "build", "--", "true")
    cli("submit", "--name", "mail", "--after", "1", "--after", "test", "--run-if", "ended",
        "--", "true")  # fmt: skip
    cli("submit", "--each", "-", "--after", "build", "--run-if", "failed", "--", "true",
        stdin=b"a\nb\n")  # fmt: skip
    jobs = drained(database)

    assert [(str(job.status), job.reason) for job in jobs[1:2]] == [("STOPPED", "upstream")]
    assert [str(job.status) for job in jobs] == [
        "ERROR", "STOPPED", "COMPLETE", "COMPLETE", "COMPLETE",
    ]  # fmt: skip
    _, err = cli("submit", "--after", "unknown", "--", "true", code=1)
    assert "unknown" in err


def test_scripts_run_at_the_end_of_a_job(cli, database):
    """The one for how it has ended, as a job of its own with the outcome."""
    script = 'echo "$JOBCORE_HOOK_NAME $JOBCORE_HOOK_STATUS"'
    cli("submit", "--name", "report", "--on-error", script, "--on-complete", "true", "--", "false")
    failed, hook = drained(database)

    assert hook.hook_of == failed.id
    assert text(database, hook) == "report ERROR\n"


def test_job_is_tried_again(cli, database):
    """So often, after such endings, with a pause."""
    cli("submit", "--retries", "2", "--retry-delay", "0", "--", "false")
    cli(
        "submit", "--retries", "1", "--retry-on", "timeout", "--retry-delay", "5m,1h", "--", "false"
    )
    first, second, *others = drained(database)

    assert [(job.attempt, job.retry_of is None) for job in (first, second)] == [(1, True)] * 2
    assert [job.attempt for job in others] == [2, 3]
    assert (second.retries.delay, second.retries.on) == ((300, 3600), ("timeout",))


def test_submit_with_a_key_can_be_repeated(cli, database):
    """The second call prints the first one's job, however many lines it has."""
    first, second = (cli("submit", "--key", "nightly", "--", "true")[0] for _ in range(2))
    shown = json.loads(cli("submit", "--key", "nightly", "--json", "--", "true")[0])
    several = [
        cli("submit", "--each", "-", "--key", "k {}", "--", "true", stdin=b"a\nb\n")[0]
        for _ in range(2)
    ]

    assert first == second == shown["id"] + "\n"
    assert several[0] == several[1]
    assert len(drained(database)) == 3


def test_submit_prints_the_number_on_a_terminal(database):
    """A person types the number rather than the ID."""
    (shown,) = on_a_terminal(database, [["submit", "--", "true"]])
    with JobManager(database, slots=0) as jobs:
        (job,) = jobs.list_jobs()

    assert shown == f"#1  {job.id}\r\n"


#: Lines that word splitting, quoting, escapes or a shell would change.
ODD = ["a b", "it's", '"q"', r"back\slash", "$HOME", "; false", "*", "-n", "{x}", "tab\there", " "]


@pytest.mark.parametrize(
    "words",
    [
        ["--", "printf", "%s\\n", "{}"],
        ["--", "printf", "%s\\n"],
        ["--shell", "--", "printf '%s\\n' {}"],
        ["--shell", "--", "printf '%s\\n'"],
        ["--env", "ITEM={}", "--shell", "--", "printf '%s\\n' \"$ITEM\" # {}"],
    ],
    ids=" ".join,
)
def test_each_line_is_taken_as_it_is(cli, database, words):
    """In `COMMAND`, at its end, in a shell's string and in a variable."""
    (cli.folder / "lines").write_text("\n".join(["", *ODD, "", "last"]))
    out, err = cli("submit", "--each", "lines", "--name", "<{}>", *words)
    jobs = drained(database)

    assert (out.split(), err) == ([str(job.id) for job in jobs], "")
    assert [text(database, job) for job in jobs] == [f"{line}\n" for line in [*ODD, "last"]]
    assert [job.name for job in jobs] == [f"<{line}>" for line in [*ODD, "last"]]


def test_variables_come_from_files(cli, database):
    """`--env` and later files come after it; no line is filled into the values of a file."""
    (cli.folder / "app.env").write_text("A=file\nB={}\n")
    (cli.folder / "more.env").write_text("B='more'\n")
    script = 'echo "$A $B" #'
    given = ["--env-file", "app.env"]
    cli("submit", *given, "--env", "A=own", "--shell", "--", script)
    cli("submit", *given, "--each", "-", "--env", "A={}", "--shell", "--", script, stdin=b"x\n")
    cli("pipeline", "create", "p", *given, "--env", "A=own", "--script", script)
    cli("pipeline", "run", "p", "--env-file", "more.env")
    said = [text(database, job) for job in drained(database)]
    cli("pipeline", "set", "p", *given, "--env", "C=1")
    cli("pipeline", "run", "p")
    said.append(text(database, drained(database)[-1]))
    out, _ = cli("run", *given, "--env-file", "more.env", "--shell", "--", script)

    assert said == ["own {}\n", "x {}\n", "own more\n", "file {}\n"]
    assert out == "file more\n"


def test_lines_may_end_with_nul(cli, database):
    """As `find -print0` writes them; a newline is then part of the line."""
    cli("submit", "--each", "-", "--null", "--", "printf", "%s", stdin=b"a\nb\0c\0")

    assert [text(database, job) for job in drained(database)] == ["a\nb", "c"]


def test_each_file_may_be_its_job_s_input(cli, database):
    """`--stdin {}` and `--cwd {}` are filled, too."""
    for name in ("one", "two"):
        (cli.folder / name).mkdir()
        (cli.folder / f"{name}.txt").write_text(f"{name}\n")
    cli("submit", "--each", "-", "--cwd", "{}", "--stdin", "{}.txt", "--shell", "--",
        "cat; basename $PWD #", stdin=b"one\ntwo\n")  # fmt: skip

    assert [text(database, job) for job in drained(database)] == ["one\none\n", "two\ntwo\n"]


def test_each_job_may_have_its_own_output_file(cli, database):
    """`--stdout-to {}` is filled, too; stderr stays in the log alone."""
    words = ["--each", "-", "--stdout-to", "{}.txt", "--group", "g", "--shell"]
    script = "echo out {}; echo err >&2 #"
    cli("submit", *words, "--", script, stdin=b"one\n")
    first, *_ = drained(database)
    out, err = cli("run", *words, "--", script, stdin=b"two\n")

    assert [(cli.folder / f"{name}.txt").read_text() for name in ("one", "two")] == [
        "out one\n", "out two\n",
    ]  # fmt: skip
    assert sorted(text(database, first).splitlines()) == ["err", "out one"]
    assert (out, "err\n" in err) == ("out two\n", True)
    assert [job.group for job in drained(database)] == ["g", "g"]


def test_command_may_have_a_terminal(cli, database):
    """With `--pty`, in the queue and in the foreground."""
    look = ["--pty", "--shell", "--", "test -t 1 && echo terminal"]
    cli("submit", *look)

    assert cli("run", *look)[0] == "terminal\r\n"
    assert [text(database, job) for job in drained(database)] == ["terminal\r\n"] * 2


def test_thousands_are_submitted_at_once_or_not_at_all(cli, database):
    """One wrong line, and there is no job."""
    (cli.folder / "good").write_text("".join(f"{n}\n" for n in range(2500)))
    (cli.folder / "bad").write_text("".join(f"{n}\n" for n in range(2500)) + "a\0b\n")
    _, err = cli("submit", "--each", "bad", "--", "true", code=2)
    out, _ = cli("submit", "--each", "good", "--priority", "1", "--", "true")

    assert "NUL byte" in err
    assert len(set(out.split())) == 2500
    with JobManager(database, slots=0) as jobs:
        assert jobs.count_jobs()[Status.QUEUED] == 2500


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["submit", "--delay", "1h", "--at", "18:30", "--", "true"], "cannot be combined"),
        (["submit", "--null", "--", "true"], "--null needs --each"),
        (["submit", "--unique-for", "1h", "--", "true"], "--unique-for needs --key"),
        (["submit", "--each", "x", "--stdin", "-", "--", "true"], "cannot be combined"),
        (["submit", "--delay", "9999999999d", "--", "true"], "too long"),
        (["submit", "--priority", "high", "--", "true"], "must be an integer"),
        (["submit"], "argv is empty"),
        (["submit", "--run-if", "failed", "--", "true"], "--run-if needs --after"),
        (["submit", "--retry-delay", "1m", "--", "true"], "need --retries"),
        (["submit", "--retries", "1", "--retry-delay", "1,x", "--", "true"], "not 'x'"),
        (["submit", "--retries", "1001", "--", "true"], "--retries': it must be an integer, from"),
        (
            ["submit", "--retries", "1", "--retry-delay", "1" + "0" * 10, "--", "true"],
            "--retry-delay must be 0 to 1000000000 seconds",
        ),
        (["run", "--slots", "2", "--", "true"], "need --each"),
        (["run", "--run-if", "failed", "--", "true"], "--run-if needs --after"),
        (["run", "--each", "x", "--key", "a", "--", "true"], "submit --each"),
        (["run", "--each", "x", "--after", "1", "--", "true"], "submit --each"),
        (["run", "--retries", "2", "--", "true"], "--retries needs --each"),
        (["run", "--each", "x", "--retry-on", "lost", "--", "true"], "need --retries"),
        (["run", "--each", "x", "--stdout-to", "one", "--", "true"], "put {} into it"),
        (["submit", "--each", "x", "--stdout-to", "one", "--", "true"], "put {} into it"),
        (["run", "--each", "x", "--detach", "--", "true"], "submit --each"),
        # Before lines are awaited, which may take long; so it does not matter that none come.
        (["run", "--each", "no such", "--env", "A", "--", "true"], "needs KEY=VALUE"),
        (["submit", "--each", "no such", "--env", "A", "--", "true"], "needs KEY=VALUE"),
    ],
    ids=lambda one: " ".join(one) if isinstance(one, list) else "",
)
def test_wrong_use_is_one_line_and_makes_no_job(cli, database, words, said):
    """It exits with 2, and the error gives the right form."""
    (cli.folder / "x").write_text("a\n")
    out, err = cli(*words, code=2)

    assert (out, err.count("\n")) == ("", 1)
    assert said in err
    assert not os.path.exists(database)


def test_missing_file_of_lines_is_one_line(cli, database):
    """The error names the file."""
    for verb in ("run", "submit"):
        _, err = cli(verb, "--each", "no such", "--", "true", code=1)
        assert "no such" in err
    assert not os.path.exists(database)


# --- run --each ----------------------------------------------------------------------


def test_run_each_shows_outputs_and_names_failures_first(cli, database):
    """Outputs do not mix; the summary is on stderr, and the exit code is 1 if any job failed."""
    script = 'for n in 1 2 3; do echo "$1 $n"; done; [ "$1" != b ]'
    out, err = cli(
        *("run", "--each", "-", "--slots", "2", "--", "sh", "-c", script, "x", "{}"),
        stdin=b"a\nb\nc\n",
        code=1,
    )
    blocks = {out.splitlines()[n][0]: out.splitlines()[n : n + 3] for n in (0, 3, 6)}

    assert blocks == {name: [f"{name} {n}" for n in (1, 2, 3)] for name in "abc"}
    failed, summary = err.splitlines()
    assert failed.startswith("jobcore: failed: job 2, exit code 1: sh -c 'for n in")
    assert failed.endswith(" x b")
    assert summary.startswith("jobcore: 3 jobs: 2 complete, 1 failed, in ")
    assert [str(job.status) for job in drained(database)] == ["COMPLETE", "ERROR", "COMPLETE"]


def test_run_each_tries_failed_jobs_again(cli, database):
    """Each only as often as it has to be; the summary counts lines, by their last attempts."""
    script = 'echo "$1"; n=$(cat "$1" 2>/dev/null || echo 0); echo $((n+1)) >"$1"; [ $n -ge "$1" ]'
    out, err = cli(
        *("run", "--each", "-", "--retries", "2", "--retry-delay", "0", "--slots", "1"),
        *("--", "sh", "-c", script, "x", "{}"),
        stdin=b"0\n1\n2\n9\n",
        code=1,
    )

    assert "".join(out.split()) == "0129" + "129" + "29"
    failed, summary = err.splitlines()
    assert failed.startswith("jobcore: failed: job 9, exit code 1: sh -c ")
    assert summary.startswith("jobcore: 4 jobs: 3 complete, 1 failed, in ")
    assert len(drained(database)) == 9


def test_run_each_exits_0_when_all_are_complete(cli):
    """An empty list is no error."""
    assert cli("run", "--each", "-", "--", "echo", stdin=b"a\n")[0] == "a\n"
    out, err = cli("run", "--each", "-", "--", "echo", stdin=b"\n\n")

    assert (out, err) == ("", "jobcore: standard input has no lines: nothing to run\n")


def test_run_each_shows_a_bar_on_a_terminal(database, tmp_path):
    """It has the count; outputs are printed above it, without control characters."""
    (tmp_path / "lines").write_text("one\ntwo\n")
    words = ["run", "--each", str(tmp_path / "lines"), "--", "printf", r"\033[31m<%s>\007\n"]
    (shown,) = on_a_terminal(database, [words])

    assert "2/2" in shown
    assert "<one>\r\n" in shown
    assert "\x07" not in shown
    assert "\x1b[31m<" not in shown
    assert "2 jobs: 2 complete, 0 failed" in shown


def test_interrupt_stops_all_jobs_and_starts_no_more(cli, database, gate):
    """The jobs that run are stopped, the others cancelled; the exit code is 130."""
    process = start(
        database,
        cli.folder,
        ["run", "--each", "-", "--slots", "1", "--", "sh", "-c", f"echo {{}}; read x <'{gate}'"],
    )
    process.stdin.write(b"".join(b"%d\n" % n for n in range(50)))
    process.stdin.close()
    process.stdin = None
    with JobManager(database, slots=0) as jobs:
        until(lambda: jobs.count_jobs()[Status.RUNNING], "the first job")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE)
        counts = jobs.count_jobs()

    assert process.returncode == 130
    assert counts[Status.STOPPED] == 50
    assert b"50 jobs: 0 complete, 50 failed" in err
    assert b"and 30 more: jobcore list --failed" in err
