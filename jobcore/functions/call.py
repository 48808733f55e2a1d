"""
A call of a function as a command that a fresh interpreter runs.

Function name and arguments are sent through stdin. Every user of the machine can read an
argument vector, and arguments may contain secrets.
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

from jobcore import checks
from jobcore.command import Command
from jobcore.errors import CommandError
from jobcore.functions import encoding, names
from jobcore.functions.encoding import DIRECTORY, VERSION, this_python

#: The stored argument vector of a call. The manager that runs the job chooses the interpreter,
#: because the submitter's may no longer exist by then.
ARGV = ("jobcore:function",)

#: Maximum bytes of arguments. Readers of the queue hold those of several jobs in memory.
MOST_ARGUMENT_BYTES = 2**20

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# It puts an empty module in place of the package, as for supervisors, because the package's
# `__init__` would import all of jobcore. Before that it removes the current directory from
# the path, where a file may have the name of a module of the standard library.
_STUB = """\
import sys
if sys.path[0] == "": del sys.path[0]
sys.modules["jobcore"] = type(sys)("jobcore")
sys.modules["jobcore"].__path__ = [sys.argv[1]]
from jobcore.functions.__main__ import main
main()
"""

# The same for a warm interpreter. In the process that it forks for a call, `serve` returns.
_WARM_STUB = _STUB.replace(
    "jobcore.functions.__main__ import main\nmain()",
    "jobcore.functions.warm import serve\nserve()()",
)
#: As many warm interpreters as there are supervisors, as a word of a command line.
_ALL = "all"
_MOST = 2**31 - 1
_COLD = 4  # words of the command line of a call without a warm interpreter


def function_command(
    target: Callable[..., Any] | str,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    **options: Any,
) -> Command:
    """
    Return a command that calls a function in a fresh interpreter.

    Submit it with `type="FUNCTION"`, or use it as the command of a pipeline. The
    interpreter searches modules on this process's `sys.path`. The job's log contains the
    function's log records from INFO up, unless it configures logging, and the traceback of
    an exception. A coroutine function is run by `asyncio.run`.

    Args:
        target: What to call: a function or class at the top level of a module, or any
            other callable that can be pickled. It can also be the text
            `package.module:function`, which is resolved only when the job runs.
        args: Positional arguments. Values that JSON preserves exactly are sent as JSON,
            all others as pickles.
        kwargs: Keyword arguments.
        options: Further arguments of `Command`, such as `timeout`, `cwd` and `env`. Not
            `stdin`, which carries the arguments; and not `shell` or `unbuffered`, because
            the interpreter already writes whole lines.

    Raises:
        CommandError: A fresh interpreter would not find the function; or the arguments do
            not fit it, cannot be pickled, or are too large. The message says which
            and why, and contains no argument's value.
    """
    positional, named = _checked_arguments(args, kwargs)
    name, carried = _checked_target(target)
    _check_fit(target, name, positional, named)
    try:
        form, data = encoding.encode([carried, positional, named])
    except encoding.Unstorable as error:
        raise CommandError(
            f"{name}: {_unpicklable_part(carried, positional, named)} cannot be sent: {error}"
        ) from None
    if len(data) > MOST_ARGUMENT_BYTES:
        raise CommandError(
            f"{name}: the arguments take {len(data)} bytes, more than {MOST_ARGUMENT_BYTES}: "
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
    """Tell whether a command was made by `function_command`."""
    return tuple(command.argv) == ARGV


def in_interpreter(
    command: Command, python: str | None, directory: str | None, warm: Sequence[str] = ()
) -> Command:
    """
    Return the command that a supervisor can run; unchanged if it calls no function.

    Args:
        python: The interpreter; None: that of this process.
        directory: The job directory.
        warm: What `checked_warm` returned.

    Raises:
        CommandError: `python` is None, and this process does not know its interpreter.
    """
    if not is_function(command):
        return command
    program = python or sys.executable
    if not program:
        raise CommandError("this process knows no Python interpreter: name one with `python=`")
    return replace(
        command,
        argv=[program, "-c", _STUB, _PACKAGE, *warm],
        unbuffered=False,  # the interpreter flushes whole lines, which is cheaper
        # A log is not a terminal, even if the host's environment asks for colours.
        env={"NO_COLOR": "1", **command.env, DIRECTORY: directory or ""},
    )


def is_interpreter(command: Command) -> bool:
    """Tell whether a command was made by `in_interpreter`, so that it leaves a result."""
    return list(command.argv)[1:4] == ["-c", _STUB, _PACKAGE] and DIRECTORY in command.env


def checked_warm(warm: object, preload: object) -> tuple[str, ...]:
    """
    Return the words that ask for a warm interpreter: how many, and the modules; or none.

    Raises:
        CommandError: `warm` is not a number, or `preload` is not a list of module names.
    """
    if isinstance(preload, str) or not isinstance(preload, Sequence):
        raise CommandError(f"preload must be a list of module names, not {preload!r}")
    for name in preload:
        if not isinstance(name, str) or not all(part.isidentifier() for part in name.split(".")):
            raise CommandError(f'a module in preload must be named "package.module", not {name!r}')
        if name == "__main__":
            raise CommandError(
                "preload names __main__, the program itself, which a fresh interpreter does not "
                "run: move its functions into a module"
            )
    if warm is False:
        if preload:
            raise CommandError("preload needs a warm interpreter: give warm=True")
        return ()
    count = _ALL if warm is True else str(checks.integer(warm, "warm", 1, _MOST, CommandError))
    return (count, *preload)


def warm_interpreter(command: Command) -> tuple[tuple[str, ...] | None, int]:
    """
    Return the command line of the warm interpreter for a call, and how many there may be.

    Args:
        command: What `in_interpreter` returned.
    """
    words = list(map(str, command.argv))
    if len(words) == _COLD:
        return None, 0
    count, modules = words[_COLD], words[_COLD + 1 :]
    most = _MOST if count == _ALL else int(count)
    return (words[0], "-c", _WARM_STUB, _PACKAGE, *modules), most


def describe(target: Callable[..., Any] | str) -> str:
    """Return the default name of a job that calls `target`."""
    if isinstance(target, str):
        return target
    return names.name_of(target) or names.kind_of(target)


# --- what is called -----------------------------------------------------------------


def _checked_target(target: object) -> tuple[str, Any]:
    """Return the target's name, and the target itself if its name does not suffice to find it."""
    if isinstance(target, str):
        module, _, path = target.partition(":")
        parts = [*module.split("."), *path.split(".")]
        if not all(part.isidentifier() for part in parts) or module == "__main__":
            raise CommandError(
                f'a function must be named "package.module:function", not {target!r}'
            )
        return target, None
    if not callable(target):
        raise CommandError(f"an object of type {names.kind_of(target)} cannot be called")
    reason = names.why_unfindable(target)
    name = names.name_of(target)
    if reason is None and name is not None:
        return name, None
    if isinstance(target, (type, FunctionType)):
        raise CommandError(f"cannot be called in a fresh interpreter: {reason}")
    return describe(target), target  # such as a bound method, which pickle can handle


def _checked_arguments(args: object, kwargs: object) -> tuple[list[Any], dict[str, Any]]:
    if isinstance(args, (str, bytes)) or not isinstance(args, Sequence):
        raise CommandError(f"args must be a list of arguments, not {type(args).__name__}")
    if kwargs is None:
        kwargs = {}
    if not isinstance(kwargs, Mapping) or not all(isinstance(key, str) for key in kwargs):
        raise CommandError("kwargs must be a mapping of names to arguments")
    return list(args), {str(key): value for key, value in kwargs.items()}


def _check_fit(target: object, name: str, args: list[Any], kwargs: dict[str, Any]) -> None:
    """Refuse arguments that do not fit the signature, if it is known."""
    if isinstance(target, str):
        return
    try:
        # Do not follow `__wrapped__`: a decorator may add arguments.
        signature = inspect.signature(cast("Callable[..., Any]", target), follow_wrapped=False)
    except Exception:  # noqa: BLE001 - some builtins have no signature, and objects may raise
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise CommandError(f"the arguments do not fit {name}: {error}") from None


def _unpicklable_part(target: object, args: list[Any], kwargs: dict[str, Any]) -> str:
    """Return, as text, which part of a call cannot be pickled."""
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
    # Base64, because JSON would escape raw bytes, to up to six times their size.
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
    """Return this process's `sys.path`, with relative entries made absolute."""
    found = []
    entries: list[object] = list(sys.path)  # whatever its annotation says
    for entry in entries:
        if not isinstance(entry, str):
            continue  # the import system ignores it, too
        try:
            # An entry that is not a path, such as the hook of an editable install, is kept.
            absolute = os.path.abspath(entry)
            found.append(absolute if not entry or os.path.exists(absolute) else entry)
        except OSError:
            pass  # the current directory has been removed
    return found
