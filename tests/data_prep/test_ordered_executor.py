"""Jobs beside the main thread: in order, handed over where they were asked for, never more ahead than allowed."""

import threading

import pytest

from sft_hydra.data_prep.ordered_executor import OrderedExecutor


@pytest.mark.parametrize("ready", [False, True])
def test_jobs_are_done_in_order_and_handed_over_here(ready: bool) -> None:
    background = OrderedExecutor(ahead=3)
    done: list[int] = []
    found: list[tuple[int, bool]] = []
    for number in range(20):
        background.submit(
            lambda number=number: done.append(number) or number,  # type: ignore[misc]
            lambda value: found.append((value, threading.current_thread() is threading.main_thread())),
            ready=ready and number > 5,
        )
        assert len(background.waiting) <= 3
    background.finish()
    background.close()
    assert done == list(range(20))
    assert found == [(number, True) for number in range(20)]


def test_only_so_many_jobs_wait() -> None:
    background = OrderedExecutor(ahead=3)
    go = threading.Event()
    started: list[int] = []
    background.submit(go.wait, lambda _: None, ready=False)
    for number in range(2):
        background.submit(lambda number=number: started.append(number), lambda _: None, ready=True)  # type: ignore[misc]
    assert started == []  # what is ready still comes after what waits
    threading.Timer(0.05, go.set).start()
    background.submit(lambda: started.append(2), lambda _: None, ready=False)
    assert started[0] == 0
    background.finish()
    background.close()
    assert started == [0, 1, 2]


def test_what_a_job_raises_is_raised_here() -> None:
    background = OrderedExecutor(ahead=4)

    def fail() -> None:
        raise ValueError("no room")

    background.submit(fail, lambda _: None, ready=False)
    with pytest.raises(ValueError, match="no room"):
        background.finish()
    background.close()


def test_help_does_what_the_thread_has_not_begun() -> None:
    background = OrderedExecutor(ahead=9)
    go, begun = threading.Event(), threading.Event()
    done: list[tuple[int, str]] = []
    found: list[int] = []

    def job(number: int) -> int:
        begun.set()
        if number == 0:
            go.wait()
        done.append((number, threading.current_thread().name))
        return number

    for number in range(4):
        background.submit(lambda number=number: job(number), found.append, ready=number > 0)  # type: ignore[misc]
    begun.wait()
    background.help()
    assert done == [(number, "MainThread") for number in (3, 2, 1)]
    assert found == []  # handed over in order, so not yet
    go.set()
    background.finish()
    background.close()
    assert found == [0, 1, 2, 3]


def test_heavy_jobs_wait_for_fewer_others() -> None:
    background = OrderedExecutor(ahead=10)
    found: list[int] = []
    for number in range(6):
        background.submit(lambda number=number: number, found.append, ready=False, weight=6)  # type: ignore[misc]
        assert background.load <= 10
    background.submit(lambda: 6, found.append, ready=False, weight=60)  # more than may wait: alone
    assert len(background.waiting) == 1
    background.finish()
    background.close()
    assert found == list(range(7))
