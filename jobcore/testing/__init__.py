"""
Testing: tools with which a host tests how it handles everything that can happen to its jobs.

`import jobcore` does not import it. Tests import it, and jobcore's pytest plugin. It runs in the
process of a test, in any thread; a `ScriptedExecutor` has a thread of its own.
"""

from jobcore.embedding import failpoints
from jobcore.testing.assert_job import assert_job
from jobcore.testing.busy import busy
from jobcore.testing.crash import Crashed, crash
from jobcore.testing.drain import NeverEnds, drain, elapse
from jobcore.testing.executor_contract import ExecutorContract
from jobcore.testing.manual_clock import ManualClock
from jobcore.testing.script import Script
from jobcore.testing.scripted_executor import ScriptedExecutor

__all__ = [
    "Crashed",
    "ExecutorContract",
    "ManualClock",
    "NeverEnds",
    "Script",
    "ScriptedExecutor",
    "assert_job",
    "busy",
    "crash",
    "drain",
    "elapse",
    "failpoints",
]
