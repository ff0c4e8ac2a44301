"""The collateral ledger: what may be locked, each refusal by its code, and a machine against a naive model."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from channel.errors import Code, InvariantBroken, LocalRefusal, PeerFault, XlnError
from channel.locks import Lock, SignedLock
from channel.state import FixedPart
from channel.units import ZERO_HASH, Address, Hash
from tests.support.journals import eth_usd_terms
from xln import locks
from xln.locks import Ledger, LockEntry, LockRequest, Stage

CHAIN_ID, NOW_S = 31337, 1_700_000_000
ADJUDICATOR, COLLATERAL = Address(b"\xad" * 20), Address(b"\xc0" * 20)
A, B, STRANGER = Address(b"\x0a" * 20), Address(b"\x0b" * 20), Address(b"\x0c" * 20)
CUSTODY = {A: Address(b"\xca" * 20), B: Address(b"\xcb" * 20)}
USD = Address(b"\x0d" * 20)
EXPIRY_S, OPEN_BY_S = 7_000, 600


def fixed_of(nonce: int = 1, **changes: Any) -> FixedPart:
    values: dict[str, Any] = {
        "chain_id": CHAIN_ID,
        "participants": (A, B),
        "channel_nonce": nonce,
        "app_definition": ADJUDICATOR,
        "challenge_duration_s": 60,
    }
    return FixedPart(**{**values, **changes})


def request_of(owner: Address = A, amount: int = 60, nonce: int = 1, **changes: Any) -> LockRequest:
    """`changes`: `fixed`, `token`, or fields of the terms."""
    fixed, token = changes.pop("fixed", fixed_of(nonce)), changes.pop("token", USD)
    custodies, collateral = changes.pop("custodies", (CUSTODY[A], CUSTODY[B])), changes.pop("collateral", COLLATERAL)
    terms = eth_usd_terms(fixed, custodies, collateral, USD, **changes)
    return LockRequest(fixed=fixed, terms=terms, owner=owner, token=token, amount=amount)


def funded(amount: int = 100) -> Ledger:
    ledger = Ledger(chain_id=CHAIN_ID, adjudicator=ADJUDICATOR, collateral=COLLATERAL, block_time_s=NOW_S)
    for broker, custody in CUSTODY.items():
        ledger = locks.broker_registered(ledger, broker, custody)
        ledger = locks.deposited(ledger, broker, USD, amount)
    return ledger


def ask(ledger: Ledger, request: LockRequest, now_s: int = NOW_S) -> Lock | LockEntry:
    return locks.admit(ledger, request, now_s=now_s, expiry_s=EXPIRY_S, open_by_s=OPEN_BY_S)


def sign(ledger: Ledger, request: LockRequest, now_s: int = NOW_S) -> tuple[Ledger, Lock]:
    lock = ask(ledger, request, now_s)
    assert isinstance(lock, Lock)
    return locks.lock_signed(ledger, SignedLock(lock=lock, signature=b"s"), request.fixed), lock


def refused(ledger: Ledger, request: LockRequest, now_s: int = NOW_S) -> Code:
    with pytest.raises(XlnError) as caught:
        ask(ledger, request, now_s)
    return caught.value.code


def test_a_lock_takes_what_is_free_and_says_until_when() -> None:
    ledger, lock = sign(funded(), request_of(amount=100))
    assert (lock.owner, lock.token, lock.amount) == (A, USD, 100)
    assert (lock.open_by_s, lock.expiry_s) == (NOW_S + OPEN_BY_S, NOW_S + EXPIRY_S)
    assert ledger.balance(A, USD).free == 0
    assert ledger.balance(B, USD).free == 100
    assert refused(ledger, request_of(amount=1, nonce=2)) is Code.LOCK_AMOUNT


@pytest.mark.parametrize("amount", [0, 101])
def test_more_than_is_free_is_refused(amount: int) -> None:
    assert refused(funded(), request_of(amount=amount)) is Code.LOCK_AMOUNT


def test_what_is_being_withdrawn_is_not_free() -> None:
    ledger = locks.withdrawal_requested(funded(), A, USD, 50)
    assert refused(ledger, request_of(amount=51)) is Code.LOCK_AMOUNT
    assert isinstance(ask(ledger, request_of(amount=50)), Lock)
    assert isinstance(ask(locks.withdrawal_cancelled(ledger, A, USD, 50), request_of(amount=100)), Lock)
    ledger = locks.withdrawn(ledger, A, USD, 50)
    assert ledger.balance(A, USD).free == 50


@pytest.mark.parametrize(
    "fixed",
    [
        fixed_of(app_definition=STRANGER),
        fixed_of(chain_id=1),
        fixed_of(participants=(B, A)),
        fixed_of(participants=(A, A)),
        fixed_of(participants=(A, B, STRANGER)),
        fixed_of(challenge_duration_s=5),
        fixed_of(participants=(B, STRANGER)),
    ],
    ids=["adjudicator", "chain", "descending", "same", "three", "challenge", "not mine"],
)
def test_a_channel_that_is_not_of_this_deployment_or_owner(fixed: FixedPart) -> None:
    request = replace(request_of(), fixed=fixed)
    assert refused(funded(), request) is Code.LOCK_CHANNEL


def test_the_other_participant_must_be_registered() -> None:
    assert refused(funded(), request_of(fixed=fixed_of(participants=(A, STRANGER)))) is Code.BROKER_UNKNOWN


@pytest.mark.parametrize(
    "request_",
    [
        request_of(custodies=(CUSTODY[B], CUSTODY[A])),
        request_of(collateral=STRANGER),
        request_of(token=STRANGER),
        replace(request_of(), terms=request_of(fixed=fixed_of(participants=(A, STRANGER))).terms),
    ],
    ids=["custodies", "collateral", "token", "markets of others"],
)
def test_terms_that_are_not_of_this_deployment(request_: LockRequest) -> None:
    assert refused(funded(), request_) is Code.LOCK_TERMS


def test_the_same_request_gets_the_same_lock_and_another_one_is_refused() -> None:
    ledger, lock = sign(funded(), request_of())
    again = ask(ledger, request_of(), NOW_S + 5)
    assert isinstance(again, LockEntry)
    assert (again.lock, again.signature) == (lock, b"s")
    assert refused(ledger, request_of(amount=59)) is Code.LOCK_EXISTS
    assert refused(ledger, request_of(amount=10**9)) is Code.LOCK_EXISTS
    assert refused(ledger, request_of(grace_s=7)) is Code.LOCK_EXISTS
    ledger = locks.advance(ledger, lock.open_by_s + 1)
    assert refused(ledger, request_of(amount=59)) is Code.LOCK_EXISTS, "once ever, also when it has lapsed"


def test_both_participants_must_name_the_same_terms_and_fixed_part() -> None:
    ledger, _ = sign(funded(), request_of(A))
    assert refused(ledger, request_of(B, grace_s=7)) is Code.LOCK_TERMS
    other = fixed_of(challenge_duration_s=61)
    assert other.channel_id == fixed_of().channel_id
    assert refused(ledger, replace(request_of(B), fixed=other)) is Code.LOCK_TERMS
    assert isinstance(ask(ledger, request_of(B)), Lock)


def test_a_lock_that_was_not_registered_in_time_frees_its_amount() -> None:
    ledger, lock = sign(funded(), request_of(amount=100))
    ledger = locks.advance(ledger, lock.open_by_s)
    assert ledger.balance(A, USD).free == 0
    ledger = locks.advance(ledger, lock.open_by_s + 1)
    assert ledger.balance(A, USD).free == 100
    assert ledger.locks[lock.channel_id, A].stage is Stage.LAPSED
    with pytest.raises(InvariantBroken):
        locks.lock_registered(ledger, lock)


def test_a_channel_that_was_not_opened_in_time_is_void() -> None:
    ledger, lock = sign(funded(), request_of())
    ledger = locks.lock_registered(ledger, lock)
    late = locks.advance(ledger, lock.open_by_s + 1)
    assert not ledger.is_void(lock.channel_id)
    assert late.is_void(lock.channel_id)
    assert refused(late, request_of(B)) is Code.LOCK_CHANNEL
    with pytest.raises(PeerFault) as caught:
        locks.channel_opened(late, lock.channel_id)
    assert caught.value.code is Code.CHANNEL_PHASE
    opened = locks.advance(locks.channel_opened(ledger, lock.channel_id), lock.open_by_s + 1)
    assert not opened.is_void(lock.channel_id)


def test_the_earliest_open_by_of_the_two_locks_counts() -> None:
    ledger, first = sign(funded(), request_of(A))
    ledger, second = sign(ledger, request_of(B), NOW_S + 100)
    assert second.open_by_s == first.open_by_s + 100
    assert locks.advance(ledger, first.open_by_s + 1).is_void(first.channel_id)


def test_registered_then_released() -> None:
    ledger, lock = sign(funded(), request_of())
    ledger = locks.lock_registered(ledger, lock)
    balance = ledger.balance(A, USD)
    assert (balance.signed, balance.registered, balance.free) == (0, 60, 40)
    ledger = locks.lock_released(ledger, lock.channel_id, A, Hash(b"t" * 32))
    assert ledger.balance(A, USD).free == 100
    assert ledger.locks[lock.channel_id, A].released_tx == b"t" * 32
    with pytest.raises(InvariantBroken):
        locks.lock_released(ledger, lock.channel_id, A, ZERO_HASH)


def test_a_lock_that_only_the_chain_knows_is_counted_and_never_void() -> None:
    _, lock = sign(funded(), request_of())
    ledger = locks.lock_registered(funded(), lock)
    assert ledger.balance(A, USD).free == 40
    assert not locks.advance(ledger, lock.open_by_s + 1).is_void(lock.channel_id)
    again = ask(ledger, request_of())
    assert isinstance(again, LockEntry)
    assert again.lock == lock
    assert refused(ledger, request_of(amount=1)) is Code.LOCK_EXISTS


def test_what_the_chain_cannot_do_breaks_an_invariant() -> None:
    ledger, lock = sign(funded(), request_of())
    with pytest.raises(InvariantBroken):
        locks.withdrawn(ledger, A, USD, 1)
    with pytest.raises(InvariantBroken):
        locks.lock_registered(ledger, replace(lock, amount=59))
    with pytest.raises(InvariantBroken):
        locks.lock_released(ledger, lock.channel_id, A, ZERO_HASH)
    with pytest.raises(InvariantBroken):
        locks.lock_signed(ledger, SignedLock(lock=replace(lock, owner=B, amount=101), signature=b""), fixed_of())


def test_locks_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "MAX_WAITING_PER_BROKER", 2)
    ledger = funded()
    for nonce in (1, 2):
        ledger, _ = sign(ledger, request_of(amount=1, nonce=nonce))
    with pytest.raises(LocalRefusal):
        ask(ledger, request_of(amount=1, nonce=3))
    assert isinstance(ask(ledger, request_of(B, amount=1, nonce=3)), Lock)


class LedgerMachine(RuleBasedStateMachine):
    """The ledger beside a naive chain that enforces the contract's rules: what the ledger signs, the chain takes."""

    brokers = st.sampled_from((A, B))
    amounts = st.integers(1, 120)

    @initialize()
    def start(self) -> None:
        self.ledger = Ledger(chain_id=CHAIN_ID, adjudicator=ADJUDICATOR, collateral=COLLATERAL, block_time_s=NOW_S)
        for broker, custody in CUSTODY.items():
            self.ledger = locks.broker_registered(self.ledger, broker, custody)
        self.now_s = NOW_S
        self.deposited = {A: 0, B: 0}
        self.withdrawing = {A: 0, B: 0}
        self.signed: dict[locks.LockKey, Lock] = {}
        self.registered: dict[locks.LockKey, Lock] = {}
        self.released: set[locks.LockKey] = set()

    def held(self, broker: Address) -> int:
        return sum(lock.amount for (_, owner), lock in self.registered.items() if owner == broker)

    def waiting(self, broker: Address) -> list[Lock]:
        return [
            lock
            for key, lock in self.signed.items()
            if key[1] == broker and key not in self.registered and key not in self.released
            and lock.open_by_s >= self.now_s
        ]  # fmt: skip

    @rule(broker=brokers, amount=amounts)
    def deposit(self, broker: Address, amount: int) -> None:
        self.deposited[broker] += amount
        self.ledger = locks.deposited(self.ledger, broker, USD, amount)

    @rule(broker=brokers, amount=amounts, nonce=st.integers(1, 12))
    def ask(self, broker: Address, amount: int, nonce: int) -> None:
        request = request_of(broker, amount, nonce)
        key = (request.fixed.channel_id, broker)
        free = self.deposited[broker] - self.held(broker) - self.withdrawing[broker]
        free -= sum(lock.amount for lock in self.waiting(broker))
        opens = [lock.open_by_s for (channel, _), lock in self.signed.items() if channel == request.fixed.channel_id]
        expected: Code | None = None
        if key in self.signed:
            expected = Code.LOCK_EXISTS if self.signed[key].amount != amount else None
        elif opens and self.now_s > min(opens):
            expected = Code.LOCK_CHANNEL
        elif amount > free:
            expected = Code.LOCK_AMOUNT
        if expected is not None:
            assert refused(self.ledger, request, self.now_s) is expected
            return
        answer = ask(self.ledger, request, self.now_s)
        if isinstance(answer, LockEntry):
            assert self.signed[key] == answer.lock
            return
        assert key not in self.signed, "a second signature for one channel and owner"
        assert amount <= free
        self.signed[key] = answer
        self.ledger = locks.lock_signed(self.ledger, SignedLock(lock=answer, signature=b"s"), request.fixed)
        total = self.held(broker) + sum(lock.amount for lock in self.waiting(broker)) + self.withdrawing[broker]
        assert total <= self.deposited[broker], "more is locked and signed than is deposited"

    @rule(broker=brokers, index=st.integers(0, 20))
    def register(self, broker: Address, index: int) -> None:
        """The chain takes a lock if the contract would."""
        waiting = self.waiting(broker)
        if not waiting:
            return
        lock = waiting[index % len(waiting)]
        if lock.amount > self.deposited[broker] - self.held(broker) - self.withdrawing[broker]:
            assert self.withdrawing[broker] or self.withdrawn_since_signing, "a signed lock does not fit the chain"
            return
        self.registered[lock.channel_id, lock.owner] = lock
        self.ledger = locks.lock_registered(self.ledger, lock)

    withdrawn_since_signing = False

    @rule(data=st.data())
    @precondition(lambda self: self.registered)
    def release(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.registered)))
        del self.registered[key]
        self.released.add(key)
        self.ledger = locks.lock_released(self.ledger, *key, ZERO_HASH)

    @rule(broker=brokers, amount=amounts)
    def request_withdrawal(self, broker: Address, amount: int) -> None:
        if self.withdrawing[broker] or amount > self.deposited[broker] - self.held(broker):
            return
        self.withdrawing[broker] = amount
        self.ledger = locks.withdrawal_requested(self.ledger, broker, USD, amount)

    @rule(broker=brokers, cancel=st.booleans())
    def end_withdrawal(self, broker: Address, cancel: bool) -> None:
        amount, self.withdrawing[broker] = self.withdrawing[broker], 0
        if amount == 0:
            return
        if cancel:
            self.ledger = locks.withdrawal_cancelled(self.ledger, broker, USD, amount)
        else:
            self.withdrawn_since_signing = True
            self.deposited[broker] -= amount
            self.ledger = locks.withdrawn(self.ledger, broker, USD, amount)

    @rule(seconds=st.integers(0, OPEN_BY_S))
    def pass_time(self, seconds: int) -> None:
        self.now_s += seconds
        self.ledger = locks.advance(self.ledger, self.now_s)

    @invariant()
    def the_books_agree(self) -> None:
        if not hasattr(self, "ledger"):
            return
        locks.check(self.ledger)
        for broker in (A, B):
            balance = self.ledger.balance(broker, USD)
            assert balance.deposited == self.deposited[broker]
            assert balance.registered == self.held(broker)
            assert balance.withdrawing == self.withdrawing[broker]
            assert balance.signed == sum(lock.amount for lock in self.waiting(broker))
            assert balance.registered + balance.withdrawing <= balance.deposited


TestLedgerMachine = LedgerMachine.TestCase
