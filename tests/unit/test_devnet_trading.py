"""Lanes keep the order of what is put into them and never run far ahead; numbers are written exactly."""

import asyncio

import pytest

from devnet.plan import Operation, make_plan
from devnet.trading import LANE_QUEUE, _amount, _Lane, _price


async def test_a_lane_is_in_order_and_bounded() -> None:
    operations = make_plan(None, 120, every=5, seed=1, cover_ratio_bps=11_000).operations[:40]
    done: list[Operation] = []
    gate = asyncio.Event()

    async def work(operation: Operation) -> None:
        await gate.wait()
        done.append(operation)

    lane = _Lane(work)

    async def feed() -> None:
        for operation in operations:
            await lane.put(operation)
        await lane.end()

    running, feeding = asyncio.create_task(lane.run()), asyncio.create_task(feed())
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(feeding), 0.05)
    assert lane._queue.qsize() == LANE_QUEUE
    gate.set()
    await asyncio.gather(running, feeding)
    assert done == list(operations)


async def test_drained_means_done() -> None:
    (operation,) = make_plan(None, 120, every=5, seed=1, cover_ratio_bps=11_000).operations[:1]
    done: list[Operation] = []

    async def work(operation: Operation) -> None:
        await asyncio.sleep(0.01)
        done.append(operation)

    lane = _Lane(work)
    running = asyncio.create_task(lane.run())
    await lane.put(operation)
    await lane.drained()
    assert done == [operation]
    await lane.end()
    await running


def test_numbers_as_traders_write_them() -> None:
    assert [_price(ticks) for ticks in (6_000_000, 5_999_907, 1)] == ["60000", "59999.07", "0.01"]
    assert [_amount(lots) for lots in (10_000, 1, 25)] == ["1", "0.0001", "0.0025"]
