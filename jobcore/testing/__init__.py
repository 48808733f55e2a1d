"""
Testing: what a host's tests need to try it against everything that can happen to its jobs.

Never imported by `import jobcore`.
"""

from jobcore.supervision import failpoints
from jobcore.testing.assertions import assert_job
from jobcore.testing.busy import busy
from jobcore.testing.clock import ManualClock
from jobcore.testing.contract import ExecutorContract
from jobcore.testing.crashing import Crashed, crash
from jobcore.testing.draining import NeverEnds, drain, elapse
from jobcore.testing.script import Script
from jobcore.testing.scripted import ScriptedExecutor

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
