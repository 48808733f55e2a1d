"""
Where hosts that started before an upgrade find their supervisors.

A host has its code in memory and goes on while the package below it is replaced. It starts
each supervisor by the module's name that was right when the host began. Without this name
every job of such a host would end in a SpawnError until its restart.
"""

from jobcore.supervisor.__main__ import main

__all__ = ["main"]
