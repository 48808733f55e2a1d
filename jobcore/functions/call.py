"""
A call of a function, as a command that a fresh interpreter runs.

What is called, and with what, travels as standard input: an argument vector can
be read by everybody on the machine, and arguments hold secrets.
"""

from __future__ import annotations

import base64
import inspect
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import FunctionType
from typing import Any, cast

from jobcore.command import Command
from jobcore.errors import CommandError
from jobcore.functions import encoding, names
from jobcore.functions.__main__ import DIRECTORY, VERSION, this_python

#: The argument vector of a call in store. Which interpreter it stands for is
#: decided by the manager that runs it: the submitter's may not be there any more.
ARGV = ("jobcore:function",)

#: Bytes of arguments: whoever looks at the queue reads them, of a handful of jobs at once.
LARGEST = 2**20

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# A bare module in place of the package, as for supervisors: its `__init__` would
# import all of jobcore. First the current directory leaves the path, in which
# any file may be called like a module of the standard library.
_STUB = """\
import sys
if sys.path[0] == "": del sys.path[0]
sys.modules["jobcore"] = type(sys)("jobcore")
sys.modules["jobcore"].__path__ = [sys.argv[1]]
from jobcore.functions.__main__ import main
main()
"""


def function_command(
    target: Callable[..., Any] | str,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    **options: Any,
) -> Command:
    """
    Return a command that calls a function in a fresh interpreter.

    Submit it with `type="FUNCTION"`, or make it the command of a pipeline. The
    interpreter looks for modules where this process does. Logging arrives in
    the log from INFO up unless the function configures it, an exception as its
    traceback. A coroutine function is run by `asyncio.run`.

    Args:
        target: What to call: a function or class at the top level of a module,
            or anything else that can be pickled and called. Also the text
            `package.module:function`, which is looked for only when the job runs.
        args: Its arguments. Values that JSON keeps exactly go as JSON, all else as pickles.
        kwargs: Its arguments by name.
        options: Further arguments of `Command`: `timeout`, `cwd`, `env`, ...; not `stdin`,
            by which the arguments travel, nor `shell` or `unbuffered`: the interpreter
            hands over whole lines.

    Raises:
        CommandError: A fresh interpreter would not find it, or the arguments do
            not fit it, cannot be pickled, or are too large; the message says
            which and why, and shows no argument.
    """
    positional, named = _checked_arguments(args, kwargs)
    name, carried = _checked_target(target)
    _check_fit(target, name, positional, named)
    try:
        form, data = encoding.encode([carried, positional, named])
    except encoding.Unstorable as error:
        raise CommandError(
            f"{name}: {_culprit(carried, positional, named)} cannot be sent: {error}"
        ) from None
    if len(data) > LARGEST:
        raise CommandError(
            f"{name}: the arguments take {len(data)} bytes, and at most {LARGEST} can be sent: "
            "put them into a file, and send its path"
        )
    if unfit := sorted(options.keys() & {"argv", "stdin", "shell", "unbuffered"}):
        raise CommandError(f"a function has no {', '.join(unfit)}")
    text = data.decode("ascii") if form == encoding.JSON else _quoted(data)
    try:
        return Command(ARGV, stdin=_payload(name, form, text), **options)
    except TypeError as error:
        raise CommandError(str(error)) from error


def is_function(command: Command) -> bool:
    """Tell whether the command is one of `function_command`."""
    return tuple(command.argv) == ARGV


def in_interpreter(command: Command, python: str | None, directory: str | None) -> Command:
    """
    Return the command that a supervisor can run; one that is no function's is that already.

    Args:
        python: The interpreter; None: that of this process.
        directory: The directory of the job.

    Raises:
        CommandError: No interpreter is known.
    """
    if not is_function(command):
        return command
    program = python or sys.executable
    if not program:
        raise CommandError("no Python interpreter is known here: name one with `python=`")
    return replace(
        command,
        argv=[program, "-c", _STUB, _PACKAGE],
        unbuffered=False,  # the caller flushes whole lines, which costs less and mixes none
        # A log is no terminal, though the host's environment may ask for colours.
        env={"NO_COLOR": "1", **command.env, DIRECTORY: directory or ""},
    )


def is_interpreter(command: Command) -> bool:
    """Tell whether the command is one of `in_interpreter`, which leaves a result."""
    return list(command.argv)[1:] == ["-c", _STUB, _PACKAGE] and DIRECTORY in command.env


def describe(target: Callable[..., Any] | str) -> str:
    """Return what to call a job by that calls `target`."""
    if isinstance(target, str):
        return target
    return names.name_of(target) or names.kind_of(target)


# --- what is called -----------------------------------------------------------------


def _checked_target(target: object) -> tuple[str, Any]:
    """Return the name of what is called, and itself where it has to be carried along."""
    if isinstance(target, str):
        module, _, path = target.partition(":")
        parts = [*module.split("."), *path.split(".")]
        if not all(part.isidentifier() for part in parts) or module == "__main__":
            raise CommandError(f'a function is named "package.module:function", not {target!r}')
        return target, None
    if not callable(target):
        raise CommandError(f"an object of type {names.kind_of(target)} cannot be called")
    reason = names.why_unfindable(target)
    name = names.name_of(target)
    if reason is None and name is not None:
        return name, None
    if isinstance(target, (type, FunctionType)):
        raise CommandError(f"cannot be called in a fresh interpreter: {reason}")
    return describe(target), target  # a bound method, say, which pickle can take apart


def _checked_arguments(args: object, kwargs: object) -> tuple[list[Any], dict[str, Any]]:
    if isinstance(args, (str, bytes)) or not isinstance(args, Sequence):
        raise CommandError(f"args is a list of arguments, not one {type(args).__name__}")
    if kwargs is None:
        kwargs = {}
    if not isinstance(kwargs, Mapping) or not all(isinstance(key, str) for key in kwargs):
        raise CommandError("kwargs is a mapping of names to arguments")
    return list(args), {str(key): value for key, value in kwargs.items()}


def _check_fit(target: object, name: str, args: list[Any], kwargs: dict[str, Any]) -> None:
    """Refuse a call that would fail for its arguments, where the signature is known."""
    if isinstance(target, str):
        return
    try:
        # Not that of a wrapped function, which a decorator may call with more than it is given.
        signature = inspect.signature(cast("Callable[..., Any]", target), follow_wrapped=False)
    except Exception:  # noqa: BLE001 - some builtins have none, and some objects their own ideas
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise CommandError(f"the arguments do not fit {name}: {error}") from None


def _culprit(target: object, args: list[Any], kwargs: dict[str, Any]) -> str:
    """Return in words which part of a call cannot be pickled."""
    parts: list[tuple[str, object]] = [("what is to be called", target)]
    parts += [(f"argument {place}", value) for place, value in enumerate(args)]
    parts += [(f"argument {key!r}", value) for key, value in kwargs.items()]
    for words, value in parts:
        try:
            encoding.encode(value)
        except encoding.Unstorable:
            return words
    return "the call"


# --- how it travels -----------------------------------------------------------------


def _quoted(data: bytes) -> str:
    # Base64 within JSON within JSON: bytes themselves would take up to six times their room.
    return json.dumps(base64.b64encode(data).decode("ascii"))


def _payload(name: str, encoding: str, arguments: str) -> bytes:
    head = {
        "version": VERSION,
        "name": name,
        "path": _path(),
        "python": this_python(),
        "encoding": encoding,
    }
    return f'{json.dumps(head)[:-1]}, "arguments": {arguments}}}'.encode("ascii")


def _path() -> list[str]:
    """Return where this process looks for modules, as of now and from wherever it is read."""
    found = []
    entries: list[object] = list(sys.path)  # whatever its annotation says
    for entry in entries:
        if not isinstance(entry, str):
            continue  # as importing passes over it
        try:
            # What is no path, such as the hook of an editable install, stays as it is.
            absolute = os.path.abspath(entry)
            found.append(absolute if not entry or os.path.exists(absolute) else entry)
        except OSError:
            pass  # relative to a directory that is gone
    return found
