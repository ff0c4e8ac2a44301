"""A broker's node without processes, disk or chain: the real core and channel of `Pair`, behind the trader API."""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

from broker.actions import Action, CancelUserOrder, PlaceOrder, Withdraw
from broker.config import BrokerConfig, InitOptions, NetworkFile, write_config
from broker.effects import BookChanged, Effect, Traded
from broker.exchange import Exchange, UserOrder, Withdrawal
from broker.peerbook import PeerBook
from broker.router import plan
from channel.errors import Code, LocalRefusal
from channel.journal import header_to_json
from channel.orders import OrderType, SignedOrder, verify_order
from channel.strictjson import dumps
from channel.terms import SIDES
from channel.transition import Phase
from channel.typed import Domain, custody_domain
from channel.units import Address, ChannelId, Hash, MarketId, format_address, format_hex
from node.clock import FixedClock
from tests.support.pair import ADJUDICATOR, BTC, CHAIN_ID, COLLATERAL, NOW, USD, XLN, Pair, Side, custody_of


def network_json() -> dict[str, Any]:
    a = format_address
    return {
        "chainUrl": "http://127.0.0.1:8545",
        "chainId": CHAIN_ID,
        "adjudicator": a(ADJUDICATOR),
        "factory": a(b"\xfa" * 20),
        "collateral": a(COLLATERAL),
        "xln": a(XLN.address),
        "xlnUrl": "ws://127.0.0.1:7000",
        "tokens": [
            {"symbol": "BTC", "address": a(BTC), "decimals": 8, "haircutBps": 2000, "price": "60000"},
            {"symbol": "USD", "address": a(USD), "decimals": 6, "haircutBps": 0, "price": "1"},
        ],
        "markets": [{"base": "BTC", "quote": "USD", "tick": "0.01", "lot": "0.0001"}],
    }


def write_and_load(folder: Path, options: InitOptions | None = None, **changes: Any) -> BrokerConfig:
    write_config(folder, NetworkFile.from_json({**network_json(), **changes}), options or InitOptions())
    return BrokerConfig.load(folder, env={})


class PairClock(FixedClock):
    """Runs with the pair's actions."""

    def __init__(self, pair: Pair) -> None:
        super().__init__(NOW)
        self._pair = pair

    def now_ms(self) -> int:
        return self._pair.now


class MemoryNode:
    """Broker A of a pair, as `broker.api.Node` wants it."""

    def __init__(self, config: BrokerConfig, pair: Pair) -> None:
        self.config = config
        self.pair = pair
        self.side: Side = pair.a
        self.address: Address = self.side.signer.address
        self.custody = custody_of(self.address)
        self.chain_id = CHAIN_ID
        self.domain: Domain = custody_domain(CHAIN_ID, self.custody)
        self.clock = PairClock(pair)
        self.trades: deque[dict[str, Any]] = deque(maxlen=100)
        self.collateral: list[tuple[Address, int]] = []
        self._watchers: list[asyncio.Queue[tuple[Any, ...]]] = []
        assert config.markets(self.address) == (self.side.market,)

    @property
    def exchange(self) -> Exchange:
        return self.side.exchange

    @property
    def peer_books(self) -> Mapping[MarketId, Mapping[ChannelId, PeerBook]]:
        """A fresh replica of B's book, through the JSON that a snapshot travels in."""
        desk = self.side.core.desks.get(self.pair.fixed.channel_id)
        if desk is None or desk.channel.phase is not Phase.ACTIVE:
            return {}
        theirs = self.pair.b.market.market_id
        book = PeerBook.from_snapshot(self.pair.b.exchange.snapshot(theirs, 1000), theirs)
        return {self.side.market.market_id: {desk.channel_id: book}}

    def act(self, action: Action) -> list[Effect]:
        effects = self.pair.run(self.side, action)
        seen = len(self.side.core.exchange.closed)
        self._publish(effects)
        self.pair.pump()
        assert len(self.side.core.exchange.closed) >= seen
        return effects

    def _publish(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Traded():
                    trade = {
                        "market": format_hex(effect.market_id),
                        "price": effect.price_ticks,
                        "amount": effect.lots,
                        "side": SIDES[effect.taker_side],
                        "t": self.pair.now,
                        "remote": effect.remote,
                    }
                    self.trades.append(trade)
                    self._tell(("trade", trade))
                case BookChanged():
                    self._tell(("book", effect.market_id, effect.seq, effect.changes))
                case _:
                    pass

    def _tell(self, event: tuple[Any, ...]) -> None:
        for queue in self._watchers:
            with contextlib.suppress(asyncio.QueueFull):
                queue.put_nowait(event)

    async def place_order(self, signed: SignedOrder) -> UserOrder:
        verify_order(signed)
        order = signed.order
        limit = None if order.order_type is OrderType.MARKET else order.price_ticks
        parts: tuple[tuple[ChannelId, int], ...] = ()
        if order.market_id in self.exchange.books:
            books = self.peer_books.get(order.market_id, {})
            chosen = plan(order, limit, self.exchange.books[order.market_id], books)
            parts, limit = chosen.parts, chosen.limit_ticks
        self.act(PlaceOrder(signed, parts, limit or order.price_ticks))
        return self.exchange.orders.get(signed.order_id) or self.exchange.closed[signed.order_id]

    async def cancel_order(self, order_id: Hash, owner: Address) -> UserOrder | None:
        self.act(CancelUserOrder(order_id, owner))
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
        self.act(Withdraw(Withdrawal(withdrawal_id, user, token, amount, to, deadline_s, user_signature)))
        return self.exchange.withdrawals[withdrawal_id]

    @contextlib.contextmanager
    def watch(self) -> Iterator["asyncio.Queue[tuple[Any, ...]]"]:
        queue: asyncio.Queue[tuple[Any, ...]] = asyncio.Queue(100)
        self._watchers.append(queue)
        try:
            yield queue
        finally:
            self._watchers.remove(queue)

    def status(self) -> dict[str, Any]:
        return {"address": format_address(self.address), "peers": [], "trades": {"local": 0}, "channels": []}

    def channels(self) -> list[dict[str, Any]]:
        return [
            {
                "channelId": format_hex(desk.channel_id),
                "peer": format_address(desk.peer),
                "connected": True,
                "phase": desk.channel.phase.value,
                "turn": 1,
                "entriesSent": 0,
                "entriesReceived": 0,
                "openOrders": 0,
                "owes": {format_address(USD): "1500000"},
                "isOwed": {},
            }
            for desk in self.side.core.desks.values()
        ]

    async def open_channel(self, peer: Address, token: Address, amount: int, peer_amount: int) -> dict[str, Any]:
        self.opened = (peer, token, amount, peer_amount)
        return self.channels()[0]

    async def close_channel(self, channel_id: ChannelId) -> dict[str, Any]:
        self.side.core.desk(channel_id)
        self.pair.close()
        return self.channels()[0]

    def export_state(self, channel_id: ChannelId) -> dict[str, Any]:
        self.side.core.desk(channel_id)
        return {"turnNum": 1}

    async def export_journal(self, channel_id: ChannelId) -> AsyncIterator[str]:
        desk = self.side.core.desk(channel_id)
        yield dumps(header_to_json(desk.channel.fixed, desk.channel.terms))
        for number in range(3):
            yield dumps({"record": number})

    def audit(self) -> dict[str, Any]:
        self.exchange.check()
        return {"tokens": {}}

    async def deposit_collateral(self, token: Address, amount: int) -> dict[str, Any]:
        if amount == 0:
            raise LocalRefusal(Code.AMOUNT, "nothing to deposit")
        self.collateral.append((token, amount))
        return {"deposited": str(amount), "free": str(amount)}
