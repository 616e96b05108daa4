"""Start and end of the process group of one training (torch.distributed)."""

import os
import socket
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from var_scaling.disk import read_json, write_json
from var_scaling.training.world import World

# Limit of one collective call. It is long because process 0 evaluates a tokenizer and writes files
# while the others wait.
_COLLECTIVE_TIMEOUT = timedelta(hours=1)
_LOOPBACK = "127.0.0.1"  # processes on one machine need no port that other machines can reach


def join(
    rank: int,
    size: int,
    device: torch.device,
    rendezvous_file: Path,
    address: str,
    timeout_s: float = 600.0,
) -> World:
    """The world of `size` processes, once all have joined. Backend: NCCL on GPUs, gloo on CPUs.

    Process 0 writes the `address` of its machine and a free port to `rendezvous_file`, in a folder
    that all processes share. Each restart of a job needs a new file: an old one contains an address
    where no process listens. Raises TimeoutError if not all processes have joined after
    `timeout_s`. A single process writes no file.
    """
    # Collectives and new tensors of this process then use its own GPU and not GPU 0.
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    if size > 1:
        store, address = _meet(rank, size, rendezvous_file, address, timeout_s)
        gpu = device if device.type == "cuda" else None
        if address == _LOOPBACK and sys.platform == "linux":
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # gloo must not guess an interface
        dist.init_process_group(
            backend="nccl" if gpu else "gloo",
            store=store,
            rank=rank,
            world_size=size,
            timeout=_COLLECTIVE_TIMEOUT,
            device_id=gpu,
        )
    return World(rank, size, device)


def _meet(
    rank: int, size: int, rendezvous_file: Path, address: str, timeout_s: float
) -> tuple[dist.TCPStore, str]:
    """The key-value store of the processes, and the address of process 0. Waits for all of them."""
    deadline, limit, port = time.monotonic() + timeout_s, timedelta(seconds=timeout_s), 0
    if rank > 0:
        while not rendezvous_file.exists():
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"{rendezvous_file}: process 0 did not write it within {timeout_s:g} s"
                )
            time.sleep(0.1)
        # Never half-written: process 0 writes it atomically.
        rendezvous = read_json(rendezvous_file)
        address, port = rendezvous["address"], rendezvous["port"]
    try:
        fd = _listen_on_loopback() if rank == 0 and address == _LOOPBACK else None
        # Port 0: the system chooses a free one, and process 0 can publish it only after this
        # call. So the constructor must not wait for the others, which read the port from the file.
        store = dist.TCPStore(
            address, port, size, rank == 0, limit, wait_for_workers=False, master_listen_fd=fd
        )
        if rank == 0:
            write_json(rendezvous_file, {"address": address, "port": store.port})
        # Each process waits for the keys of all. A missing one is an error after `timeout_s`, not
        # after the far longer limit of a collective call.
        store.set(f"process {rank}", "joined")
        store.wait([f"process {other}" for other in range(size)], limit)
    except dist.DistError as error:
        raise TimeoutError(
            f"{rendezvous_file}: not all {size} processes connected to {address} in {timeout_s:g} s"
        ) from error
    return store, address


def _listen_on_loopback() -> int:
    """A socket on a free loopback port. TCPStore's own socket would listen on every interface."""
    listener = socket.socket()
    listener.bind((_LOOPBACK, 0))
    listener.listen(1024)
    # Detached: the store uses the descriptor, so Python must not close it.
    return listener.detach()


def leave(world: World) -> None:
    if world.size > 1:
        dist.destroy_process_group()
