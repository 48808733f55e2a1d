"""
The manual page `jobcore/docs/jobcore.1`, made from the help texts of the commands.

`python -m tests.man_page` writes it again; `tests/test_man_page.py` tells when that is needed.
"""

from __future__ import annotations

import inspect
import re

import typer.main

from jobcore.cli import commands
from jobcore.cli.app import app
from tests.processes import ROOT

PAGE = ROOT / "jobcore" / "docs" / "jobcore.1"
#: Options that every command has; the page explains them once.
COMMON = {"db", "trust_directory", "utc", "help"}
END = r"""
.SH EXIT STATUS
.TP
.B 0
Success.
.TP
.B 1
An error, printed as one line on standard error.
.TP
.B 2
Wrong use, such as an unknown option.
.TP
.B 124
.B wait \-\-timeout
is over.
.TP
.B 130
Interrupted by Ctrl-C.
.TP
.B 141
The reader of standard output has gone.
.PP
.BR run ,
and
.B wait
for one job, exit with the exit code of the job.
.SH ENVIRONMENT
.TP
.B JOBCORE_DB
The database, if
.B \-\-db
is not given.
.TP
.B JOBCORE_TRUST_DIRECTORY
The path of a directory in which a database may be although other users can create files there.
.SH FILES
.TP
.I jobs.db
The default database, in the current directory.
.TP
.I jobs.db.jobs
The directory that belongs to it, with the files of running jobs.
.SH SEE ALSO
.B jobcore docs
lists the guides that come with jobcore, and
.BI "jobcore docs " NAME
prints one.
"""


def escaped(text):
    """Return a text in which troff takes nothing for a command."""
    text = text.replace("\\", r"\e").replace("-", r"\-")
    return re.sub(r"^(?=[.'])", r"\\&", text, flags=re.MULTILINE)


def described(text):
    """Yield the paragraphs of a help text; those after a `\b` keep their lines."""
    for part in re.split(r"\n\n+", inspect.cleandoc(text)):
        if part.startswith("\b"):
            yield ".PP\n.EX\n" + escaped(part.removeprefix("\b\n")) + "\n.EE"
        else:
            yield ".PP\n" + escaped(part)


def entry(parameter):
    """Return the entry of an option or an argument."""
    is_option = parameter.param_type_name == "option"
    names = ", ".join(rf"\fB{escaped(one)}\fR" for one in sorted(parameter.opts, key=len))
    value = "" if getattr(parameter, "is_flag", False) else parameter.metavar or ""
    shown = f"{names if is_option else ''} \\fI{escaped(value)}\\fR".removesuffix(r" \fI\fR")
    return f".TP\n{shown.strip()}\n{escaped(parameter.help or '')}"


def command_part(words, command):
    """Yield the part of the page about a command, and about those below it."""
    places = [one.metavar for one in command.params if one.param_type_name == "argument"]
    below = getattr(command, "commands", None)
    yield f'.SS "{escaped(" ".join([*words, *(places if not below else ["COMMAND"])]))}"'
    yield from described(command.help or "")
    for one in command.params:
        if one.name not in COMMON:
            yield entry(one)
    for name, inner in (below or {}).items():
        yield from command_part([*words, name], inner)


def page():
    """Return the text of the page."""
    commands.load_all()
    root = typer.main.get_command(app)
    first, *about = described(root.help or "")
    lines = [
        r".\" Made by `python -m tests.man_page` from the help texts of the commands.",
        ".TH JOBCORE 1",
        ".SH NAME",
        r"jobcore \- " + first.removeprefix(".PP\n").rstrip(".").lower(),
        ".SH SYNOPSIS",
        r".B jobcore",
        r"[\fIOPTIONS\fR] \fICOMMAND\fR [\fIARGUMENTS\fR]",
        ".SH DESCRIPTION",
        *about,
        ".SH OPTIONS",
        "Every command takes these, before or after its name.",
        *(entry(one) for one in root.params),
        entry(root.get_help_option(root.context_class(root, **root.context_settings))),
    ]
    for title, section in commands.SECTIONS.items():
        lines.append(f'.SH "COMMANDS: {title.upper()}"')
        for name in section:
            lines += command_part(["jobcore", name], root.commands[name])
    return "\n".join(lines) + END


if __name__ == "__main__":
    PAGE.write_text(page())
