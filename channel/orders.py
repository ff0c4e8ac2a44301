"""Orders as their owners sign them: EIP-712, in the domain of the custody of the broker they trade at.

The order's digest is its id: unique, and a replay of the same bytes is the same order. An amendment is a new signed
order that names the one it `replaces`, so every fill has exactly one signature that authorises it. ADR 0004.
"""

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from channel.errors import Code, PeerFault
from channel.signing import require_signer
from channel.terms import SIDES, Market
from channel.typed import CANCEL, LOGIN, ORDER, Domain
from channel.units import (
    UINT64_MAX,
    ZERO_HASH,
    Address,
    Hash,
    MarketId,
    format_address,
    format_hex,
    parse_address,
    parse_hash,
    parse_hex,
)

MAX_TICKS = 2**53 - 1
MAX_LOTS = 2**53 - 1


class OrderType(IntEnum):
    LIMIT = 0
    MARKET = 1


class TimeInForce(IntEnum):
    GTC = 0
    IOC = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What an owner wants. Price in ticks of the market (0 for a market order: any price), amount in lots.

    `valid_until_ms` is Unix milliseconds; `nonce` makes two orders of one content different; `replaces` is the id
    of the order that this one amends, or zero.
    """

    owner: Address
    market_id: MarketId
    side: int
    order_type: OrderType
    time_in_force: TimeInForce
    price_ticks: int
    amount_lots: int
    valid_until_ms: int
    nonce: int
    replaces: Hash = ZERO_HASH

    def digest(self, domain: Domain) -> Hash:
        return domain.digest(
            ORDER.hash(
                self.owner,
                self.market_id,
                self.side,
                int(self.order_type),
                int(self.time_in_force),
                self.price_ticks,
                self.amount_lots,
                self.valid_until_ms,
                self.nonce,
                self.replaces,
            )
        )

    def allows(self, price_ticks: int) -> bool:
        """Whether the owner has authorised a fill at this price."""
        if self.order_type is OrderType.MARKET:
            return True
        return price_ticks <= self.price_ticks if self.side == 0 else price_ticks >= self.price_ticks


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedOrder:
    """An order, its owner's signature, and its id (the EIP-712 digest)."""

    order: Order
    signature: bytes
    order_id: Hash = field(compare=False)


def sign_order(order: Order, domain: Domain, sign: Any) -> SignedOrder:
    """`sign`: digest -> 65 bytes."""
    digest = order.digest(domain)
    return SignedOrder(order=order, signature=sign(digest), order_id=digest)


def order_to_json(signed: SignedOrder) -> dict[str, Any]:
    o = signed.order
    return {
        "owner": format_address(o.owner),
        "market": format_hex(o.market_id),
        "side": SIDES[o.side],
        "type": o.order_type.name.lower(),
        "tif": o.time_in_force.name,
        "price": o.price_ticks,
        "amount": o.amount_lots,
        "until": o.valid_until_ms,
        "nonce": str(o.nonce),
        "replaces": format_hex(o.replaces),
        "sig": format_hex(signed.signature),
    }


_ORDER_KEYS = {"owner", "market", "side", "type", "tif", "price", "amount", "until", "nonce", "replaces", "sig"}


def order_from_json(raw: object, domain: Domain) -> SignedOrder:
    """Parses strictly; does not check the signature (`verify_order` does). Raises PeerFault PARAMS and ORDER_*."""
    if not isinstance(raw, dict) or set(raw) != _ORDER_KEYS:
        raise PeerFault(Code.PARAMS, f"an order is an object with exactly {', '.join(sorted(_ORDER_KEYS))}")
    if raw["side"] not in SIDES:
        raise PeerFault(Code.PARAMS, 'side must be "b" or "s"')
    if raw["type"] not in ("limit", "market"):
        raise PeerFault(Code.ORDER_TYPE, 'type must be "limit" or "market"')
    if raw["tif"] not in ("GTC", "IOC"):
        raise PeerFault(Code.ORDER_TYPE, 'tif must be "GTC" or "IOC"')
    order_type = OrderType[raw["type"].upper()]
    tif = TimeInForce[raw["tif"]]
    price, amount = raw["price"], raw["amount"]
    if type(price) is not int or not (price == 0 if order_type is OrderType.MARKET else 0 < price <= MAX_TICKS):
        raise PeerFault(Code.ORDER_TICK, "price must be a whole number of ticks above 0, and 0 for a market order")
    if type(amount) is not int or not 0 < amount <= MAX_LOTS:
        raise PeerFault(Code.ORDER_AMOUNT, "amount must be a whole number of lots above 0")
    if order_type is OrderType.MARKET and tif is not TimeInForce.IOC:
        raise PeerFault(Code.ORDER_TYPE, "a market order is IOC")
    until = raw["until"]
    if type(until) is not int or not 0 < until < 2**53:
        raise PeerFault(Code.PARAMS, "until must be Unix milliseconds")
    order = Order(
        owner=parse_address(raw["owner"], "owner"),
        market_id=MarketId(parse_hash(raw["market"], "market")),
        side=SIDES.index(raw["side"]),
        order_type=order_type,
        time_in_force=tif,
        price_ticks=price,
        amount_lots=amount,
        valid_until_ms=until,
        nonce=_nonce(raw["nonce"]),
        replaces=parse_hash(raw["replaces"], "replaces"),
    )
    return SignedOrder(order=order, signature=parse_hex(raw["sig"], what="sig"), order_id=order.digest(domain))


def _nonce(raw: object) -> int:
    if not isinstance(raw, str) or not raw.isascii() or not raw.isdigit() or len(raw) > 20 or int(raw) > UINT64_MAX:
        raise PeerFault(Code.PARAMS, "nonce must be decimal digits in quotes, below 2^64")
    return int(raw)


def verify_order(signed: SignedOrder) -> None:
    """Raises PeerFault ORDER_SIGNATURE (or SIGNATURE_HIGH_S, SIGNATURE_V) unless the owner signed it."""
    try:
        require_signer(signed.order_id, signed.signature, signed.order.owner, "the order")
    except PeerFault as fault:
        if fault.code in (Code.SIGNATURE, Code.SIGNATURE_SIGNER):
            raise PeerFault(Code.ORDER_SIGNATURE, fault.message) from fault
        raise


def cancel_digest(owner: Address, order_id: Hash, domain: Domain) -> Hash:
    return domain.digest(CANCEL.hash(owner, order_id))


def login_digest(owner: Address, expiry_ms: int, domain: Domain) -> Hash:
    return domain.digest(LOGIN.hash(owner, expiry_ms))


def fits_market(order: Order, own: Market, venue: Market) -> bool:
    """Whether an order that was signed for `own` may be executed in `venue` (another holder's market of one shape)."""
    return order.market_id == venue.market_id or (order.market_id == own.market_id and own.same_shape(venue))
