"""
Engine: starts, adopts, stops and ends jobs.

The manager and the operations import it. It runs in the host, in the manager's own thread; work
on job directories and transactions runs in the writer's threads. Internal.
"""
