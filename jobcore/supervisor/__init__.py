"""
Supervisor: the process that runs one job at a time, and the files by which it talks to hosts.

It is a separate process with one thread, runs with `-I -S`, and outlives the host that started
it. In hosts, `engine`, `storage` and `testing` import the formats from here. Every module uses
the standard library only, and little of it, because each import slows every start. Internal.
"""

#: The version of job directories, frames and messages. Newer code reads every older version;
#: files of a newer version are left unchanged.
PROTOCOL_VERSION = 1


class NewerProtocol(Exception):
    """A newer jobcore wrote the file, so this one must not touch the job."""
