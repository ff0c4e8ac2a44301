"""A broker node: the process around the core.

    traders ──REST/WebSocket──┐                       ┌── chain (watcher, transactions)
    operator ──admin──────────┼─▶ Engine ─▶ Core      ├── XLN (locks, attestations)
    peers ──signed sessions───┘     └─▶ SQLite, then effects out

Everything that changes state goes through the engine, in one order; everything that waits for somebody else is a task.
DESIGN sections 2, 4, 5 and 8.
"""

import asyncio
import contextlib
import random
import statistics
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from broker.actions import CancelUserOrder, CloseChannel, Expire, PlaceOrder, Propose, Withdraw
from broker.api import serve
from broker.chainwork import ChainWork
from broker.config import BrokerConfig
from broker.core import Core
from broker.desk import Desk
from broker.effects import BookChanged, Cosigned, Effect, OrderChanged, SubmitWithdrawal, Traded
from broker.engine import Engine
from broker.exchange import Exchange, UserOrder, Withdrawal
from broker.lifecycle import Lifecycle
from broker.peerbook import PeerBook
from broker.records import MIGRATIONS
from broker.router import plan
from broker.wire import Wire
from channel.errors import Code, LocalRefusal, PeerFault, XlnError
from channel.exposure import headroom, owed_value
from channel.journal import header_to_json
from channel.jsonform import state_to_json
from channel.orders import OrderType, SignedOrder, TimeInForce, verify_order
from channel.signing import Signer, require_signer
from channel.strictjson import dumps
from channel.terms import SIDES
from channel.transition import Phase, cosigned_state
from channel.typed import WITHDRAWAL, Domain, custody_domain
from channel.units import ZERO_ADDRESS, Address, ChannelId, Hash, MarketId, format_address, format_hex
from contracts.client import ChainClient
from node import logs
from node.clock import Clock, SystemClock
from node.store import Store
from node.supervise import Stop, together
from rpc.links import Links
from rpc.transport import Connection, Identity

TICK_S = 1.0
RESEND_AFTER_MS = 1_000
IOC_WAIT_S = 10.0
MAX_TRADES = 1_000
MAX_LATENCIES = 20_000
MAX_WATCHERS = 256
WATCH_QUEUE = 4_096

_log = logs.get("broker.node")


class BrokerNode:
    """See the module docstring. Construct, then `run` until stopped."""

    def __init__(self, config: BrokerConfig, signer: Signer, directory: Path) -> None:
        self.config = config
        self.address: Address = signer.address
        self.clock: Clock = SystemClock()
        self.chain_id = config.network.chain_id
        self.trades: deque[dict[str, Any]] = deque(maxlen=MAX_TRADES)
        self._signer = signer
        self._directory = directory
        self._core = Core(signer, config.markets(signer.address))
        self.exchange: Exchange = self._core.exchange
        self.custody = ZERO_ADDRESS  # known when it runs: the chain says, or it is made
        self.domain: Domain = custody_domain(self.chain_id, self.custody)
        self._engine: Engine
        self._wire: Wire
        self._chain: ChainWork
        self._lifecycle: Lifecycle
        self._watchers: set[asyncio.Queue[tuple[Any, ...]]] = set()
        self._order_waiters: dict[Hash, asyncio.Event] = {}
        self._proposing: set[ChannelId] = set()
        self._proposed_at_ms: dict[ChannelId, int] = {}
        self._latencies_ms: deque[float] = deque(maxlen=MAX_LATENCIES)
        self._placed_at_s: dict[Hash, float] = {}
        self._trade_counts = {"local": 0, "remote": 0}
        self._replayed_actions = 0

    # -- what the API reads

    @property
    def peer_books(self) -> Mapping[MarketId, Mapping[ChannelId, PeerBook]]:
        """Peers' books by this broker's own market of the same shape."""
        return {market_id: self._books_for(market_id) for market_id in self.exchange.markets}

    def _books_for(self, market_id: MarketId) -> dict[ChannelId, PeerBook]:
        """Replicas of peers' books that an order for `market_id`, one of this broker's markets, may be routed to."""
        own = self.exchange.markets[market_id]
        books = {}
        for desk in self._core.desks.values():
            if not desk.is_trading or desk.channel_id not in self._wire.synced:
                continue
            for market in desk.channel.terms.markets:
                if market.holder == desk.peer and market.same_shape(own):
                    book = self._wire.peer_books.get((desk.channel_id, market.market_id))
                    if book is not None:
                        books[desk.channel_id] = book
        return books

    @contextlib.contextmanager
    def watch(self) -> Iterator["asyncio.Queue[tuple[Any, ...]]"]:
        """A bounded queue of public events: ("book", market, seq, changes), ("trade", {…})."""
        if len(self._watchers) >= MAX_WATCHERS:
            raise LocalRefusal(Code.BUSY, f"{MAX_WATCHERS} streams are open already")
        queue: asyncio.Queue[tuple[Any, ...]] = asyncio.Queue(WATCH_QUEUE)
        self._watchers.add(queue)
        try:
            yield queue
        finally:
            self._watchers.discard(queue)

    # -- what the API asks for

    async def place_order(self, signed: SignedOrder) -> UserOrder:
        """Verifies, routes and executes a user's order; returns when it is durable.

        An IOC order is also waited for at the peers, for a bounded time. Raises PeerFault ORDER_SIGNATURE and
        LocalRefusal as `Exchange.place`.
        """
        verify_order(signed)
        order = signed.order
        limit = None if order.order_type is OrderType.MARKET else order.price_ticks
        parts: tuple[tuple[ChannelId, int], ...] = ()
        if order.market_id in self.exchange.markets:
            local, peers = self.exchange.books[order.market_id], self._books_for(order.market_id)
            chosen = plan(order, limit, local, peers)
            parts, limit = chosen.parts, chosen.limit_ticks
        elif limit is None:
            limit = plan(order, None, None, self._away_books(order.market_id)).limit_ticks
        started_s = asyncio.get_running_loop().time()
        done = self._engine.execute(PlaceOrder(signed, parts, limit))
        live = self.exchange.orders.get(signed.order_id) or self.exchange.closed[signed.order_id]
        if live.remote:
            self._placed_at_s[signed.order_id] = started_s
        await done
        if order.time_in_force is TimeInForce.IOC and live.status == "open":
            await self._wait_closed(signed.order_id, live)
        return live

    def _away_books(self, market_id: MarketId) -> dict[ChannelId, PeerBook]:
        """The replica of the very market of a peer that an order is signed for."""
        books = self._wire.peer_books.items()
        return {channel_id: book for (channel_id, market), book in books if market == market_id}

    async def _wait_closed(self, order_id: Hash, live: UserOrder) -> None:
        event = self._order_waiters.setdefault(order_id, asyncio.Event())
        try:
            async with asyncio.timeout(IOC_WAIT_S):
                while live.status == "open":
                    event.clear()
                    await event.wait()
        except TimeoutError:
            pass  # the answer says that it is still open; its validity ends it
        finally:
            self._order_waiters.pop(order_id, None)

    async def cancel_order(self, order_id: Hash, owner: Address) -> UserOrder | None:
        await self._engine.execute(CancelUserOrder(order_id, owner))
        return self.exchange.orders.get(order_id) or self.exchange.closed.get(order_id)

    async def withdraw(
        self,
        user: Address,
        token: Address,
        amount: int,
        to: Address,
        withdrawal_id: Hash,
        deadline_s: int,
        user_signature: bytes,
    ) -> Withdrawal:
        """Raises PeerFault SIGNATURE_*, LocalRefusal WITHDRAWAL, BALANCE, CHAIN_STALE."""
        self._chain.require_fresh()
        if not self._chain.head_unix_s < deadline_s <= self._chain.head_unix_s + 24 * 3600:
            raise LocalRefusal(
                Code.WITHDRAWAL, "deadline must lie within the next 24 hours of block time", now=self._chain.head_unix_s
            )
        digest = self.domain.digest(WITHDRAWAL.hash(user, token, amount, to, withdrawal_id, deadline_s))
        require_signer(digest, user_signature, user, "the withdrawal")
        request = Withdrawal(withdrawal_id, user, token, amount, to, deadline_s, user_signature)
        await self._engine.execute(Withdraw(request))
        return self.exchange.withdrawals[withdrawal_id]

    # -- what the operator asks for

    def status(self) -> dict[str, Any]:
        """The node in one object: who it is, what it is connected to, what is in it."""
        latencies = sorted(self._latencies_ms)
        links = self._wire.links
        return {
            "address": format_address(self.address),
            "custody": format_address(self.custody),
            "chainId": hex(self.chain_id),
            "headUnixS": self._chain.head_unix_s,
            "failure": self._engine.failure,
            "replayedActions": self._replayed_actions,
            "users": len(self.exchange.ledger.users()),
            "openOrders": len(self.exchange.orders),
            "trades": dict(self._trade_counts),
            "remoteLatencyMs": {
                "count": len(latencies),
                "p50": _quantile(latencies, 50),
                "p99": _quantile(latencies, 99),
            },
            "peers": [
                {"address": format_address(p.address), "connected": bool(links and links.connection(p.address))}
                for p in self.config.peers
            ],
            "xln": bool(links and links.connection(self.config.network.xln)),
            "gas": dict(self._lifecycle.gas),
            "channels": self.channels(),
        }

    def channels(self) -> list[dict[str, Any]]:
        return [self._describe(desk) for desk in self._core.desks.values()]

    def _describe(self, desk: Desk) -> dict[str, Any]:
        channel = desk.channel
        links = self._wire.links
        terms = channel.terms
        net = self.exchange.channel_net(desk)
        return {
            "channelId": format_hex(desk.channel_id),
            "peer": format_address(desk.peer),
            "connected": bool(links and links.connection(desk.peer)),
            "synced": desk.channel_id in self._wire.synced,
            "phase": desk.phase_name,
            "frozen": None if channel.frozen_by is None else f"{channel.frozen_by[0].label}: {channel.frozen_by[1]}",
            "turn": channel.cosigned.state.turn if channel.cosigned else None,
            "stateHash": format_hex(channel.cosigned.state.state_hash) if channel.cosigned else None,
            "isFinal": bool(channel.cosigned and channel.cosigned.state.is_final),
            "entriesSent": channel.view.last_seq[desk.me],
            "entriesReceived": channel.view.last_seq[1 - desk.me],
            "pendingEntries": len(channel.pending),
            "openOrders": len(channel.view.orders),
            "owes": {format_address(t.address): str(max(0, net.get(t.address, 0))) for t in terms.tokens},
            "isOwed": {format_address(t.address): str(max(0, -net.get(t.address, 0))) for t in terms.tokens},
            "locks": [
                None if lock is None else {"token": format_address(lock.token), "amount": str(lock.locked)}
                for lock in channel.locks
            ],
            "exposure": [str(owed_value(channel.view, i, terms)) for i in (0, 1)],
            "headroom": [str(headroom(channel.view, i, channel.locks[i], terms)) for i in (0, 1)],
            "unsettledValue": str(channel.unsettled_value),
            "journalRecords": self._engine.rows.journal_length.get(desk.channel_id, 0),
        }

    async def open_channel(self, peer: Address, token: Address, amount: int, peer_amount: int) -> dict[str, Any]:
        return self._describe(await self._lifecycle.open(peer, token, amount, peer_amount))

    async def close_channel(self, channel_id: ChannelId) -> dict[str, Any]:
        """Asks the peer, then stops trading here; the final state, payouts and release follow by themselves."""
        desk = self._core.desk(channel_id)
        if desk.channel.phase is Phase.ACTIVE:
            assert self._wire.links is not None
            connection = self._wire.links.require(desk.peer)
            await connection.request("channel.close", {"ch": format_hex(channel_id)}, 20.0)
        await self._engine.execute(CloseChannel(channel_id))
        return self._describe(desk)

    async def _on_close(self, connection: Connection, params: dict[str, Any]) -> object:
        if set(params) != {"ch"}:
            raise PeerFault(Code.PARAMS, "channel.close takes exactly ch")
        desk = self._wire.desk_of(connection, params["ch"])
        await self._engine.execute(CloseChannel(desk.channel_id))
        return True

    async def _on_info(self, connection: Connection, params: dict[str, Any]) -> object:
        if params:
            raise PeerFault(Code.PARAMS, "broker.info takes no parameters")
        _log.debug("told about this broker", peer=format_address(connection.peer))
        return self._lifecycle.info()

    def export_state(self, channel_id: ChannelId) -> dict[str, Any]:
        """The last co-signed state as JSON. Raises LocalRefusal CHANNEL_PHASE before turn 0."""
        desk = self._core.desk(channel_id)
        if desk.last_cosigned is None:
            raise LocalRefusal(Code.CHANNEL_PHASE, "no state is co-signed yet")
        proposal, signatures = desk.last_cosigned
        return state_to_json(cosigned_state(proposal, signatures), desk.channel.terms)

    async def export_journal(self, channel_id: ChannelId) -> AsyncIterator[str]:
        """The journal as JSON lines, the header first."""
        desk = self._core.desk(channel_id)
        yield dumps(header_to_json(desk.channel.fixed, desk.channel.terms))
        query = "SELECT record FROM journal WHERE channel = ? ORDER BY n"
        async for page in self._engine.store.pages(query, (channel_id,)):
            for (record,) in page:
                yield str(record)

    def audit(self) -> dict[str, Any]:
        """Every figure of the identity of DESIGN section 8 at one moment, in base units."""
        self.exchange.check()
        self.exchange.ledger.recount()
        tokens = {}
        for token in self.config.tokens:
            totals = self.exchange.ledger.totals(token.address)
            nets = {
                format_hex(desk.channel_id): str(self.exchange.channel_net(desk).get(token.address, 0))
                for desk in self._core.desks.values()
            }
            tokens[format_address(token.address)] = {
                "symbol": token.symbol,
                "decimals": token.decimals,
                "users": {
                    "deposited": str(totals.deposited),
                    "free": str(totals.free),
                    "locked": str(totals.locked),
                    "withdrawing": str(totals.withdrawing),
                },
                "house": str(totals.house),
                "owedToPeers": nets,
                "custody": str(totals.users + totals.house + totals.channel_net),
            }
        return {"address": format_address(self.address), "custody": format_address(self.custody), "tokens": tokens}

    async def deposit_collateral(self, token: Address, amount: int) -> dict[str, Any]:
        """Moves `amount` of the broker's own funds into XlnCollateral."""
        collateral = self._chain.collateral
        if any(token):
            receipt = await collateral.deposit(self._chain.sender, token, amount)
        else:
            receipt = await collateral.deposit_native(self._chain.sender, amount)
        return {
            "tx": format_hex(receipt.tx_hash),
            "gasUsed": receipt.gas_used,
            "deposited": str(await collateral.deposited(self.address, token)),
            "free": str(await collateral.free(self.address, token)),
        }

    # -- running

    async def run(self, stop: Stop, on_ready: Callable[[dict[str, Any]], None]) -> None:
        """Serves until `stop`. Raises XlnError when it cannot start."""
        network = self.config.network
        async with contextlib.AsyncExitStack() as stack:
            store = await stack.enter_async_context(Store.open(self._directory / "broker.sqlite", MIGRATIONS))
            client = await ChainClient.connect(network.chain_url, network.chain_id)
            stack.push_async_callback(client.close)
            custody = await ChainWork.ensure_custody(self.config, self._signer, client)
            self.custody, self.domain = custody, custody_domain(self.chain_id, custody)
            self._engine = Engine(self._core, store, self.clock, self._release)
            self._replayed_actions = await self._engine.replay(self.domain)
            releasing = asyncio.ensure_future(self._engine.run())
            stack.push_async_callback(_cancel, releasing)
            self._chain = ChainWork(self.config, self._engine, self._signer, client, custody)
            await self._chain.start()
            handlers = {
                "channel.open": self._open_handler,
                "channel.close": self._on_close,
                "broker.info": self._on_info,
            }
            self._wire = Wire(self._engine, self._signer, network.xln, handlers)
            self._lifecycle = Lifecycle(self.config, self._engine, self._wire, self._chain, self.address)
            links = Links(
                Identity(self._signer, self.chain_id, network.adjudicator),
                host=self.config.rpc.host,
                port=self.config.rpc.port,
                peers={network.xln: self.config.xln.url, **{p.address: p.url for p in self.config.peers if p.url}},
                is_known=lambda address: any(p.address == address for p in self.config.peers),
                on_up=self._on_up,
                on_down=self._wire.on_down,
                on_message=self._wire.on_message,
                random=random.SystemRandom().random,
            )
            stack.push_async_callback(self._lifecycle.stop)
            stack.push_async_callback(self._chain.stop_work)
            stack.push_async_callback(self._wire.stop)
            await stack.enter_async_context(links.running())
            self._wire.links = links
            url = await stack.enter_async_context(serve(self, self._directory))
            _log.info("ready", url=url, replayed=self._replayed_actions)
            on_ready(
                {
                    "apiUrl": url,
                    "rpcUrl": f"ws://{self.config.rpc.host}:{links.port}",
                    "address": format_address(self.address),
                    "custody": format_address(custody),
                }
            )
            await together(stop, _watched(releasing), self._chain.run(), self._lifecycle.run(), self._tick())

    async def _open_handler(self, connection: Connection, params: dict[str, Any]) -> object:
        return await self._lifecycle.on_open(connection, params)

    async def _on_up(self, connection: Connection) -> None:
        if connection.peer != self.config.network.xln:
            await self._wire.on_up(connection)

    async def _tick(self) -> None:
        """Once a second: what has expired, what nobody has answered, what is due."""
        while True:
            await asyncio.sleep(TICK_S)
            now_ms = self.clock.now_ms()
            try:
                expiry = self.exchange.next_expiry_ms
                if expiry is not None and expiry <= now_ms:
                    self._engine.execute(Expire())
                for desk in list(self._core.desks.values()):
                    sent_ms = self._proposed_at_ms.get(desk.channel_id, 0)
                    if desk.outstanding is not None and now_ms - sent_ms >= RESEND_AFTER_MS:
                        self._proposed_at_ms[desk.channel_id] = now_ms
                        self._wire.resend(desk)
                    self._propose_soon(desk)
                    self._wire.subscribe_books(desk)
            except XlnError as error:
                if self._engine.failure is not None:
                    return  # the node has stopped signing; reads still answer, and the log says why
                _log.warning("not done", error=str(error))

    # -- effects

    def _release(self, effects: Sequence[Effect]) -> None:
        """Effects of one action, durable: out they go, in order."""
        for effect in effects:
            match effect:
                case OrderChanged():
                    self._order_changed(effect.order_id)
                case Traded():
                    self._traded(effect)
                case SubmitWithdrawal():
                    self._chain.approve(effect.withdrawal_id)
                case BookChanged():
                    self._wire.release(effect)
                    self._tell(("book", effect.market_id, effect.seq, effect.changes))
                case _:
                    self._wire.release(effect)
                    if isinstance(effect, Cosigned):
                        self._wire.subscribe_books(self._core.desk(effect.channel_id))
        for desk in self._core.desks.values():
            self._propose_soon(desk)

    def _propose_soon(self, desk: Desk) -> None:
        """Proposes in the next turn of the loop, so that one turn takes all that has arrived."""
        channel = desk.channel
        due = channel.is_mover and channel.mine is None and desk.channel_id in self._wire.synced
        idle = channel.phase in (Phase.FINAL, Phase.SETTLED, Phase.FROZEN)
        if due and not idle and desk.channel_id not in self._proposing:
            if channel.phase is Phase.ACTIVE and not channel.pending:
                return
            self._proposing.add(desk.channel_id)
            asyncio.get_running_loop().call_soon(self._propose, desk)

    def _propose(self, desk: Desk) -> None:
        self._proposing.discard(desk.channel_id)
        try:
            self._engine.execute(Propose(desk.channel_id))
            self._proposed_at_ms[desk.channel_id] = self.clock.now_ms()
        except XlnError as error:
            _log.warning("no proposal", channel=format_hex(desk.channel_id), error=str(error))

    def _order_changed(self, order_id: Hash) -> None:
        placed_s = self._placed_at_s.get(order_id)
        if placed_s is not None:
            live = self.exchange.orders.get(order_id) or self.exchange.closed.get(order_id)
            if live is not None and not live.remote:
                del self._placed_at_s[order_id]
                self._latencies_ms.append((asyncio.get_running_loop().time() - placed_s) * 1000)
        waiter = self._order_waiters.get(order_id)
        if waiter is not None:
            waiter.set()

    def _traded(self, effect: Traded) -> None:
        self._trade_counts["remote" if effect.remote else "local"] += 1
        trade = {
            "market": format_hex(effect.market_id),
            "price": effect.price_ticks,
            "amount": effect.lots,
            "side": SIDES[effect.taker_side],
            "t": self.clock.now_ms(),
            "remote": effect.remote,
        }
        self.trades.append(trade)
        self._tell(("trade", trade))

    def _tell(self, event: tuple[Any, ...]) -> None:
        """Never waits for a watcher: what does not fit is dropped, and the sequence numbers show the gap."""
        for queue in self._watchers:
            with contextlib.suppress(asyncio.QueueFull):
                queue.put_nowait(event)


def _quantile(ordered: Sequence[float], percent: int) -> float | None:
    """Milliseconds, to the microsecond; None without values."""
    if not ordered:
        return None
    if len(ordered) == 1:
        return round(ordered[0], 3)
    return round(statistics.quantiles(ordered, n=100, method="inclusive")[percent - 1], 3)


async def _cancel(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def _watched(task: "asyncio.Task[None]") -> None:
    """Ends with the task: what it raises stops the node."""
    await asyncio.shield(task)
