"""Telemetry: silent until the host listens."""

from __future__ import annotations

import logging

import pytest

from jobcore import telemetry
from tests.processes import run_python


def test_unconfigured_host_sees_nothing():
    """Without any configuration nothing is printed, not even an error."""
    printed = run_python(
        """
import logging, sys, io
sys.stderr = sys.stdout
from jobcore import telemetry
for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL):
    telemetry.event(level, "something happened", job="x")
assert logging.getLogger().handlers == []
"""
    )

    assert printed == ""


def test_structlog_comes_with_the_first_event():
    """Neither importing jobcore nor an event that nobody listens to imports structlog."""
    printed = run_python(
        """
import logging, sys
import jobcore
from jobcore import telemetry
print("structlog" in sys.modules, logging.getLogger("jobcore").handlers)
telemetry.event(logging.INFO, "not listened to")
print("structlog" in sys.modules)
telemetry.event(logging.ERROR, "listened to, as far as anybody knows")
print("structlog" in sys.modules)
"""
    )

    assert printed.splitlines() == ["False []", "False", "True"]


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


def test_event_carries_the_exception(caplog):
    """An event about a failure carries the traceback where it is asked for."""
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
from jobcore import telemetry
telemetry.event(logging.WARNING, "job resolved", job="an-id")
"""
    )

    assert printed == "jobcore WARNING event='job resolved' job='an-id'\n"


def test_hosts_structlog_configuration_is_left_alone():
    """jobcore neither configures structlog nor depends on how the host did."""
    printed = run_python(
        """
import logging, sys, structlog
logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(message)s")
structlog.configure(processors=[structlog.processors.JSONRenderer()])
from jobcore import telemetry
before = structlog.get_config()
telemetry.event(logging.WARNING, "job resolved", job="an-id")
print(before == structlog.get_config())
"""
    )

    assert printed.splitlines() == ["event='job resolved' job='an-id'", "True"]


@pytest.mark.parametrize("fact", ["%s %d", "{x}", "\ud800", b"\xff", None, object()], ids=repr)
def test_no_fact_makes_an_event_fail(caplog, fact):
    """Whatever a fact is, telling it does not raise."""
    telemetry.event(logging.WARNING, "something", fact=fact)

    assert len(caplog.records) == 1
    assert "something" in caplog.records[0].getMessage()
