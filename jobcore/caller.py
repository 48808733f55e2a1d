"""
The former name of `functions.__main__`, for hosts that started before an upgrade.

Such a host starts the interpreter of a function by this name, as in `jobcore.supervision`.
"""

from jobcore.functions.__main__ import main

__all__ = ["main"]
