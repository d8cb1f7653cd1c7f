"""Ports that environment variables name."""

import os

from ftlab.errors import fail


def port_of(variable: str, default: int) -> int:
    """Return the port that an environment variable names, the default if it is not set.

    Raises:
        LabError: it is not a port.
    """
    text = os.environ.get(variable) or str(default)
    if not (text.isascii() and text.isdigit() and int(text) < 65536):
        raise fail("serve_port", where=variable, port=text)
    return int(text)
