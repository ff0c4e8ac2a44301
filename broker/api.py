"""The trader API: REST for orders, balances, book, trades and withdrawals; a WebSocket for what changes (`feeds`).

    GET  /v1/info                              who this is, tokens, markets here and at peers
    GET  /v1/health
    GET  /v1/book?market=NAME|ID&depth=N       this broker's book and its peers' as one
    GET  /v1/trades?market=NAME|ID&limit=N     newest first
    POST /v1/orders                            an order as `channel.orders.order_to_json` writes it, signed by its owner
    GET  /v1/orders/{id}
    POST /v1/orders/{id}/cancel                {"owner", "sig"}: EIP-712 Cancel
    GET  /v1/accounts/{address}/balances       with a login
    GET  /v1/accounts/{address}/orders         open ones, with a login
    POST /v1/withdrawals                       {"user", "token", "amount", "to", "id", "deadline", "sig"}
    GET  /v1/withdrawals/{id}
    GET  /v1/ws                                see `broker.feeds`

Login: the header `Authorization: XLN <owner>:<expiry in ms>:<0x signature of the EIP-712 Login>`, for at most a day.
Signatures are made in the domain of this broker's custody (`custody` and `chainId` of /v1/info). In requests amounts
are base units and prices ticks, as signed; answers have both forms. Every failure has a stable code. DESIGN section 8.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

from aiohttp import web

from broker import admin
from broker.config import BrokerConfig
from broker.exchange import Exchange, UserOrder, Withdrawal
from broker.feeds import Event, Feeds
from broker.peerbook import PeerBook
from broker.router import merged_depth
from broker.views import Views
from channel.errors import Code, LocalRefusal, PeerFault
from channel.orders import SignedOrder, cancel_digest, login_digest, order_from_json
from channel.signing import require_signer
from channel.strictjson import MAX_INTEGER, Fields
from channel.terms import Market
from channel.typed import WITHDRAWAL, Domain
from channel.units import (
    Address,
    ChannelId,
    Hash,
    MarketId,
    format_address,
    format_hex,
    parse_address,
    parse_hash,
    parse_hex,
)
from node import http, logs
from node.clock import Clock

REQUEST_BYTES_MAX = 16 * 1024
DEADLINE_S = 20.0  # until an order is durable
LOGIN_MAX_MS = 24 * 3600 * 1000
ORDERS_MAX = 1_000
TRADES_MAX = 500
DEPTH_DEFAULT = 20

_log = logs.get("broker.api")
T = TypeVar("T")


class Node(Protocol):
    """What the API needs of a broker's node (`broker.node.BrokerNode`)."""

    @property
    def address(self) -> Address: ...

    @property
    def custody(self) -> Address: ...

    @property
    def chain_id(self) -> int: ...

    @property
    def config(self) -> BrokerConfig: ...

    @property
    def exchange(self) -> Exchange: ...

    @property
    def clock(self) -> Clock: ...

    @property
    def domain(self) -> Domain:
        """Of the custody: what users sign in."""

    @property
    def trades(self) -> deque[dict[str, Any]]:
        """Newest last, bounded. {"market": id as 0x text, "price": ticks, "amount": lots, "side": of the taker, "b" or
        "s", "t": ms, "remote": whether in a peer's book}."""

    @property
    def peer_books(self) -> Mapping[MarketId, Mapping[ChannelId, PeerBook]]:
        """By own market, then channel: replicas that are in step, of channels that trade."""

    async def place_order(self, signed: SignedOrder) -> UserOrder:
        """Verifies the signature, routes, executes, and returns once that is durable."""

    async def cancel_order(self, order_id: Hash, owner: Address) -> UserOrder | None:
        """The cancellation is authorised already. None: no such order is open."""

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
        """Sets the funds apart and sends the withdrawal to the chain; its end shows in the exchange."""

    def watch(self) -> contextlib.AbstractContextManager["asyncio.Queue[Event]"]:
        """Events from now on: ("book", market id, seq, changes) and ("trade", dict as in `trades`). Never blocks the
        node: when the queue is full, the event is dropped."""

    def status(self) -> dict[str, Any]:
        """The node in one object; `failure` says why it has stopped signing, if it has."""

    def channels(self) -> list[dict[str, Any]]: ...

    async def open_channel(self, peer: Address, token: Address, amount: int, peer_amount: int) -> dict[str, Any]: ...

    async def close_channel(self, channel_id: ChannelId) -> dict[str, Any]: ...

    def export_state(self, channel_id: ChannelId) -> dict[str, Any]:
        """The last co-signed state, as `xln-dispute inspect` reads it."""

    def export_journal(self, channel_id: ChannelId) -> AsyncIterator[str]:
        """Lines of JSON without their ends: the header, then the records in order."""

    def audit(self) -> dict[str, Any]: ...

    async def deposit_collateral(self, token: Address, amount: int) -> dict[str, Any]: ...


def make_app(node: Node, admin_token: str | None = None) -> web.Application:
    """The application of a node. Without an `admin_token` nobody gets at /admin."""
    app = http.application(
        http.admin_middleware(admin_token or http.new_token()), _limit_middleware(node.config.limits.requests_max)
    )
    api = _Api(node)
    api.add_routes(app)
    admin.add_routes(app, node)
    return app


@contextlib.asynccontextmanager
async def serve(node: Node, folder: Path) -> AsyncIterator[str]:
    """Serves API and admin where [api] says, and writes `<folder>/admin.json`; gives the URL.

    Raises LocalRefusal CONFIG when the address cannot be listened on.
    """
    token = http.new_token()
    async with http.serve(make_app(node, token), node.config.api.host, node.config.api.port) as url:
        with http.admin_file(folder, url, token):
            yield url


def _limit_middleware(most: int) -> Callable[..., Awaitable[web.StreamResponse]]:
    """At most `most` requests at work, WebSockets (which have their own limit) and the operator aside."""
    busy = 0

    @web.middleware
    async def middleware(request: web.Request, handler: http.Handler) -> web.StreamResponse:
        nonlocal busy
        if request.path == "/v1/ws" or request.path.startswith(http.ADMIN_PREFIX + "/"):
            return await handler(request)
        if busy >= most:
            raise LocalRefusal(Code.BUSY, f"{most} requests are at work; try again")
        busy += 1
        try:
            return await handler(request)
        finally:
            busy -= 1

    return middleware


class _Api:
    def __init__(self, node: Node) -> None:
        self._node = node
        self._views = Views(node.config, node.exchange)
        self._feeds = Feeds(node, self._views)

    def add_routes(self, app: web.Application) -> None:
        app.router.add_get("/v1/info", self.info)
        app.router.add_get("/v1/health", self.health)
        app.router.add_get("/v1/book", self.book)
        app.router.add_get("/v1/trades", self.trades)
        app.router.add_post("/v1/orders", self.place)
        app.router.add_get("/v1/orders/{id}", self.order)
        app.router.add_post("/v1/orders/{id}/cancel", self.cancel)
        app.router.add_get("/v1/accounts/{address}/balances", self.balances)
        app.router.add_get("/v1/accounts/{address}/orders", self.orders)
        app.router.add_post("/v1/withdrawals", self.withdraw)
        app.router.add_get("/v1/withdrawals/{id}", self.withdrawal)
        app.router.add_get("/v1/ws", self._feeds.handle)
        app.cleanup_ctx.append(self._run_feeds)
        app.on_shutdown.append(self._close_feeds)

    async def _run_feeds(self, _: web.Application) -> AsyncIterator[None]:
        def ended(task: "asyncio.Task[None]") -> None:
            error = None if task.cancelled() else task.exception()
            if error is not None:
                _log.exception("the feeds have stopped", error)
            self._feeds.close()  # nobody waits for what does not come

        task = asyncio.create_task(self._feeds.run())
        task.add_done_callback(ended)
        yield
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def _close_feeds(self, _: web.Application) -> None:
        self._feeds.close()

    # -- public

    async def info(self, _: web.Request) -> web.Response:
        node, views = self._node, self._views
        tokens = [
            {"symbol": t.symbol, "address": format_address(t.address), "decimals": t.decimals}
            for t in node.config.tokens
        ]
        return http.json_response(
            {
                "broker": format_address(node.address),
                "custody": format_address(node.custody),
                "chainId": hex(node.chain_id),
                "time": node.clock.now_ms(),
                "tokens": tokens,
                "markets": [views.market(market) for market in node.exchange.markets.values()],
                "peerMarkets": [views.peer_market(*found) for found in views.peer_markets()],
            }
        )

    async def health(self, _: web.Request) -> web.Response:
        """Raises LocalRefusal STORAGE when the node has stopped signing."""
        failure = self._node.status().get("failure")
        if failure is not None:
            raise LocalRefusal(Code.STORAGE, str(failure))
        return http.json_response(
            {"status": "ok", "broker": format_address(self._node.address), "time": self._node.clock.now_ms()}
        )

    async def book(self, request: web.Request) -> web.Response:
        market = self._market(request)
        depth = _query_integer(request, "depth", DEPTH_DEFAULT, self._node.config.limits.book_levels_max)
        book = self._node.exchange.books[market.market_id]
        peers = self._node.peer_books.get(market.market_id, {})
        bids, asks = (
            [self._views.level(market, *level) for level in merged_depth(book, peers, side, depth)] for side in (0, 1)
        )
        return http.json_response(
            {
                "market": format_hex(market.market_id),
                "name": self._views.name(market),
                "seq": self._node.exchange.book_seq[market.market_id],
                "peers": [format_hex(channel_id) for channel_id in peers],
                "bids": bids,
                "asks": asks,
            }
        )

    async def trades(self, request: web.Request) -> web.Response:
        market = self._market(request)
        limit = _query_integer(request, "limit", 50, TRADES_MAX)
        market_id = format_hex(market.market_id)
        found = [trade for trade in reversed(self._node.trades) if trade["market"] == market_id][:limit]
        return http.json_response({"market": market_id, "trades": [self._views.trade(trade) for trade in found]})

    def _market(self, request: web.Request) -> Market:
        """Raises PeerFault PARAMS, ORDER_MARKET."""
        text = request.query.get("market", "")
        if not text:
            raise PeerFault(Code.PARAMS, "name a market: ?market=btc/usd")
        return self._views.own_market(text)

    # -- orders

    async def place(self, request: web.Request) -> web.Response:
        signed = order_from_json(await _body(request), self._node.domain)
        live = await _in_time(self._node.place_order(signed), f"order {format_hex(signed.order_id)}")
        return http.json_response(self._views.order(live), status=201)

    async def order(self, request: web.Request) -> web.Response:
        return http.json_response(self._views.order(self._find_order(_path_hash(request))))

    def _find_order(self, order_id: Hash) -> UserOrder:
        exchange = self._node.exchange
        live = exchange.orders.get(order_id) or exchange.closed.get(order_id)
        if live is None:
            raise PeerFault(Code.ORDER_UNKNOWN, f"there is no order {format_hex(order_id)} here")
        return live

    async def cancel(self, request: web.Request) -> web.Response:
        order_id = _path_hash(request)
        body = Fields(await _body(request), "a cancellation")
        owner, signature = body.address("owner"), body.hex("sig")
        body.done()
        try:
            require_signer(cancel_digest(owner, order_id, self._node.domain), signature, owner, "the cancellation")
        except PeerFault as fault:
            raise _as_order_signature(fault) from fault
        live = await _in_time(self._node.cancel_order(order_id, owner), f"the cancellation of {format_hex(order_id)}")
        if live is None:
            raise PeerFault(Code.ORDER_UNKNOWN, f"there is no open order {format_hex(order_id)} here")
        return http.json_response(self._views.order(live))

    # -- accounts

    async def balances(self, request: web.Request) -> web.Response:
        owner = self._login(request)
        balances = self._node.exchange.ledger.balances(owner)
        rows = [self._views.balance(token, balance) for token, balance in balances.items()]
        rows.sort(key=lambda row: (row["symbol"], row["token"]))
        return http.json_response({"owner": format_address(owner), "balances": rows})

    async def orders(self, request: web.Request) -> web.Response:
        owner = self._login(request)
        limit = _query_integer(request, "limit", ORDERS_MAX, ORDERS_MAX)
        found = [live for live in self._node.exchange.orders.values() if live.owner == owner]
        return http.json_response(
            {
                "owner": format_address(owner),
                "total": len(found),
                "orders": [self._views.order(live) for live in found[:limit]],
            }
        )

    def _login(self, request: web.Request) -> Address:
        """The account of the path, whose owner has signed the login. Raises PeerFault AUTH, ADDRESS."""
        account = parse_address(request.match_info["address"], "the account")
        scheme, _, rest = request.headers.get("Authorization", "").partition(" ")
        parts = rest.strip().split(":")
        if scheme != "XLN" or len(parts) != 3:
            raise PeerFault(Code.AUTH, "this needs the header Authorization: XLN <owner>:<expiry in ms>:<0x signature>")
        owner_text, expiry_text, signature_text = parts
        now_ms = self._node.clock.now_ms()
        if not expiry_text.isascii() or not expiry_text.isdigit() or len(expiry_text) > 16:
            raise PeerFault(Code.AUTH, "the login's expiry must be Unix milliseconds")
        expiry_ms = int(expiry_text)
        if not now_ms < expiry_ms <= now_ms + LOGIN_MAX_MS:
            raise PeerFault(
                Code.AUTH, "the login has expired, or is for more than 24 hours: sign a new one", now=now_ms
            )
        try:
            owner = parse_address(owner_text, "the owner")
            signature = parse_hex(signature_text, what="the login's signature")
            require_signer(login_digest(owner, expiry_ms, self._node.domain), signature, owner, "the login")
        except PeerFault as fault:
            raise PeerFault(Code.AUTH, fault.message) from fault
        if owner != account:
            raise PeerFault(Code.AUTH, "the login is of another account than was asked for")
        return owner

    # -- withdrawals

    async def withdraw(self, request: web.Request) -> web.Response:
        body = Fields(await _body(request), "a withdrawal")
        user, token, to = body.address("user"), body.address("token"), body.address("to")
        amount, withdrawal_id = body.uint("amount"), body.hash("id")
        deadline_s, signature = body.integer("deadline", 1, MAX_INTEGER), body.hex("sig")
        body.done()
        if amount == 0:
            raise PeerFault(Code.WITHDRAWAL, "a withdrawal is above zero")
        struct = WITHDRAWAL.hash(user, token, amount, to, withdrawal_id, deadline_s)
        require_signer(self._node.domain.digest(struct), signature, user, "the withdrawal")
        made = await _in_time(
            self._node.withdraw(user, token, amount, to, withdrawal_id, deadline_s, signature),
            f"withdrawal {format_hex(withdrawal_id)}",
        )
        return http.json_response(self._views.withdrawal(made), status=202)

    async def withdrawal(self, request: web.Request) -> web.Response:
        found = self._node.exchange.withdrawals.get(_path_hash(request))
        if found is None:
            raise PeerFault(Code.WITHDRAWAL, "there is no such withdrawal here")
        return http.json_response(self._views.withdrawal(found))


async def _body(request: web.Request) -> object:
    return await http.read_json(request, bytes_max=REQUEST_BYTES_MAX)


async def _in_time(work: Awaitable[T], what: str) -> T:
    """Raises LocalRefusal TIMEOUT when the node does not get it done; it may still come to be."""
    try:
        async with asyncio.timeout(DEADLINE_S):
            return await work
    except TimeoutError:
        raise LocalRefusal(Code.TIMEOUT, f"{what} was not confirmed within {DEADLINE_S:.0f} s; look it up") from None


def _as_order_signature(fault: PeerFault) -> PeerFault:
    if fault.code in (Code.SIGNATURE, Code.SIGNATURE_SIGNER):
        return PeerFault(Code.ORDER_SIGNATURE, fault.message)
    return fault


def _path_hash(request: web.Request) -> Hash:
    return parse_hash(request.match_info["id"], "the id in the path")


def _query_integer(request: web.Request, name: str, default: int, most: int) -> int:
    text = request.query.get(name)
    if text is None:
        return min(default, most)
    if not text.isascii() or not text.isdigit() or len(text) > 9 or not 1 <= int(text) <= most:
        raise PeerFault(Code.PARAMS, f"{name} must be a whole number from 1 to {most}")
    return int(text)
