"""The trader API's WebSocket: books as a snapshot and increments, trades as they happen.

    -> {"op": "subscribe", "topic": "book" or "trades", "market": name or id}
    <- {"topic": "book", "type": "snapshot", "market", "name", "seq", "bids": [level, …], "asks": [level, …]}
    <- {"topic": "book", "type": "increment", "market", "name", "seq", "changes": [{"side", level…}, …]}
    <- {"topic": "trades", "type": "snapshot", "market", "name", "trades": [trade, …]}, then "type": "trade", "trade"
    -> {"op": "unsubscribe", …}    <- {"type": "unsubscribed", …}        -> {"op": "ping"}    <- {"type": "pong", "t"}
    <- {"type": "error", "error": {"code", "message"}}                   after what is refused; the connection stays

The book is the merged one, of this broker and the peers it reaches, best levels first; lots 0 in a change means that
the level is gone from the view. Invariants: seq is dense per market and grows as long as the node runs; an increment is
made once, for all subscribers, from the difference of two views, at most every FLUSH_S; memory per client is bounded,
and one that reads too slowly is closed (1013). House rule 8.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from aiohttp import WSCloseCode, WSMsgType, web

from broker.config import BrokerConfig
from broker.exchange import Exchange
from broker.peerbook import PeerBook
from broker.router import merged_depth
from broker.views import Views
from channel.errors import Code, LocalRefusal, PeerFault, XlnError
from channel.strictjson import Fields, dumps, loads
from channel.terms import SIDES, Market
from channel.units import ChannelId, MarketId, format_hex
from node import logs
from node.http import error_body

FLUSH_S = 0.025  # books are looked at this often while somebody watches
IDLE_S = 0.25
MESSAGE_BYTES_MAX = 4_096
HEARTBEAT_S = 20.0
SEND_DEADLINE_S = 10.0
CLOSE_DEADLINE_S = 1.0
TRADES_SHOWN = 50

_log = logs.get("broker.feeds")
Event = tuple[Any, ...]
Rows = tuple[dict[int, tuple[int, int]], dict[int, tuple[int, int]]]  # per side: price -> (total lots, local lots)


class Source(Protocol):
    """What the feeds see of the node (`broker.api.Node` says more)."""

    @property
    def config(self) -> BrokerConfig: ...

    @property
    def exchange(self) -> Exchange: ...

    @property
    def peer_books(self) -> Mapping[MarketId, Mapping[ChannelId, PeerBook]]: ...

    @property
    def trades(self) -> deque[dict[str, Any]]: ...

    def watch(self) -> contextlib.AbstractContextManager["asyncio.Queue[Event]"]: ...


class Client:
    """One connection: what waits for it, and how it ends."""

    def __init__(self, ws: web.WebSocketResponse, queue_max: int) -> None:
        self.ws = ws
        self._outbox: asyncio.Queue[str] = asyncio.Queue(queue_max)
        self._writer: asyncio.Task[None] | None = None
        self.end_code: WSCloseCode | None = None

    def offer(self, text: str) -> None:
        """Queues a message; a client whose queue is full is ended."""
        try:
            self._outbox.put_nowait(text)
        except asyncio.QueueFull:
            self.end(WSCloseCode.TRY_AGAIN_LATER)

    def end(self, code: WSCloseCode) -> None:
        if self.end_code is None:
            self.end_code = code
            if self._writer is not None:
                self._writer.cancel()

    async def write(self) -> None:
        while True:
            text = await self._outbox.get()
            async with asyncio.timeout(SEND_DEADLINE_S):
                await self.ws.send_str(text)

    async def serve(self, take: Callable[[str], None]) -> None:
        """Reads and writes until one of the two ends."""
        if self.end_code is not None:
            return
        self._writer = asyncio.create_task(self.write())
        reader = asyncio.create_task(self._read(take))
        try:
            await asyncio.wait((self._writer, reader), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (self._writer, reader):
                task.cancel()
            for result in await asyncio.gather(self._writer, reader, return_exceptions=True):
                if isinstance(result, Exception) and not isinstance(result, (TimeoutError, ConnectionError)):
                    raise result

    async def _read(self, take: Callable[[str], None]) -> None:
        async for message in self.ws:
            if message.type is not WSMsgType.TEXT:
                self.end(WSCloseCode.UNSUPPORTED_DATA)
                return
            take(message.data)


@dataclass(slots=True)
class _BookFeed:
    market: Market
    seq: int = 0
    rows: Rows = field(default_factory=lambda: ({}, {}))
    version: tuple[object, ...] = ()
    clients: set[Client] = field(default_factory=set)


class Feeds:
    """All WebSocket clients of one node."""

    def __init__(self, node: Source, views: Views) -> None:
        self._node = node
        self._views = views
        self._limits = node.config.limits
        self._clients: set[Client] = set()
        self._closed = False
        self._books = {market_id: _BookFeed(market) for market_id, market in node.exchange.markets.items()}
        self._trades: dict[MarketId, set[Client]] = {market_id: set() for market_id in node.exchange.markets}

    # -- the node's side

    async def run(self) -> None:
        """Serves the subscribers until it is cancelled."""
        with self._node.watch() as events:
            while True:
                watched = any(feed.clients for feed in self._books.values())
                try:
                    async with asyncio.timeout(FLUSH_S if watched else IDLE_S):
                        event: Event | None = await events.get()
                except TimeoutError:
                    event = None
                while event is not None:
                    if event[0] == "trade":
                        self._publish_trade(event[1])
                    event = None if events.empty() else events.get_nowait()
                for feed in self._books.values():
                    if feed.clients:
                        self._refresh(feed)
                if watched:
                    await asyncio.sleep(FLUSH_S)  # conflates what comes meanwhile

    def close(self) -> None:
        """Ends every connection; no new ones are taken."""
        self._closed = True
        for client in list(self._clients):
            client.end(WSCloseCode.GOING_AWAY)

    def _publish_trade(self, raw: Mapping[str, Any]) -> None:
        trade = self._views.trade(raw)
        for market_id, clients in self._trades.items():
            if clients and trade["market"] == format_hex(market_id):
                head = {"topic": "trades", "type": "trade", "market": trade["market"], "name": trade["name"]}
                text = dumps({**head, "trade": trade})
                for client in tuple(clients):
                    client.offer(text)

    def _refresh(self, feed: _BookFeed) -> None:
        """Publishes what changed in the merged view since the last time."""
        market_id = feed.market.market_id
        peers = self._node.peer_books.get(market_id, {})
        version = (
            self._node.exchange.book_seq[market_id],
            *((channel_id, book, book.seq) for channel_id, book in peers.items()),
        )
        if version == feed.version:
            return
        feed.version = version
        before, feed.rows = feed.rows, self._rows(market_id, peers)
        changes = [
            {"side": SIDES[side], **self._views.level(feed.market, price, *feed.rows[side].get(price, (0, 0)))}
            for side in (0, 1)
            for price in sorted({*before[side], *feed.rows[side]})
            if before[side].get(price) != feed.rows[side].get(price)
        ]
        if not changes:
            return
        feed.seq += 1
        text = dumps({**self._head(feed, "increment"), "changes": changes})
        for client in tuple(feed.clients):
            client.offer(text)

    def _rows(self, market_id: MarketId, peers: Mapping[ChannelId, PeerBook]) -> Rows:
        book, limit = self._node.exchange.books[market_id], self._limits.book_levels_max
        bids, asks = (
            {price: (lots, local) for price, lots, local in merged_depth(book, peers, side, limit)} for side in (0, 1)
        )
        return bids, asks

    def _head(self, feed: _BookFeed, kind: str) -> dict[str, Any]:
        market = format_hex(feed.market.market_id)
        name = self._views.name(feed.market)
        return {"topic": "book", "type": kind, "market": market, "name": name, "seq": feed.seq}

    # -- the clients' side

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """GET /v1/ws. Raises LocalRefusal BUSY when there are too many clients."""
        if self._closed:
            raise LocalRefusal(Code.BUSY, "the feeds have stopped; ask /v1/book instead")
        if len(self._clients) >= self._limits.ws_clients_max:
            raise LocalRefusal(Code.BUSY, f"{self._limits.ws_clients_max} clients are connected; try again later")
        ws = web.WebSocketResponse(heartbeat=HEARTBEAT_S, max_msg_size=MESSAGE_BYTES_MAX, compress=False)
        if not ws.can_prepare(request).ok:
            raise PeerFault(Code.REQUEST, "this is a WebSocket: connect with ws://, not http://")
        client = Client(ws, self._limits.ws_queue_max)
        self._clients.add(client)
        try:
            await ws.prepare(request)
            await client.serve(lambda text: self._take(client, text))
        finally:
            self._forget(client)
            code = client.end_code or WSCloseCode.OK
            with contextlib.suppress(TimeoutError, ConnectionError):
                async with asyncio.timeout(CLOSE_DEADLINE_S):
                    await ws.close(code=code, message=b"too slow" if code == WSCloseCode.TRY_AGAIN_LATER else b"")
            if request.transport is not None and client.end_code is WSCloseCode.TRY_AGAIN_LATER:
                request.transport.abort()  # what it has not read is not kept any longer
        return ws

    def _forget(self, client: Client) -> None:
        self._clients.discard(client)
        for feed in self._books.values():
            feed.clients.discard(client)
        for clients in self._trades.values():
            clients.discard(client)

    def _take(self, client: Client, text: str) -> None:
        """One message of a client."""
        try:
            message = Fields(loads(text, max_bytes=MESSAGE_BYTES_MAX), "a message", Code.REQUEST)
            op = message.text("op", 16)
            if op == "ping":
                message.done()
                client.offer(dumps({"type": "pong"}))
                return
            if op not in ("subscribe", "unsubscribe"):
                raise PeerFault(Code.METHOD, 'op must be "subscribe", "unsubscribe" or "ping"')
            topic = message.text("topic", 16)
            if topic not in ("book", "trades"):
                raise PeerFault(Code.PARAMS, 'topic must be "book" or "trades"')
            market = self._views.own_market(message.text("market", 80))
            message.done()
        except XlnError as error:
            client.offer(dumps({"type": "error", **error_body(error)}))
            return
        if op == "unsubscribe":
            clients = self._books[market.market_id].clients if topic == "book" else self._trades[market.market_id]
            clients.discard(client)
            head = {"topic": topic, "market": format_hex(market.market_id), "name": self._views.name(market)}
            client.offer(dumps({"type": "unsubscribed", **head}))
        elif topic == "book":
            self._subscribe_book(client, self._books[market.market_id])
        else:
            self._subscribe_trades(client, market)

    def _subscribe_book(self, client: Client, feed: _BookFeed) -> None:
        self._refresh(feed)  # the others get what the snapshot has already
        bids, asks = (
            [self._views.level(feed.market, price, *feed.rows[side][price]) for price in prices]
            for side, prices in ((0, sorted(feed.rows[0], reverse=True)), (1, sorted(feed.rows[1])))
        )
        client.offer(dumps({**self._head(feed, "snapshot"), "bids": bids, "asks": asks}))
        feed.clients.add(client)

    def _subscribe_trades(self, client: Client, market: Market) -> None:
        market_id = format_hex(market.market_id)
        recent = [t for t in list(self._node.trades) if t["market"] == market_id][-TRADES_SHOWN:]
        head = {"topic": "trades", "type": "snapshot", "market": market_id, "name": self._views.name(market)}
        client.offer(dumps({**head, "trades": [self._views.trade(t) for t in recent]}))
        self._trades[market.market_id].add(client)
