"""Kernels that are forked from a process which has imported the libraries already: 14 s of every lesson otherwise.

`forked_kernels.py serve SOCKET` is that process. `forked_kernels.py ask SOCKET ARGUMENTS...` is a kernel's command: it
has one forked, passes signals on to it and ends with it. pyplot and ipywidgets are imported by the kernel, for which
they look when they are.
"""

import importlib
import json
import os
import signal
import socket
import sys
import threading
from typing import Any

NAMES = (
    "ftlab", "torch", "datasets", "transformers.models.llama.modeling_llama", "transformers.trainer", "peft",
    "trl.trainer.sft_trainer", "ftlab.runs.train", "ftlab.apps.course", "matplotlib.figure", "ipykernel.kernelapp",
)  # fmt: skip
# What `ftlab course run` and ipykernel set before a kernel imports anything.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
}
LOOKED = b"looked"


def serve(path: str) -> None:
    """Fork a kernel for each request, and tell who asks whether one has looked for the hub since the last time."""
    import offline

    os.environ |= ENVIRONMENT
    with offline.listening() as hub, socket.socket(socket.AF_UNIX) as server:
        for name in NAMES:
            importlib.import_module(name)
        # The system removes the kernels that have ended.
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        server.bind(path)
        server.listen()
        while True:
            asking, _ = server.accept()
            message, streams, _, _ = socket.recv_fds(asking, 2**20, 3)
            if message == LOOKED:
                asking.sendall(b"1" if offline.looked(hub) else b"0")
            elif pid := os.fork():
                asking.sendall(str(pid).encode())
            else:
                break
            for stream in streams:
                os.close(stream)
            asking.close()
    become_kernel(asking, json.loads(message), streams)


def become_kernel(asking: socket.socket, request: dict[str, Any], streams: list[int]) -> None:
    """Run a kernel in this process, which ends with the command that asked for it."""
    from ipykernel import kernelapp

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(request["folder"])
    hub = os.environ["HF_ENDPOINT"]
    os.environ.clear()
    os.environ |= request["environment"] | {"HF_ENDPOINT": hub}
    # Not this process's parent, whose end ipykernel looks for.
    os.environ.pop("JPY_PARENT_PID", None)
    sys.argv = ["ipykernel_launcher.py", *request["arguments"]]
    threading.Thread(target=end_with, args=(asking,), daemon=True).start()
    kernelapp.launch_new_instance()


def end_with(asking: socket.socket) -> None:
    """End this process when the other end of the connection is gone."""
    asking.recv(1)
    os._exit(1)


def ask(path: str, *arguments: str) -> int:
    """Have a kernel forked and wait for its end; return 3 if it looked for the hub, and say so."""
    request = {"arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ)}
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(path)
        socket.send_fds(server, [json.dumps(request).encode()], [0, 1, 2])
        kernel = int(server.recv(100))
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _: os.kill(kernel, number))
        server.recv(1)
    if not looked(path):
        return 0
    print("the kernel looked for the hub", file=sys.stderr)
    return 3


def looked(path: str) -> bool:
    """Return True if a kernel has looked for the hub since the last time."""
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(path)
        server.sendall(LOOKED)
        return server.recv(1) == b"1"


if __name__ == "__main__":
    sys.exit({"serve": serve, "ask": ask}[sys.argv[1]](*sys.argv[2:]))
