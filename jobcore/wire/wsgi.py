"""Tells whether the client of a WSGI request has left, in servers that expose the connection."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

#: Keys of the environ under which servers provide the connection of a request.
SOCKETS = ("gunicorn.socket", "werkzeug.socket")
#: Key of the environ under which waitress provides a function that tells it.
WAITRESS = "waitress.client_disconnected"


def watch_client(environ: Mapping[str, Any]) -> Callable[[], bool] | None:
    """
    Return a function that tells whether the client of a WSGI request has left.

    Pass it to `log_response` as `is_gone`. It is needed for text, because no byte can be
    sent to find out. The function peeks at the connection and reads nothing from it.

    Args:
        environ: The WSGI environ of the request, such as `flask.request.environ`.

    Returns:
        The function; None: the server is not gunicorn, waitress or werkzeug's own server.
    """
    is_disconnected: Callable[[], bool] | None = environ.get(WAITRESS)
    if is_disconnected is not None:
        return is_disconnected
    for name in SOCKETS:
        connection = environ.get(name)
        if isinstance(connection, socket.socket):
            return partial(_is_closed, connection)
    return None


def _is_closed(connection: socket.socket) -> bool:
    """Tell whether the other end is closed, without reading what it may have sent."""
    try:
        # The method of the base class, because that of an SSL socket accepts no flags. Only the
        # end of the connection matters here, not the data.
        return not socket.socket.recv(connection, 1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True
