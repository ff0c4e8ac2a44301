"""A trader's client of a broker: converts exactly, signs, asks, and raises what the broker answers.

    async with BrokerClient(url, signer) as broker:
        order = await broker.buy("btc/usd", amount="0.1", price="60000")
        await broker.cancel(order.order_id)

Invariants: decimal text becomes ticks and lots exactly or is refused (ORDER_TICK, ORDER_AMOUNT), never rounded; every
call has a deadline; the key never leaves the process. What is signed are `channel.orders` and the Withdrawal of
`channel.typed`, in the domain of the broker's custody, which the broker names: whoever must not trust it for that,
compares `info().custody` with the chain's factory first. Errors are XlnError with the broker's own code; LocalRefusal
PEER_UNAVAILABLE and TIMEOUT when it does not answer. DESIGN section 8.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, Self, TypeVar

import aiohttp
from aiohttp import WSMsgType

from channel.errors import Code, LocalRefusal, PeerFault
from channel.orders import (
    MAX_LOTS,
    MAX_TICKS,
    Order,
    OrderType,
    TimeInForce,
    cancel_digest,
    login_digest,
    order_to_json,
    sign_order,
)
from channel.signing import Signer
from channel.strictjson import dumpb, dumps, loads
from channel.terms import MAX_PRICE_DIGITS, SIDES, Market, tick_scale
from channel.typed import WITHDRAWAL, Domain, custody_domain
from channel.units import (
    Address,
    Hash,
    MarketId,
    format_address,
    format_hex,
    parse_address,
    parse_amount,
    parse_hash,
    parse_quantity,
    parse_uint,
)
from node.http import read_answer

DEADLINE_S: Final = 30.0
WS_MESSAGE_BYTES_MAX: Final = 4 * 1024 * 1024
HEARTBEAT_S: Final = 20.0
GTC_VALID_S: Final = 24 * 3600
IOC_VALID_S: Final = 60
LOGIN_VALID_S: Final = 3_600
LOGIN_RENEW_MS: Final = 60_000
WITHDRAWAL_VALID_S: Final = 3_600

T = TypeVar("T")


# -- what comes back


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenInfo:
    symbol: str
    address: Address
    decimals: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MarketInfo:
    """`market` has the exact units; `tick` and `lot` are decimal text."""

    market: Market
    name: str
    base: TokenInfo
    quote: TokenInfo
    tick: str
    lot: str

    @property
    def market_id(self) -> MarketId:
        return self.market.market_id

    def ticks(self, price: str) -> int:
        """Raises PeerFault ORDER_TICK for a price that is no multiple of the tick."""
        scale, digits = tick_scale(self.market, self.base.decimals, self.quote.decimals)
        assert digits == MAX_PRICE_DIGITS
        try:
            ticks, rest = divmod(parse_amount(price, digits, "the price"), scale)
        except PeerFault as fault:
            raise PeerFault(Code.ORDER_TICK, fault.message) from fault
        if rest or not 0 < ticks <= MAX_TICKS:
            raise PeerFault(Code.ORDER_TICK, f"a price in {self.name} is a multiple of {self.tick}, not {price}")
        return ticks

    def lots(self, amount: str) -> int:
        """Raises PeerFault ORDER_AMOUNT for an amount that is no multiple of the lot."""
        try:
            lots, rest = divmod(parse_amount(amount, self.base.decimals, "the amount"), self.market.lot_base)
        except PeerFault as fault:
            raise PeerFault(Code.ORDER_AMOUNT, fault.message) from fault
        if rest or not 0 < lots <= MAX_LOTS:
            raise PeerFault(Code.ORDER_AMOUNT, f"an amount in {self.name} is a multiple of {self.lot}, not {amount}")
        return lots


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerInfo:
    broker: Address
    custody: Address
    chain_id: int
    tokens: tuple[TokenInfo, ...]
    markets: tuple[MarketInfo, ...]
    peer_markets: tuple[MarketInfo, ...]

    @property
    def domain(self) -> Domain:
        return custody_domain(self.chain_id, self.custody)

    def market(self, text: str) -> MarketInfo:
        """A market of the broker by name or id, or of its peers by id. Raises PeerFault ORDER_MARKET."""
        wanted = text.lower()
        for info in self.markets:
            if wanted in (info.name, format_hex(info.market_id)):
                return info
        for info in self.peer_markets:
            if wanted == format_hex(info.market_id):
                return info
        names = ", ".join(info.name for info in self.markets) or "none"
        raise PeerFault(Code.ORDER_MARKET, f"there is no market {text[:80]!r} here; this broker has: {names}")

    def token(self, text: str) -> TokenInfo:
        """By symbol or address. Raises PeerFault PARAMS."""
        for token in self.tokens:
            if text.lower() in (token.symbol.lower(), format_address(token.address).lower()):
                return token
        raise PeerFault(
            Code.PARAMS, f"there is no token {text[:48]!r} here; known are {', '.join(t.symbol for t in self.tokens)}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BookLevel:
    """`local_lots` rest in the broker's own book, the others at its peers."""

    price: str
    ticks: int
    amount: str
    lots: int
    local_lots: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Book:
    """Best first. `seq`: of the broker's own book (`book`), or of the merged feed (`watch_book`)."""

    name: str
    seq: int
    bids: tuple[BookLevel, ...]
    asks: tuple[BookLevel, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trade:
    """`side` is the taker's; `t_ms` Unix milliseconds; `remote`: in a peer's book."""

    price: str
    ticks: int
    amount: str
    lots: int
    side: str
    t_ms: int
    remote: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderView:
    """An order as the broker has it. Amounts in whole base tokens as decimal text, and in lots.

    lots = filled + open (rests at the broker) + remote (at peers) + cancelled. `price` is None for a market order.
    """

    order_id: Hash
    owner: Address
    market_id: MarketId
    name: str
    side: str
    order_type: str
    tif: str
    status: str
    price: str | None
    ticks: int
    amount: str
    amount_lots: int
    filled: str
    filled_lots: int
    open_lots: int
    remote_lots: int
    cancelled_lots: int
    filled_quote: str
    valid_until_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BalanceView:
    """Decimal text, and `units` of the same: base units by name."""

    token: Address
    symbol: str
    deposited: str
    free: str
    locked: str
    withdrawing: str
    total: str
    units: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class WithdrawalView:
    """`status`: pending, done or failed; `amount_units` in base units."""

    withdrawal_id: Hash
    user: Address
    token: Address
    symbol: str
    amount: str
    amount_units: int
    to: Address
    deadline_s: int
    status: str


# -- the client


class BrokerClient:
    """See the module docstring. Without a signer it reads what is public."""

    def __init__(
        self,
        url: str,
        signer: Signer | None = None,
        *,
        deadline_s: float = DEADLINE_S,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        """`url`: of the broker's API, such as http://127.0.0.1:8100."""
        self.url = url.rstrip("/")
        self._signer = signer
        self._deadline_s = deadline_s
        self._now_ms = now_ms
        self._session: aiohttp.ClientSession | None = None
        self._info: BrokerInfo | None = None
        self._login: tuple[str, int] | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=self._deadline_s))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    @property
    def address(self) -> Address:
        """The trader's. Raises PeerFault AUTH without a signer."""
        return self._key().address

    # -- public

    async def info(self, *, refresh: bool = False) -> BrokerInfo:
        """Who the broker is; asked once, and again for `refresh` (peers' markets come and go)."""
        if self._info is None or refresh:
            self._info = _parse(_info, await self._get("/v1/info"))
        return self._info

    async def book(self, market: str, depth: int = 20) -> Book:
        return _parse(_book, await self._get("/v1/book", {"market": market, "depth": str(depth)}))

    async def trades(self, market: str, limit: int = 50) -> list[Trade]:
        """Newest first."""
        answer = await self._get("/v1/trades", {"market": market, "limit": str(limit)})
        return _parse(lambda raw: [_trade(item) for item in raw["trades"]], answer)

    async def order(self, order_id: Hash | str) -> OrderView:
        return _parse(_order, await self._get(f"/v1/orders/{_hash_text(order_id)}"))

    async def withdrawal(self, withdrawal_id: Hash | str) -> WithdrawalView:
        return _parse(_withdrawal, await self._get(f"/v1/withdrawals/{_hash_text(withdrawal_id)}"))

    # -- orders

    async def buy(self, market: str, amount: str, price: str | None = None, tif: str = "GTC") -> OrderView:
        """A market order without a price."""
        return await self.create_order(market, "b", amount, price, tif)

    async def sell(self, market: str, amount: str, price: str | None = None, tif: str = "GTC") -> OrderView:
        """A market order without a price."""
        return await self.create_order(market, "s", amount, price, tif)

    async def create_order(
        self,
        market: str,
        side: str,
        amount: str,
        price: str | None = None,
        tif: str = "GTC",
        *,
        valid_s: int | None = None,
    ) -> OrderView:
        """`side` "b" or "s"; `amount` in whole base tokens; `price` in whole quote per base, None for a market order
        (which is IOC); `tif` "GTC" or "IOC"; `valid_s` seconds from now.

        Raises PeerFault ORDER_TICK, ORDER_AMOUNT, ORDER_MARKET, ORDER_TYPE here, and what the broker answers.
        """
        info = await self.info()
        shape = info.market(market)
        if side not in SIDES:
            raise PeerFault(Code.PARAMS, 'side must be "b" or "s"')
        if tif not in ("GTC", "IOC"):
            raise PeerFault(Code.ORDER_TYPE, 'tif must be "GTC" or "IOC"')
        in_force = TimeInForce.IOC if price is None else TimeInForce[tif]
        valid_s = valid_s or (GTC_VALID_S if in_force is TimeInForce.GTC else IOC_VALID_S)
        order = Order(
            owner=self.address,
            market_id=shape.market_id,
            side=SIDES.index(side),
            order_type=OrderType.MARKET if price is None else OrderType.LIMIT,
            time_in_force=in_force,
            price_ticks=0 if price is None else shape.ticks(price),
            amount_lots=shape.lots(amount),
            valid_until_ms=self._now_ms() + valid_s * 1000,
            nonce=secrets.randbits(64),
        )
        return await self._place(order, info)

    async def amend(self, order_id: Hash | str, *, price: str | None = None, amount: str | None = None) -> OrderView:
        """Replaces an open order. `amount`: what shall be open from now on (default: what is); `price` default: as it
        was. At the same price and not more, it keeps its place in the queue. Returns the new order, with a new id."""
        info = await self.info()
        old = await self.order(order_id)
        shape = info.market(format_hex(old.market_id))
        if old.order_type != "limit" or old.open_lots + old.remote_lots == 0:
            raise PeerFault(Code.ORDER_UNKNOWN, f"order {format_hex(old.order_id)} is {old.status}: nothing to amend")
        order = Order(
            owner=self.address,
            market_id=old.market_id,
            side=SIDES.index(old.side),
            order_type=OrderType.LIMIT,
            time_in_force=TimeInForce[old.tif],
            price_ticks=old.ticks if price is None else shape.ticks(price),
            amount_lots=old.open_lots + old.remote_lots if amount is None else shape.lots(amount),
            valid_until_ms=old.valid_until_ms,
            nonce=secrets.randbits(64),
            replaces=old.order_id,
        )
        return await self._place(order, info)

    async def _place(self, order: Order, info: BrokerInfo) -> OrderView:
        signed = sign_order(order, info.domain, self._key().sign)
        try:
            return _parse(_order, await self._post("/v1/orders", order_to_json(signed)))
        except LocalRefusal as refusal:
            if refusal.code not in (Code.TIMEOUT, Code.PEER_UNAVAILABLE):
                raise
            order_id = format_hex(signed.order_id)
            message = f"{refusal.message}; ask for order {order_id} before you place it again: it may have been taken"
            raise LocalRefusal(refusal.code, message, order=order_id) from refusal

    async def cancel(self, order_id: Hash | str) -> OrderView:
        """The order as it is then: what is at a peer is cancelled when the peer says so."""
        info, text = await self.info(), _hash_text(order_id)
        signature = self._key().sign(cancel_digest(self.address, parse_hash(text), info.domain))
        body = {"owner": format_address(self.address), "sig": format_hex(signature)}
        return _parse(_order, await self._post(f"/v1/orders/{text}/cancel", body))

    # -- the account

    async def balances(self) -> dict[str, BalanceView]:
        """By symbol."""
        answer = await self._get(f"/v1/accounts/{format_address(self.address)}/balances", headers=await self._auth())
        return _parse(lambda raw: {row["symbol"]: _balance(row) for row in raw["balances"]}, answer)

    async def open_orders(self) -> list[OrderView]:
        answer = await self._get(f"/v1/accounts/{format_address(self.address)}/orders", headers=await self._auth())
        return _parse(lambda raw: [_order(item) for item in raw["orders"]], answer)

    async def withdraw(
        self, token: str, amount: str, to: Address | None = None, *, valid_s: int = WITHDRAWAL_VALID_S
    ) -> WithdrawalView:
        """Takes `amount` whole tokens out of the custody, to the trader's own address unless `to` says otherwise.

        The broker sends the transaction: `withdrawal(id)` says when it is done. `valid_s`: seconds in which it may.
        """
        info = await self.info()
        found = info.token(token)
        units = parse_amount(amount, found.decimals, "the amount")
        user, to = self.address, to or self.address
        withdrawal_id = Hash(secrets.token_bytes(32))
        deadline_s = self._now_ms() // 1000 + valid_s
        struct = WITHDRAWAL.hash(user, found.address, units, to, withdrawal_id, deadline_s)
        body = {
            "user": format_address(user),
            "token": format_address(found.address),
            "amount": str(units),
            "to": format_address(to),
            "id": format_hex(withdrawal_id),
            "deadline": deadline_s,
            "sig": format_hex(self._key().sign(info.domain.digest(struct))),
        }
        return _parse(_withdrawal, await self._post("/v1/withdrawals", body))

    async def _auth(self) -> dict[str, str]:
        """The login, signed for an hour and kept."""
        now_ms = self._now_ms()
        if self._login is None or self._login[1] - now_ms < LOGIN_RENEW_MS:
            info = await self.info()
            expiry_ms = now_ms + LOGIN_VALID_S * 1000
            signature = self._key().sign(login_digest(self.address, expiry_ms, info.domain))
            self._login = (f"XLN {format_address(self.address)}:{expiry_ms}:{format_hex(signature)}", expiry_ms)
        return {"Authorization": self._login[0]}

    def _key(self) -> Signer:
        if self._signer is None:
            raise PeerFault(Code.AUTH, "this needs the trader's key")
        return self._signer

    # -- feeds

    async def watch_book(self, market: str) -> AsyncIterator[Book]:
        """The merged book: once now, then after every change. Raises LocalRefusal PEER_UNAVAILABLE when the feed ends,
        PeerFault BOOK_GAP when an increment is missing; ask again then."""
        name = (await self.info()).market(market).name
        try:
            async with self._open().ws_connect(
                f"{self.url}/v1/ws",
                heartbeat=HEARTBEAT_S,
                max_msg_size=WS_MESSAGE_BYTES_MAX,
                timeout=aiohttp.ClientWSTimeout(ws_close=2.0),
            ) as ws:
                async with asyncio.timeout(self._deadline_s):
                    await ws.send_str(dumps({"op": "subscribe", "topic": "book", "market": market}))
                replica: _Replica | None = None
                async for message in ws:
                    if message.type is not WSMsgType.TEXT:
                        break
                    raw = loads(message.data, max_bytes=WS_MESSAGE_BYTES_MAX)
                    replica = _parse(partial(_Replica.after, replica), raw)
                    yield replica.book(name)
        except TimeoutError:
            raise LocalRefusal(Code.TIMEOUT, f"the broker at {self.url} does not answer in time") from None
        except aiohttp.ClientError as error:
            raise LocalRefusal(Code.PEER_UNAVAILABLE, f"the broker at {self.url} does not answer: {error}") from error
        raise LocalRefusal(Code.PEER_UNAVAILABLE, f"the broker at {self.url} has ended the feed (code {ws.close_code})")

    # -- HTTP

    async def _get(
        self, path: str, query: Mapping[str, str] | None = None, headers: Mapping[str, str] | None = None
    ) -> object:
        return await self._request("GET", path, params=query, headers=headers)

    async def _post(self, path: str, body: object) -> object:
        return await self._request("POST", path, data=dumpb(body), headers={"Content-Type": "application/json"})

    async def _request(self, method: str, path: str, **kwargs: Any) -> object:
        try:
            async with self._open().request(method, self.url + path, **kwargs) as response:
                return await read_answer(response)
        except TimeoutError:
            raise LocalRefusal(
                Code.TIMEOUT, f"the broker at {self.url} did not answer within {self._deadline_s:.0f} s"
            ) from None
        except aiohttp.ClientError as error:
            raise LocalRefusal(Code.PEER_UNAVAILABLE, f"the broker at {self.url} does not answer: {error}") from error

    def _open(self) -> aiohttp.ClientSession:
        assert self._session is not None, "use `async with`"
        return self._session


# -- reading answers: unknown members are left alone, so that a newer broker can say more


def _parse(read: Callable[[Any], T], raw: object) -> T:
    """Raises PeerFault PARSE for an answer that has not the shape it should have."""
    try:
        return read(raw)
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        raise PeerFault(Code.PARSE, f"the broker's answer is not as it should be: {error!r}") from error


def _hash_text(value: Hash | str) -> str:
    return format_hex(parse_hash(value)) if isinstance(value, str) else format_hex(value)


def _text(raw: Any, name: str) -> str:
    value = raw[name]
    if type(value) is not str:
        raise TypeError(f"{name} is not text")
    return value


def _int(raw: Any, name: str) -> int:
    value = raw[name]
    if type(value) is not int:
        raise TypeError(f"{name} is not an integer")
    return value


def _token(raw: Any) -> TokenInfo:
    return TokenInfo(symbol=_text(raw, "symbol"), address=parse_address(raw["address"]), decimals=_int(raw, "decimals"))


def _info(raw: Any) -> BrokerInfo:
    chain_id = parse_quantity(raw["chainId"])
    return BrokerInfo(
        broker=parse_address(raw["broker"]),
        custody=parse_address(raw["custody"]),
        chain_id=chain_id,
        tokens=tuple(_token(item) for item in raw["tokens"]),
        markets=tuple(_market(item, chain_id) for item in raw["markets"]),
        peer_markets=tuple(_market(item, chain_id) for item in raw["peerMarkets"]),
    )


def _market(raw: Any, chain_id: int) -> MarketInfo:
    """Raises PeerFault ORDER_MARKET when the id, which gets signed, is not that of what the market is said to be."""
    base, quote = (
        TokenInfo(
            symbol=_text(raw, side),
            address=parse_address(raw[f"{side}Token"]),
            decimals=_int(raw, f"{side}Decimals"),
        )
        for side in ("base", "quote")
    )
    market = Market(
        holder=parse_address(raw["holder"]),
        chain_id=chain_id,
        base=base.address,
        quote=quote.address,
        tick_quote=parse_uint(raw["tickQuote"], bits=64),
        lot_base=parse_uint(raw["lotBase"], bits=128),
    )
    name = _text(raw, "name")
    if format_hex(market.market_id) != raw["id"]:
        raise PeerFault(Code.ORDER_MARKET, f"the broker's id of {name} does not follow from its tokens, tick and lot")
    return MarketInfo(market=market, name=name, base=base, quote=quote, tick=_text(raw, "tick"), lot=_text(raw, "lot"))


def _level(raw: Any) -> BookLevel:
    return BookLevel(
        price=_text(raw, "price"),
        ticks=_int(raw, "ticks"),
        amount=_text(raw, "amount"),
        lots=_int(raw, "lots"),
        local_lots=_int(raw, "localLots"),
    )


def _book(raw: Any) -> Book:
    bids, asks = (tuple(_level(item) for item in raw[side]) for side in ("bids", "asks"))
    return Book(name=_text(raw, "name"), seq=_int(raw, "seq"), bids=bids, asks=asks)


def _trade(raw: Any) -> Trade:
    return Trade(
        price=_text(raw, "price"),
        ticks=_int(raw, "ticks"),
        amount=_text(raw, "amount"),
        lots=_int(raw, "lots"),
        side=_text(raw, "side"),
        t_ms=_int(raw, "t"),
        remote=bool(raw["remote"]),
    )


def _order(raw: Any) -> OrderView:
    return OrderView(
        order_id=parse_hash(raw["id"]),
        owner=parse_address(raw["owner"]),
        market_id=MarketId(parse_hash(raw["market"])),
        name=_text(raw, "name"),
        side=_text(raw, "side"),
        order_type=_text(raw, "type"),
        tif=_text(raw, "tif"),
        status=_text(raw, "status"),
        price=None if raw["price"] is None else _text(raw, "price"),
        ticks=_int(raw, "ticks"),
        amount=_text(raw, "amount"),
        amount_lots=_int(raw, "lots"),
        filled=_text(raw, "filled"),
        filled_lots=_int(raw, "filledLots"),
        open_lots=_int(raw, "openLots"),
        remote_lots=_int(raw, "remoteLots"),
        cancelled_lots=_int(raw, "cancelledLots"),
        filled_quote=_text(raw, "filledQuote"),
        valid_until_ms=_int(raw, "until"),
    )


def _balance(raw: Any) -> BalanceView:
    names = ("deposited", "free", "locked", "withdrawing", "total")
    return BalanceView(
        token=parse_address(raw["token"]),
        symbol=_text(raw, "symbol"),
        units={name: parse_uint(raw[f"{name}Units"]) for name in names},
        **{name: _text(raw, name) for name in names},
    )


def _withdrawal(raw: Any) -> WithdrawalView:
    return WithdrawalView(
        withdrawal_id=parse_hash(raw["id"]),
        user=parse_address(raw["user"]),
        token=parse_address(raw["token"]),
        symbol=_text(raw, "symbol"),
        amount=_text(raw, "amount"),
        amount_units=parse_uint(raw["amountUnits"]),
        to=parse_address(raw["to"]),
        deadline_s=_int(raw, "deadline"),
        status=_text(raw, "status"),
    )


@dataclass(frozen=True, slots=True)
class _Replica:
    """A book that follows a feed: levels by price, a side each."""

    seq: int
    bids: Mapping[int, BookLevel]
    asks: Mapping[int, BookLevel]

    @classmethod
    def after(cls, last: "_Replica | None", raw: Any) -> "_Replica":
        """Raises PeerFault BOOK_GAP, and what the broker answered."""
        kind = raw["type"]
        if kind == "snapshot":
            bids, asks = ({level.ticks: level for level in map(_level, raw[side])} for side in ("bids", "asks"))
            return cls(_int(raw, "seq"), bids, asks)
        if kind == "error":
            label = raw["error"]["code"]
            code = next((code for code in Code if code.label == label), Code.INTERNAL)
            raise PeerFault(code, str(raw["error"]["message"]))
        if kind != "increment":
            raise ValueError(f"a message of type {kind!r}")
        if last is None or raw["seq"] != last.seq + 1:
            raise PeerFault(Code.BOOK_GAP, "an increment of the book is missing; ask for the book again")
        sides = {"b": dict(last.bids), "s": dict(last.asks)}
        for change in raw["changes"]:
            level = _level(change)
            sides[change["side"]].pop(level.ticks, None)
            if level.lots:
                sides[change["side"]][level.ticks] = level
        return replace(last, seq=_int(raw, "seq"), bids=sides["b"], asks=sides["s"])

    def book(self, name: str) -> Book:
        return Book(
            name=name,
            seq=self.seq,
            bids=tuple(self.bids[price] for price in sorted(self.bids, reverse=True)),
            asks=tuple(self.asks[price] for price in sorted(self.asks)),
        )
