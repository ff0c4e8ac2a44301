"""A live network for tests: real processes, a funded pair of brokers, traders that never give up, and what must hold.

`Live` is the network and the laws of it (identity of DESIGN section 8, both journals, both last states); `Trader` signs
its own orders, sends each until it is answered, and remembers what was acknowledged; `Impostor` is a broker whose
process has ended and for which the test speaks: with the real key, the real database, the real engine and wire, so that
it can be honest, and with raw frames, so that it can be anything else.
"""

import asyncio
import contextlib
import io
import json
import secrets
import shutil
import sqlite3
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar, cast

import aiohttp

from broker.actions import Propose
from broker.config import KEY_FILE, BrokerConfig
from broker.core import Core
from broker.desk import Desk
from broker.effects import Effect, SendProposal
from broker.engine import Engine
from broker.records import MIGRATIONS
from broker.wire import Wire
from channel.calls import parse_calls
from channel.entry import Entry, entry_digest, entry_to_json
from channel.errors import Code, LocalRefusal, PeerFault
from channel.journal import header_from_json, record_from_json
from channel.orders import Order, OrderType, SignedOrder, TimeInForce, order_to_json, sign_order
from channel.replay import Replay, replay
from channel.signing import CURVE_ORDER, Signer
from channel.strictjson import dumpb
from channel.terms import Market
from channel.transition import Phase, add_entry
from channel.typed import Domain, custody_domain
from channel.units import Address, ChannelId, Hash, MarketId, format_address, format_hex, parse_hash
from devnet.network import MARKET, BrokerNode, Network, Settings
from node import keyfile
from node.clock import SystemClock
from node.http import read_answer
from node.store import Store
from rpc.jsonrpc import Message, RemoteError, Response
from rpc.limits import Limits
from rpc.links import Links
from rpc.transport import Connection, Identity, connect

SETTINGS = Settings(block_time_s=0.25, poll_ms=100)
WAIT_S = 30.0
POLL_S = 0.02
USD_UNITS, BTC_UNITS = 10**6, 10**8
DEPOSIT_USD, DEPOSIT_BTC = 10_000_000 * USD_UNITS, 100 * BTC_UNITS
LOCK_USD = "5000000"
VALID_MS = 3_600_000
BUY, SELL = 0, 1
BIG_FRAMES = Limits(frame_bytes=4 * 2**20)
_UNANSWERED = (Code.PEER_UNAVAILABLE, Code.TIMEOUT)
T = TypeVar("T")
Json = dict[str, Any]


async def until(found: Callable[[], Awaitable[T | None]], what: str, deadline_s: float = WAIT_S) -> T:
    """Asks until the answer is something. A node that is down answers later."""
    end_s = time.monotonic() + deadline_s
    seen: object = None
    while time.monotonic() < end_s:
        try:
            result = await found()
            if result is not None:
                return result
        except LocalRefusal as refusal:
            if refusal.code not in _UNANSWERED:
                raise
            seen = refusal
        await asyncio.sleep(POLL_S)
    raise AssertionError(f"{what}: not within {deadline_s:.0f} s ({seen})")


class Live:
    """See the module docstring. Two users per broker, with deposits credited; collateral is deposited, no channel."""

    def __init__(self, net: Network, users: dict[str, tuple[Signer, Signer]]) -> None:
        self.net = net
        self.users = users
        self._http: aiohttp.ClientSession

    @classmethod
    @contextlib.asynccontextmanager
    async def start(cls, folder: Path, settings: Settings = SETTINGS) -> AsyncIterator[Self]:
        users = {name: (_signer(), _signer()) for name in ("a", "b")}
        fund = [user.address for pair in users.values() for user in pair]
        async with Network.start(folder, settings, fund=fund) as net:
            live = cls(net, users)
            async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as live._http:
                await live._fund()
                yield live

    async def _fund(self) -> None:
        net = self.net
        amounts = [(net.usd, DEPOSIT_USD), (net.btc, DEPOSIT_BTC)]
        deposits = [net.deposit(b, user, amounts) for b in net.brokers for user in self.users[b.name]]
        mints = [net.mint(net.usd, b.address, 10 * DEPOSIT_USD) for b in net.brokers]
        await asyncio.gather(*deposits, *mints)
        for broker in net.brokers:
            async with net.admin(broker) as admin:
                await admin.post("/collateral", {"token": "USD", "amount": "100000000"})

            async def credited(broker: BrokerNode = broker) -> bool | None:
                figures = (await self.audit(broker))["tokens"][format_address(net.usd.address)]
                return int(figures["users"]["free"]) == 2 * DEPOSIT_USD or None

            await until(credited, "deposits credited")

    # -- asking

    async def get(self, broker: BrokerNode, path: str) -> Any:
        async with self.net.admin(broker) as admin:
            return await admin.get(path)

    async def audit(self, broker: BrokerNode) -> Json:
        return cast(Json, await self.get(broker, "/audit"))

    async def channels(self, broker: BrokerNode) -> list[Json]:
        return cast(list[Json], (await self.get(broker, "/channels"))["channels"])

    async def channel(self, broker: BrokerNode, channel_id: str | None = None) -> Json:
        """The newest, or the one named."""
        found = await self.channels(broker)
        return found[-1] if channel_id is None else next(c for c in found if c["channelId"] == channel_id)

    async def post(self, url: str, body: object) -> Any:
        """Raises what the broker answers, PEER_UNAVAILABLE, TIMEOUT."""
        return await self.request("POST", url, body if isinstance(body, bytes) else dumpb(body))

    async def request(self, method: str, url: str, data: bytes | None = None) -> Any:
        headers = {"Content-Type": "application/json"}
        try:
            body = None if data is None else io.BytesIO(data)
            async with self._http.request(method, url, data=body, headers=headers) as response:
                return await read_answer(response)
        except TimeoutError:
            raise LocalRefusal(Code.TIMEOUT, url) from None
        except aiohttp.ClientError as error:
            raise LocalRefusal(Code.PEER_UNAVAILABLE, str(error)) from error

    async def book(self, broker: BrokerNode) -> Json:
        return cast(Json, await self.request("GET", f"{broker.api_url}/v1/book?market={MARKET}&depth=50"))

    async def snapshot(self, broker: BrokerNode) -> Json:
        """Everything that a refused message must leave as it is, whether its sender is still connected or not."""
        (channel,) = [c for c in await self.channels(broker) if c["phase"] != "settled"]
        link = ("connected", "synced", "peers")
        return {
            "audit": await self.audit(broker),
            "channel": {name: value for name, value in channel.items() if name not in link},
            "book": {name: value for name, value in (await self.book(broker)).items() if name not in link},
            "trades": await self.request("GET", f"{broker.api_url}/v1/trades?market={MARKET}&limit=500"),
        }

    # -- the channel

    async def open(self) -> str:
        """A's operator opens a channel; returns when it trades at both."""
        async with self.net.admin(self.net.a) as admin:
            made = cast(Json, await admin.post("/channels", self.open_request()))
        await self.wait_phase(made["channelId"], "active")
        return str(made["channelId"])

    def open_request(self) -> Json:
        peer = format_address(self.net.b.address)
        return {"peer": peer, "token": "USD", "amount": LOCK_USD, "peerAmount": LOCK_USD}

    async def wait_phase(self, channel_id: str, phase: str, deadline_s: float = WAIT_S) -> None:
        for broker in self.net.brokers:

            async def there(broker: BrokerNode = broker) -> bool | None:
                return (await self.channel(broker, channel_id))["phase"] == phase or None

            await until(there, f"{broker.name}: {phase}", deadline_s)

    async def trading(self) -> str:
        """The id of the channel that trades; one is opened when there is none. Returns when both see both books."""
        found = [c for c in await self.channels(self.net.a) if c["phase"] == "active"]
        channel_id = str(found[0]["channelId"]) if found else await self.open()
        for broker in self.net.brokers:

            async def merged(broker: BrokerNode = broker) -> bool | None:
                return bool((await self.book(broker))["peers"]) or None

            await until(merged, f"{broker.name} has the other's book")
        return channel_id

    async def quiet(self, channel_id: str) -> tuple[Json, Json]:
        """Waits until both are connected and synced, and nothing waits for a state. Their views of the channel."""

        async def rest() -> tuple[Json, Json] | None:
            a, b = [await self.channel(broker, channel_id) for broker in self.net.brokers]
            idle = all(c["synced"] and not c["pendingEntries"] for c in (a, b))
            same = (a["turn"], a["stateHash"], a["entriesSent"], a["entriesReceived"]) == (
                b["turn"],
                b["stateHash"],
                b["entriesReceived"],
                b["entriesSent"],
            )
            return (a, b) if idle and same else None

        return await until(rest, "both at rest")

    async def journal(self, broker: BrokerNode, channel_id: str) -> list[Json]:
        """The exported journal, the header first."""
        async with self.net.admin(broker) as admin:
            return [json.loads(line) async for line in admin.stream(f"/channels/{channel_id}/journal")]

    async def replayed(self, broker: BrokerNode, channel_id: str) -> Replay:
        """The exported journal replayed as XLN would: every signature, hash chain and state is checked."""
        header, *records = await self.journal(broker, channel_id)
        fixed, terms = header_from_json(header)
        return replay(
            fixed, terms, self.net.xln.address, (record_from_json(record, fixed, terms) for record in records)
        )

    # -- what must hold

    async def reconcile(self) -> None:
        """Law C: the identity of DESIGN section 8 per token and broker, to the unit, and what one owes is owed."""
        audits = [await self.audit(broker) for broker in self.net.brokers]
        for token in self.net.tokens:
            rows = [audit["tokens"][format_address(token.address)] for audit in audits]
            for broker, row in zip(self.net.brokers, rows, strict=True):
                ledger = sum(map(int, row["users"].values())) + int(row["house"])
                ledger += sum(map(int, row["owedToPeers"].values()))
                on_chain = await self.net.chain.balance(token.address, broker.custody)
                assert ledger == on_chain, f"{broker.name} {token.symbol}: ledger {ledger}, chain {on_chain}"
            one, other = ({ch: int(v) for ch, v in row["owedToPeers"].items() if v != "0"} for row in rows)
            assert one == {ch: -value for ch, value in other.items()}

    async def agree(self, channel_id: str) -> Replay:
        """Laws M, V, D: the same last state in both exports, the same states and entries in both journals, and both
        replay into it. Returns A's replay."""
        states = [await self.get(broker, f"/channels/{channel_id}/state") for broker in self.net.brokers]
        assert states[0] == states[1]
        journals = [await self.journal(broker, channel_id) for broker in self.net.brokers]
        signed = [[r["state"] for r in journal if "state" in r] for journal in journals]
        assert signed[0] == signed[1]
        turns = [state["turn"] for state in signed[0]]
        assert turns == sorted(set(turns)), "turns strictly increase"
        entries = [{(e["by"], e["seq"]): e for e in (r["entry"] for r in j if "entry" in r)} for j in journals]
        assert entries[0] == entries[1]
        replays = [await self.replayed(broker, channel_id) for broker in self.net.brokers]
        assert _fills(replays[0]) == _fills(replays[1])
        described = await self.channel(self.net.a, channel_id)
        for one in replays:
            assert one.last is not None
            assert format_hex(one.last.state.state_hash) == described["stateHash"]
        return replays[0]


def _fills(result: Replay) -> Counter[tuple[int, Hash, Hash, int, int]]:
    return Counter((f.venue, f.owner_order, f.counter_order, f.price_ticks, f.lots) for f in result.fills)


def filled_lots(result: Replay) -> Counter[Hash]:
    """Lots of each user's order in the fills of a channel, whichever side it was on."""
    lots: Counter[Hash] = Counter()
    for fill in result.fills:
        lots[fill.owner_order] += fill.lots
        lots[fill.counter_order] += fill.lots
    return lots


def _signer() -> Signer:
    return Signer(secrets.token_bytes(32))


@contextlib.contextmanager
def held_disk(broker: BrokerNode) -> Iterator[None]:
    """Inside the block the broker's database takes nothing: what it executes stays in memory."""
    with contextlib.closing(sqlite3.connect(broker.folder / "broker.sqlite", isolation_level=None, timeout=10)) as db:
        db.execute("BEGIN IMMEDIATE")
        yield


def high_s(signature: bytes) -> bytes:
    """The other signature of the same digest and key, which contracts refuse."""
    s = CURVE_ORDER - int.from_bytes(signature[32:64], "big")
    return signature[:32] + s.to_bytes(32, "big") + bytes((55 - signature[64],))


# -- traders


@dataclass
class Trader:
    """A user of one broker. `acknowledged`: what the broker last answered on each order that it ever answered on."""

    live: Live
    broker: BrokerNode
    signer: Signer
    acknowledged: dict[Hash, Json] = field(default_factory=dict)
    signed: dict[Hash, SignedOrder] = field(default_factory=dict)
    retried: list[Hash] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    _nonce: int = 0

    @property
    def domain(self) -> Domain:
        return custody_domain(self.live.net.chain.chain_id, self.broker.custody)

    @property
    def market(self) -> Market:
        net = self.live.net
        return Market(
            holder=self.broker.address,
            chain_id=net.chain.chain_id,
            base=net.btc.address,
            quote=net.usd.address,
            tick_quote=1,
            lot_base=10_000,
        )

    def order(self, side: int, price_ticks: int, lots: int, *, ioc: bool = False, **changes: Any) -> SignedOrder:
        """Signed for this broker's market; `changes`: of the fields."""
        self._nonce += 1
        fields: Json = {
            "owner": self.signer.address,
            "market_id": self.market.market_id,
            "side": side,
            "order_type": OrderType.LIMIT,
            "time_in_force": TimeInForce.IOC if ioc else TimeInForce.GTC,
            "price_ticks": price_ticks,
            "amount_lots": lots,
            "valid_until_ms": time.time_ns() // 1_000_000 + VALID_MS,
            "nonce": self._nonce,
        }
        return sign_order(Order(**fields | changes), self.domain, self.signer.sign)

    async def send(self, signed: SignedOrder) -> Json:
        """Once. Raises what the broker answers."""
        self.signed[signed.order_id] = signed
        answer = await self.live.post(f"{self.broker.api_url}/v1/orders", order_to_json(signed))
        self.acknowledged[signed.order_id] = answer
        return cast(Json, answer)

    async def look(self, order_id: Hash) -> Json:
        return cast(Json, await self.live.request("GET", f"{self.broker.api_url}/v1/orders/{format_hex(order_id)}"))

    async def place(self, signed: SignedOrder) -> Json:
        """The same bytes until there is an answer: a broker that took them says that it did, or takes them now."""

        async def attempt() -> Json | None:
            try:
                return await self.send(signed)
            except PeerFault as fault:
                if fault.code is not Code.ORDER_REPLAYED or signed.order_id not in self.retried:
                    raise
                self.acknowledged[signed.order_id] = await self.look(signed.order_id)
                return self.acknowledged[signed.order_id]
            except LocalRefusal:
                if signed.order_id not in self.retried:
                    self.retried.append(signed.order_id)
                raise

        return await until(attempt, "an order is answered")

    async def buy(self, price_ticks: int, lots: int, *, ioc: bool = False) -> Json:
        return await self.place(self.order(BUY, price_ticks, lots, ioc=ioc))

    async def sell(self, price_ticks: int, lots: int, *, ioc: bool = False) -> Json:
        return await self.place(self.order(SELL, price_ticks, lots, ioc=ioc))


# -- a broker that the test speaks for


class Impostor:
    """Acts as `broker`, whose process has ended. Honest through `engine` and `wire`; otherwise by hand.

    Its own proposals go out by `propose` only, so that a test decides what the other side sees.
    """

    def __init__(self, live: Live, broker: BrokerNode, config: BrokerConfig, signer: Signer, store: Store) -> None:
        self.live = live
        self.me = broker
        self.peer = live.net.other(broker)
        self.signer = signer
        self.identity = Identity(signer, config.network.chain_id, config.network.adjudicator)
        self.held: list[SendProposal] = []
        self.seen: list[Message] = []
        self._core = Core(signer, config.markets(signer.address))
        self.engine = Engine(self._core, store, SystemClock(), self._release)
        self.wire = Wire(self.engine, signer, config.network.xln, {})
        self.wire.links = cast(Links, self)
        self._connection: Connection | None = None

    @classmethod
    @contextlib.asynccontextmanager
    async def of(cls, live: Live, broker: BrokerNode, folder: Path) -> AsyncIterator[Self]:
        """From a copy of the database of `broker`, in `folder`."""
        assert broker.child is not None
        assert not broker.child.alive
        shutil.copytree(broker.folder, folder)
        config = BrokerConfig.load(folder, env={})
        signer = keyfile.load(folder / KEY_FILE, keyfile.read_password(folder / "password"))
        async with Store.open(folder / "broker.sqlite", MIGRATIONS) as store:
            impostor = cls(live, broker, config, signer, store)
            await impostor.engine.replay(custody_domain(config.network.chain_id, broker.custody))
            running = asyncio.create_task(impostor.engine.run())
            try:
                yield impostor
            finally:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)

    # what `Wire` asks of its links

    def connection(self, peer: Address) -> Connection | None:
        return self._connection if peer == self.peer.address else None

    # being there

    @property
    def desk(self) -> Desk:
        return next(d for d in self._core.desks.values() if d.channel.phase is not Phase.SETTLED)

    @property
    def channel_id(self) -> ChannelId:
        return self.desk.channel_id

    @contextlib.asynccontextmanager
    async def session(self, limits: Limits | None = None) -> AsyncIterator[Connection]:
        """A connection, synced and at rest; at its end the channel is at rest again, if it still trades."""
        connection = await connect(self.peer.rpc_url, self.identity, self.peer.address, limits or Limits())
        self._connection = connection
        pump = asyncio.create_task(self._pump(connection))
        try:
            await self.wire.on_up(connection)
            await until(self._synced, "the impostor is synced")
            await self.settle()
            self.seen.clear()
            yield connection
            if connection.is_open and self.desk.is_trading:
                await self.settle()
        finally:
            self._connection = None
            await connection.close()
            pump.cancel()
            await asyncio.gather(pump, return_exceptions=True)
            await self.wire.stop()
            await self.wire.on_down(self.peer.address)

    async def _synced(self) -> bool | None:
        books = [key for key in self.wire.peer_books if key[0] == self.channel_id]
        return (self.channel_id in self.wire.synced and bool(books)) or None

    async def _pump(self, connection: Connection) -> None:
        async for message in connection.messages():
            self.seen.append(message)
            await self.wire.on_message(connection, message)

    def _release(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, SendProposal):
                self.held.append(effect)
            else:
                self.wire.release(effect)

    # being honest

    async def propose(self) -> SendProposal | None:
        """Signs the next proposal, and keeps it back: `send_held` sends it."""
        await self.engine.execute(Propose(self.channel_id))
        return self.held[-1] if self.held else None

    def send_held(self) -> None:
        for effect in self.held:
            self.wire.release(effect)
        self.held.clear()

    async def settle(self) -> None:
        """Both sides' turns until nothing waits."""

        async def rest() -> bool | None:
            channel = self.desk.channel
            if channel.mine is None and channel.is_mover and channel.pending:
                await self.propose()
                self.send_held()
            theirs = await self.live.channel(self.peer, format_hex(self.channel_id))
            mine = channel.cosigned
            assert mine is not None
            same = theirs["turn"] == mine.state.turn and theirs["pendingEntries"] == 0
            sent = theirs["entriesReceived"] == self.desk.channel.view.last_seq[self.desk.me]
            return (same and sent and not self.desk.channel.pending and self.desk.channel.mine is None) or None

        await until(rest, "the impostor's channel at rest")

    # being anything else

    def entry(self, body: object, **changes: Any) -> Entry:
        """The next entry, signed with the real key. `body`: JSON or text; `changes`: seq, prev, ts_ms, to."""
        desk = self.desk
        view, me = desk.channel.view, desk.me
        fields: Json = {
            "to": self.peer.address,
            "channel_id": desk.channel_id,
            "seq": view.last_seq[me] + 1,
            "prev": view.last_hash[me],
            "ts_ms": time.time_ns() // 1_000_000,
            "body": body if isinstance(body, str) else dumpb(body).decode(),
        } | changes
        digest = entry_digest(desk.domain, **fields)
        return Entry(sender=self.signer.address, signature=self.signer.sign(digest), entry_hash=digest, **fields)

    def adopt(self, entry: Entry) -> None:
        """An entry made by hand becomes part of this side's view, as the other side must take it."""
        channel = self.desk.channel
        self.desk.channel = add_entry(channel, entry, parse_calls(entry, channel.fixed, channel.terms))

    def send(self, raw: object) -> None:
        """One frame: bytes as they are, an entry, or JSON."""
        assert self._connection is not None
        if isinstance(raw, Entry):
            raw = entry_to_json(raw)
        self._connection.send_nowait(raw if isinstance(raw, bytes) else dumpb(raw))

    async def answered(self, call_id: int | str | None = None, count: int = 1) -> Response:
        """The newest answer with that id, once there are `count` of them."""

        async def there() -> Response | None:
            found = [m for m in self.seen if isinstance(m, Response) and m.id == call_id]
            return found[-1] if len(found) >= count else None

        return await until(there, f"an answer to {call_id}", 10)

    async def refused(self, call_id: int | str | None = None) -> RemoteError:
        try:
            (await self.answered(call_id)).unwrap()
        except RemoteError as error:
            return error
        raise AssertionError(f"{call_id} was not refused")

    def create_call(self, signed: SignedOrder, call_id: int, **changes: Any) -> Json:
        """The `order.create` of a user's IOC order in the peer's market."""
        market = next(m for m in self.desk.channel.terms.markets if m.holder == self.peer.address)
        params: Json = {
            "market": format_hex(market.market_id),
            "side": "bs"[signed.order.side],
            "price": signed.order.price_ticks,
            "amount": signed.order.amount_lots,
            "tif": "IOC",
            "until": signed.order.valid_until_ms,
            "order": order_to_json(signed),
        }
        return {"jsonrpc": "2.0", "method": "order.create", "params": params | changes, "id": call_id}


def channel_id_of(text: str) -> ChannelId:
    return ChannelId(parse_hash(text))


def other_market(market: Market) -> MarketId:
    """Of a market that nobody has."""
    return MarketId(Hash(market.market_id[::-1]))
