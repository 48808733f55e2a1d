"""
The commands, in the order and under the titles of `jobcore --help`.

A command's module is imported when the command is used. This table is what `--help` and the
completion of names need, so that both load no command. `tests/test_readme.py` compares it with
the commands.
"""

from __future__ import annotations

import importlib

#: By title: each command with its module in this package, and the first line of its help.
SECTIONS: dict[str, dict[str, tuple[str, str]]] = {
    "Jobs": {
        "run": ("run_and_work", "Run a command as a job in the foreground."),
        "submit": ("submit_commands", "Put a command into the queue, and print the job's ID."),
        "list": ("list_and_watch", "List jobs."),
        "watch": ("list_and_watch", "Show the queue on a terminal, as it changes, until Ctrl-C."),
        "show": ("job_commands", "Show everything that is known about a job."),
        "logs": ("log_commands", "Print the logs of jobs."),
        "history": ("job_commands", "Show what happened to a job, oldest first."),
        "wait": ("queue_commands", "Wait for jobs, and exit with the job's exit code."),
        "stop": (
            "queue_commands",
            "Stop running jobs with their descendants, or take queued jobs from the queue.",
        ),
        "cancel": ("queue_commands", "Take jobs from the queue."),
        "retry": (
            "queue_commands",
            "Put failed or stopped jobs into the queue again, as new jobs; print their IDs.",
        ),
        "set": ("queue_commands", "Change jobs that are queued."),
        "delete": ("queue_commands", "Remove jobs with their logs and histories."),
    },
    "Queue": {
        "work": ("run_and_work", "Run queued jobs until Ctrl-C or SIGTERM."),
        "pause": (
            "limit_commands",
            "Start no more jobs of a group, of a type, or of the whole file, until resume.",
        ),
        "resume": ("limit_commands", "Let paused jobs start again."),
        "limit": (
            "limit_commands",
            "Limit how many jobs run at once, or list all limits and pauses.",
        ),
    },
    "Pipelines": {
        "apply": ("apply_command", "Make the pipelines of a workspace equal to a file."),
        "pipeline": ("pipeline_commands", "List, show, create, change and run pipelines."),
        "schedule": ("pipeline_commands", "List what is due next, over all pipelines."),
        "workspace": ("workspace_commands", "List, create, rename and delete workspaces."),
    },
    "Database": {
        "stats": (
            "maintenance",
            "Print numbers about the file: jobs, the queue, what ended lately, and sizes.",
        ),
        "backup": (
            "maintenance",
            "Copy the database while it is in use, and say what is in the copy.",
        ),
        "prune": ("maintenance", "Remove old jobs with their logs and history."),
        "export": (
            "maintenance",
            "Print jobs with their logs as lines of JSON, oldest first.",
        ),
        "import": (
            "maintenance",
            "Create the ended jobs of an export, with logs and results. Nothing is run.",
        ),
        "retention": (
            "maintenance",
            "Set how long ended jobs are kept; without options, show it.",
        ),
        "doctor": (
            "maintenance",
            "Examine the database and its directories. Changes nothing without --repair.",
        ),
    },
    "Help": {
        "docs": ("guides", "Print a guide in Markdown, or list all guides."),
        "completion": ("completion", "Print the completion script of a shell."),
    },
}

#: The modules of the commands, by the command's name.
MODULES = {name: module for section in SECTIONS.values() for name, (module, _) in section.items()}


def load(name: str) -> None:
    """Import the module of a command, which registers the command with the application."""
    importlib.import_module(f"jobcore.cli.{MODULES[name]}")


def load_all() -> None:
    """Import the modules of all commands."""
    for name in MODULES:
        load(name)
