"""
Testing: what a host's tests need to try it against everything that can happen to its jobs.

Never imported by `import jobcore`.
"""

from jobcore.testing.assertions import assert_job
from jobcore.testing.busy import busy
from jobcore.testing.contract import ExecutorContract
from jobcore.testing.crashing import Crashed, crash

__all__ = [
    "Crashed",
    "ExecutorContract",
    "assert_job",
    "busy",
    "crash",
]
