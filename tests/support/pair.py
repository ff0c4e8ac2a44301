"""Two broker cores with a wire between them, for tests: real signatures, real protocol, no processes."""

from collections import deque
from dataclasses import dataclass, field

from broker.actions import (
    Action,
    CancelUserOrder,
    CloseChannel,
    DepositConfirmed,
    DepositSeen,
    LockConfirmed,
    LockSigned,
    OpenChannel,
    OpeningShown,
    PeerCountersignature,
    PeerEntry,
    PeerProposal,
    PeerRefusal,
    PlaceOrder,
    Propose,
    decode,
    encode,
)
from broker.core import Core
from broker.effects import (
    Answer,
    Effect,
    Journalled,
    SendCountersignature,
    SendEntry,
    SendProposal,
    SendRefusal,
)
from broker.exchange import Exchange
from channel.journal import Record
from channel.locks import Lock, SignedLock
from channel.orders import Order, OrderType, SignedOrder, TimeInForce, sign_order
from channel.signing import Signer
from channel.state import FixedPart
from channel.terms import Market, Terms, Token
from channel.transition import Phase
from channel.typed import collateral_domain, custody_domain
from channel.units import ZERO_HASH, Address, Hash

CHAIN_ID = 31337
ADJUDICATOR, COLLATERAL = Address(b"\xad" * 20), Address(b"\xc0" * 20)
BTC, USD = Address(b"\xb7" * 20), Address(b"\x0d" * 20)
NOW = 1_700_000_000_000
XLN = Signer(b"\x77" * 32)


def signers() -> tuple[Signer, Signer]:
    """A and B: the lower address first."""
    first, second = sorted((Signer(b"\x01" * 32), Signer(b"\x02" * 32)), key=lambda s: s.address)
    return first, second


def market_of(holder: Address) -> Market:
    """BTC/USD: lot 0.0001 BTC, tick 0.01 USD, BTC with 8 and USD with 6 decimals."""
    return Market(holder=holder, chain_id=CHAIN_ID, base=BTC, quote=USD, tick_quote=1, lot_base=10_000)


def terms_of(a: Address, b: Address, *, unsettled_limit: int = 10**15) -> Terms:
    return Terms(
        custodies=(custody_of(a), custody_of(b)),
        collateral=COLLATERAL,
        tokens=(
            Token(address=BTC, symbol="BTC", decimals=8, haircut_bps=2000),
            Token(address=USD, symbol="USD", decimals=6, haircut_bps=0),
        ),
        markets=(market_of(a), market_of(b)),
        cover_ratio_bps=11_000,
        value_token=USD,
        unsettled_limit=unsettled_limit,
        prices=((BTC, 60_000 * 10**6 * 10**10), (USD, 10**18)),
        grace_s=5,
        evidence_s=10,
        verdict_s=5,
        appeal_s=5,
        claim_s=60,
    )


def custody_of(broker: Address) -> Address:
    return Address(bytes([0xCC]) + broker[1:])


def user(number: int) -> Signer:
    return Signer(number.to_bytes(32, "big"))


@dataclass
class Side:
    """One broker: its core, what it has sent and journalled, and the actions to replay."""

    signer: Signer
    core: Core
    outbox: deque[Effect] = field(default_factory=deque)
    records: list[Record] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    actions: list[tuple[str, int]] = field(default_factory=list)
    sent_entries: list[SendEntry] = field(default_factory=list)
    nonce: int = 0

    @property
    def exchange(self) -> Exchange:
        return self.core.exchange

    @property
    def market(self) -> Market:
        return market_of(self.signer.address)


class Pair:
    """Brokers A and B. `run(side, action)` executes and queues; `pump()` delivers until nothing moves."""

    def __init__(self, *, lock_amount: int = 10**13, unsettled_limit: int = 10**15) -> None:
        a, b = signers()
        self.a, self.b = (Side(s, Core(s, [market_of(s.address)])) for s in (a, b))
        self.now = NOW
        self.lock_amount = lock_amount
        self.terms = terms_of(a.address, b.address, unsettled_limit=unsettled_limit)
        self.fixed = FixedPart(
            chain_id=CHAIN_ID,
            participants=(a.address, b.address),
            channel_nonce=NOW,
            app_definition=ADJUDICATOR,
            challenge_duration_s=60,
        )

    @property
    def sides(self) -> tuple[Side, Side]:
        return self.a, self.b

    def other(self, side: Side) -> Side:
        return self.b if side is self.a else self.a

    def run(self, side: Side, action: Action) -> list[Effect]:
        self.now += 1
        effects = side.core.execute(action, self.now)
        text = encode(action)
        assert decode(text, custody_domain(CHAIN_ID, custody_of(side.signer.address))) == action
        side.actions.append((text, self.now))
        for effect in effects:
            match effect:
                case SendEntry():
                    side.sent_entries.append(effect)
                    side.outbox.append(effect)
                case SendProposal() | SendCountersignature() | SendRefusal():
                    side.outbox.append(effect)
                case Journalled():
                    side.records.append(effect.record)
                case Answer():
                    side.answers.append(effect)
                case _:
                    pass
        return effects

    def deliver(self, sender: Side) -> None:
        """Hands the oldest message of `sender` to the other side."""
        receiver, effect = self.other(sender), sender.outbox.popleft()
        match effect:
            case SendEntry():
                self.run(receiver, PeerEntry(effect.entry))
            case SendProposal():
                p = effect.proposal
                action = PeerProposal(
                    effect.channel_id,
                    p.state.turn,
                    p.state.is_final,
                    p.time_ms,
                    p.runs,
                    p.state.state_hash,
                    effect.signature,
                )
                self.run(receiver, action)
            case SendCountersignature():
                self.run(
                    receiver,
                    PeerCountersignature(effect.channel_id, effect.turn, effect.state_hash, effect.signature),
                )
            case SendRefusal():
                self.run(receiver, PeerRefusal(effect.channel_id, effect.turn, effect.state_hash))
            case _:
                raise AssertionError(effect)

    def propose(self, side: Side) -> None:
        channel_id = self.fixed.channel_id
        if channel_id in side.core.desks:
            self.run(side, Propose(channel_id))

    def pump(self) -> None:
        for _ in range(100_000):
            for side in self.sides:
                if side.outbox:
                    self.deliver(side)
                    break
            else:
                for side in self.sides:
                    self.propose(side)
                if not any(side.outbox for side in self.sides):
                    return
        raise AssertionError("the two never come to rest")

    def lock(self, owner: Side) -> SignedLock:
        lock = Lock(
            channel_id=self.fixed.channel_id,
            terms_hash=self.terms.terms_hash,
            owner=owner.signer.address,
            token=USD,
            amount=self.lock_amount,
            expiry_s=NOW // 1000 + 10_000,
            open_by_s=NOW // 1000 + 1_000,
        )
        return SignedLock(lock=lock, signature=XLN.sign(lock.digest(collateral_domain(CHAIN_ID, COLLATERAL))))

    def open(self) -> None:
        for side in self.sides:
            self.run(side, OpenChannel(self.fixed, self.terms))
        locks = {id(owner): self.lock(owner) for owner in self.sides}
        for side in self.sides:
            self.run(side, LockSigned(locks[id(self.a)]))
        self.pump()  # turn 0
        for side in self.sides:
            self.run(side, LockSigned(locks[id(self.b)]))
            for owner in self.sides:
                lock = locks[id(owner)].lock
                confirmed = LockConfirmed(self.fixed.channel_id, lock.owner, lock.token, lock.amount, lock.terms_hash)
                self.run(side, confirmed)
        self.pump()  # turn 1
        for side in self.sides:
            assert self.phase(side) is Phase.ACTIVE
            self.run(side, OpeningShown(self.fixed.channel_id))

    def phase(self, side: Side) -> Phase:
        return side.core.desks[self.fixed.channel_id].channel.phase

    def deposit(self, side: Side, who: Signer, token: Address, amount: int) -> None:
        self.run(side, DepositSeen(who.address, token, amount))
        self.run(side, DepositConfirmed(who.address, token, amount))

    def order(
        self,
        side: Side,
        who: Signer,
        book_side: int,
        price: int,
        lots: int,
        *,
        tif: TimeInForce = TimeInForce.GTC,
        order_type: OrderType = OrderType.LIMIT,
        market: Market | None = None,
        replaces: Hash = ZERO_HASH,
        valid_ms: int = 3_600_000,
    ) -> SignedOrder:
        side.nonce += 1
        order = Order(
            owner=who.address,
            market_id=(market or side.market).market_id,
            side=book_side,
            order_type=order_type,
            time_in_force=tif,
            price_ticks=price,
            amount_lots=lots,
            valid_until_ms=self.now + valid_ms,
            nonce=side.nonce,
            replaces=replaces,
        )
        return sign_order(order, custody_domain(CHAIN_ID, custody_of(side.signer.address)), who.sign)

    def place(self, side: Side, signed: SignedOrder, remote_lots: int = 0, limit: int | None = None) -> Hash:
        plan = ((self.fixed.channel_id, remote_lots),) if remote_lots else ()
        self.run(side, PlaceOrder(signed, plan, limit if limit is not None else signed.order.price_ticks))
        return signed.order_id

    def cancel(self, side: Side, order_id: Hash, who: Signer) -> None:
        self.run(side, CancelUserOrder(order_id, who.address))

    def close_both(self) -> None:
        for side in self.sides:
            self.run(side, CloseChannel(self.fixed.channel_id))

    def close(self) -> None:
        self.close_both()
        self.pump()
