"""Completion in shells: the command that prints a shell's script."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

from jobcore.cli import output
from jobcore.cli.app import app

_BASH = r"""
_jobcore() {
    local IFS=$'\n'
    COMPREPLY=($(_JOBCORE_COMPLETE=bash "$1" "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
}
complete -o default -F _jobcore jobcore
"""
_ZSH = r"""
#compdef jobcore
_jobcore() {
    local -a found
    found=("${(@f)$(_JOBCORE_COMPLETE=zsh "${words[1]}" "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    if [[ -n "${found[1]}" ]]; then _describe -V jobcore found; else _files; fi
}
if [[ "${funcstack[1]}" = "_jobcore" ]]; then _jobcore "$@"; else compdef _jobcore jobcore; fi
"""
_FISH = r"""
function __jobcore_complete
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    set -l found (env _JOBCORE_COMPLETE=fish $words[1] $words[2..-1] "$current" 2>/dev/null)
    if test (count $found) -gt 0
        printf '%s\n' $found
    else
        __fish_complete_path "$current"
    end
end
complete --command jobcore --no-files --keep-order --arguments '(__jobcore_complete)'
"""


class Shell(str, Enum):
    """The shells with completion."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


_SCRIPTS = {Shell.BASH: _BASH, Shell.ZSH: _ZSH, Shell.FISH: _FISH}


@app.command()
def completion(
    ctx: typer.Context,
    shell: Annotated[Shell, typer.Argument(metavar="SHELL", help="bash, zsh or fish.")],
) -> None:
    """
    Print the completion script of a shell.

    It completes commands, options, the numbers, names and IDs of the newest jobs,
    and the names of pipelines, workspaces, groups and keys.

    \b
    Examples:
      eval "$(jobcore completion bash)"
      jobcore completion zsh > ~/.zfunc/_jobcore
      jobcore completion fish > ~/.config/fish/completions/jobcore.fish
    """  # noqa: D301
    del ctx
    output.print_lines(_SCRIPTS[shell].strip().splitlines())
