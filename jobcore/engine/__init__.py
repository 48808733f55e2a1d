"""
Engine: starts, adopts, stops and ends jobs.

Internal: the manager and the operations import it. It runs in the host process, in the manager's
own thread. Transactions, and most work on job directories, run in the writer's threads.
"""
