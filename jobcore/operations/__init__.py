"""
Operations: the implementation of the manager's methods, one module per group.

Internal: only the manager and `jobcore.wire` import it. It runs in the host process, in the
caller's thread. Writes are passed to the writer's thread. The docstrings of
`JobManager` say which errors each operation raises.
"""
