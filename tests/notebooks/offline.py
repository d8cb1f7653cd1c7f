"""Run a command where no network is, and count its looks for the hub: `unshare -rn python offline.py COMMAND...`.

The hub's address is set to a listener in here, so that an attempt is seen even though nothing outside is reachable.
Exit code 3: the command looked for the hub.
"""

import contextlib
import fcntl
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator

SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 0x1


def raise_loopback() -> None:
    """Switch the loopback interface on: the server of lesson 09 is asked through it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        request = struct.pack("16sH14s", b"lo", 0, b"")
        flags = struct.unpack("16sH14s", fcntl.ioctl(handle, SIOCGIFFLAGS, request))[1]
        if not flags & IFF_UP:
            fcntl.ioctl(handle, SIOCSIFFLAGS, struct.pack("16sH14s", b"lo", flags | IFF_UP, b""))


@contextlib.contextmanager
def listening() -> Iterator[socket.socket]:
    """Set the hub's address to a listener, and yield it."""
    raise_loopback()
    with socket.create_server(("127.0.0.1", 0)) as hub:
        hub.setblocking(False)
        os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{hub.getsockname()[1]}"
        yield hub


def looked(hub: socket.socket) -> bool:
    """Return True if somebody has connected since the last call."""
    found = False
    with contextlib.suppress(BlockingIOError):
        while hub.accept():
            found = True
    return found


def main(command: list[str]) -> int:
    """Run `command` and return its exit code, 3 if it looked for the hub."""
    with listening() as hub:
        code = subprocess.run(command).returncode
        if not looked(hub):
            return code
    print("the command looked for the hub")
    return 3


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
