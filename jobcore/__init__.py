"""
jobcore: job state that never lies.

Embeddable jobs for Python programs: status, exit code and numbered log lines in
one SQLite file, true whatever dies in between. `JobManager` is where to begin.

Attributes:
    FINAL: The statuses that nothing leaves: COMPLETE, ERROR and STOPPED.
    STARTED: "Running or completed", as Matatika's Jobs API lists jobs: RUNNING
        and the final ones.
"""

from jobcore.clock import Clock, MovableClock, SystemClock
from jobcore.command import Command
from jobcore.errors import (
    CommandError,
    DatabaseBusy,
    DatabaseCorrupt,
    DatabaseFull,
    DatabaseGone,
    InvalidParameter,
    InvalidTransition,
    JobcoreError,
    JobDeleted,
    JobNotFound,
    JobNotRunning,
    NoResult,
    NotAcceptable,
    NotAJobcoreDatabase,
    PipelineAlreadyRunning,
    PipelineCycle,
    PipelineExists,
    PipelineNotFound,
    ReadOnlyDatabase,
    ScheduleError,
    SchemaTooNew,
    SpawnError,
    Stopped,
    StoreError,
    StoreMismatch,
    UnsupportedFileSystem,
    WaitTimeout,
    WorkspaceNotFound,
)
from jobcore.executors import CommandExecutor, Executor, FunctionExecutor, PipelineExecutor
from jobcore.function import function_command
from jobcore.lifecycle import FINAL, STARTED, Reason, Status, Trigger
from jobcore.manager import JobManager
from jobcore.models import (
    ClaimedJob,
    Event,
    Finding,
    Job,
    LogLine,
    Pipeline,
    Progress,
    Skip,
    Transition,
    Workspace,
)
from jobcore.supervision.pool import Launcher
from jobcore.task import Task

__all__ = [
    "FINAL",
    "STARTED",
    "ClaimedJob",
    "Clock",
    "Command",
    "CommandError",
    "CommandExecutor",
    "DatabaseBusy",
    "DatabaseCorrupt",
    "DatabaseFull",
    "DatabaseGone",
    "Event",
    "Executor",
    "Finding",
    "FunctionExecutor",
    "InvalidParameter",
    "InvalidTransition",
    "Job",
    "JobDeleted",
    "JobManager",
    "JobNotFound",
    "JobNotRunning",
    "JobcoreError",
    "Launcher",
    "LogLine",
    "MovableClock",
    "NoResult",
    "NotAJobcoreDatabase",
    "NotAcceptable",
    "Pipeline",
    "PipelineAlreadyRunning",
    "PipelineCycle",
    "PipelineExecutor",
    "PipelineExists",
    "PipelineNotFound",
    "Progress",
    "ReadOnlyDatabase",
    "Reason",
    "ScheduleError",
    "SchemaTooNew",
    "Skip",
    "SpawnError",
    "Status",
    "Stopped",
    "StoreError",
    "StoreMismatch",
    "SystemClock",
    "Task",
    "Transition",
    "Trigger",
    "UnsupportedFileSystem",
    "WaitTimeout",
    "Workspace",
    "WorkspaceNotFound",
    "function_command",
]
