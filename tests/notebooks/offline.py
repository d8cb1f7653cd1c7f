"""Run a command where no network is, and count its looks for the hub: `unshare -rn python offline.py COMMAND...`.

The hub's address is set to a listener in here, so that an attempt is seen even though nothing outside is reachable.
Exit code 3: the command looked for the hub.
"""

import fcntl
import os
import socket
import struct
import subprocess
import sys

SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 0x1


def raise_loopback() -> None:
    """Switch the loopback interface on: the server of lesson 09 is asked through it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        request = struct.pack("16sH14s", b"lo", 0, b"")
        flags = struct.unpack("16sH14s", fcntl.ioctl(handle, SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(handle, SIOCSIFFLAGS, struct.pack("16sH14s", b"lo", flags | IFF_UP, b""))


def main(command: list[str]) -> int:
    """Run `command` and return its exit code, 3 if it looked for the hub."""
    raise_loopback()
    with socket.create_server(("127.0.0.1", 0)) as hub:
        hub.setblocking(False)
        os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{hub.getsockname()[1]}"
        code = subprocess.run(command).returncode
        try:
            hub.accept()
        except BlockingIOError:
            return code
    print("the command looked for the hub")
    return 3


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
