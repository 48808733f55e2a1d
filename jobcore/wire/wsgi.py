"""Whether the client of a request has left, in servers that give away their socket."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

#: Where servers keep the connection of a request.
SOCKETS = ("gunicorn.socket", "werkzeug.socket")
#: Where waitress keeps a function that tells it.
WAITRESS = "waitress.client_disconnected"


def watch_client(environ: Mapping[str, Any]) -> Callable[[], bool] | None:
    """
    Return a function that tells whether the client of a WSGI request has left.

    Give it to `log_response` as `is_gone`: a quiet text has no byte that could be sent to
    find out. It looks at the connection and takes nothing from it.

    Args:
        environ: The request's, such as `flask.request.environ`.

    Returns:
        The function; None: the server is not gunicorn, waitress or werkzeug's own.
    """
    told: Callable[[], bool] | None = environ.get(WAITRESS)
    if told is not None:
        return told
    for name in SOCKETS:
        connection = environ.get(name)
        if isinstance(connection, socket.socket):
            return partial(_is_closed, connection)
    return None


def _is_closed(connection: socket.socket) -> bool:
    """Tell whether the other end is closed; what it may have sent stays to be read."""
    try:
        # Not the method of an SSL socket, which knows no flags: it is about the end of the
        # connection, not about what was sent.
        return not socket.socket.recv(connection, 1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True
