"""The collateral ledger: what each broker has deposited, what is locked of it, and which locks XLN has signed. Pure.

    free = deposited - registered - withdrawing - signed          per broker and token, in base units

`deposited`, `registered` and `withdrawing` are what the chain shows with enough confirmations; `signed` are locks that
XLN has signed and that the chain does not show yet. A lock's life:

    stage        reached by                                           counts as    leaves it
    -----------  ---------------------------------------------------  -----------  -----------------------------------
    SIGNED       `lock_signed`                                        signed       LockRegistered; openBy has passed
    REGISTERED   LockRegistered                                       registered   LockReleased
    LAPSED       confirmed block time above openBy, not registered    nothing      -
    RELEASED     LockReleased                                         nothing      -

What is missing in this table breaks an invariant, since the contract does not do it. Invariants:

1. A lock is signed only while its amount is free, so that signed + registered + withdrawing <= deposited then.
2. registered + withdrawing <= deposited, always (the contract's own rule, checked again on every event).
3. One lock per (channel, owner), ever; one FixedPart and one set of terms per channel.
4. A channel whose second co-signed state was not shown to XLN by the earliest openBy of its locks is void: no lock of
   it is signed any more, and those that are registered may be released.

Block times are those of the last confirmed block, so that a lock lapses only when it can no longer be registered.
DESIGN sections 4 (life, step 1) and 7.
"""

from dataclasses import dataclass, field, replace
from enum import Enum

from immutables import Map

from channel.errors import Code, InvariantBroken, LocalRefusal, PeerFault
from channel.locks import Lock, SignedLock
from channel.state import FixedPart
from channel.terms import Terms
from channel.transition import open_channel
from channel.units import Address, ChannelId, Hash, format_address, format_hex

MAX_WAITING_PER_BROKER = 256  # locks signed and not registered: each ends with its openBy

LockKey = tuple[ChannelId, Address]
BalanceKey = tuple[Address, Address]  # broker, token


class Stage(Enum):
    SIGNED = "signed"
    REGISTERED = "registered"
    LAPSED = "lapsed"
    RELEASED = "released"


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """Collateral of one broker in one token, base units. See the module docstring."""

    deposited: int = 0
    registered: int = 0
    withdrawing: int = 0
    signed: int = 0

    @property
    def free(self) -> int:
        """Negative when a broker withdraws what stands behind a lock that is signed and not registered."""
        return self.deposited - self.registered - self.withdrawing - self.signed


@dataclass(frozen=True, slots=True, kw_only=True)
class LockEntry:
    """A lock and where it stands. `signature` is empty when only the chain knows the lock (XLN has lost its database).

    `released_tx`: the transaction that released it.
    """

    lock: Lock
    signature: bytes
    stage: Stage
    released_tx: Hash | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelEntry:
    """What all locks of one channel share. `open_by_s`: the earliest of its locks.

    `fixed` is None for a channel that only the chain knows; such a channel counts as opened: it is not void because XLN
    has forgotten it.
    """

    terms_hash: Hash
    open_by_s: int
    fixed: FixedPart | None
    opened: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """All of it, for one deployment. `brokers`: the custody of each registered broker."""

    chain_id: int
    adjudicator: Address
    collateral: Address
    block_time_s: int = 0
    brokers: Map[Address, Address] = field(default_factory=Map)
    balances: Map[BalanceKey, Balance] = field(default_factory=Map)
    locks: Map[LockKey, LockEntry] = field(default_factory=Map)
    waiting: Map[LockKey, int] = field(default_factory=Map)
    channels: Map[ChannelId, ChannelEntry] = field(default_factory=Map)

    def balance(self, broker: Address, token: Address) -> Balance:
        return self.balances.get((broker, token), Balance())

    def is_void(self, channel_id: ChannelId) -> bool:
        entry = self.channels.get(channel_id)
        return entry is not None and not entry.opened and self.block_time_s > entry.open_by_s

    def locks_of(self, channel_id: ChannelId) -> tuple[LockEntry, ...]:
        """The locks of a channel that this ledger knows by its FixedPart, in the order of the participants."""
        channel = self.channels.get(channel_id)
        owners = channel.fixed.participants if channel is not None and channel.fixed is not None else ()
        return tuple(entry for owner in owners if (entry := self.locks.get((channel_id, owner))) is not None)


# ---- signing


@dataclass(frozen=True, slots=True, kw_only=True)
class LockRequest:
    """What a broker asks for. `amount` in base units."""

    fixed: FixedPart
    terms: Terms
    owner: Address
    token: Address
    amount: int


def admit(ledger: Ledger, request: LockRequest, *, now_s: int, expiry_s: int, open_by_s: int) -> Lock | LockEntry:
    """The lock to sign, or the entry that the same request has led to before.

    `now_s` is block time, `expiry_s` and `open_by_s` are seconds from then. Raises, in this order: PeerFault
    LOCK_CHANNEL (a FixedPart that is not of this deployment or not of this owner, or a void channel), LOCK_EXISTS,
    BROKER_UNKNOWN (the other participant), LOCK_TERMS, LOCK_AMOUNT; LocalRefusal BUSY.
    """
    fixed, terms, owner = request.fixed, request.terms, request.owner
    channel_id = fixed.channel_id
    _require_channel(ledger, request)
    known = ledger.locks.get((channel_id, owner))
    if known is not None:
        lock = known.lock
        _require_agreed(ledger.channels[channel_id], request, Code.LOCK_EXISTS)
        if (lock.token, lock.amount) != (request.token, request.amount):
            raise PeerFault(Code.LOCK_EXISTS, "there is another lock for this channel and owner; one is the most, ever")
        return known
    if ledger.is_void(channel_id):
        raise PeerFault(Code.LOCK_CHANNEL, "the channel was not opened in time and is void: open one with a new nonce")
    for participant in fixed.participants:
        if participant not in ledger.brokers:
            raise PeerFault(Code.BROKER_UNKNOWN, f"{format_address(participant)} is not registered in XlnCollateral")
    _require_terms(ledger, request)
    _require_amount(ledger, request)
    if sum(1 for _, waiting_owner in ledger.waiting if waiting_owner == owner) >= MAX_WAITING_PER_BROKER:
        raise LocalRefusal(Code.BUSY, f"{MAX_WAITING_PER_BROKER} locks of this broker wait to be registered on chain")
    return Lock(
        channel_id=channel_id,
        terms_hash=terms.terms_hash,
        owner=owner,
        token=request.token,
        amount=request.amount,
        expiry_s=now_s + expiry_s,
        open_by_s=now_s + open_by_s,
    )


def _require_channel(ledger: Ledger, request: LockRequest) -> None:
    fixed = request.fixed
    try:
        fixed.require_ours(ledger.adjudicator, ledger.chain_id, request.terms.shortest_challenge_s)
        fixed.index_of(request.owner)
    except PeerFault as fault:
        raise PeerFault(Code.LOCK_CHANNEL, fault.message) from fault


def _require_agreed(channel: ChannelEntry, request: LockRequest, code: Code) -> None:
    """`channelId` covers neither the terms nor challengeDuration: both sides must have said the same."""
    if channel.terms_hash != request.terms.terms_hash:
        raise PeerFault(code, f"the terms of this channel are {format_hex(channel.terms_hash)}, and these are others")
    if channel.fixed is not None and channel.fixed != request.fixed:
        raise PeerFault(code, "the FixedPart of this channel is another one (challengeDuration)")


def _require_terms(ledger: Ledger, request: LockRequest) -> None:
    fixed, terms = request.fixed, request.terms
    channel = ledger.channels.get(fixed.channel_id)
    if channel is not None:
        _require_agreed(channel, request, Code.LOCK_TERMS)
    if terms.collateral != ledger.collateral:
        raise PeerFault(Code.LOCK_TERMS, f"the terms must name the collateral {format_address(ledger.collateral)}")
    for participant, custody in zip(fixed.participants, terms.custodies, strict=True):
        if ledger.brokers[participant] != custody:
            right = format_address(ledger.brokers[participant])
            raise PeerFault(Code.LOCK_TERMS, f"the custody of {format_address(participant)} is {right}")
    try:
        terms.token(request.token)
        open_channel(fixed, terms, request.owner)
    except PeerFault as fault:
        raise PeerFault(Code.LOCK_TERMS, fault.message) from fault


def _require_amount(ledger: Ledger, request: LockRequest) -> None:
    free = max(0, ledger.balance(request.owner, request.token).free)
    if not 0 < request.amount <= free:
        raise PeerFault(
            Code.LOCK_AMOUNT,
            f"a lock is above 0 and at most what is deposited, confirmed and free: {free} base units",
            free=str(free),
        )


def lock_signed(ledger: Ledger, signed: SignedLock, fixed: FixedPart) -> Ledger:
    """A lock that `admit` gave has been signed. Raises InvariantBroken CONSERVATION when it does not fit."""
    lock = signed.lock
    key = (lock.channel_id, lock.owner)
    balance = ledger.balance(lock.owner, lock.token)
    if key in ledger.locks or lock.amount > balance.free or fixed.channel_id != lock.channel_id:
        raise InvariantBroken(Code.CONSERVATION, "a lock was signed that the ledger has no room for")
    channel = ledger.channels.get(lock.channel_id)
    if channel is None:
        channel = ChannelEntry(terms_hash=lock.terms_hash, open_by_s=lock.open_by_s, fixed=fixed)
    elif not channel.opened:
        channel = replace(channel, open_by_s=min(channel.open_by_s, lock.open_by_s))
    return replace(
        ledger,
        locks=ledger.locks.set(key, LockEntry(lock=lock, signature=signed.signature, stage=Stage.SIGNED)),
        waiting=ledger.waiting.set(key, lock.open_by_s),
        channels=ledger.channels.set(lock.channel_id, channel),
        balances=ledger.balances.set((lock.owner, lock.token), replace(balance, signed=balance.signed + lock.amount)),
    )


def channel_named(ledger: Ledger, fixed: FixedPart) -> Ledger:
    """The FixedPart of a channel that only the chain knew."""
    channel = ledger.channels[fixed.channel_id]
    return replace(ledger, channels=ledger.channels.set(fixed.channel_id, replace(channel, fixed=fixed)))


def channel_opened(ledger: Ledger, channel_id: ChannelId) -> Ledger:
    """The co-signed state with both locks was shown in time. Raises PeerFault CHANNEL_PHASE for a void channel."""
    if ledger.is_void(channel_id):
        raise PeerFault(Code.CHANNEL_PHASE, "the channel was not shown as opened by openBy and is void")
    channel = ledger.channels[channel_id]
    return replace(ledger, channels=ledger.channels.set(channel_id, replace(channel, opened=True)))


# ---- what the chain shows, confirmed, in its order


def broker_registered(ledger: Ledger, broker: Address, custody: Address) -> Ledger:
    return replace(ledger, brokers=ledger.brokers.set(broker, custody))


def deposited(ledger: Ledger, broker: Address, token: Address, amount: int) -> Ledger:
    return _shift(ledger, broker, token, deposited=amount)


def withdrawal_requested(ledger: Ledger, broker: Address, token: Address, amount: int) -> Ledger:
    return _shift(ledger, broker, token, withdrawing=amount)


def withdrawal_cancelled(ledger: Ledger, broker: Address, token: Address, amount: int) -> Ledger:
    return _shift(ledger, broker, token, withdrawing=-amount)


def withdrawn(ledger: Ledger, broker: Address, token: Address, amount: int) -> Ledger:
    return _shift(ledger, broker, token, deposited=-amount, withdrawing=-amount)


def lock_registered(ledger: Ledger, lock: Lock) -> Ledger:
    """Also for a lock that this ledger does not know, which XLN must have signed before it lost its database."""
    key = (lock.channel_id, lock.owner)
    known = ledger.locks.get(key)
    if known is not None and (known.stage is not Stage.SIGNED or known.lock != lock):
        raise InvariantBroken(Code.CONSERVATION, f"the chain registers a lock that is {known.stage.value} here")
    signature, channels = b"", ledger.channels
    if known is not None:
        signature = known.signature
    elif lock.channel_id not in channels:
        entry = ChannelEntry(terms_hash=lock.terms_hash, open_by_s=lock.open_by_s, fixed=None, opened=True)
        channels = channels.set(lock.channel_id, entry)
    ledger = replace(
        ledger,
        locks=ledger.locks.set(key, LockEntry(lock=lock, signature=signature, stage=Stage.REGISTERED)),
        waiting=ledger.waiting.delete(key) if key in ledger.waiting else ledger.waiting,
        channels=channels,
    )
    unsigned = -lock.amount if known is not None else 0
    return _shift(ledger, lock.owner, lock.token, registered=lock.amount, signed=unsigned)


def lock_released(ledger: Ledger, channel_id: ChannelId, owner: Address, tx_hash: Hash) -> Ledger:
    key = (channel_id, owner)
    known = ledger.locks.get(key)
    if known is None or known.stage is not Stage.REGISTERED:
        raise InvariantBroken(Code.CONSERVATION, "the chain releases a lock that it has not registered")
    ledger = replace(ledger, locks=ledger.locks.set(key, replace(known, stage=Stage.RELEASED, released_tx=tx_hash)))
    return _shift(ledger, owner, known.lock.token, registered=-known.lock.amount)


def advance(ledger: Ledger, block_time_s: int) -> Ledger:
    """All blocks up to this time are confirmed: what was not registered by its openBy lapses. Time never falls."""
    if block_time_s <= ledger.block_time_s:
        return ledger
    ledger = replace(ledger, block_time_s=block_time_s)
    for key in [key for key, open_by_s in ledger.waiting.items() if block_time_s > open_by_s]:
        entry = ledger.locks[key]
        ledger = replace(
            ledger,
            locks=ledger.locks.set(key, replace(entry, stage=Stage.LAPSED)),
            waiting=ledger.waiting.delete(key),
        )
        ledger = _shift(ledger, entry.lock.owner, entry.lock.token, signed=-entry.lock.amount)
    return ledger


def _shift(
    ledger: Ledger,
    broker: Address,
    token: Address,
    *,
    deposited: int = 0,
    registered: int = 0,
    withdrawing: int = 0,
    signed: int = 0,
) -> Ledger:
    old = ledger.balance(broker, token)
    new = Balance(
        deposited=old.deposited + deposited,
        registered=old.registered + registered,
        withdrawing=old.withdrawing + withdrawing,
        signed=old.signed + signed,
    )
    if min(new.deposited, new.registered, new.withdrawing, new.signed) < 0 or (
        new.registered + new.withdrawing > new.deposited
    ):
        raise InvariantBroken(
            Code.CONSERVATION,
            f"the collateral of {format_address(broker)} does not add up: deposited {new.deposited}, locked"
            f" {new.registered}, on its way out {new.withdrawing}, signed {new.signed}",
        )
    return replace(ledger, balances=ledger.balances.set((broker, token), new))


def check(ledger: Ledger) -> None:
    """The sums behind the balances, recomputed from the locks: after a start, and in tests. Raises InvariantBroken."""
    sums: dict[BalanceKey, list[int]] = {}
    for (_, owner), entry in ledger.locks.items():
        pair = sums.setdefault((owner, entry.lock.token), [0, 0])
        if entry.stage is Stage.SIGNED:
            pair[0] += entry.lock.amount
        elif entry.stage is Stage.REGISTERED:
            pair[1] += entry.lock.amount
    for key in {*sums, *ledger.balances}:
        signed, registered = sums.get(key, [0, 0])
        balance = ledger.balances.get(key, Balance())
        if (balance.signed, balance.registered) != (signed, registered):
            raise InvariantBroken(Code.CONSERVATION, "the sums of locks are not what the balances say")
