"""Two sides of a channel under every order of events: entries in flight, crossing turns, refusals, lost connections.

Invariants, after every step:

1. `check` holds on both sides: the outcome follows from the balances, the view is the fold of the entries.
2. What each side thinks is owed is what a naive ledger adds up from the entries that this side has.
3. Both sides co-signed the same state at every turn that both have; turns strictly increase (in `Side`).
4. Nothing co-signed is uncovered.
5. Nothing that an honest side sends is an error to the other: every exception fails the run.

And at the end, with everything delivered, both are at the same co-signed state, with nothing pending; a channel that
either wanted to close is final, and both journals replay to that state.
"""

import json
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from channel.calls import MAX_BATCH
from channel.entry import Entry
from channel.exposure import is_covered
from channel.position import OpenOrder, Position, shift_worst
from channel.replay import replay, require_authorised
from channel.transition import Phase, check, propose
from channel.units import format_hex
from tests.support.channels import (
    BUY,
    ETH,
    FIXED,
    SELL,
    START_MS,
    TERMS,
    USD,
    XLN,
    Side,
    create_call,
    deliver,
    market_of,
    order_record,
    user_order,
)

LOCK_USD = 40 * 10**6  # 33 USD of cover: a few orders of up to 10 lots of ETH at 200 USD, so that cover binds
PRICE = 20_000
SIDES = st.sampled_from((0, 1))
LOTS = st.integers(1, 300)


def naive_net(entries: list[Entry]) -> dict[bytes, int]:
    """What participant 1 owes participant 0, per token, added up with nothing of ours but the sign convention."""
    orders: dict[tuple[int, int], str] = {}
    net = {ETH: 0, USD: 0}
    for entry in entries:
        by = FIXED.participants.index(entry.sender)
        body = json.loads(entry.body)
        for index, call in enumerate(body if isinstance(body, list) else [body]):
            params = call.get("params", {})
            if call["method"] == "order.create":
                orders[by, entry.seq * 512 + index] = params["side"]
            for price, lots, _ in params.get("fills", []):
                owner = 1 - by
                eth, usd = lots * 10**14, lots * price
                buys = orders[owner, params["order"]] == "b"
                owner_gets = {ETH: eth if buys else -eth, USD: -usd if buys else usd}
                for token, amount in owner_gets.items():
                    net[token] += amount if owner == 0 else -amount
    return {token: amount for token, amount in net.items() if amount}


class ChannelMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.sides = (Side(0, lock_amount=LOCK_USD).opened(), Side(1, lock_amount=LOCK_USD).opened())
        self.nonce = 0

    @initialize()
    def open(self) -> None:
        self._settle_down()

    # -- what users and venues do

    def _covered(self, position: Position) -> bool:
        return all(is_covered(position, i, self.sides[0].channel.locks[i], TERMS) for i in (0, 1))

    @rule(by=SIDES, side=st.sampled_from((BUY, SELL)), away=st.integers(-50, 50), lots=LOTS, arrives=st.booleans())
    def create(self, by: int, side: int, away: int, lots: int, arrives: bool) -> None:
        me = self.sides[by]
        view, price = me.channel.view, PRICE + away
        order = OpenOrder(by, 0, market_of(1 - by), side, price, lots, FIXED.channel_id)  # type: ignore[arg-type]
        if me.channel.phase is Phase.ACTIVE and self._covered(
            Position(net=view.net, worst=shift_worst(view.worst, order, lots))
        ):
            self.nonce += 1
            me.send_create(side, price, lots, nonce=self.nonce)
        if arrives:
            deliver(me, self.sides[1 - by])

    def _open_at(self, venue: int) -> list[OpenOrder]:
        return [o for o in self.sides[venue].channel.view.orders.values() if o.owner != venue]

    def _venues(self) -> list[int]:
        """Those at which something is open."""
        return [venue for venue in (0, 1) if self._open_at(venue)]

    def _filling_venues(self) -> list[int]:
        channels = [side.channel for side in self.sides]
        return [v for v in self._venues() if channels[v].phase is Phase.ACTIVE and self._covered(channels[v].view)]

    @precondition(lambda self: self._filling_venues())
    @rule(data=st.data())
    def fill(self, data: st.DataObject) -> None:
        venue = data.draw(st.sampled_from(self._filling_venues()))
        me = self.sides[venue]
        order = data.draw(st.sampled_from(self._open_at(venue)))
        lots = data.draw(st.integers(1, order.left_lots))
        better = data.draw(st.integers(0, 20))
        price = order.price_ticks - better if order.side == BUY else order.price_ticks
        self.nonce += 1
        counter = user_order(venue, 1 - order.side, price, lots, nonce=self.nonce)
        me.records.append(order_record(venue, counter))
        status = data.draw(st.sampled_from(("filled", "cancelled", "expired")))
        self._notify(me, order, status, [[price, lots, format_hex(counter.order_id)]])

    @precondition(lambda self: self._venues())
    @rule(data=st.data(), status=st.sampled_from(("cancelled", "accepted")))
    def notify(self, data: st.DataObject, status: str) -> None:
        venue = data.draw(st.sampled_from(self._venues()))
        self._notify(self.sides[venue], data.draw(st.sampled_from(self._open_at(venue))), status, [])

    def _notify(self, me: Side, order: OpenOrder, status: str, fills: list[list[Any]]) -> None:
        left = order.left_lots - sum(fill[1] for fill in fills)
        params = {"order": order.ref, "status": status, "left": left, "fills": fills}
        me.send_calls({"jsonrpc": "2.0", "method": "order.notify", "params": params})

    @rule(by=SIDES)
    def say_something_without_effect(self, by: int) -> None:
        me = self.sides[by]
        if me.channel.phase is Phase.ACTIVE:
            cancel = {"jsonrpc": "2.0", "id": 1, "method": "order.update", "params": {"op": "cancel_all"}}
            unsigned = create_call(by, BUY, PRICE, 1, nonce=0, until=2**52)  # void: later than its user signed
            me.send_calls(cancel, unsigned)

    # -- turns

    def _movers(self) -> list[Side]:
        """Those that would propose now."""
        return [side for side in self.sides if propose(side.channel, START_MS)[1] is not None]

    @precondition(lambda self: self._movers())
    @rule(later_ms=st.integers(-1000, 1000))
    def propose(self, later_ms: int) -> None:
        for side in self._movers():
            side.propose(START_MS + later_ms)

    @precondition(lambda self: self._movers())
    @rule()
    def propose_wrongly(self) -> None:
        self._movers()[0].propose_wrongly()

    @precondition(lambda self: self.nonce > 3 and any(s.channel.phase is Phase.ACTIVE for s in self.sides))
    @rule(by=SIDES)
    def close(self, by: int) -> None:
        if self.sides[by].channel.phase is Phase.ACTIVE:
            self.sides[by].close()

    # -- the wire

    @precondition(lambda self: self.sides[0].out or self.sides[1].out)
    @rule(by=SIDES, count=st.integers(1, 4))
    def deliver(self, by: int, count: int) -> None:
        by = by if self.sides[by].out else 1 - by
        deliver(self.sides[by], self.sides[1 - by], count)

    @rule()
    def reconnect(self) -> None:
        a, b = self.sides
        a.out.clear()
        b.out.clear()
        a.resync(b.channel.view.last_seq[0])
        b.resync(a.channel.view.last_seq[1])

    # -- what must hold

    @invariant()
    def both_are_consistent(self) -> None:
        for side in self.sides:
            check(side.channel)
            assert naive_net([r for r in side.records if isinstance(r, Entry)]) == dict(side.channel.view.net)
            assert self._covered(side.channel.position)

    @invariant()
    def co_signed_states_agree(self) -> None:
        a, b = self.sides
        for turn in a.cosigned.keys() & b.cosigned.keys():
            assert a.cosigned[turn] == b.cosigned[turn]

    def _settle_down(self) -> None:
        """Delivers everything; venues cancel what is not covered, and everything when closing."""
        for _ in range(200):
            busy = False
            for one, other in (self.sides, self.sides[::-1]):
                if one.channel.phase is Phase.CLOSING or not self._covered(one.channel.view):
                    for order in self._open_at(one.me):
                        self._notify(one, order, "cancelled", [])
                busy |= one.propose() is not None or bool(one.out)
                deliver(one, other)
            if not busy:
                return
        raise AssertionError("the two sides do not come to rest")

    def teardown(self) -> None:
        self._settle_down()
        a, b = self.sides
        assert a.channel.cosigned is not None
        assert b.channel.cosigned is not None
        assert a.channel.cosigned.state.state_hash == b.channel.cosigned.state.state_hash
        assert a.channel.pending == b.channel.pending == ()
        assert a.channel.view == b.channel.view == a.channel.position
        assert a.cosigned == b.cosigned
        phases = {a.channel.phase, b.channel.phase}
        assert phases in ({Phase.ACTIVE}, {Phase.FINAL})
        for side in self.sides:
            result = replay(FIXED, TERMS, XLN.address, side.records)
            assert result.last is not None
            assert result.last.state.state_hash == a.channel.cosigned.state.state_hash
            assert result.position == a.channel.position
            result.orders |= {r.order.order_id: r.order for s in self.sides for r in s.records if hasattr(r, "order")}
            result.brokers |= {
                r.order.order_id: r.broker for s in self.sides for r in s.records if hasattr(r, "broker")
            }
            require_authorised(result)
        super().teardown()


TestChannel = ChannelMachine.TestCase
TestChannel.settings = settings(max_examples=100, stateful_step_count=40)
assert MAX_BATCH == 512  # the naive ledger counts references with it
