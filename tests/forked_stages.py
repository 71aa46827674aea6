"""A ``deop`` command that runs each stage in a fork of one process that has imported everything that stages need.

A run of the workflow on the tiny profile has about two hundred processes, each of which spends more time on importing
torch than on its work. The stages themselves are unchanged, on one thread each; only how their processes start differs.
"""

from __future__ import annotations

import importlib
import json
import os
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# What `deop` is in a workflow: it hands its arguments, environment, folder and streams to the process above.
CLIENT = """#!{python} -S
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    message = json.dumps({{"arguments": sys.argv[1:], "folder": os.getcwd(), "environment": dict(os.environ)}})
    socket.send_fds(server, [len(message.encode()).to_bytes(4, "big")], [0, 1, 2])
    server.sendall(message.encode())
    status = server.recv(1)
sys.exit(status[0] if status else "the stage's process was killed")
"""


@contextmanager
def forked_stages(folder: Path) -> Iterator[Path]:
    """Writes ``deop`` into ``folder`` and answers its calls until the end; gives the folder, for ``PATH``."""
    folder.mkdir()
    address = str(folder / "socket")
    command = folder / "deop"
    command.write_text(CLIENT.format(python=sys.executable, address=address))
    command.chmod(0o755)
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    serving = [sys.executable, __file__, address]
    with subprocess.Popen(serving, stdout=subprocess.PIPE, env=os.environ | threads, text=True) as server:
        try:
            assert server.stdout.readline() == "ready\n"
            yield folder
        finally:
            server.terminate()


def serve(address: str) -> None:
    """Forks a process for each connection, forever."""
    from deop.cli import STAGES
    from deop.utils.processes import end_with_parent

    end_with_parent()
    for name in STAGES:
        importlib.import_module(f"deop.stages.{name}")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(address)
        listening.listen(8)
        print("ready", flush=True)
        children: set[int] = set()
        while True:
            connection, _ = listening.accept()
            if (child := os.fork()) == 0:
                listening.close()
                os._exit(answer(connection))
            connection.close()
            children = {pid for pid in children | {child} if os.waitpid(pid, os.WNOHANG)[0] == 0}


def answer(connection: socket.socket) -> int:
    """Runs the command that a connection asks for, as its process would; sends and returns its exit status."""
    length, streams, _, _ = socket.recv_fds(connection, 4, 3)
    message = b""
    while len(message) < int.from_bytes(length, "big"):
        message += connection.recv(1 << 16)
    asked = json.loads(message)
    for own, given in enumerate(streams):
        os.dup2(given, own)
        os.close(given)
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    try:
        from deop.cli import app

        sys.argv = ["deop", *asked["arguments"]]
        app(prog_name="deop")
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    connection.sendall(bytes([status]))
    return status


if __name__ == "__main__":
    serve(sys.argv[1])
