"""Run MLflow's web server, reachable from this machine only."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

from pipelines.tracking.mlflow import database, quiet_environment
from pipelines.workspace.store import Home


@contextmanager
def server(home: Home, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """An MLflow server for `home` on the loopback address, ready when the block starts."""
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port),
        "--workers", "1", "--backend-store-uri", database(home),
        "--artifacts-destination", (home.root / "mlartifacts").as_uri(),
    ]  # fmt: skip
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise ValueError(f"port {port} is in use; choose another with --port")
    log = home.root / "mlflow-server.log"
    with open(log, "w") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=out, env={**os.environ, **quiet_environment()}
        )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server ends too
    # A shell script starts background commands with SIGINT ignored; Python then leaves it ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        _await_health(f"http://127.0.0.1:{port}/health", process, log)
        yield process
    finally:
        process.terminate()
        process.wait()


def _await_health(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ValueError(f"the MLflow server exited; see {log} (is the port in use?)")
        try:
            with urlopen(url, timeout=2):
                return
        except OSError:
            time.sleep(0.3)
    raise ValueError(f"the MLflow server does not respond at {url}; see {log}")
