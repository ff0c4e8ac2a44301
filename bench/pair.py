"""Two broker cores in one process, with an open channel between them and no I/O: real signatures, real protocol.

`level` says how much of a node is around the cores:

    CORE   actions are executed; messages are handed over as values
    WIRE   and every message becomes the bytes that are sent, and is parsed and verified from them
    ROWS   and every action and journal record becomes the database rows of `broker.records`

The differences are what wire and rows cost. Everything else of a node (HTTP, loop, SQLite, sealed frames) is missing
here. DESIGN sections 4 and 5.
"""

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

from broker.actions import (
    Action,
    DepositConfirmed,
    DepositSeen,
    LockConfirmed,
    LockSigned,
    OpenChannel,
    OpeningShown,
    PeerCountersignature,
    PeerEntry,
    PeerProposal,
    PlaceOrder,
    Propose,
)
from broker.core import Core
from broker.effects import Effect, Opened, SendCountersignature, SendEntry, SendProposal, SendRefusal
from broker.records import Rows
from channel.entry import entry_from_json, entry_to_json
from channel.errors import Code, InvariantBroken
from channel.journal import runs_from_json, runs_to_json
from channel.locks import Lock, SignedLock
from channel.orders import Order, OrderType, SignedOrder, TimeInForce, order_from_json, order_to_json, sign_order
from channel.orders import verify_order as verify_user
from channel.signing import Signer, eth_sign_digest, require_signer
from channel.state import FixedPart
from channel.strictjson import dumpb, loads
from channel.terms import Market, Terms, Token
from channel.typed import Domain, collateral_domain, custody_domain
from channel.units import Address, format_hex, parse_hash, parse_hex

CHAIN_ID: Final = 31_337
ADJUDICATOR, COLLATERAL = Address(b"\xad" * 20), Address(b"\xc0" * 20)
BTC, USD = Address(b"\xb7" * 20), Address(b"\x0d" * 20)
START_MS: Final = 1_700_000_000_000
MID_TICKS: Final = 6_000_000  # 60,000.00 USD
LEVELS: Final = 20
LEVEL_LOTS: Final = 10_000_000
FUNDS: Final = 10**18
LOCK_USD: Final = 10**17
FRAME_BYTES: Final = 2**20
BUY, SELL = 0, 1


class Level(IntEnum):
    """See the module docstring."""

    CORE = 0
    WIRE = 1
    ROWS = 2


@dataclass(slots=True)
class Side:
    """One broker."""

    signer: Signer
    core: Core
    rows: Rows
    outbox: deque[Effect] = field(default_factory=deque)

    @property
    def market(self) -> Market:
        return market_of(self.signer.address)

    @property
    def domain(self) -> Domain:
        return custody_domain(CHAIN_ID, custody_of(self.signer.address))


def market_of(holder: Address) -> Market:
    """BTC/USD: lot 0.0001 BTC of 8 decimals, tick 0.01 USD of 6."""
    return Market(holder=holder, chain_id=CHAIN_ID, base=BTC, quote=USD, tick_quote=1, lot_base=10_000)


def custody_of(broker: Address) -> Address:
    return Address(b"\xcc" + broker[1:])


def terms_of(a: Address, b: Address) -> Terms:
    return Terms(
        custodies=(custody_of(a), custody_of(b)),
        collateral=COLLATERAL,
        tokens=(
            Token(address=BTC, symbol="BTC", decimals=8, haircut_bps=2_000),
            Token(address=USD, symbol="USD", decimals=6, haircut_bps=0),
        ),
        markets=(market_of(a), market_of(b)),
        cover_ratio_bps=11_000,
        value_token=USD,
        unsettled_limit=10**15,
        prices=((BTC, 60_000 * 10**6 * 10**10), (USD, 10**18)),
        grace_s=5,
        evidence_s=10,
        verdict_s=5,
        appeal_s=5,
        claim_s=60,
    )


class Pair:
    """Brokers A and B, their channel active, liquidity of a user of B at `LEVELS` prices on each side of B's book."""

    def __init__(self, level: Level) -> None:
        self.level = level
        a, b = sorted((Signer(b"\x01" * 32), Signer(b"\x02" * 32)), key=lambda signer: signer.address)
        self.a, self.b = (Side(s, Core(s, [market_of(s.address)]), Rows(s.address)) for s in (a, b))
        self.taker, self.maker = Signer(b"\x0a" * 32), Signer(b"\x0b" * 32)
        self.now_ms = START_MS
        self.terms = terms_of(a.address, b.address)
        self.fixed = FixedPart(
            chain_id=CHAIN_ID,
            participants=(a.address, b.address),
            channel_nonce=START_MS,
            app_definition=ADJUDICATOR,
            challenge_duration_s=60,
        )
        self.states = 0
        self._nonce = 0
        self._open()
        for side, user in ((self.a, self.taker), (self.b, self.maker)):
            for token in (BTC, USD):
                self.run(side, DepositSeen(user.address, token, FUNDS))
                self.run(side, DepositConfirmed(user.address, token, FUNDS))
        for step in range(1, LEVELS + 1):
            for book_side, price in ((BUY, MID_TICKS - step), (SELL, MID_TICKS + step)):
                order = self.sign(self.b, self.maker, book_side, price, LEVEL_LOTS, TimeInForce.GTC)
                self.run(self.b, PlaceOrder(order, (), price))
        self.settle()

    # -- the two nodes

    def run(self, side: Side, action: Action) -> None:
        effects = side.core.execute(action, self.now_ms)
        for effect in effects:
            match effect:
                case SendEntry() | SendProposal() | SendCountersignature() | SendRefusal():
                    side.outbox.append(effect)
                case Opened():
                    side.rows.fixed[effect.channel_id] = self.fixed
                case _:
                    pass
        if self.level is Level.ROWS:
            side.rows.statements(action, self.now_ms, effects)

    def deliver(self, sender: Side, receiver: Side) -> None:
        """Hands everything that `sender` has sent to `receiver`, oldest first."""
        while sender.outbox:
            effect = sender.outbox.popleft()
            match effect:
                case SendEntry():
                    self.run(receiver, self._entry(effect, sender, receiver))
                case SendProposal():
                    self.run(receiver, self._proposal(effect, sender))
                case SendCountersignature():
                    self.states += 1
                    self.run(receiver, self._countersignature(effect, sender))
                case _:
                    raise InvariantBroken(Code.CHANNEL_STATE, f"two honest cores do not refuse: {effect}")

    def settle(self) -> None:
        """Delivers and proposes until everything is co-signed."""
        while self.a.outbox or self.b.outbox or any(s.core.desk(self.fixed.channel_id).channel.pending for s in self):
            self.deliver(self.a, self.b)
            self.deliver(self.b, self.a)
            for side in self:
                self.run(side, Propose(self.fixed.channel_id))

    def __iter__(self) -> Iterator[Side]:
        return iter((self.a, self.b))

    # -- messages as bytes

    def _entry(self, effect: SendEntry, sender: Side, receiver: Side) -> PeerEntry:
        if self.level is Level.CORE:
            return PeerEntry(effect.entry)
        raw = loads(dumpb(entry_to_json(effect.entry)), max_bytes=FRAME_BYTES)
        domain = receiver.core.desk(effect.channel_id).domain
        return PeerEntry(entry_from_json(raw, domain, sender.signer.address, receiver.signer.address))

    def _proposal(self, effect: SendProposal, sender: Side) -> PeerProposal:
        p = effect.proposal
        runs, state_hash, signature = p.runs, p.state.state_hash, effect.signature
        if self.level is not Level.CORE:
            frame = {"runs": runs_to_json(runs), "hash": format_hex(state_hash), "sig": format_hex(signature)}
            raw = loads(dumpb(frame), max_bytes=FRAME_BYTES)
            assert isinstance(raw, dict)
            runs, state_hash = runs_from_json(raw["runs"]), parse_hash(raw["hash"])
            signature = parse_hex(raw["sig"])
            require_signer(eth_sign_digest(state_hash), signature, sender.signer.address)
        return PeerProposal(effect.channel_id, p.state.turn, p.state.is_final, p.time_ms, runs, state_hash, signature)

    def _countersignature(self, effect: SendCountersignature, sender: Side) -> PeerCountersignature:
        if self.level is not Level.CORE:
            require_signer(eth_sign_digest(effect.state_hash), effect.signature, sender.signer.address)
        return PeerCountersignature(effect.channel_id, effect.turn, effect.state_hash, effect.signature)

    # -- set-up

    def _open(self) -> None:
        for side in self:
            self.run(side, OpenChannel(self.fixed, self.terms))
        locks = [self._lock(side) for side in self]
        for turn in (0, 1):
            for side in self:
                self.run(side, LockSigned(locks[turn]))
                if turn == 1:
                    for signed in locks:
                        lock = signed.lock
                        self.run(
                            side,
                            LockConfirmed(self.fixed.channel_id, lock.owner, lock.token, lock.amount, lock.terms_hash),
                        )
            mover, other = (self.a, self.b) if turn == 0 else (self.b, self.a)
            self.run(mover, Propose(self.fixed.channel_id))
            self.deliver(mover, other)
            self.deliver(other, mover)
        for side in self:
            self.run(side, OpeningShown(self.fixed.channel_id))

    def _lock(self, owner: Side) -> SignedLock:
        lock = Lock(
            channel_id=self.fixed.channel_id,
            terms_hash=self.terms.terms_hash,
            owner=owner.signer.address,
            token=USD,
            amount=LOCK_USD,
            expiry_s=START_MS // 1000 + 10_000,
            open_by_s=START_MS // 1000 + 1_000,
        )
        digest = lock.digest(collateral_domain(CHAIN_ID, COLLATERAL))
        return SignedLock(lock=lock, signature=Signer(b"\x77" * 32).sign(digest))

    def sign(
        self, side: Side, user: Signer, book_side: int, price_ticks: int, lots: int, in_force: TimeInForce
    ) -> SignedOrder:
        self._nonce += 1
        order = Order(
            owner=user.address,
            market_id=side.market.market_id,
            side=book_side,
            order_type=OrderType.LIMIT,
            time_in_force=in_force,
            price_ticks=price_ticks,
            amount_lots=lots,
            valid_until_ms=START_MS + 3_600_000,
            nonce=self._nonce,
        )
        return sign_order(order, side.domain, user.sign)

    # -- remote orders

    def taker_orders(self, count: int) -> list[SignedOrder]:
        """IOC orders of A's user on alternating sides, one lot beyond the best price of B."""
        return [
            self.sign(self.a, self.taker, number % 2, MID_TICKS + (1 - 2 * (number % 2)), 1, TimeInForce.IOC)
            for number in range(count)
        ]

    def trade(self, orders: list[SignedOrder], window: int) -> float:
        """Places `orders` at A, `window` at a time, each window settled into a co-signed state. Returns seconds of
        processor time."""
        texts = [dumpb(order_to_json(order)) for order in orders]
        channel_id = self.fixed.channel_id
        started_s = time.process_time()
        for first in range(0, len(orders), window):
            self.now_ms += 1
            for number in range(first, min(first + window, len(orders))):
                order = orders[number]
                if self.level is not Level.CORE:
                    order = order_from_json(loads(texts[number], max_bytes=FRAME_BYTES), self.a.domain)
                    verify_user(order)
                self.run(self.a, PlaceOrder(order, ((channel_id, order.order.amount_lots),), order.order.price_ticks))
            self.settle()
        return time.process_time() - started_s
