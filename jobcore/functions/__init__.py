"""
Functions: a call as a command, and the interpreter that makes it.

The engine imports `call`. All else runs in the fresh interpreter of one function job, in its
main thread, from the standard library alone: this module imports nothing. Internal.
"""
