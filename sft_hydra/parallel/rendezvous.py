"""The process group of a run: starting it within a time limit, naming who is missing, agreeing on a stop.

Device tensors travel by NCCL on CUDA; tensors on the CPU by gloo, so that agreeing costs the device nothing.
"""

import os
import socket
import time
from datetime import timedelta
from threading import Thread

import torch
import torch.distributed as dist

from sft_hydra.errors import ClusterError
from sft_hydra.process import signals
from sft_hydra.process.rank import Rank, this_rank

COLLECTIVE_MINUTES = 30  # the longest that ranks wait for one that saves, exports or prepares
POLL_SECONDS = 0.1
ANSWER_SECONDS = 10.0  # that rank 0 may take to answer after the deadline


def start_process_group(device: torch.device, timeout: float) -> None:
    """Join the other ranks, at most `timeout` seconds long. Does nothing in a run of one rank.

    ClusterError names the ranks that did not come, with their hosts where the launcher told them.
    """
    rank = this_rank()
    if rank.world_size == 1:
        return
    store = _meet(rank, timeout)
    _await_all(store, rank, time.monotonic() + timeout)
    backend = "gloo"
    if device.type == "cuda":
        backend, device = "cpu:gloo,cuda:nccl", torch.device("cuda", rank.local_rank)
        torch.cuda.set_device(device)
    dist.init_process_group(
        backend,
        store=dist.PrefixStore("group", store),
        rank=rank.rank,
        world_size=rank.world_size,
        timeout=timedelta(minutes=COLLECTIVE_MINUTES),
    )
    _greet(device, rank, timeout)


def start_group_of_one() -> None:
    """A process group for a run of one rank, for what wants one all the same."""
    if not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl", store=dist.HashStore(), rank=0, world_size=1)


def stop_process_group() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def stop_requested() -> bool:
    """Whether any rank got a signal to stop. All ranks must ask, at the same step boundary, and get the same answer."""
    if not dist.is_initialized():
        return signals.stop_requested()
    flag = torch.tensor([int(signals.stop_requested())])
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return bool(flag.item())


def _meet(rank: Rank, timeout: float) -> dist.Store:
    """The meeting point of all ranks, held by rank 0 (by the agent under torchrun, through all its restarts)."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    try:
        store = dist.TCPStore(
            address,
            port,
            rank.world_size,
            is_master=rank.rank == 0 and not agent,
            timeout=timedelta(seconds=timeout),
            wait_for_workers=False,
        )
    except RuntimeError as error:
        raise ClusterError(
            f"rank {rank.rank} on {socket.gethostname()} cannot reach rank 0 at {address}:{port} within {timeout:g} s "
            f"({type(error).__name__}): is its host up, does its name resolve, is the port free?"
        ) from error
    return dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)


def _await_all(store: dist.Store, rank: Rank, deadline: float) -> None:
    """Everyone signs in; rank 0 counts, and tells everyone at the deadline who is not there."""
    store.set(f"arrived {rank.rank}", "")
    store.add("arrived", 1)
    if rank.rank == 0:
        while store.add("arrived", 0) < rank.world_size and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        missing = [other for other in range(rank.world_size) if not store.check([f"arrived {other}"])]
        store.set("verdict", _absence(missing, rank) if missing else "complete")
    store.wait(["verdict"], timedelta(seconds=max(0.0, deadline - time.monotonic()) + ANSWER_SECONDS))
    verdict = store.get("verdict").decode()
    if verdict != "complete":
        raise ClusterError(verdict)


def _absence(missing: list[int], rank: Rank) -> str:
    hosts = os.environ.get("SFT_HYDRA_HOSTS", "").split(",")
    nodes = sorted({other // rank.local_world_size for other in missing})
    names = [hosts[node] if len(hosts) > node and hosts[node] else f"node {node}" for node in nodes]
    return (
        f"{len(missing)} of {rank.world_size} ranks did not start in time: rank {_short(missing)} on {', '.join(names)}; "
        "look at these hosts and at what their ranks printed (cluster.start_timeout is the time they have)"
    )


def _short(ranks: list[int]) -> str:
    return ", ".join(map(str, ranks[:8])) + (", ..." if len(ranks) > 8 else "")


def _greet(device: torch.device, rank: Rank, timeout: float) -> None:
    """A first all-reduce on the device: connections that do not work show here and not in step 1."""
    outcome: list[RuntimeError | None] = []

    def talk() -> None:
        try:
            total = torch.tensor([rank.rank], device=device)
            dist.all_reduce(total)
            assert int(total.item()) == rank.world_size * (rank.world_size - 1) // 2
            outcome.append(None)
        except RuntimeError as error:
            outcome.append(error)

    talking = Thread(target=talk, daemon=True)  # a broken network can hang inside NCCL, beyond any exception
    talking.start()
    talking.join(timeout)
    problem = outcome[0] if outcome else TimeoutError(f"no answer within {timeout:g} s")
    if problem is not None:
        raise ClusterError(
            f"rank {rank.rank} on {socket.gethostname()}: all ranks have started but cannot talk to each other "
            f"({str(problem).splitlines()[0]}); NCCL_SOCKET_IFNAME or GLOO_SOCKET_IFNAME may have to name the network"
        ) from problem
