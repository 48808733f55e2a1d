"""Telemetry: silent until the host listens."""

from __future__ import annotations

import io
import json
import logging

import pytest
import structlog

from jobcore.embedding import telemetry
from tests.processes import run_python


def test_unconfigured_host_sees_nothing():
    """Without any configuration nothing is printed, not even an error."""
    printed = run_python(
        """
import logging, sys, io
sys.stderr = sys.stdout
from jobcore.embedding import telemetry
for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL):
    telemetry.event(level, "something happened", job="x")
assert logging.getLogger().handlers == []
"""
    )

    assert printed == ""


def test_structlog_comes_with_the_first_event_that_is_listened_to():
    """Neither importing jobcore nor an event that nobody listens to imports structlog."""
    printed = run_python(
        """
import logging, sys
import jobcore
from jobcore.embedding import telemetry
print("structlog" in sys.modules, logging.getLogger("jobcore").handlers)
for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL):
    telemetry.event(level, "not listened to")
print("structlog" in sys.modules, logging.getLogger("jobcore").handlers)
logging.basicConfig(stream=sys.stdout, level=logging.WARNING, format="%(message)s")
telemetry.event(logging.INFO, "below the level")
print("structlog" in sys.modules)
telemetry.event(logging.ERROR, "listened to")
print("structlog" in sys.modules, logging.getLogger("jobcore").handlers)
"""
    )

    assert printed.splitlines() == [
        "False []", "False []", "False", "event='listened to'", "True []",
    ]  # fmt: skip


def test_event_arrives_in_the_hosts_log(caplog):
    """With logging configured, an event arrives under its level, with its facts."""
    with caplog.at_level(logging.INFO, logger="jobcore"):
        telemetry.event(logging.INFO, "job resolved", job="an-id", reason="lost")
        telemetry.event(logging.DEBUG, "not asked for")

    assert [(r.name, r.levelname) for r in caplog.records] == [("jobcore", "INFO")]
    message = caplog.records[0].getMessage()
    assert "event='job resolved'" in message
    assert "job='an-id'" in message
    assert "reason='lost'" in message


def test_a_host_that_logs_all_hears_nothing_of_connections(database):
    """From DEBUG up there is what jobcore has to say, and no line for each use of the file."""
    printed = run_python(
        """
import logging, sys
logging.basicConfig(stream=sys.stdout, level=logging.DEBUG, format="%(name)s %(message)s")
from jobcore import JobManager
with JobManager(sys.argv[1], slots=1) as jobs:
    print(jobs.wait(jobs.submit(["sh", "-c", "exit 3"]).id).exit_code)
""",
        database,
    )

    assert printed == "3\n"


def test_event_carries_the_exception(caplog):
    """With `exc_info`, the event of a failure has the traceback."""
    try:
        raise ZeroDivisionError("some failure")
    except ZeroDivisionError:
        telemetry.event(logging.ERROR, "dispatcher failed", exc_info=True)

    assert "ZeroDivisionError: some failure" in caplog.text


def test_basic_config_is_enough():
    """One line of the host's own logging configuration makes events readable."""
    printed = run_python(
        """
import logging, sys
form = "%(name)s %(levelname)s %(message)s"
logging.basicConfig(stream=sys.stdout, level=logging.INFO, format=form)
from jobcore.embedding import telemetry
telemetry.event(logging.WARNING, "job resolved", job="an-id")
"""
    )

    assert printed == "jobcore WARNING event='job resolved' job='an-id'\n"


# --- a host with structlog ------------------------------------------------------


@pytest.fixture
def configured():
    """Configure structlog as a host does, for the time of a test."""
    yield structlog.configure
    structlog.reset_defaults()


def test_event_goes_through_the_hosts_structlog(configured, caplog):
    """Where structlog is configured, its processors get the event with level and facts."""
    seen = []

    def collect(_, method, facts):
        seen.append((method, facts))
        raise structlog.DropEvent

    configured(processors=[collect])
    with caplog.at_level(logging.DEBUG, logger="jobcore"):
        for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
            telemetry.event(level, "job resolved", job="an-id", reason="lost")

    facts = {"event": "job resolved", "job": "an-id", "reason": "lost"}
    assert seen == [(method, facts) for method in ("debug", "info", "warning", "error")]
    assert caplog.records == []


def test_structlog_is_as_the_host_has_it_now(configured, caplog):
    """A structlog configuration that is made later applies from the next event on."""
    told = []

    def collect(*call):
        told.append(call[2]["event"])
        raise structlog.DropEvent

    telemetry.event(logging.WARNING, "before")
    configured(processors=[collect])
    telemetry.event(logging.WARNING, "while")
    structlog.reset_defaults()
    telemetry.event(logging.WARNING, "after")

    assert told == ["while"]
    assert [record.getMessage() for record in caplog.records] == [
        "event='before'", "event='after'",
    ]  # fmt: skip


def test_hosts_level_holds_in_structlog(configured):
    """What the host's structlog leaves out is left out, and bound context is there."""
    lines = io.StringIO()
    configured(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.JSONRenderer(sort_keys=True),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(lines),
    )
    with structlog.contextvars.bound_contextvars(request="r1"):
        telemetry.event(logging.INFO, "left out")
        telemetry.event(logging.WARNING, "told", job="an-id")

    assert lines.getvalue() == (
        '{"event": "told", "job": "an-id", "level": "warning", "request": "r1"}\n'
    )


@pytest.mark.parametrize(
    "wrapper", [structlog.BoundLogger, structlog.stdlib.BoundLogger], ids=["generic", "stdlib"]
)
def test_structlog_over_logging_names_the_logger(configured, caplog, wrapper):
    """A host whose structlog writes to logging finds events under `jobcore`, rendered its way."""
    configured(
        processors=[structlog.stdlib.add_logger_name, structlog.processors.JSONRenderer()],
        wrapper_class=wrapper,
        logger_factory=structlog.stdlib.LoggerFactory(),
    )
    telemetry.event(logging.WARNING, "job resolved", job="an-id")

    (record,) = caplog.records
    assert (record.name, record.levelname) == ("jobcore", "WARNING")
    assert json.loads(record.getMessage()) == {
        "event": "job resolved", "job": "an-id", "logger": "jobcore",
    }  # fmt: skip


def test_exception_goes_through_the_hosts_structlog(configured):
    """The traceback of a failure is the host's to format."""
    seen = []
    configured(
        processors=[structlog.processors.format_exc_info, lambda *call: seen.append(call[2]) or ""],
        logger_factory=structlog.ReturnLoggerFactory(),
    )
    try:
        raise ZeroDivisionError("some failure")
    except ZeroDivisionError as error:
        telemetry.event(logging.ERROR, "subscriber failed", exc_info=error)

    assert "ZeroDivisionError: some failure" in seen[0]["exception"]


def test_hosts_structlog_configuration_is_left_alone():
    """jobcore neither configures structlog nor logging, and prints only what the host's does."""
    printed = run_python(
        """
import logging, sys, structlog
structlog.configure(processors=[structlog.processors.JSONRenderer()])
from jobcore.embedding import telemetry
before = structlog.get_config()
telemetry.event(logging.WARNING, "job resolved", job="an-id")
print(before == structlog.get_config(), logging.getLogger().handlers)
"""
    )

    assert printed.splitlines() == ['{"job": "an-id", "event": "job resolved"}', "True []"]


# --- never raises -----------------------------------------------------------------


def _failing_processor(*_):
    raise RuntimeError("the host's processor fails")


def _no_logger(*_):
    raise TypeError("a factory that takes no name")


@pytest.mark.parametrize(
    "broken",
    [{"processors": [_failing_processor]}, {"logger_factory": _no_logger}, {"processors": []}],
    ids=["processor", "factory", "no processors"],
)
def test_no_failure_of_the_hosts_structlog_reaches_jobcore(configured, broken, capsys):
    """Whatever the host's structlog raises, an event does not."""
    configured(**broken)

    telemetry.event(logging.ERROR, "job resolved", job="an-id")
    assert "Traceback" not in capsys.readouterr().err


def test_no_failure_of_a_handler_reaches_jobcore():
    """A filter of the host that raises harms no event but its own."""
    logger = logging.getLogger("jobcore")

    def fail(_):
        raise RuntimeError("the host's filter fails")

    logger.addFilter(fail)
    try:
        telemetry.event(logging.ERROR, "job resolved", job="an-id")
    finally:
        logger.removeFilter(fail)


@pytest.mark.parametrize("fact", ["%s %d", "{x}", "\ud800", b"\xff", None, ...], ids=repr)
def test_no_fact_makes_an_event_fail(caplog, fact):
    """Whatever a fact is, telling it does not raise."""
    telemetry.event(logging.WARNING, "something", fact=fact)

    assert len(caplog.records) == 1
    assert "something" in caplog.records[0].getMessage()


@pytest.mark.parametrize("how", ["logging", "structlog"])
def test_a_configuration_that_disables_loggers_does_not_mean_this_one(how):
    """`dictConfig` disables all loggers that exist, by default; events arrive all the same."""
    printed = run_python(
        """
import logging.config, sys
from jobcore.embedding import telemetry
telemetry.event(logging.ERROR, "nobody listens")
if sys.argv[1] == "structlog":
    import structlog
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, structlog.processors.KeyValueRenderer()],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )
for level in ("INFO", "CRITICAL"):
    logging.config.dictConfig({
        "version": 1,
        "handlers": {"out": {"class": "logging.StreamHandler", "stream": sys.stdout}},
        "root": {"level": level, "handlers": ["out"]},
    })
    telemetry.event(logging.WARNING, "told at " + level)
    telemetry.event(logging.DEBUG, "not asked for")
""",
        how,
    )

    assert printed == "event='told at INFO'\n"


def test_a_structlog_whose_loggers_are_awaited_gets_events_too():
    """Jobcore's threads have no event loop; an async logger gets the events anyway."""
    printed = run_python(
        """
import asyncio, logging, sys, threading
import structlog
from jobcore.embedding import telemetry
structlog.configure(
    processors=[structlog.processors.KeyValueRenderer(key_order=["event"])],
    logger_factory=structlog.PrintLoggerFactory(sys.stdout),
    wrapper_class=structlog.stdlib.AsyncBoundLogger,
)

async def main():
    telemetry.event(logging.WARNING, "in the loop", job="x")
    thread = threading.Thread(target=telemetry.event, args=(logging.ERROR, "in a thread"))
    thread.start()
    thread.join()
    await structlog.get_logger().info("the host's own")

asyncio.run(main(), debug=True)
"""
    )

    assert printed.splitlines() == [
        "event='in the loop' job='x'", "event='in a thread'", 'event="the host\'s own"',
    ]  # fmt: skip
