"""
Where hosts that started before an upgrade find what calls functions.

Such a host starts the interpreter of a function by this name, as in `jobcore.supervision`.
"""

from jobcore.functions.__main__ import main

__all__ = ["main"]
