"""
jobcore: job state that never lies.

Embeddable jobs for Python programs. One SQLite file stores status, exit code and numbered log
lines, and stays correct whatever process dies. Start with `JobManager`.

Attributes:
    FINAL: The final statuses, which never change: COMPLETE, ERROR and STOPPED.
    STARTED: The statuses that Matatika's Jobs API lists as "running or completed": RUNNING
        and the final ones.
    __version__: The version, such as `0.1.0`.

Importing the package loads none of its modules. Each name is loaded at its first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jobcore.clock import Clock, MovableClock, SystemClock
    from jobcore.command import Command
    from jobcore.engine.executors import (
        CommandExecutor,
        Executor,
        FunctionExecutor,
        PipelineExecutor,
    )
    from jobcore.engine.launcher import Launcher
    from jobcore.errors import (
        ArgumentError,
        CommandError,
        DatabaseBusy,
        DatabaseCorrupt,
        DatabaseFull,
        DatabaseGone,
        DuplicateKey,
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
        PipelineFileError,
        PipelineNotFound,
        ReadOnlyDatabase,
        ScheduleError,
        SchemaTooNew,
        SpawnError,
        Stopped,
        StoreError,
        StoreMismatch,
        TooManyFollowers,
        UnsupportedFileSystem,
        WaitTimeout,
        WorkspaceNotFound,
    )
    from jobcore.functions.call import function_command
    from jobcore.job_context import CurrentJob, current_job
    from jobcore.lifecycle import FINAL, STARTED, PipelineStatus, Reason, Status, Trigger
    from jobcore.manager import JobManager
    from jobcore.models import (
        Backup,
        Change,
        ClaimedJob,
        Event,
        Finding,
        Imported,
        Job,
        Limit,
        LogLine,
        Pipeline,
        Progress,
        Retention,
        Skip,
        Statistics,
        Transition,
        Usage,
        Workspace,
    )
    from jobcore.operations.events import AsyncEvents, Events
    from jobcore.operations.tasks import Task
    from jobcore.retries import Retries
    from jobcore.submission import Submission

__all__ = [
    "FINAL",
    "STARTED",
    "ArgumentError",
    "AsyncEvents",
    "Backup",
    "Change",
    "ClaimedJob",
    "Clock",
    "Command",
    "CommandError",
    "CommandExecutor",
    "CurrentJob",
    "DatabaseBusy",
    "DatabaseCorrupt",
    "DatabaseFull",
    "DatabaseGone",
    "DuplicateKey",
    "Event",
    "Events",
    "Executor",
    "Finding",
    "FunctionExecutor",
    "Imported",
    "InvalidParameter",
    "InvalidTransition",
    "Job",
    "JobDeleted",
    "JobManager",
    "JobNotFound",
    "JobNotRunning",
    "JobcoreError",
    "Launcher",
    "Limit",
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
    "PipelineFileError",
    "PipelineNotFound",
    "PipelineStatus",
    "Progress",
    "ReadOnlyDatabase",
    "Reason",
    "Retention",
    "Retries",
    "ScheduleError",
    "SchemaTooNew",
    "Skip",
    "SpawnError",
    "Statistics",
    "Status",
    "Stopped",
    "StoreError",
    "StoreMismatch",
    "Submission",
    "SystemClock",
    "Task",
    "TooManyFollowers",
    "Transition",
    "Trigger",
    "UnsupportedFileSystem",
    "Usage",
    "WaitTimeout",
    "Workspace",
    "WorkspaceNotFound",
    "current_job",
    "function_command",
]

__version__ = "0.1.0"

if not TYPE_CHECKING:  # with `__getattr__`, type checkers would accept any name as Any
    #: The modules of public names. Names that are missing here are in `errors`. The imports
    #: above are for type checkers.
    _MODULES = {
        "clock": ("Clock", "MovableClock", "SystemClock"),
        "command": ("Command",),
        "job_context": ("CurrentJob", "current_job"),
        "engine.executors": ("CommandExecutor", "Executor", "FunctionExecutor", "PipelineExecutor"),
        "functions.call": ("function_command",),
        "lifecycle": ("FINAL", "STARTED", "PipelineStatus", "Reason", "Status", "Trigger"),
        "manager": ("JobManager",),
        "models": (
            *("Backup", "Change", "ClaimedJob", "Event", "Finding", "Imported", "Job", "Limit"),
            *("LogLine", "Pipeline", "Progress", "Retention", "Skip", "Statistics", "Transition"),
            *("Usage", "Workspace"),
        ),
        "engine.launcher": ("Launcher",),
        "operations.events": ("AsyncEvents", "Events"),
        "operations.tasks": ("Task",),
        "retries": ("Retries",),
        "submission": ("Submission",),
    }
    _HOMES = dict.fromkeys(__all__, "errors")
    _HOMES |= {name: module for module, names in _MODULES.items() for name in names}

    def __getattr__(name: str) -> Any:
        """Load a public name or a module of the package at its first use."""
        if name in _HOMES:
            value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        else:
            value = None if name.startswith("_") else _module(f"{__name__}.{name}")
        if value is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        """Return the public names, whether loaded or not."""
        return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})


def _module(name: str) -> Any:
    """Return the module with this name; None: it does not exist."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as missing:
        if missing.name != name:
            raise  # the module exists, but a module that it imports does not
        return None
