"""
Supervisor: the process that runs one job at a time, and the files through which hosts talk to it.

It runs in a process of its own, in one thread, with `-I -S`, and outlives the host that started
it. Hosts import the formats from here: engine, storage and testing. Every module uses
the standard library alone, and little of it, as each import is paid at every start. Internal.
"""

#: The language of job directory, frames and notices. Newer code reads every
#: older version; a version newer than this is left alone.
PROTOCOL_VERSION = 1


class NewerProtocol(Exception):
    """The file was written by a newer jobcore: this one must leave the job alone."""
