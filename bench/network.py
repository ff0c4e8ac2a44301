"""Remote orders between two real processes on one channel, over a chain and XLN that are processes too.

A user of B rests deep liquidity; users of A send IOC orders for one lot over REST, on alternating sides, first one at a
time (unloaded), then many at once (loaded). An order counts when its trader has the answer "filled"; the states that
settle it are counted apart. `bench.share` says what share of the machine's limit that is. DESIGN sections 4 and 5.
"""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.load import LoadStats, run_load
from bench.machine import Busy, busy, main_thread_cpu_s, process_cpu_s
from bench.measure import RUNS, Beside, Effort, Section, quantiles
from broker.client import BrokerInfo
from channel.errors import Code, LocalRefusal
from channel.orders import Order, OrderType, TimeInForce, order_to_json, sign_order
from channel.signing import Signer
from channel.strictjson import dumpb
from channel.units import format_address, format_amount
from devnet.network import MARKET, BrokerNode, Network, Settings

CONCURRENCY: Final = 64
WARM_UP: Final = 64
TAKERS: Final = 4
LEVELS: Final = 10
LEVEL_BTC: Final = "1000"
MID_TICKS: Final = 6_000_000  # 60,000.00 USD
LOCK_USD: Final = "100000000"
BTC_UNITS, USD_UNITS = 10**8, 10**6
DEPOSIT_BTC: Final = 1_000_000 * BTC_UNITS
DEPOSIT_USD: Final = 10**12 * USD_UNITS
VALID_MS: Final = 3_600_000
DEADLINE_S: Final = 60.0
POLL_S: Final = 0.05
SETTINGS: Final = Settings(
    block_time_s=0.25,
    confirmations=1,
    poll_ms=100,
    lock_max="1000000000",
    unsettled_limit="100000000",
    log_level="warning",
)

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """Counters of both brokers at one moment. Processor seconds are None where the system does not say."""

    at_s: float
    turn: int
    entries: int
    cpu_a_s: float | None
    cpu_b_s: float | None
    loop_a_s: float | None  # of the thread with the event loop alone
    loop_b_s: float | None
    cpu_client_s: float
    machine: Busy | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One phase of orders, from before the first to when the last is in a co-signed state."""

    stats: LoadStats
    node_latency_ms: dict[str, Any]
    before: Moment
    answered: Moment
    settled: Moment

    @property
    def orders_per_s(self) -> float:
        return self.stats.filled / self.stats.seconds

    @property
    def turns(self) -> int:
        return self.settled.turn - self.before.turn

    @property
    def entries(self) -> int:
        return self.settled.entries - self.before.entries

    def cpu_us_per_order(self, name: str) -> float | None:
        """Processor time for one order in microseconds; `name`: the member of `Moment` that counts it."""
        before, after = getattr(self.before, name), getattr(self.settled, name)
        if before is None or after is None or not self.stats.filled:
            return None
        return float(after - before) * 1e6 / self.stats.filled


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    section: Section
    unloaded: Run
    loaded: Run


async def measure_network(effort: Effort, folder: Path, say: Say, advance: Callable[[], None]) -> Outcome:
    """Brings up a network in `folder` (new or empty), measures, and ends it. `advance` is called for each order.

    Raises LocalRefusal when something does not start or an order is not filled.
    """
    takers, maker = [Signer(secrets.token_bytes(32)) for _ in range(TAKERS)], Signer(secrets.token_bytes(32))
    fund = [user.address for user in (*takers, maker)]
    async with Network.start(folder, SETTINGS, fund=fund, say=say) as net:
        bench = _Bench(net, takers, maker)
        await bench.prepare(say)
        say("unloaded: one order at a time")
        await bench.run(WARM_UP // 4, 1, lambda: None)
        unloaded = await bench.run(effort.unloaded_orders, 1, advance)
        say(f"loaded: {CONCURRENCY} orders at a time")
        await bench.run(WARM_UP, CONCURRENCY, lambda: None)
        runs = [await bench.run(effort.remote_orders, CONCURRENCY, advance) for _ in range(RUNS)]
        loaded = sorted(runs, key=lambda run: run.orders_per_s)[RUNS // 2]
    return Outcome(section=_section(unloaded, loaded), unloaded=unloaded, loaded=loaded)


class _Bench:
    def __init__(self, net: Network, takers: list[Signer], maker: Signer) -> None:
        self._net = net
        self._takers = takers
        self._maker = maker
        self._info: BrokerInfo

    # -- set-up, over the public interfaces

    async def prepare(self, say: Say) -> None:
        net = self._net
        say("deposits and collateral")
        funds = [(net.btc, DEPOSIT_BTC), (net.usd, DEPOSIT_USD)]
        await asyncio.gather(
            *(net.deposit(net.a, user, funds) for user in self._takers),
            net.deposit(net.b, self._maker, funds),
            *(self._collateral(broker) for broker in net.brokers),
        )
        await _until("deposits are credited", self._credited)
        say("opening the channel")
        await _until("the brokers are connected", self._connected)
        async with net.admin(net.a) as admin:
            body = {"peer": format_address(net.b.address), "token": "USD", "amount": LOCK_USD, "peerAmount": LOCK_USD}
            await admin.post("/channels", body)
        await _until("the channel is active", self._active)
        async with net.client(net.b, self._maker) as client:
            for step in range(1, LEVELS + 1):
                await client.buy(MARKET, LEVEL_BTC, format_amount(MID_TICKS - step, 2))
                await client.sell(MARKET, LEVEL_BTC, format_amount(MID_TICKS + step, 2))
        async with net.client(net.a) as client:
            self._info = await client.info()
        await _until("A sees B's book", self._book_is_seen)

    async def _collateral(self, broker: BrokerNode) -> None:
        net = self._net
        await net.mint(net.usd, broker.address, int(LOCK_USD) * USD_UNITS)
        async with net.admin(broker) as admin:
            await admin.post("/collateral", {"token": "USD", "amount": LOCK_USD})

    async def _credited(self) -> bool:
        for broker, users in ((self._net.a, len(self._takers)), (self._net.b, 1)):
            tokens = (await self._admin(broker, "/audit"))["tokens"]
            usd = tokens[format_address(self._net.usd.address)]["users"]
            btc = tokens[format_address(self._net.btc.address)]["users"]
            if int(usd["free"]) < users * DEPOSIT_USD or int(btc["free"]) < users * DEPOSIT_BTC:
                return False
        return True

    async def _connected(self) -> bool:
        statuses = await asyncio.gather(*(self._admin(broker, "/status") for broker in self._net.brokers))
        return all(status["xln"] and all(peer["connected"] for peer in status["peers"]) for status in statuses)

    async def _active(self) -> bool:
        return all(channel["phase"] == "active" and channel["synced"] for channel in await self._channels(least=1))

    async def _book_is_seen(self) -> bool:
        async with self._net.client(self._net.a) as client:
            book = await client.book(MARKET, LEVELS)
        return len(book.bids) == LEVELS == len(book.asks)

    async def _admin(self, broker: BrokerNode, path: str) -> Any:
        async with self._net.admin(broker) as admin:
            return await admin.get(path)

    async def _channels(self, *, least: int = 0) -> list[dict[str, Any]]:
        """The channel as A and as B see it; an empty one while there is none."""
        found = []
        for broker in self._net.brokers:
            channels = (await self._admin(broker, "/channels"))["channels"]
            found.append(channels[0] if channels else {"phase": "", "synced": False})
        assert len(found) >= least
        return found

    # -- orders

    def _orders(self, count: int) -> list[bytes]:
        """IOC orders for one lot, buys and sells in turn, at the best price of B."""
        market, domain = self._info.market(MARKET), self._info.domain
        until_ms = time.time_ns() // 1_000_000 + VALID_MS
        made = []
        for number in range(count):
            user, side = self._takers[number // 2 % TAKERS], number % 2
            order = Order(
                owner=user.address,
                market_id=market.market_id,
                side=side,
                order_type=OrderType.LIMIT,
                time_in_force=TimeInForce.IOC,
                price_ticks=MID_TICKS + (1 if side == 0 else -1),
                amount_lots=1,
                valid_until_ms=until_ms,
                nonce=secrets.randbits(64),
            )
            made.append(dumpb(order_to_json(sign_order(order, domain, user.sign))))
        return made

    async def run(self, count: int, concurrency: int, advance: Callable[[], None]) -> Run:
        orders = await asyncio.to_thread(self._orders, count)
        before = await self._moment()
        stats = await run_load(self._net.a.api_url, orders, concurrency, advance)
        answered = await self._moment()
        if not stats.filled:
            raise LocalRefusal(Code.INTERNAL, f"no order was filled: {dict(stats.unfilled)}")
        await _until("everything is co-signed", self._quiet)
        status = await self._admin(self._net.a, "/status")
        return Run(
            stats=stats,
            node_latency_ms=status["remoteLatencyMs"],
            before=before,
            answered=answered,
            settled=await self._moment(),
        )

    async def _quiet(self) -> bool:
        a, b = await self._channels(least=2)
        return a["turn"] == b["turn"] and not any(c["pendingEntries"] or c["openOrders"] for c in (a, b))

    async def _moment(self) -> Moment:
        a, _ = await self._channels(least=2)
        return Moment(
            at_s=time.perf_counter(),
            turn=a["turn"],
            entries=a["entriesSent"] + a["entriesReceived"],
            cpu_a_s=process_cpu_s(self._net.a.pid),
            cpu_b_s=process_cpu_s(self._net.b.pid),
            loop_a_s=main_thread_cpu_s(self._net.a.pid),
            loop_b_s=main_thread_cpu_s(self._net.b.pid),
            cpu_client_s=time.process_time(),
            machine=busy(),
        )


async def _until(what: str, holds: Callable[[], Awaitable[bool]]) -> None:
    """Raises LocalRefusal TIMEOUT."""
    try:
        async with asyncio.timeout(DEADLINE_S):
            while True:
                if await holds():
                    return
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        raise LocalRefusal(Code.TIMEOUT, f"not within {DEADLINE_S:.0f} s: {what}") from None


# -- what it says


def _section(unloaded: Run, loaded: Run) -> Section:
    section = Section(key="network", title="Remote orders between two processes on one channel")
    section.add("remote orders, loaded", loaded.orders_per_s, "/s", note=f"{CONCURRENCY} at a time, answered 'filled'")
    settled_s = loaded.settled.at_s - loaded.before.at_s
    section.add("co-signed states", loaded.turns / settled_s, "/s")
    section.add("entries a turn", loaded.entries / max(1, loaded.turns), "")
    for name, run in (("loaded", loaded), ("unloaded", unloaded)):
        p50, p99, _ = quantiles(run.stats.latencies_ms)
        node = run.node_latency_ms
        for label, client_ms in (("p50", p50), ("p99", p99)):
            section.add_beside(
                f"latency of a remote order, {name}, {label}", client_ms, "ms",
                "as broker A measures it", float(node[label]), Beside.LIMIT,
                note="as the client sees it" + ("" if name == "unloaded" else "; A's figure has all phases"),
            )  # fmt: skip
    _add_cpu(section, loaded)
    lost = loaded.stats.unfilled + unloaded.stats.unfilled
    section.notes.append(
        f"{unloaded.stats.filled} orders unloaded, {RUNS} times {loaded.stats.filled} loaded, of which"
        " the run with the median rate is shown; "
        + (f"not filled: {dict(lost)}" if lost else "all were filled")
        + ". Chain, XLN and the client that makes the load share the machine's cores."
    )
    return section


def _add_cpu(section: Section, loaded: Run) -> None:
    for name, attribute in (
        ("broker A", "cpu_a_s"),
        ("broker B", "cpu_b_s"),
        ("the client that makes the load", "cpu_client_s"),
    ):
        value = loaded.cpu_us_per_order(attribute)
        if value is not None:
            section.add(f"processor time per order, {name}", value, "us")
    first, last = loaded.before.machine, loaded.answered.machine
    if first is not None and last is not None:
        section.add("cores busy while loaded", last.cores_since(first), "", note="everything on the machine")
