"""Two brokers, XLN, a chain and users, in any order of events: value is conserved and the brokers never fork.

Everything but the chain and the wire is the production code: cores, desks, replay, XLN's lock ledger and adjudication.
The chain is the simplest thing that pays what it is told; the wire delivers in order, is cut, and is synced again as
`broker.wire` does. Laws (issue 2, point 5; DESIGN section 8):

    C  per token, custody of X on chain = users + house + sum over peers (bu[X][P] - bu[P][X]), to the unit
    S  what all users, custodies and wallets have together never changes
    M  signed turns never fall and never fork: one state hash per turn and signer, the same on both sides
    V  whenever both are synced and idle, they hold the same co-signed state and the same view
    D  replaying the actions gives the identical node, and replaying the journal the identical state
    L  XLN never has more locked than is deposited
    O  what is locked of a user is exactly what his open orders need
    E  no co-signed state is uncovered, and what is matched and not co-signed never exceeds U
"""

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from broker.actions import (
    Action,
    Concluded,
    DepositConfirmed,
    DepositDropped,
    DepositSeen,
    Expire,
    PaidOut,
    PeerEntry,
    Withdraw,
    WithdrawalDone,
    WithdrawalFailed,
    decode,
)
from broker.core import Core
from broker.desk import Desk
from broker.effects import Effect, SendEntry, Signed
from broker.exchange import Withdrawal
from channel import transition
from channel.appdata import CollateralLock
from channel.errors import Code, LocalRefusal, PeerFault
from channel.journal import record_to_json
from channel.orders import OrderType, TimeInForce
from channel.replay import replay
from channel.state import FixedPart
from channel.strictjson import dumps
from channel.transition import Channel, Phase
from channel.typed import custody_domain
from channel.units import ZERO_HASH, Address, Hash
from tests.support.pair import ADJUDICATOR, BTC, CHAIN_ID, COLLATERAL, USD, XLN, Pair, Side, custody_of, market_of, user
from xln import locks
from xln.adjudication import adjudicate

TOKENS = (BTC, USD)
USERS = {0: (user(21), user(22)), 1: (user(31), user(32))}
WALLET = {BTC: 10**12, USD: 10**16}
COLLATERAL_USD = 10**12
side_of = st.integers(0, 1)
who_of = st.integers(0, 1)


ORDERS = st.tuples(
    side_of,
    who_of,
    side_of,
    st.integers(-3, 3),
    st.integers(1, 400),
    st.sampled_from((TimeInForce.GTC, TimeInForce.GTC, TimeInForce.IOC)),
    st.sampled_from((0, 0, 2, 4)),
    st.sampled_from((False, False, True)),
    st.sampled_from((10**7, 10**7, 50)),
)


class World(Pair):
    """The pair with a chain, XLN and a wire that can be cut."""

    def __init__(self) -> None:
        super().__init__(lock_amount=2 * 10**10, unsettled_limit=3 * 10**9)
        self.custody = {(i, token): 0 for i in (0, 1) for token in TOKENS}
        self.wallet = {(i, u, token): WALLET[token] for i in (0, 1) for u in (0, 1) for token in TOKENS}
        self.seen: list[tuple[int, int, Address, int]] = []
        self.turns: dict[tuple[bytes, int], bytes] = {}
        self.channels_opened = 0
        self.refused: list[str] = []
        self.signed: dict[tuple[bytes, bytes, int], bytes] = {}
        ledger = locks.Ledger(chain_id=CHAIN_ID, adjudicator=ADJUDICATOR, collateral=COLLATERAL)
        for side in self.sides:
            address = side.signer.address
            ledger = locks.broker_registered(ledger, address, custody_of(address))
            ledger = locks.deposited(ledger, address, USD, COLLATERAL_USD)
        self.xln = ledger

    def side(self, index: int) -> Side:
        return self.sides[index]

    def desk(self, side: Side) -> Desk | None:
        return side.core.desks.get(self.fixed.channel_id)

    def begin(self) -> None:
        """A channel with both locks signed by XLN and registered, up to turn 1."""
        self.channels_opened += 1
        self.fixed = FixedPart(
            chain_id=CHAIN_ID,
            participants=self.fixed.participants,
            channel_nonce=self.now + self.channels_opened,
            app_definition=ADJUDICATOR,
            challenge_duration_s=60,
        )
        for side in self.sides:
            side.records.clear()
            request = locks.LockRequest(
                fixed=self.fixed, terms=self.terms, owner=side.signer.address, token=USD, amount=self.lock_amount
            )
            lock = locks.admit(self.xln, request, now_s=self.now // 1000, expiry_s=10_000, open_by_s=1_000)
            assert not isinstance(lock, locks.LockEntry)
            signed = self.lock(side)
            self.xln = locks.lock_signed(self.xln, signed, self.fixed)
            self.xln = locks.lock_registered(self.xln, signed.lock)
        self.open()

    def run(self, side: Side, action: Action) -> list[Effect]:
        effects = super().run(side, action)
        for effect in effects:
            if isinstance(effect, Signed):
                key = (side.signer.address, effect.channel_id, effect.turn)
                assert self.signed.setdefault(key, effect.state_hash) == effect.state_hash, "two states for one turn"
        return effects

    def reconnect(self) -> None:
        """What was under way is lost; each sends what the other lacks, as `Wire._send_missing` does."""
        for side in self.sides:
            side.outbox.clear()
        for side in self.sides:
            desk, other = self.desk(side), self.desk(self.other(side))
            if desk is None or other is None:
                continue
            received = other.channel.view.last_seq[desk.me]
            for pending in desk.channel.pending:
                if pending.sender == desk.me and pending.entry.seq > received:
                    side.outbox.append(SendEntry(desk.channel_id, pending.entry))
            cosigned = other.channel.cosigned
            side.outbox.extend(desk.resend(cosigned.state.turn if cosigned is not None else -1))

    def step(self, sender: Side) -> None:
        """Delivers one message; what is refused for a gap is synced, as the wire does."""
        try:
            self.deliver(sender)
        except PeerFault as fault:
            assert fault.code in (
                Code.CHANNEL_ENTRIES,
                Code.ENTRY_GAP,
                Code.CHANNEL_PHASE,
                Code.CHANNEL_TURN,
                Code.CHANNEL_FINAL,
            ), fault
            self.refused.append(str(fault))
            if fault.code in (Code.CHANNEL_ENTRIES, Code.ENTRY_GAP):
                self.reconnect()

    def settle(self) -> None:
        """Delivers and proposes until nothing moves."""
        self.reconnect()
        for _ in range(10_000):
            sender = next((s for s in self.sides if s.outbox), None)
            if sender is not None:
                self.step(sender)
                continue
            for side in self.sides:
                self.propose(side)
            if not any(s.outbox for s in self.sides):
                waiting = [s for s in self.sides if (desk := self.desk(s)) is not None and desk.outstanding is not None]
                if not waiting:
                    return
                self.reconnect()  # in time, the tick sends again what nobody has answered
        state = [
            (d.channel.phase, d.channel.next_turn, len(d.channel.pending), len(d.channel.view.orders), d.last_refusal)
            for d in map(self.desk, self.sides)
            if d is not None
        ]
        raise AssertionError(f"the two never come to rest: {state} {self.refused[-3:]}")


class TwoBrokers(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.world = World()
        self.world.begin()
        for i in (0, 1):
            for u in (0, 1):
                for token, amount in ((BTC, 10**9), (USD, 10**13)):
                    self._deposit(i, u, token, amount)
                    self._confirm()

    # -- chain and users

    def _deposit(self, i: int, u: int, token: Address, amount: int) -> None:
        w = self.world
        amount = min(amount, w.wallet[(i, u, token)])
        w.wallet[(i, u, token)] -= amount
        w.custody[(i, token)] += amount
        w.seen.append((i, u, token, amount))
        w.run(w.side(i), DepositSeen(USERS[i][u].address, token, amount))

    def _confirm(self) -> None:
        i, u, token, amount = self.world.seen.pop(0)
        self.world.run(self.world.side(i), DepositConfirmed(USERS[i][u].address, token, amount))

    @rule(i=side_of, u=who_of, token=st.sampled_from(TOKENS), amount=st.integers(1, 10**10))
    def deposit(self, i: int, u: int, token: Address, amount: int) -> None:
        self._deposit(i, u, token, amount)

    @precondition(lambda self: self.world.seen)
    @rule(dropped=st.booleans())
    def confirm_or_reorg(self, dropped: bool) -> None:
        if not dropped:
            self._confirm()
            return
        w = self.world
        i, u, token, amount = w.seen.pop()
        w.custody[(i, token)] -= amount
        w.wallet[(i, u, token)] += amount
        w.run(w.side(i), DepositDropped(USERS[i][u].address, token, amount))

    @rule(i=side_of, u=who_of, token=st.sampled_from(TOKENS), amount=st.integers(1, 10**9), fails=st.booleans())
    def withdraw(self, i: int, u: int, token: Address, amount: int, fails: bool) -> None:
        w = self.world
        withdrawal_id = Hash(w.now.to_bytes(32, "big"))
        address = USERS[i][u].address
        request = Withdrawal(withdrawal_id, address, token, amount, address, 2**40, b"s" * 65)
        try:
            w.run(w.side(i), Withdraw(request))
        except LocalRefusal as refusal:
            assert refusal.code is Code.BALANCE
            return
        if fails:
            w.run(w.side(i), WithdrawalFailed(withdrawal_id))
            return
        assert w.custody[(i, token)] >= amount, "custody would be short"
        w.custody[(i, token)] -= amount
        w.wallet[(i, u, token)] += amount
        w.run(w.side(i), WithdrawalDone(withdrawal_id))

    # -- orders

    @rule(orders=st.lists(ORDERS, min_size=2, max_size=8))
    def trade(self, orders: list[tuple[Any, ...]]) -> None:
        """Several orders in a row, so that they meet; `share` quarters of each are routed to the peer."""
        w = self.world
        for i, u, side, offset, lots, tif, share, away, valid_ms in orders:
            here = w.side(i)
            market = market_of(w.other(here).signer.address) if away else here.market
            price = 6_000_000 + offset
            signed = w.order(here, USERS[i][u], side, price, lots, tif=tif, market=market, valid_ms=valid_ms)
            try:
                w.place(here, signed, remote_lots=0 if away else lots * share // 4)
            except LocalRefusal as refusal:
                assert refusal.code in _REFUSALS, refusal

    @rule(i=side_of, u=who_of, side=side_of, lots=st.integers(1, 400), share=st.integers(1, 4))
    def market_order(self, i: int, u: int, side: int, lots: int, share: int) -> None:
        w = self.world
        here = w.side(i)
        signed = w.order(here, USERS[i][u], side, 0, lots, tif=TimeInForce.IOC, order_type=OrderType.MARKET)
        try:
            w.place(here, signed, remote_lots=lots * share // 4, limit=6_000_020 if side == 0 else 5_999_980)
        except LocalRefusal as refusal:
            assert refusal.code in _REFUSALS, refusal

    @rule(i=side_of, pick=st.integers(0, 1000))
    def cancel(self, i: int, pick: int) -> None:
        here = self.world.side(i)
        orders = list(here.exchange.orders.items())
        if orders:
            order_id, live = orders[pick % len(orders)]
            who = next(s for s in USERS[i] if s.address == live.owner)
            self.world.cancel(here, order_id, who)

    @rule(i=side_of, pick=st.integers(0, 1000), price=st.integers(5_999_997, 6_000_003), lots=st.integers(1, 400))
    def amend(self, i: int, pick: int, price: int, lots: int) -> None:
        w = self.world
        here = w.side(i)
        orders = [o for o in here.exchange.orders.items() if o[1].market == here.market]
        if not orders:
            return
        order_id, live = orders[pick % len(orders)]
        who = next(s for s in USERS[i] if s.address == live.owner)
        signed = w.order(here, who, live.side, price, lots, replaces=order_id)
        try:
            w.place(here, signed)
        except LocalRefusal as refusal:
            assert refusal.code in (*_REFUSALS, Code.ORDER_TYPE), refusal

    @rule(i=side_of, ms=st.integers(1, 200))
    def expire(self, i: int, ms: int) -> None:
        self.world.now += ms
        self.world.run(self.world.side(i), Expire())

    # -- the wire, crashes

    @rule(i=side_of, count=st.integers(1, 12))
    def deliver(self, i: int, count: int) -> None:
        for _ in range(count):
            if self.world.side(i).outbox:
                self.world.step(self.world.side(i))

    @rule(i=side_of)
    def propose(self, i: int) -> None:
        self.world.propose(self.world.side(i))

    @rule()
    def rest(self) -> None:
        """Everything arrives, and everything is co-signed."""
        self.world.settle()

    @rule()
    def cut(self) -> None:
        self.world.reconnect()

    @rule(i=side_of)
    def duplicate(self, i: int) -> None:
        """An entry comes twice: it is executed once. (The wire answers it again from the store.)"""
        here = self.world.side(i)
        if here.sent_entries:
            entry = here.sent_entries[-1].entry
            other = self.world.other(here)
            desk = self.world.desk(other)
            if desk is not None and entry.seq <= desk.channel.view.last_seq[1 - desk.me]:
                try:
                    self.world.run(other, PeerEntry(entry))
                except PeerFault as fault:
                    assert fault.code in (Code.ENTRY_GAP, Code.CHANNEL_PHASE, Code.CHANNEL_UNKNOWN)
                else:
                    raise AssertionError("executed twice")

    @rule(i=side_of)
    def crash(self, i: int) -> None:
        """Killed and started again: the node is what its journalled actions make of it."""
        here = self.world.side(i)
        twin = Core(here.signer, [here.market])
        domain = custody_domain(CHAIN_ID, custody_of(here.signer.address))
        for text, now in here.actions:
            twin.execute(decode(text, domain), now)
        for channel_id, desk in here.core.desks.items():
            assert twin.desks[channel_id].channel == desk.channel
        for token in TOKENS:
            assert twin.exchange.ledger.totals(token) == here.exchange.ledger.totals(token)
        here.core = twin
        self.world.reconnect()

    # -- the end of a channel

    @precondition(lambda self: self.world.channels_opened < 3)
    @rule(order=st.booleans())
    def close_pay_and_open_again(self, order: bool) -> None:
        w = self.world
        w.settle()
        w.close_both()
        w.settle()
        channel_id = w.fixed.channel_id
        journals = tuple([dumps(record_to_json(r, w.fixed)) for r in side.records] for side in w.sides)
        assert {w.phase(side) for side in w.sides} == {Phase.FINAL}
        verdict = adjudicate(w.fixed, w.terms, XLN.address, (journals[0], journals[1]))
        for side in w.sides:
            w.run(side, Concluded(channel_id))
        for rows in verdict.rows if order else reversed(verdict.rows):
            payer = next(i for i in (0, 1) if custody_of(w.side(i).signer.address) == rows.custody)
            for token, amount in zip(rows.tokens, rows.amounts, strict=True):
                assert w.custody[(payer, token)] >= amount, "a custody is short of what it owes"
                w.custody[(payer, token)] -= amount
                w.custody[(1 - payer, token)] += amount
                for i in (0, 1):
                    w.run(w.side(i), PaidOut(channel_id, token, amount, i == payer))
        for side in w.sides:
            assert w.phase(side) is Phase.SETTLED
            self.xln_release(side)
        w.begin()

    def xln_release(self, side: Side) -> None:
        w = self.world
        w.xln = locks.lock_released(w.xln, w.fixed.channel_id, side.signer.address, Hash(b"\x01" * 32))

    # -- laws

    @invariant()
    def identity(self) -> None:
        w = self.world
        for i, side in enumerate(w.sides):
            side.exchange.check()
            side.exchange.ledger.recount()
            for token in TOKENS:
                totals = side.exchange.ledger.totals(token)
                net = sum(side.exchange.channel_net(d).get(token, 0) for d in side.core.desks.values())
                assert w.custody[(i, token)] == totals.users + totals.house + net

    @invariant()
    def nothing_appears_or_vanishes(self) -> None:
        w = self.world
        for token in TOKENS:
            wallets = sum(v for (_, _, t), v in w.wallet.items() if t == token)
            custodies = sum(v for (_, t), v in w.custody.items() if t == token)
            assert wallets + custodies == 4 * WALLET[token]

    @invariant()
    def turns_never_fork(self) -> None:
        for side in self.world.sides:
            for channel_id, desk in side.core.desks.items():
                cosigned = desk.channel.cosigned
                if cosigned is not None:
                    key = (channel_id, cosigned.state.turn)
                    assert self.world.turns.setdefault(key, cosigned.state.state_hash) == cosigned.state.state_hash
                    transition.check(desk.channel)

    @invariant()
    def locked_is_what_open_orders_need(self) -> None:
        for i, side in enumerate(self.world.sides):
            needed: dict[tuple[Address, Address], int] = {}
            for live in side.exchange.orders.values():
                key = (live.owner, live.pays)
                needed[key] = needed.get(key, 0) + live.needs(live.local_lots + live.remote_lots)
            for who in USERS[i]:
                for token in TOKENS:
                    locked = side.exchange.ledger.balance(who.address, token).locked
                    assert locked == needed.get((who.address, token), 0)

    @invariant()
    def exposure_is_bounded(self) -> None:
        for side in self.world.sides:
            for desk in side.core.desks.values():
                channel = desk.channel
                for debtor in (0, 1):
                    assert _value_owed(channel, debtor) * 11 <= (channel.locks[debtor] or NO_LOCK).locked * 10
                assert channel.unsettled_value <= channel.terms.unsettled_limit

    @invariant()
    def xln_is_sound(self) -> None:
        locks.check(self.world.xln)

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        w = self.world
        w.settle()
        a, b = (w.desk(side) for side in w.sides)
        assert a is not None
        assert b is not None
        assert a.channel.cosigned is not None
        assert b.channel.cosigned is not None
        assert a.channel.cosigned.state.state_hash == b.channel.cosigned.state.state_hash
        assert a.channel.view == b.channel.view
        for side in w.sides:
            result = replay(w.fixed, w.terms, XLN.address, side.records)
            assert result.last is not None
            assert result.last.state.state_hash == a.channel.cosigned.state.state_hash
        self.identity()


NO_LOCK = CollateralLock(owner=ADJUDICATOR, lock_id=ZERO_HASH, chain_id=CHAIN_ID, token=USD, available=0, locked=0)


def _value_owed(channel: Channel, debtor: int) -> int:
    """In base units of USD, by hand: what is owed, and what every open order could add at its limit."""
    position = channel.position
    btc, usd = position.owed(debtor, BTC), position.owed(debtor, USD)
    for order in position.orders.values():
        pays_usd = (order.owner == debtor) == (order.side == 0)
        usd += order.price_ticks * order.left_lots if pays_usd else 0
        btc += 0 if pays_usd else order.left_lots * 10_000
    return usd + btc * 60_000 * 10**6 // 10**8


_REFUSALS: tuple[Any, ...] = (
    Code.ORDER_BALANCE,
    Code.ORDER_UNCOVERED,
    Code.ORDER_LIMIT,
    Code.CHANNEL_PHASE,
    Code.ORDER_MARKET,
)

TestTwoBrokers = TwoBrokers.TestCase
