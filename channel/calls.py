"""What an entry's body says: its JSON-RPC calls as strict types.

A body is one request or notification, or a batch of them. Parsing is total: a call that is wrong in itself, whatever
the state of the channel (bad JSON, unknown market, a user's signature that is not valid), becomes `Void`. It keeps its
place in the journal, has no effect on any balance, and its sender is answered with the code. Both sides decide that
from the entry and the terms alone, so no order of messages can make them differ. DESIGN section 5.

An order's reference is (seq of its entry) * 512 + (index in the batch).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from channel.entry import MAX_BODY_BYTES, Entry
from channel.errors import Code, PeerFault
from channel.orders import MAX_LOTS, MAX_TICKS, SignedOrder, TimeInForce, fits_market, order_from_json, verify_order
from channel.state import FixedPart
from channel.strictjson import loads
from channel.terms import SIDES, Market, Terms
from channel.typed import Domain, custody_domain
from channel.units import Hash, MarketId, format_address, parse_hash

MAX_BATCH = 512
MAX_FILLS = 256
MAX_REF = 2**53 - 1

ORDER_CREATE = "order.create"
ORDER_UPDATE = "order.update"
ORDER_NOTIFY = "order.notify"
BOOK_SUBSCRIBE = "orderbook.subscribe"
BOOK_UNSUBSCRIBE = "orderbook.unsubscribe"

CallId = int | str | None


class Status(Enum):
    ACCEPTED = "accepted"
    FILLED = "filled"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateOrder:
    """The sender puts an order of one of its users into `market`, which the recipient holds."""

    call_id: CallId
    ref: int
    market: Market
    side: int
    price_ticks: int
    lots: int
    time_in_force: TimeInForce
    valid_until_ms: int
    authority: SignedOrder


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelOrder:
    """The sender asks the venue to cancel one of its orders (`ref`), or all of them (None)."""

    call_id: CallId
    ref: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fill:
    """`counter_order` is the id of the venue's own order on the other side, which its owner signed."""

    price_ticks: int
    lots: int
    counter_order: Hash


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """The venue's binding statement on the recipient's order `ref`: fills, then the status and what is left of it."""

    ref: int
    status: Status
    fills: tuple[Fill, ...]
    left_lots: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscribe:
    """The sender wants the recipient's book of one market, or no longer."""

    call_id: CallId
    market_id: MarketId
    on: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Void:
    """A call that is wrong in itself: no effect, answered with `code`."""

    call_id: CallId
    code: Code
    message: str


Call = CreateOrder | CancelOrder | Notice | Subscribe | Void


def parse_calls(entry: Entry, fixed: FixedPart, terms: Terms, *, check_signatures: bool = True) -> tuple[Call, ...]:
    """The calls of an entry in their order; never raises for what a peer wrote.

    `check_signatures` False skips recovering users' signatures, for entries that this node made itself.
    """
    sender = fixed.index_of(entry.sender)
    domain = custody_domain(fixed.chain_id, terms.custodies[sender])
    try:
        raw = loads(entry.body, max_bytes=MAX_BODY_BYTES)
    except PeerFault as fault:
        return (Void(call_id=None, code=fault.code, message=fault.message),)
    items = raw if isinstance(raw, list) else [raw]
    if not 1 <= len(items) <= MAX_BATCH:
        return (Void(call_id=None, code=Code.BATCH_TOO_LARGE, message=f"a batch has 1 to {MAX_BATCH} calls"),)
    context = _Context(entry, terms, domain, check_signatures)
    return tuple(_parse_call(item, index, context) for index, item in enumerate(items))


@dataclass(frozen=True, slots=True)
class _Context:
    entry: Entry
    terms: Terms
    domain: Domain
    check_signatures: bool


def _parse_call(item: object, index: int, context: _Context) -> Call:
    call_id: CallId = None
    try:
        if not isinstance(item, dict) or item.get("jsonrpc") != "2.0" or not item.keys() <= _CALL_KEYS:
            raise PeerFault(Code.REQUEST, "a call is a JSON-RPC 2.0 object with jsonrpc, method, params and id")
        call_id = _call_id(item)
        params = item.get("params", {})
        if not isinstance(params, dict):
            raise PeerFault(Code.PARAMS, "params must be an object")
        match item.get("method"):
            case "order.create":
                return _create(params, call_id, context.entry.seq * MAX_BATCH + index, context)
            case "order.update":
                return _update(params, call_id)
            case "order.notify":
                return _notice(params)
            case "orderbook.subscribe":
                return _subscribe(params, call_id, on=True)
            case "orderbook.unsubscribe":
                return _subscribe(params, call_id, on=False)
        raise PeerFault(Code.METHOD, "no such entry method")
    except PeerFault as fault:
        return Void(call_id=call_id, code=fault.code, message=fault.message)


_CALL_KEYS = {"jsonrpc", "method", "params", "id"}


def _call_id(item: Mapping[str, object]) -> CallId:
    call_id = item.get("id")
    if call_id is None or (type(call_id) is int and 0 <= call_id <= MAX_REF):
        return call_id
    if isinstance(call_id, str) and len(call_id) <= 64:
        return call_id
    raise PeerFault(Code.REQUEST, "id must be a whole number or text of at most 64 characters")


_CREATE_KEYS = {"market", "side", "price", "amount", "tif", "until", "order"}


def _create(params: dict[str, Any], call_id: CallId, ref: int, context: _Context) -> CreateOrder:
    if set(params) != _CREATE_KEYS:
        raise PeerFault(Code.PARAMS, f"order.create takes exactly {', '.join(sorted(_CREATE_KEYS))}")
    terms, entry = context.terms, context.entry
    market = terms.market(MarketId(parse_hash(params["market"], "market")))
    if market is None or market.holder != entry.to:
        raise PeerFault(Code.ORDER_MARKET, f"the terms list no such market of {format_address(entry.to)}")
    if params["side"] not in SIDES or params["tif"] not in tuple(TimeInForce.__members__):  # unhashable is just wrong
        raise PeerFault(Code.PARAMS, 'side must be "b" or "s", tif "GTC" or "IOC"')
    side, tif = SIDES.index(params["side"]), TimeInForce[params["tif"]]
    price = _bounded(params["price"], 1, MAX_TICKS, Code.ORDER_TICK, "price in ticks")
    lots = _bounded(params["amount"], 1, MAX_LOTS, Code.ORDER_AMOUNT, "amount in lots")
    until = _bounded(params["until"], 1, MAX_REF, Code.PARAMS, "until in Unix milliseconds")
    authority = order_from_json(params["order"], context.domain)
    order = authority.order
    own_market = terms.market(order.market_id)
    if own_market is None or order.side != side or not fits_market(order, own_market, market):
        raise PeerFault(Code.ORDER_MARKET, "the user's order is for another market or side")
    if own_market.holder not in (entry.sender, entry.to):
        raise PeerFault(Code.ORDER_MARKET, "the user's order is for a market of neither broker")
    if not order.allows(price):
        raise PeerFault(Code.ORDER_TICK, "the price is worse than the user's limit")
    if lots > order.amount_lots:
        raise PeerFault(Code.ORDER_AMOUNT, "the amount is above what the user signed")
    if until > order.valid_until_ms:
        raise PeerFault(Code.ORDER_EXPIRED, "until is later than what the user signed")
    if context.check_signatures:
        verify_order(authority)
    return CreateOrder(
        call_id=call_id,
        ref=ref,
        market=market,
        side=side,
        price_ticks=price,
        lots=lots,
        time_in_force=tif,
        valid_until_ms=until,
        authority=authority,
    )


def _update(params: dict[str, Any], call_id: CallId) -> CancelOrder:
    match params:
        case {"op": "cancel", "order": ref, **rest} if not rest:
            return CancelOrder(call_id=call_id, ref=_bounded(ref, MAX_BATCH, MAX_REF, Code.PARAMS, "order"))
        case {"op": "cancel_all", **rest} if not rest:
            return CancelOrder(call_id=call_id, ref=None)
    raise PeerFault(Code.PARAMS, 'order.update takes {"op":"cancel","order":reference} or {"op":"cancel_all"}')


_NOTICE_KEYS = {"order", "status", "fills", "left", "reason"}
_STATUSES = {status.value: status for status in Status}


def _notice(params: dict[str, Any]) -> Notice:
    if not params.keys() <= _NOTICE_KEYS or not {"order", "status", "left"} <= params.keys():
        raise PeerFault(Code.PARAMS, f"order.notify takes {', '.join(sorted(_NOTICE_KEYS))}")
    status = params["status"]
    if not isinstance(status, str) or status not in _STATUSES:
        raise PeerFault(Code.PARAMS, f"status must be one of {', '.join(_STATUSES)}")
    fills, reason = params.get("fills", []), params.get("reason", "")
    if not isinstance(fills, list) or len(fills) > MAX_FILLS:
        raise PeerFault(Code.PARAMS, f"fills must be a list of at most {MAX_FILLS}")
    if not isinstance(reason, str) or len(reason) > 64:
        raise PeerFault(Code.PARAMS, "reason must be a code of at most 64 characters")
    return Notice(
        ref=_bounded(params["order"], MAX_BATCH, MAX_REF, Code.PARAMS, "order"),
        status=_STATUSES[status],
        fills=tuple(_fill(fill) for fill in fills),
        left_lots=_bounded(params["left"], 0, MAX_LOTS, Code.PARAMS, "left"),
        reason=reason,
    )


def _fill(raw: object) -> Fill:
    if not isinstance(raw, list) or len(raw) != 3:
        raise PeerFault(Code.PARAMS, "a fill is [price, lots, order id]")
    return Fill(
        price_ticks=_bounded(raw[0], 1, MAX_TICKS, Code.PARAMS, "price of a fill"),
        lots=_bounded(raw[1], 1, MAX_LOTS, Code.PARAMS, "lots of a fill"),
        counter_order=parse_hash(raw[2], "order id"),
    )


def _subscribe(params: dict[str, Any], call_id: CallId, *, on: bool) -> Subscribe:
    if set(params) != {"market"}:
        raise PeerFault(Code.PARAMS, "a subscription takes exactly market")
    return Subscribe(call_id=call_id, market_id=MarketId(parse_hash(params["market"], "market")), on=on)


def _bounded(value: object, low: int, high: int, code: Code, what: str) -> int:
    if type(value) is not int or not low <= value <= high:
        raise PeerFault(code, f"{what} must be a whole number from {low} to {high}")
    return value
