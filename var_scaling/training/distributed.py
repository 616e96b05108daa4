"""How the processes of one training find each other, and how they part."""

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

# How long one process may keep the others waiting: the first judges a tokenizer and writes alone.
_LONGEST_WAIT = timedelta(hours=1)
_HERE = "127.0.0.1"  # processes of one machine need no port that others can reach


def join(
    rank: int,
    size: int,
    device: torch.device,
    rendezvous_file: Path,
    address: str,
    micro_batch_size: int | None = None,
    patience: float = 600.0,
) -> World:
    """The world of `size` processes, once all are there. GPUs talk by NCCL, processors by gloo.

    The first writes into the file `meeting`, in a folder that all share, where it listens: its
    machine's `address` and a free port. Each life of a job needs a `meeting` of its own: in one
    from an earlier life the others would find where the first no longer is. Raises TimeoutError if
    not all have come after `patience` seconds. One process alone touches no file.
    """
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    if size > 1:
        store, address = _meet(rank, size, rendezvous_file, address, patience)
        gpu = device if device.type == "cuda" else None
        if address == _HERE and sys.platform == "linux":
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        dist.init_process_group(
            backend="nccl" if gpu else "gloo",
            store=store,
            rank=rank,
            world_size=size,
            timeout=_LONGEST_WAIT,
            device_id=gpu,
        )
    return World(rank, size, device, micro_batch_size)


def _meet(
    rank: int, size: int, rendezvous_file: Path, address: str, patience: float
) -> tuple[dist.TCPStore, str]:
    """What the processes know of each other before they can talk, and the first one's address;
    returns when all are there.
    """
    deadline, limit, port = time.monotonic() + patience, timedelta(seconds=patience), 0
    if rank > 0:
        while not rendezvous_file.exists():
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"{rendezvous_file}: not written by process 0 within {patience:g} s"
                )
            time.sleep(0.1)
        found = read_json(rendezvous_file)
        address, port = found["address"], found["port"]
    try:
        listens = _listen_here() if rank == 0 and address == _HERE else None
        store = dist.TCPStore(
            address, port, size, rank == 0, limit, wait_for_workers=False, master_listen_fd=listens
        )
        if rank == 0:
            write_json(rendezvous_file, {"address": address, "port": store.port})
        store.set(f"process {rank}", "here")
        store.wait([f"process {each}" for each in range(size)], limit)
    except dist.DistError as error:
        raise TimeoutError(
            f"{rendezvous_file}: not all {size} processes met at {address} within {patience:g} s"
        ) from error
    return store, address


def _listen_here() -> int:
    """A socket on a free port of loopback: by itself TCPStore listens on every interface."""
    listener = socket.socket()
    listener.bind((_HERE, 0))
    listener.listen(1024)
    return listener.detach()


def leave(world: World) -> None:
    if world.size > 1:
        dist.destroy_process_group()
