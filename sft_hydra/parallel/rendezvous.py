"""The process group of a run: initialization within a time limit, a report of missing ranks, agreement on stopping.

CUDA tensors use NCCL; CPU tensors use gloo, so that control messages do not involve the device.
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
from sft_hydra.process.rank import STORE_SOCKET, Rank, this_rank

COLLECTIVE_MINUTES = 30  # collective timeout: how long ranks wait for one that saves, exports or prepares data
POLL_SECONDS = 0.1
ANSWER_SECONDS = 10.0  # how long rank 0 may take to answer after the deadline


def start_process_group(device: torch.device, timeout: float) -> None:
    """Join the other ranks within `timeout` seconds. Does nothing in a run of one rank.

    ClusterError lists the ranks that did not start, with their hosts if the launcher set SFT_HYDRA_HOSTS.
    """
    rank = this_rank()
    if rank.world_size == 1:
        return
    store = _connect_store(rank, timeout)
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
    _first_all_reduce(device, rank, timeout)


def start_group_of_one() -> None:
    """A process group of one rank, for torch features that require one."""
    if not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl", store=dist.HashStore(), rank=0, world_size=1)


def stop_process_group() -> None:
    """Destroy the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def stop_requested() -> bool:
    """Whether any rank received a stop signal. A collective: all ranks must call it at the same step boundary."""
    if not dist.is_initialized():
        return signals.stop_requested()
    flag = torch.tensor([int(signals.stop_requested())])
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return bool(flag.item())


def _connect_store(rank: Rank, timeout: float) -> dist.Store:
    """The store through which ranks find each other, served by rank 0 (under torchrun by its agent, across restarts)."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    serves = rank.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    opened = os.environ.get(STORE_SOCKET)
    try:
        store = dist.TCPStore(
            address,
            port,
            rank.world_size,
            is_master=serves,
            timeout=timedelta(seconds=timeout),
            wait_for_workers=False,
            master_listen_fd=int(opened) if serves and opened else None,
        )
    except RuntimeError as error:
        if serves:
            raise ClusterError(
                f"rank 0 on {socket.gethostname()} cannot serve the other ranks at {address}:{port} ({_first_line(error)}). If another "
                "program uses the port, set MASTER_PORT to a free one, or start the run again"
            ) from error
        raise ClusterError(
            f"rank {rank.rank} on {socket.gethostname()} cannot reach rank 0 at {address}:{port} within {timeout:g} s "
            f"({type(error).__name__}). Check that the host is up, that its name resolves and that the port is free"
        ) from error
    return dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)


def _first_line(problem: BaseException) -> str:
    return next(iter(str(problem).splitlines()), type(problem).__name__)


def _await_all(store: dist.Store, rank: Rank, deadline: float) -> None:
    """Every rank registers in the store; rank 0 waits for all until `deadline` and publishes which ranks are missing."""
    store.set(f"arrived {rank.rank}", "")
    store.add("arrived", 1)
    if rank.rank == 0:
        while store.add("arrived", 0) < rank.world_size and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        missing = [other for other in range(rank.world_size) if not store.check([f"arrived {other}"])]
        store.set("verdict", _missing_message(missing, rank) if missing else "complete")
    store.wait(["verdict"], timedelta(seconds=max(0.0, deadline - time.monotonic()) + ANSWER_SECONDS))
    verdict = store.get("verdict").decode()
    if verdict != "complete":
        raise ClusterError(verdict)


def _missing_message(missing: list[int], rank: Rank) -> str:
    hosts = os.environ.get("SFT_HYDRA_HOSTS", "").split(",")
    nodes = sorted({other // rank.local_world_size for other in missing})
    names = [hosts[node] if len(hosts) > node and hosts[node] else f"node {node}" for node in nodes]
    return (
        f"{len(missing)} of {rank.world_size} ranks did not start in time: rank {_short(missing)} on {', '.join(names)}; "
        "check these hosts and the output of their ranks, or raise cluster.start_timeout"
    )


def _short(ranks: list[int]) -> str:
    return ", ".join(map(str, ranks[:8])) + (", ..." if len(ranks) > 8 else "")


def _first_all_reduce(device: torch.device, rank: Rank, timeout: float) -> None:
    """A first all-reduce on the device, so that broken connections fail here and not in step 1."""
    outcome: list[RuntimeError | None] = []

    def reduce() -> None:
        try:
            total = torch.tensor([rank.rank], device=device)
            dist.all_reduce(total)
            assert int(total.item()) == rank.world_size * (rank.world_size - 1) // 2
            outcome.append(None)
        except RuntimeError as error:
            outcome.append(error)

    thread = Thread(target=reduce, daemon=True)  # a broken network can hang inside NCCL, beyond any exception
    thread.start()
    thread.join(timeout)
    problem = outcome[0] if outcome else TimeoutError(f"no answer within {timeout:g} s")
    if problem is not None:
        raise ClusterError(
            f"rank {rank.rank} on {socket.gethostname()}: all ranks have started but cannot communicate "
            f"({_first_line(problem)}); set NCCL_SOCKET_IFNAME (on CPUs GLOO_SOCKET_IFNAME) to the network interface"
        ) from problem
