"""
Functions: a call of a Python function as a command, and the interpreter that makes the call.

The engine imports `call`. The other modules run in the fresh interpreter of one function job,
in its main thread, and use the standard library only. So this module imports nothing. Internal.
"""
