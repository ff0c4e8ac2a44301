"""Processes killed with -9 in the middle of it, and started again with the same command. FAULTS 1 to 5, 11, 17.

Traders place orders all the while, each the same bytes until it is answered. Nothing is told to the nodes besides: they
resync by themselves. Then: every acknowledged order is there, every order exists at most once, what is filled is what
both journals say, both brokers hold the same last state, and every balance adds up to the unit (laws C, M, V, D).
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
import pytest_asyncio

from channel.errors import Code, LocalRefusal, PeerFault
from channel.units import Hash, format_hex
from contracts.network import LockStatus
from devnet.network import BrokerNode
from tests.support.live import BTC_UNITS, BUY, SELL, Json, Live, Trader, channel_id_of, filled_lots, held_disk, until

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

# Nobody's orders ever meet in one book: takers of A buy what makers of B ask, takers of B sell to what makers of A bid.
ASK, BID = 6_000_000, 5_900_000
KILLS = 2
HELD_S = 0.2
BEFORE_KILL, AFTER_RESTART = 25, 15  # orders that takers have had answered


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def live(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Live]:
    async with Live.start(tmp_path_factory.mktemp("kill") / "net") as live:
        yield live


@dataclass
class Crowd:
    """Traders of both brokers. `makers` rest, amend nothing, cancel some; `takers` are filled at the other broker."""

    live: Live
    makers: dict[str, Trader] = field(default_factory=dict)
    takers: dict[str, Trader] = field(default_factory=dict)
    answered: int = 0
    cancelled: list[Hash] = field(default_factory=list)
    _over: bool = False

    @classmethod
    def of(cls, live: Live) -> "Crowd":
        crowd = cls(live)
        for broker in live.net.brokers:
            maker, taker = live.users[broker.name]
            crowd.makers[broker.name] = Trader(live, broker, maker)
            crowd.takers[broker.name] = Trader(live, broker, taker)
        return crowd

    @property
    def traders(self) -> list[Trader]:
        return [*self.makers.values(), *self.takers.values()]

    def forget(self) -> None:
        """The orders so far: what was filled of them is in the journal of a channel that has ended."""
        self.cancelled.clear()
        for trader in self.traders:
            trader.signed.clear()
            trader.acknowledged.clear()
            trader.retried.clear()

    async def stock(self) -> None:
        """What takers will take, on both books, and seen by the other broker."""
        await self.makers["a"].buy(BID, 3_000)
        await self.makers["b"].sell(ASK, 3_000)
        await self.liquid()

    async def liquid(self) -> None:
        for broker, side in ((self.live.net.a, "asks"), (self.live.net.b, "bids")):

            async def seen(broker: BrokerNode = broker, side: str = side) -> bool | None:
                return any(level["localLots"] < level["lots"] for level in (await self.live.book(broker))[side]) or None

            await until(seen, f"{broker.name} sees the other's orders")

    async def _take(self, name: str) -> None:
        taker = self.takers[name]
        while not self._over:
            if name == "a":
                await taker.buy(ASK + 100, 3, ioc=True)
            else:
                await taker.sell(BID - 100, 2, ioc=True)
            self.answered += 1

    async def _make(self, name: str) -> None:
        """Rests orders where nobody takes them, and cancels every other."""
        maker = self.makers[name]
        while not self._over:
            far = maker.order(SELL, ASK + 50_000, 5) if name == "b" else maker.order(BUY, BID - 50_000, 5)
            placed = await maker.place(far)
            if len(maker.signed) % 2:
                await self._cancel(maker, placed)
            await asyncio.sleep(0.03)

    async def _cancel(self, maker: Trader, placed: Json) -> None:
        async def attempt() -> bool | None:
            async with self.live.net.client(maker.broker, maker.signer) as client:
                with contextlib.suppress(PeerFault):  # the first attempt was taken, its answer lost
                    await client.cancel(placed["id"])
                return True

        await until(attempt, "a cancellation is answered")
        self.cancelled.append(Hash(bytes.fromhex(placed["id"][2:])))

    @contextlib.asynccontextmanager
    async def trading(self) -> AsyncIterator[None]:
        """All of them at work inside the block; then everyone finishes what he has begun."""
        self._over = False
        async with asyncio.TaskGroup() as group:
            for name in ("a", "a", "b"):
                group.create_task(self._take(name))
            for name in ("a", "b"):
                group.create_task(self._make(name))
            try:
                yield
            finally:
                self._over = True

    async def more(self, orders: int) -> None:
        """Until takers have had so many more answers."""
        goal = self.answered + orders

        async def there() -> bool | None:
            return self.answered >= goal or None

        await until(there, f"{orders} more orders answered")

    async def check(self, channel_id: str) -> None:
        """All laws, and every order of every trader against both journals."""
        live = self.live
        await live.quiet(channel_id)
        await live.reconcile()
        filled = filled_lots(await live.agree(channel_id))
        seen = set()
        for trader in self.traders:
            for order_id in trader.signed:
                view = await self._exists(trader, order_id)
                if view is None:
                    continue
                seen.add(order_id)
                assert view["filledLots"] == filled[order_id], f"{trader.broker.name}: {view}"
                assert view["remoteLots"] == 0, f"nothing is open at the peer any more: {view}"
                assert view["lots"] == view["filledLots"] + view["openLots"] + view["cancelledLots"]
                old = trader.acknowledged.get(order_id)
                if old is not None:
                    assert view["filledLots"] >= old["filledLots"], "a fill that was told is never lost"
                    if old["status"] != "open":
                        assert (view["status"], view["filledLots"]) == (old["status"], old["filledLots"])
        assert set(filled) <= seen, "every fill is of an order that its broker knows"
        for order_id in self.cancelled:
            maker = next(m for m in self.makers.values() if order_id in m.signed)
            assert (await maker.look(order_id))["status"] == "cancelled"
        # A book holds exactly what its broker's users have open: nothing is doubled, nothing is left behind.
        for broker in live.net.brokers:
            orders = [await self._exists(m, i) for m in self.makers.values() if m.broker is broker for i in m.signed]
            resting = sum(view["openLots"] for view in orders if view is not None)
            book = await live.book(broker)
            assert sum(level["localLots"] for side in ("bids", "asks") for level in book[side]) == resting

    async def _exists(self, trader: Trader, order_id: Hash) -> Json | None:
        """The order as the broker has it. One that was acknowledged must be there."""
        try:
            return await trader.look(order_id)
        except PeerFault as fault:
            assert fault.code is Code.ORDER_UNKNOWN
            assert order_id not in trader.acknowledged, f"lost: {format_hex(order_id)}"
            return None

    async def replay_is_refused(self) -> None:
        """The bytes of orders whose first answer was lost are taken exactly once."""
        for trader in self.traders:
            for order_id in trader.retried:
                with pytest.raises(PeerFault) as caught:
                    await trader.send(trader.signed[order_id])
                assert caught.value.code is Code.ORDER_REPLAYED

    async def trade_on(self) -> None:
        """One trade in each direction, at once."""
        await self.liquid()
        for view in (
            await self.takers["a"].buy(ASK, 7, ioc=True),
            await self.takers["b"].sell(BID, 6, ioc=True),
        ):
            assert (view["status"], view["openLots"], view["cancelledLots"]) == ("filled", 0, 0)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def everybody(live: Live) -> Crowd:
    return Crowd.of(live)


@pytest_asyncio.fixture(loop_scope="module")
async def crowd(everybody: Crowd) -> AsyncIterator[Crowd]:
    """Everybody, with nothing open."""
    yield everybody
    for maker in everybody.makers.values():
        async with everybody.live.net.client(maker.broker, maker.signer) as client:
            for order in await client.open_orders():
                await client.cancel(order.order_id)


async def survives_kills(live: Live, crowd: Crowd, victim: BrokerNode) -> None:
    channel_id = await live.trading()
    await crowd.stock()
    for number in range(KILLS):
        async with crowd.trading():
            await crowd.more(BEFORE_KILL)
            turns = [(await live.channel(broker, channel_id))["turn"] for broker in live.net.brokers]
            # Once at any moment, once surely between execution and commit: what it signed then is gone (FAULT 1).
            with held_disk(victim) if number else contextlib.nullcontext():
                await asyncio.sleep(HELD_S if number else 0)
                await live.net.kill9(victim)
            await live.net.restart(victim)
            await crowd.more(AFTER_RESTART)
        await crowd.check(channel_id)
        for broker, turn in zip(live.net.brokers, turns, strict=True):
            channel = await live.channel(broker, channel_id)
            assert channel["turn"] > turn
            assert (channel["phase"], channel["frozen"]) == ("active", None)
    await crowd.replay_is_refused()
    await crowd.trade_on()
    await crowd.check(channel_id)
    assert await live.trading() == channel_id


async def test_broker_a_is_killed_while_the_channel_opens(live: Live) -> None:
    async with live.net.admin(live.net.a) as admin:
        made = await admin.post("/channels", live.open_request())
    assert isinstance(made, dict)
    channel_id = made["channelId"]
    assert made["phase"] == "opening"
    await live.net.kill9(live.net.a)
    await live.net.restart(live.net.a)

    async def first_turn() -> bool | None:
        return (await live.channel(live.net.a, channel_id))["turn"] is not None or None

    await until(first_turn, "turn 0 is co-signed")
    await live.net.kill9(live.net.a)
    await live.net.restart(live.net.a)
    await live.wait_phase(channel_id, "active")
    assert [c["channelId"] for c in await live.channels(live.net.b)] == [channel_id]
    await live.quiet(channel_id)
    await live.agree(channel_id)
    await live.reconcile()


async def test_broker_a_is_killed_in_the_middle_of_trading(live: Live, crowd: Crowd) -> None:
    await survives_kills(live, crowd, live.net.a)


async def test_broker_b_the_venue_is_killed_in_the_middle_of_trading(live: Live, crowd: Crowd) -> None:
    await survives_kills(live, crowd, live.net.b)


async def test_both_brokers_are_killed_at_once(live: Live, crowd: Crowd) -> None:
    channel_id = await live.trading()
    await crowd.stock()
    async with crowd.trading():
        await crowd.more(BEFORE_KILL)
        await asyncio.gather(*(live.net.kill9(broker) for broker in live.net.brokers))
        await asyncio.gather(*(live.net.restart(broker) for broker in live.net.brokers))
        await crowd.more(AFTER_RESTART)
    await crowd.check(channel_id)
    await crowd.trade_on()
    await crowd.check(channel_id)


async def test_trading_goes_on_without_xln_and_a_kill_between_final_state_and_payout(live: Live, crowd: Crowd) -> None:
    channel_id = await live.trading()
    await crowd.stock()
    net = live.net
    async with crowd.trading():
        await crowd.more(BEFORE_KILL)
        await net.kill9(net.xln)
        await crowd.more(2 * BEFORE_KILL)
    await crowd.check(channel_id)

    # The final state needs nobody but the two; what comes after it needs XLN.
    async with net.admin(net.a) as admin:
        await admin.post(f"/channels/{channel_id}/close")
    await live.wait_phase(channel_id, "final")
    for broker in net.brokers:
        assert not await net.custody(broker).paid_out(channel_id_of(channel_id))
    await net.kill9(net.a)
    await asyncio.gather(net.restart(net.a), net.restart(net.xln))
    assert (await live.channel(net.a, channel_id))["phase"] == "final"
    await live.wait_phase(channel_id, "settled")
    await live.agree(channel_id)
    await live.reconcile()
    for broker in net.brokers:
        audit = await live.audit(broker)
        assert {v for row in audit["tokens"].values() for v in row["owedToPeers"].values()} == {"0"}

        async def released(broker: BrokerNode = broker) -> bool | None:
            lock = await net.collateral.lock_of(channel_id_of(channel_id), broker.address)
            return (lock is not None and lock.status is LockStatus.RELEASED) or None

        await until(released, f"the lock of {broker.name} is released")
    # What was won at the other broker is a user's own now: it can be taken out.
    async with net.client(net.a, crowd.takers["a"].signer) as client:
        view = await client.withdraw("BTC", "1")

        async def withdrawn() -> bool | None:
            return (await client.withdrawal(view.withdrawal_id)).status == "done" or None

        await until(withdrawn, "withdrawn")
    assert await net.chain.balance(net.btc.address, crowd.takers["a"].signer.address) == BTC_UNITS


async def test_broker_a_is_killed_while_it_asks_for_a_channel(live: Live, crowd: Crowd) -> None:
    """B has agreed, A does not remember that it asked: its operator asks again, and is not kept out by the first."""
    net = live.net
    if any(c["phase"] == "active" for c in await live.channels(net.a)):
        async with net.admin(net.a) as admin:
            channel_id = await live.trading()
            await admin.post(f"/channels/{channel_id}/close")
        await live.wait_phase(channel_id, "settled")
    known = len(await live.channels(net.b))
    async with net.admin(net.a) as admin:
        with held_disk(net.a):
            asking = asyncio.create_task(admin.post("/channels", live.open_request()))

            async def agreed() -> bool | None:
                return len(await live.channels(net.b)) > known or None

            await until(agreed, "B knows of the channel")
            assert not asking.done()
            await net.kill9(net.a)
        with pytest.raises(LocalRefusal) as caught:
            await asking
        assert caught.value.code is Code.PEER_UNAVAILABLE
    await net.restart(net.a)
    assert all(c["phase"] == "settled" for c in await live.channels(net.a))

    async def again() -> str | None:
        try:
            return await live.open()
        except LocalRefusal as refusal:
            if refusal.code is not Code.PEER_UNAVAILABLE:
                raise
            return None

    channel_id = await until(again, "A has opened a channel")
    assert await live.trading() == channel_id
    crowd.forget()
    await crowd.stock()
    await crowd.trade_on()
    await crowd.check(channel_id)
