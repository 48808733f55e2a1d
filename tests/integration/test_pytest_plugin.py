"""The pytest plugin, in runs of its own: it lends managers, and says what tests leave behind."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from importlib.metadata import entry_points

import pytest

from jobcore.embedding.locks import GATE
from jobcore.testing import fixtures
from jobcore.testing.leak_check import LeakCheck
from tests.processes import carrying, forked
from tests.texts import between, blocks

pytest_plugins = ["pytester"]


@pytest.fixture
def run(pytester, monkeypatch):
    """Return what runs a test file with pytest, as a project does that has jobcore installed."""
    found = [one.value for one in entry_points(group="pytest11") if one.name == "jobcore"]
    assert found == ["libjobcore_pytest"], "jobcore is installed as it was once: install it again"
    for name in [name for name in os.environ if name.startswith(("PYTEST_", "COV_"))]:
        monkeypatch.delenv(name)  # of the run that this one is in

    def run(source, *options, fresh=False):
        pytester.makepyfile(source)
        # Hypothesis alone takes a second to load: what these runs do not use stays out.
        unused = ("cacheprovider", "hypothesispytest", "anyio", "pytest_cov")
        left_out = [word for name in unused for word in ("-p", f"no:{name}")]
        words = [*left_out, "-W", "error", *options]
        if fresh:  # what is loaded is the fact
            return pytester.runpytest_subprocess(*words, timeout=300)
        words.append(f"--basetemp={pytester.path.parent / 'of-the-run'}")
        process = forked(
            lambda: sys.exit(pytest.main(words)),
            dict(os.environ),
            cwd=pytester.path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        said, _ = process.communicate(timeout=300)
        print(said)
        return pytest.RunResult(process.returncode, said.splitlines(), [], 0)

    return run


# --- what is lent --------------------------------------------------------------------

LENT = """
import pathlib

import pytest

from jobcore import JobManager
from jobcore.embedding import failpoints
from jobcore.testing import Script, assert_job, crash, drain


@pytest.mark.parametrize("code", range(6))
def test_each_test_has_a_manager_of_its_own(jobs, tmp_path, code):
    assert isinstance(jobs, JobManager)
    job = jobs.wait(jobs.submit(["sh", "-c", f"echo here; exit {code}"]).id)
    assert_job(job, exit_code=code, log=["here"])
    assert [one.id for one in jobs.list_jobs()] == [job.id]
    assert [path.name for path in tmp_path.glob("*.db")] == ["jobs.db"]


class TestInOrder:
    def test_what_is_queued_last(self, jobs):
        jobs.submit_many([["touch", f"ran-{n}"] for n in range(5)])
        jobs.create_job("TASK")  # nobody but a host runs this one

    def test_has_been_run(self):
        assert len(list(pathlib.Path().glob("ran-*"))) == 5


def test_its_time_stands_still_with_a_clock(jobs, job_clock):
    before = jobs.create_job("TASK").created
    job_clock.advance(3600)
    assert (jobs.create_job("TASK").created - before).total_seconds() == 3600


@pytest.mark.job_scripts(Script(["extract", 90, "load"]), Script(exit_code=3))
def test_nothing_is_started_with_scripts(job_scripts, job_clock, jobs):
    slow, bad = jobs.submit(["no-such-etl"], timeout=60), jobs.submit(["no-such-etl"])
    drain(jobs)
    assert_job(slow, status="STOPPED", reason="timeout", log=["extract"])
    assert_job(bad, status="ERROR", exit_code=3)


@pytest.mark.job_scripts(Script(exit_code=3))
def test_mark_alone_gives_scripts(jobs):
    assert_job(jobs.wait(jobs.submit(["no-such-etl"]).id), exit_code=3)


def test_scripts_go_without_a_clock(jobs, job_scripts):
    assert_job(jobs.wait(jobs.submit(["no-such-etl"]).id), status="COMPLETE")


@pytest.mark.job_scripts(Script(hangs=True))
def test_what_a_script_still_plays_is_nothing_left(jobs, job_scripts, job_clock):
    jobs.submit(["no-such-etl"])
    while jobs.count_jobs()["RUNNING"] == 0:
        pass


def test_it_may_be_dropped(jobs, tmp_path):
    with crash(jobs, at=failpoints.CLAIMED):
        jobs.submit(["true"])
    with JobManager(tmp_path / "jobs.db", slots=0) as after:
        (job,) = after.list_jobs()
        assert_job(job, reason="never_started")


def test_it_may_be_dropped_in_the_middle(jobs):
    with crash(jobs, at=failpoints.SENT):
        jobs.submit(["true"])


def test_it_may_be_closed(jobs):
    jobs.submit(["true"])
    jobs.close()
"""


@pytest.mark.parametrize("options", [(), ("-n", "2", "--dist", "loadscope")])
def test_managers_are_lent(run, options):
    """Alone and under pytest-xdist, each test has its own manager, as it asks for it."""
    run(LENT, *options).assert_outcomes(passed=16)


def test_readmes_tests_pass(run):
    """The tests that README shows pass as printed."""
    (source,) = blocks("python", between("tests"))
    (first,) = blocks("python", between("first test"))

    assert first in source
    run(source).assert_outcomes(passed=4)


# --- what is left --------------------------------------------------------------------

LEFT = {
    "a_job": (
        """
        job = jobs.submit(["sh", "-c", "trap '' TERM; echo ready; sleep 300"], name="nightly")
        assert next(jobs.follow(job.id)).text == "ready"
        """,
        r"job [-0-9a-f]{36} 'nightly', a COMMAND, is still running",
    ),
    "a_manager": (
        'keep.append(JobManager(tmp_path / "other.db"))',
        r"a manager of /.*/other\.db was not closed",
    ),
    "a_thread": (
        "keep.append(Loop('jobcore-late', lambda: keep[-1].wait((), None))); keep[-1].start()",
        r"thread jobcore-late is still running",
    ),
    "a_descriptor": (
        "keep.append(os.open('/dev/null', os.O_RDONLY)); GATE.register(keep[-1])",
        r"descriptor \d+ is open: /dev/null",
    ),
    "a_directory": (
        "keep.append(jobs._directories.prepare(uuid.uuid4().hex, uuid.uuid4().hex))",
        r"the directory of job [-0-9a-f]{36} cannot be removed: its lock is held",
    ),
}


def test_leftovers_fail_the_test_by_name(run, monkeypatch, tmp_path):
    """A test that leaves a job or process fails and names it; the next test starts clean."""
    monkeypatch.setenv("LEFT_BY", str(tmp_path))  # of this run alone, of all on the machine
    monkeypatch.setattr(fixtures, "IDLE_PATIENCE", 0.5)
    source = """
import os, uuid
from jobcore import JobManager
from jobcore.embedding.locks import GATE
from jobcore.engine.thread_loop import Loop

keep = []
"""
    for name, (left, _) in LEFT.items():
        body = textwrap.indent(textwrap.dedent(left).strip(), " " * 4)
        source += f"""
def test_leaves_{name}(jobs, tmp_path):
{body}

def test_behind_{name}(jobs):
    assert jobs.list_jobs() == []
"""
    result = run(source)

    result.assert_outcomes(passed=2 * len(LEFT), errors=len(LEFT))
    output = result.stdout.str()
    for name, (_, said) in LEFT.items():
        header = rf"^_+ ERROR at teardown of test_leaves_{name} _+$"
        told = rf"{header}\nthe test left something behind:\n(?:  .*\n)*?  {said}$"
        assert re.search(told, output, re.MULTILINE), name
    assert carrying(f"LEFT_BY={tmp_path}") == []


def test_reused_descriptor_is_found(tmp_path):
    """A descriptor is found though its number was open before, for another file."""
    number = os.open("/dev/null", os.O_RDONLY)
    with GATE:
        GATE.register(number)
    check = LeakCheck()
    other = os.open("/dev/zero", os.O_RDONLY)
    os.dup2(other, number)
    os.close(other)

    assert check.clear(tmp_path / "jobs.db") == [f"descriptor {number} is open: /dev/zero"]
    assert number not in GATE.descriptors()


# --- where it is used ----------------------------------------------------------------


def test_nothing_of_the_developers_environment_is_read(run, monkeypatch, tmp_path):
    """Neither a test nor its jobs see what a shell, or a job around the run, has in JOBCORE_*."""
    for name in ("DB", "RUN", "JOB_ID", "WORKSPACE_ID", "PIPELINE_ID", "PROGRESS_FD", "ELSE"):
        monkeypatch.setenv(f"JOBCORE_{name}", str(tmp_path / "of-the-developer"))
    run("""
        import os
        from jobcore.testing import assert_job

        def test_environment(jobs):
            assert [name for name in os.environ if name.startswith("JOBCORE_")] == []
            job = jobs.wait(jobs.submit(["sh", "-c", "env | grep ^JOBCORE_"]).id)
            seen = {line.text.partition("=")[0]: line.text for line in jobs.logs(job.id)}
            assert not any("of-the-developer" in text for text in seen.values())
            assert "JOBCORE_DB" in seen and "JOBCORE_ELSE" not in seen

        def test_it_is_there_again():
            assert "of-the-developer" in os.environ["JOBCORE_DB"]
    """).assert_outcomes(passed=2)

    assert not (tmp_path / "of-the-developer").exists()


def test_its_fixtures_give_way(run, pytester):
    """A project's own fixtures of these names are the ones that its tests get."""
    pytester.makeconftest("""
        import pytest

        @pytest.fixture
        def jobs():
            return "the project's"
    """)
    run("""
        def test_own(jobs):
            assert jobs == "the project's"
    """).assert_outcomes(passed=1)


def test_run_without_the_fixtures_loads_two_small_modules(run):
    """A run without fixtures imports neither jobcore's other modules nor its libraries."""
    run(
        """
        import sys

        def test_modules(request):
            assert request.config.pluginmanager.has_plugin("jobcore")
            assert sorted(name for name in sys.modules if name.startswith("jobcore")) == [
                "jobcore", "jobcore.pytest_plugin"
            ]
            assert {"sqlmodel", "sqlalchemy", "pydantic", "transitions"} & {*sys.modules} == set()
    """,
        fresh=True,
    ).assert_outcomes(passed=1)


OWN_FIXTURES = """
    import pytest

    @pytest.fixture
    def jobs():
        return 7

    def test_one_of_the_project(jobs):
        assert jobs == 7
"""


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("jobcore/__init__.py", ""),
        ("jobcore/__init__.py", "raise RuntimeError('not to be run')"),
        ("jobcore.py", "import sys; sys.exit('a script of the project')"),
        ("jobcore/readme.txt", ""),  # a folder, which is a package without __init__
    ],
)
def test_another_jobcore_is_neither_run_nor_in_the_way(run, pytester, name, source):
    """Where the project has a `jobcore` of its own, pytest runs, and says what is missing."""
    path = pytester.path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(source)
    result = run(OWN_FIXTURES, fresh=True)

    result.assert_outcomes(passed=1)
    if "readme" not in name:  # an installed package wins over a folder without __init__
        result.stdout.fnmatch_lines(["jobcore: no fixtures: *does not find libjobcore"])


@pytest.mark.parametrize("missing", ["sqlmodel", "transitions", "sqlalchemy", "pydantic"])
def test_missing_library_fails_only_tests_with_a_fixture(run, pytester, missing):
    """If a library is missing, only a test that uses a manager fails, with its name."""
    (pytester.path / f"{missing}.py").write_text("raise ImportError('broken here')")
    result = run(
        """
        def test_of_something_else():
            pass

        def test_with_a_manager(jobs):
            pass
    """,
        fresh=True,
    )

    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["E * ImportError: broken here"])


def test_failed_contract_assertions_show_both_sides(run):
    """A failing test of `ExecutorContract` shows both sides, as a test of one's own does."""
    result = run(
        """
        from jobcore import Command
        from jobcore.testing import ExecutorContract

        class Bad:
            def command(self, job):
                return ["true"]

        class TestBad(ExecutorContract):
            def make_executor(self):
                return Bad()
    """,
        "-k",
        "returns_a_command",
        fresh=True,
    )

    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*where False = isinstance(*'true'*Command*"])


def test_fixtures_and_marks_are_listed(run):
    """`pytest --fixtures` and `--markers` say what there is."""
    fixtures = run("", "--fixtures").stdout.str()
    markers = run("", "--markers").stdout.str()

    assert re.search(
        r"^jobs -- .*\n    Return a `JobManager` with two slots", fixtures, re.MULTILINE
    )
    assert re.search(r"^job_clock -- ", fixtures, re.MULTILINE)
    assert re.search(r"^job_scripts -- ", fixtures, re.MULTILINE)
    assert "@pytest.mark.job_scripts(*scripts)" in markers
