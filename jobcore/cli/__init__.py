"""
CLI: the entry point of the command line.

The commands need the extra `cli`. This module does not, so that without the extra the user
gets one clear line instead of a traceback. The program `jobcore` imports it, and no other package
does. It runs in the process of a command, in its main thread. Internal.
"""

from __future__ import annotations

import gc
import os
import sys
from importlib.util import find_spec


def main() -> None:
    """Run the command line and exit."""
    gc.disable()  # the imports leave no garbage; `Store.open` enables it again
    _open_closed_streams()
    if shell := os.environ.get("_JOBCORE_COMPLETE"):  # a shell asks what it can offer
        from jobcore.cli import suggestions  # noqa: PLC0415 - not needed otherwise

        suggestions.answer(shell, sys.argv[1:])
        return
    try:
        for package in ("typer", "rich"):
            if find_spec(package) is None:
                raise ModuleNotFoundError(name=package)
        from jobcore.cli import output, suspension  # noqa: PLC0415 - they need the extra `cli`
        from jobcore.cli.app import app  # noqa: PLC0415 - the same

        suspension.guard()
    except ModuleNotFoundError as missing:
        package = (missing.name or "").split(".")[0]
        if package not in ("typer", "rich", "click"):
            raise
        sys.stderr.write(f"jobcore: the command line needs {package}: pip install typer rich\n")
        raise SystemExit(2) from None
    except KeyboardInterrupt:  # mostly during the imports
        raise SystemExit(130) from None
    output.replace_what_cannot_be_shown()
    app(prog_name="jobcore")


def _open_closed_streams() -> None:
    """Open /dev/null for streams that `>&-` has closed, or a later file would become stdout."""
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
            setattr(sys, name, os.fdopen(descriptor, mode, closefd=False))
