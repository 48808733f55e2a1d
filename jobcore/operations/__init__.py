"""
Operations: what the methods of a manager do, one module per group of methods.

Only the manager and `jobcore.wire` import it. It runs in the host, in the thread of the
caller; what writes is handed to the writer's thread. Internal.
"""
