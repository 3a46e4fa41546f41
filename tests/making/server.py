"""One process that has everything imported, and becomes every command that tests run.

An import of torch, tensorflow and coremltools takes seconds, a fork of a process that has them
milliseconds; and what it has run is gone with it, as with any process. The first who asks starts
the server, for all test processes of the session; it ends with the session:

    python -m tests.making.server SOCKET OWNER
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from tests.making import HOUR, ROOT, shared

CLIENT = """\
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    request = {{"be": {be!r}, "arguments": sys.argv[1:]}}
    request |= {{"folder": os.getcwd(), "variables": dict(os.environ)}}
    socket.send_fds(server, [json.dumps(request).encode() + b"\\n"], [0, 1, 2])
    sys.exit(int(server.recv(16) or 70))
"""
"""A program that has the server become what `be` names, in its place; it imports nothing slow."""


def address() -> str:
    """The socket of the session's server, which is started if need be."""
    path = shared.folder() / "socket"
    with shared.alone("server"):
        if not path.exists():
            owner = (shared.folder() / "owner").read_text()
            with (shared.folder() / "server.log").open("wb") as log:
                process = subprocess.Popen(
                    [sys.executable, "-m", "tests.making.server", str(path), owner],
                    cwd=ROOT,
                    env=os.environ | {"PYTHONPATH": str(ROOT)},
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    start_new_session=True,
                )
            assert process.stdout is not None
            with process.stdout as said:
                assert said.readline() == b"ready\n"
    return str(path)


def become(
    be: str,
    arguments: Sequence[str],
    folder: Path,
    variables: Mapping[str, str],
    given: bytes = b"",
) -> subprocess.CompletedProcess[bytes]:
    """Have the server become what `be` names, until it ends.

    Args:
        be: a function `module:name` of the arguments that gives an exit code.
        arguments: of the command line.
        folder: to run in.
        variables: the environment.
        given: on standard input.
    """
    request = {"be": be, "arguments": list(arguments), "folder": str(folder)}
    message = json.dumps(request | {"variables": dict(variables)}).encode() + b"\n"
    with (
        tempfile.TemporaryFile() as stdin,
        tempfile.TemporaryFile() as stdout,
        tempfile.TemporaryFile() as stderr,
        socket.socket(socket.AF_UNIX) as server,
    ):
        stdin.write(given)
        stdin.seek(0)
        server.settimeout(HOUR)
        server.connect(address())
        socket.send_fds(server, [message], [one.fileno() for one in (stdin, stdout, stderr)])
        code = int(server.recv(16) or 70)
        stdout.seek(0)
        stderr.seek(0)
        return subprocess.CompletedProcess(
            list(arguments), code, stdout=stdout.read(), stderr=stderr.read()
        )


def serve(path: str, owner: int) -> None:
    """Become what is asked for, each time in a process forked from this one."""
    from tests.soak.sandbox import warm

    warm()
    # What the exports of a run import besides.
    import onnx2tf  # noqa: F401
    import tensorflow  # noqa: F401
    import torch_pruning  # noqa: F401
    import torchao.quantization.pt2e  # noqa: F401

    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path + ".soon")
        server.listen(64)
        os.rename(path + ".soon", path)
        print("ready", flush=True)
        sys.stdout = sys.stderr
        server.settimeout(2)
        while _is_alive(owner):
            with suppress(TimeoutError):
                client, _ = server.accept()
                with client:
                    message, files, _, _ = socket.recv_fds(client, 2**20, 3)
                    while not message.endswith(b"\n"):
                        message += client.recv(2**20)
                    if os.fork() == 0:
                        _be(json.loads(message), files, client)
                    for file in files:
                        os.close(file)
            with suppress(ChildProcessError):  # those that have ended
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def _be(request: dict[str, object], files: Sequence[int], client: socket.socket) -> None:
    """Be what was asked for, with the streams of the one who asked, and tell the exit code."""
    code = 1
    try:
        for number, file in enumerate(files):
            os.dup2(file, number)
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        os.chdir(str(request["folder"]))
        os.environ.clear()
        os.environ.update(request["variables"])  # type: ignore[call-overload]
        tempfile.tempdir = None  # as those variables say, whatever was asked before
        code = _function(str(request["be"]))(list(request["arguments"]))  # type: ignore[call-overload]
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        client.sendall(str(code).encode())
        os._exit(code)


def _function(named: str) -> Callable[[list[str]], int]:
    import importlib

    module, _, name = named.partition(":")
    found: Callable[[list[str]], int] = getattr(importlib.import_module(module), name)
    return found


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
