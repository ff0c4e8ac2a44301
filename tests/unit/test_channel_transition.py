"""The life of a channel: who may sign which turn, what a refusal burns, what a final state binds."""

from dataclasses import replace
from typing import Any

import pytest

from channel import transition
from channel.calls import parse_calls
from channel.errors import Code, InvariantBroken, LocalRefusal, PeerFault
from channel.state import State, VariablePart
from channel.transition import (
    Channel,
    Countersign,
    Phase,
    Proposal,
    Refuse,
    Run,
    add_entry,
    check,
    cosigned_state,
    freeze,
    lock_confirmed,
    lock_signed,
    open_channel,
    propose,
    receive_countersignature,
    receive_proposal,
    receive_refusal,
    request_close,
    settle,
)
from channel.units import ZERO_HASH, Address, Hash, format_hex
from tests.support.channels import (
    BTC,
    BUY,
    FIXED,
    LOCK_USD,
    SELL,
    SIGNERS,
    START_MS,
    STRANGER,
    TERMS,
    USD,
    Side,
    create_call,
    deliver,
    drain,
    make_entry,
    make_fixed,
    make_terms,
    market_of,
    notify_call,
    open_pair,
    user_order,
    with_entry,
)

A, B = (s.address for s in SIGNERS)
COUNTER = format_hex(b"\x11" * 32)


def answer(channel: Channel, proposal: Proposal, **changes: Any) -> tuple[Channel, Countersign | Refuse]:
    values: dict[str, Any] = {
        "turn": proposal.state.turn,
        "is_final": proposal.state.is_final,
        "time_ms": proposal.time_ms,
        "runs": proposal.runs,
        "state_hash": proposal.state.state_hash,
    }
    return receive_proposal(channel, **{**values, **changes})


def fault(expected: Code, function: Any, *args: Any, **kwargs: Any) -> PeerFault | LocalRefusal:
    with pytest.raises((PeerFault, LocalRefusal)) as caught:
        function(*args, **kwargs)
    assert caught.value.code is expected
    return caught.value


def proposed(side: Side) -> Proposal:
    proposal = side.propose()
    assert proposal is not None
    return proposal


def refused(channel: Channel, proposal: Proposal, code: Code, **changes: Any) -> Channel:
    after, reply = answer(channel, proposal, **changes)
    assert isinstance(reply, Refuse)
    assert reply.code is code
    assert (reply.turn, after.burnt_turn, after.next_turn) == (
        proposal.state.turn,
        proposal.state.turn,
        proposal.state.turn + 1,
    )
    assert after.cosigned == channel.cosigned
    check(after)
    return after


# -- opening


def test_terms_and_channel_must_fit() -> None:
    fault(Code.CHANNEL_UNKNOWN, open_channel, FIXED, TERMS, STRANGER.address)
    fault(Code.CHANNEL_TERMS, open_channel, make_fixed(chain_id=1), TERMS, A)
    fault(Code.CHANNEL_TERMS, open_channel, make_fixed(participants=(A, STRANGER.address)), TERMS, A)


def test_turn_0_has_lock_a_and_turn_1_both() -> None:
    a, b = Side(0), Side(1)
    assert a.propose() is None  # no lock yet
    for side in (a, b):
        side.channel = lock_signed(side.channel, 0, USD, LOCK_USD)
    assert b.propose() is None  # not the mover
    first = proposed(a)
    assert first.state.turn == 0
    assert a.propose() is None  # one at a time
    deliver(a, b)
    deliver(b, a)
    assert a.channel.phase is Phase.OPENING
    data = transition.AppData.of(
        terms_hash=TERMS.terms_hash,
        time_ms=START_MS,
        journal_head=first.journal_head,
        collateral=[transition.lock_row(a.channel, 0, USD, LOCK_USD)],
    )
    assert first.state.variable.app_data == data.encode()
    for side in (a, b):
        side.channel = lock_signed(side.channel, 1, USD, LOCK_USD)
    assert b.propose() is None  # signed, but not seen on chain
    one_seen = lock_confirmed(b.channel, 0, USD, LOCK_USD, TERMS.terms_hash)
    assert propose(one_seen, START_MS)[1] is None
    for owner in (0, 1):
        b.channel = lock_confirmed(b.channel, owner, USD, LOCK_USD, TERMS.terms_hash)
    second = proposed(b)
    fault(Code.CHANNEL_LOCK, answer, a.channel, second)
    for owner in (0, 1):
        a.channel = lock_confirmed(a.channel, owner, USD, LOCK_USD, TERMS.terms_hash)
    deliver(b, a)
    deliver(a, b)
    assert a.channel.phase is b.channel.phase is Phase.ACTIVE
    assert second.state.turn == 1
    assert a.cosigned == b.cosigned


def test_a_refused_turn_0_is_opened_by_the_other() -> None:
    a, b = Side(0).opened(), Side(1).opened()
    first = proposed(a)
    b.channel = refused(b.channel, first, Code.CHANNEL_STATE, state_hash=ZERO_HASH)
    a.channel, burnt = receive_refusal(a.channel, 0, first.state.state_hash)
    assert burnt
    a.out.clear()
    drain(a, b)
    assert a.channel.phase is b.channel.phase is Phase.ACTIVE
    assert sorted(a.cosigned) == [1, 2]


@pytest.mark.parametrize("is_final", [False, True])
def test_opening_takes_no_entries_and_no_final_state(is_final: bool) -> None:
    a, b = Side(0).opened(), Side(1).opened()
    fault(Code.CHANNEL_PHASE, a.send_calls, create_call(0, BUY, 1, 1))
    fault(Code.CHANNEL_PHASE, request_close, a.channel)
    first = proposed(a)
    if is_final:
        refused(b.channel, first, Code.CHANNEL_FINAL, is_final=True)
    else:
        fault(Code.CHANNEL_ENTRIES, answer, b.channel, first, runs=(Run(0, 1, 1),))


def test_locks() -> None:
    channel = Side(0).channel
    fault(Code.CHANNEL_TERMS, lock_signed, channel, 0, Address(bytes([9]) * 20), 1)
    fault(Code.CHANNEL_LOCK, lock_signed, channel, 0, USD, 0)
    once = lock_signed(channel, 0, USD, 5)
    assert lock_signed(once, 0, USD, 5) == once
    fault(Code.LOCK_EXISTS, lock_signed, once, 0, USD, 6)
    fault(Code.LOCK_EXISTS, lock_signed, once, 0, BTC, 5)
    fault(Code.LOCK_TERMS, lock_confirmed, once, 0, USD, 5, ZERO_HASH)
    fault(Code.LOCK_EXISTS, lock_confirmed, once, 0, USD, 6, TERMS.terms_hash)


# -- turns


def test_a_trade_is_co_signed() -> None:
    a, b = open_pair()
    ref = a.send_create(BUY, 200_000, 10)
    deliver(a, b)
    b.send_calls(notify_call(ref, "filled", 0, [[200_000, 10, COUNTER]]))
    assert b.channel.unsettled_value == 2_000_000
    deliver(b, a)
    drain(a, b)
    assert a.channel.position == b.channel.position == a.channel.view
    assert b.channel.unsettled_value == 0
    assert a.channel.position.owed(0, USD) == 2_000_000
    assert a.channel.pending == b.channel.pending == ()
    last = a.channel.cosigned
    assert last is not None
    signed = cosigned_state(last, (b"a", b"b"))
    assert signed.state.turn == 2
    assert signed.signatures == (b"a", b"b")


def with_pending(mover: int = 0) -> tuple[Side, Side, Proposal]:
    """An open pair, an order of each side delivered, and the mover's proposal. A moves first after the opening."""
    sides = open_pair()
    for side in sides:
        side.send_create(BUY, 1_000, 5)
    deliver(*sides)
    deliver(sides[1], sides[0])
    one, other = sides[mover], sides[1 - mover]
    if mover == 1:
        drain(*sides)
        sides[0].send_create(SELL, 1_000, 5)
        deliver(*sides)
    return one, other, proposed(one)


def test_the_wrong_mover() -> None:
    a, b, proposal = with_pending()
    assert b.propose() is None
    fault(Code.CHANNEL_MOVER, answer, a.channel, proposal)  # A is shown its own turn


@pytest.mark.parametrize("skip", [-2, 2, 4])
def test_a_turn_that_is_not_next(skip: int) -> None:
    _, b, proposal = with_pending()
    seen = fault(Code.CHANNEL_TURN, answer, b.channel, proposal, turn=proposal.state.turn + skip)
    assert seen.data == {"next": proposal.state.turn}


def test_a_refusal_burns_the_turn_and_the_other_moves() -> None:
    a, b, proposal = with_pending()
    b.channel = refused(b.channel, proposal, Code.CHANNEL_STATE, state_hash=Hash(b"\1" * 32))
    fault(Code.CHANNEL_TURN, answer, b.channel, proposal)  # burnt, even for the right state
    fault(Code.CHANNEL_TURN, receive_refusal, a.channel, proposal.state.turn, ZERO_HASH)
    a.channel, burnt = receive_refusal(a.channel, proposal.state.turn, proposal.state.state_hash)
    assert burnt
    assert receive_refusal(a.channel, proposal.state.turn, proposal.state.state_hash) == (a.channel, False)
    fault(Code.CHANNEL_TURN, receive_countersignature, a.channel, proposal.state.turn, proposal.state.state_hash)
    a.out.clear()
    drain(a, b)
    assert proposal.state.turn not in a.cosigned
    assert a.channel.cosigned is not None
    assert a.channel.cosigned.state.turn == proposal.state.turn + 1
    a.send_create(BUY, 1_000, 1)
    deliver(a, b)
    later = proposed(a)
    same, burnt = receive_refusal(a.channel, proposal.state.turn, proposal.state.state_hash)  # a late copy
    assert (same.mine, burnt) == (later, False)


def test_crossing_refusal_and_proposal() -> None:
    """B refuses and proposes the next turn at once; both arrive together."""
    a, b, proposal = with_pending()
    a.out.clear()
    b.channel = refused(b.channel, proposal, Code.CHANNEL_STATE, state_hash=Hash(b"\1" * 32))
    following = proposed(b)
    assert following.state.turn == proposal.state.turn + 1
    fault(Code.CHANNEL_TURN, answer, a.channel, following)  # before the refusal
    a.channel, _ = receive_refusal(a.channel, proposal.state.turn, proposal.state.state_hash)
    a.channel, reply = answer(a.channel, following)
    assert reply == Countersign(following)


def test_a_repeated_proposal_is_answered_alike() -> None:
    a, b, proposal = with_pending()
    b.channel, first = answer(b.channel, proposal)
    again, second = answer(b.channel, proposal)
    assert first == Countersign(proposal)
    assert second == Countersign(proposal, repeated=True)
    assert again == b.channel
    a.channel, mine = receive_countersignature(a.channel, proposal.state.turn, proposal.state.state_hash)
    assert mine == proposal
    turn, state_hash = proposal.state.turn, proposal.state.state_hash
    assert receive_countersignature(a.channel, turn, state_hash) == (a.channel, None)
    assert receive_countersignature(a.channel, turn - 1, ZERO_HASH) == (a.channel, None)  # late
    fault(Code.CHANNEL_TURN, receive_countersignature, a.channel, turn, ZERO_HASH)
    fault(Code.CHANNEL_TURN, receive_countersignature, a.channel, turn + 2, state_hash)


def test_two_states_of_one_turn_are_a_fork() -> None:
    _, b, proposal = with_pending()
    b.channel, _ = answer(b.channel, proposal)
    with pytest.raises(InvariantBroken) as caught:
        answer(b.channel, proposal, state_hash=Hash(b"\1" * 32))
    assert caught.value.code is Code.FORK
    assert caught.value.data == {"turn": proposal.state.turn}


def test_entries_that_have_not_arrived_burn_nothing() -> None:
    a, b, proposal = with_pending()
    for runs in ((Run(0, 1, 2),), (Run(0, 9, 9),), (Run(0, 1, 2**52),)):
        fault(Code.CHANNEL_ENTRIES, answer, b.channel, proposal, runs=runs)
    b.channel, reply = answer(b.channel, proposal)
    assert isinstance(reply, Countersign)
    fault(Code.CHANNEL_ENTRIES, answer, replace(b.channel, burnt_turn=3), proposal, turn=4)  # listed already
    assert a.channel.mine is not None


def test_proposals_that_are_refused() -> None:
    a, b, proposal = with_pending()
    refused(b.channel, proposal, Code.CHANNEL_STATE, time_ms=START_MS - 1)
    refused(b.channel, proposal, Code.CHANNEL_STATE, time_ms=START_MS + 1)
    refused(b.channel, proposal, Code.CHANNEL_STATE, runs=proposal.runs[:1])
    refused(b.channel, proposal, Code.CHANNEL_STATE, runs=proposal.runs[::-1])  # another order, another journal head
    refused(b.channel, proposal, Code.CHANNEL_ENTRIES, runs=())
    refused(b.channel, proposal, Code.CHANNEL_FINAL, is_final=True)
    refused(b.channel, proposal, Code.ENTRY_GAP, runs=(*proposal.runs, *proposal.runs))
    assert a.channel.mine == proposal


def test_an_outcome_that_pays_the_proposer_one_unit_too_much() -> None:
    a, b = open_pair()
    ref = a.send_create(BUY, 200_000, 10)
    deliver(a, b)
    b.send_calls(notify_call(ref, "filled", 0, [[200_000, 10, COUNTER]]))
    deliver(b, a)
    proposal = proposed(a)
    paid = (2_000_000).to_bytes(32, "big")
    less = (1_999_999).to_bytes(32, "big")
    variable = proposal.state.variable
    assert paid in variable.outcome
    outcome, app_data = variable.outcome.replace(paid, less), variable.app_data.replace(paid, less)
    for wrong in (
        VariablePart(outcome=outcome, app_data=variable.app_data),
        VariablePart(outcome=outcome, app_data=app_data),
    ):
        state = State(fixed=FIXED, turn=proposal.state.turn, is_final=False, variable=wrong)
        refused(b.channel, proposal, Code.CHANNEL_STATE, state_hash=state.state_hash)


def test_time_never_falls() -> None:
    a, b = open_pair()
    a.send_create(BUY, 1, 1)
    deliver(a, b)
    proposal = a.propose(START_MS - 5_000)
    assert proposal is not None
    assert proposal.time_ms == START_MS
    earlier = _rederived(replace(proposal, time_ms=START_MS - 1), b.channel)
    _, reply = answer(b.channel, earlier)
    assert isinstance(reply, Refuse)
    assert reply.message == "the time of a state never falls"


def test_what_is_not_covered_is_neither_proposed_nor_signed() -> None:
    a, b = open_pair(lock_amount=10**6)
    a.send_create(BUY, 200_000, 10)  # 2 USD against 1
    assert a.propose() is None
    deliver(a, b)
    rich, _ = open_pair()
    covered = replace(a.channel, locks=rich.channel.locks)
    covered, proposal = propose(covered, START_MS)
    assert proposal is not None
    poor = replace(b.channel, cosigned=covered.cosigned)
    after, reply = answer(poor, _rederived(proposal, b.channel))
    assert isinstance(reply, Refuse)
    assert reply.code is Code.CHANNEL_UNCOVERED
    assert after.burnt_turn == proposal.state.turn
    b.send_calls(notify_call(512, "cancelled", 10))
    drain(a, b)
    assert a.channel.cosigned == b.channel.cosigned
    assert a.channel.pending == ()


def _rederived(proposal: Proposal, channel: Channel) -> Proposal:
    """With the state of its time and of the locks that `channel` knows."""
    return transition.derive_state(
        fixed=FIXED,
        terms=TERMS,
        position=proposal.position,
        locks=channel.locks,
        turn=proposal.state.turn,
        is_final=False,
        time_ms=proposal.time_ms,
        runs=proposal.runs,
        journal_head=proposal.journal_head,
    )


def test_runs_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transition, "MAX_RUNS", 2)
    a, b = open_pair()
    for _ in range(2):
        a.send_create(BUY, 1, 1)
        a.send_create(BUY, 1, 1)
        deliver(a, b)
        b.send_create(BUY, 1, 1)
        deliver(b, a)
    proposal = proposed(a)
    assert proposal.runs == (Run(0, 1, 2), Run(1, 1, 1))
    drain(a, b)
    assert a.channel.pending == b.channel.pending == ()
    assert a.channel.position == b.channel.view


def test_pending_entries_of_the_other_side_are_bounded_and_own_ones_always_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = open_pair()
    monkeypatch.setattr(transition, "MAX_PENDING", 1)
    a.send_create(BUY, 1, 1)
    a.send_create(BUY, 1, 1)
    deliver(a, b, 1)
    fault(Code.BUSY, deliver, a, b, 1)


# -- closing


def closing_pair() -> tuple[Side, Side]:
    a, b = open_pair()
    ref = a.send_create(BUY, 200_000, 10)
    deliver(a, b)
    b.send_calls(notify_call(ref, "filled", 0, [[200_000, 10, COUNTER]]))
    deliver(b, a)
    drain(a, b)
    return a, b  # turn 3 is B's


def test_a_channel_is_closed_by_either() -> None:
    for closer in (0, 1):
        sides = closing_pair()
        sides[closer].close()
        before = sides[0].channel.cosigned
        drain(*sides)
        for side in sides:
            assert side.channel.phase is Phase.FINAL
            assert request_close(side.channel) == side.channel
            last = side.channel.cosigned
            assert last is not None
            assert before is not None
            assert last.state.is_final
            assert last.state.variable.outcome == before.state.variable.outcome
            fault(Code.CHANNEL_PHASE, side.send_calls, create_call(side.me, BUY, 1, 1))
            assert side.propose() is None
            assert settle(side.channel).phase is Phase.SETTLED
        mover = last.state.turn % 2
        again, reply = answer(sides[1 - mover].channel, last)
        assert reply == Countersign(last, repeated=True)
        fault(Code.CHANNEL_FINAL, answer, sides[1 - mover].channel, last, turn=last.state.turn + 2)
        assert again.phase is Phase.FINAL


def test_nobody_is_surprised_by_a_final_state() -> None:
    a, b = closing_pair()
    b.close()  # turn 3 is B's
    proposal = proposed(b)
    assert proposal.state.is_final
    refused(a.channel, proposal, Code.CHANNEL_FINAL)  # nobody told A
    fault(Code.CHANNEL_PHASE, settle, a.channel)


def test_open_orders_delay_the_final_state() -> None:
    a, b = closing_pair()
    ref = a.send_create(BUY, 200_000, 10)
    deliver(a, b)
    b.close()
    proposal = proposed(b)
    assert not proposal.state.is_final
    drain(a, b)
    assert a.channel.phase is Phase.CLOSING
    b.send_calls(notify_call(ref, "cancelled", 10))
    drain(a, b)
    assert a.channel.phase is b.channel.phase is Phase.FINAL
    assert a.channel.cosigned is not None
    assert a.channel.cosigned.runs == (Run(1, 2, 2),)  # the final state lists what was left


def test_a_final_state_keeps_the_outcome_and_lists_everything() -> None:
    a, b = closing_pair()
    ref = a.send_create(BUY, 100, 10)
    deliver(a, b)
    b.send_calls(notify_call(ref, "filled", 0, [[100, 10, COUNTER]]))
    deliver(b, a)
    for side in (a, b):
        side.channel = request_close(side.channel)
    proposal = proposed(b)
    assert not proposal.state.is_final  # it moves money: first a state that is not final
    refused(a.channel, proposal, Code.CHANNEL_FINAL, is_final=True)
    refused(a.channel, proposal, Code.CHANNEL_FINAL, is_final=True, runs=())


def test_an_order_that_crosses_the_final_state() -> None:
    """B's order is in flight when A signs a final state: A signs nothing else any more, and still both end."""
    a, b = closing_pair()
    b.send_create(BUY, 1_000, 5, nonce=7)
    drain(a, b)  # turn 3, B's
    a.send_calls(notify_call(1024, "cancelled", 5))
    deliver(a, b)
    b.send_create(BUY, 1_000, 5, nonce=8)  # in flight
    crossing = b.out.popleft()
    a.close()
    final = proposed(a)
    assert final.state.is_final
    assert a.channel.final_outcome == final.state.outcome_hash
    fault(Code.CHANNEL_PHASE, a.send_calls, create_call(0, BUY, 1, 1))  # A's own would be listed by nothing
    a.receive(crossing)
    moving = replace(a.channel, mine=None, burnt_turn=final.state.turn + 1)
    assert propose(moving, START_MS)[1] is None  # an order is open: nothing that A could sign
    a.send_calls(notify_call(1536, "cancelled", 5))  # but it answers what has crossed
    deliver(a, b)
    assert b.last_refusal is not None
    assert b.last_refusal["refuse"]["code"] == "channel.final"
    deliver(b, a)
    assert a.channel.burnt_turn == final.state.turn
    assert a.propose() is None  # B's turn
    plain, proposal = propose(replace(b.channel, phase=Phase.ACTIVE), START_MS)
    assert proposal is not None
    refused(a.channel, proposal, Code.CHANNEL_FINAL)  # a state that is not final, though it is right
    assert plain.mine == proposal
    drain(a, b)
    assert a.channel.phase is b.channel.phase is Phase.FINAL
    last = a.channel.cosigned
    assert last is not None
    assert last.state.outcome_hash == final.state.outcome_hash
    assert last.position == a.channel.view == b.channel.view
    assert a.channel.pending == b.channel.pending == ()


def test_who_has_signed_a_final_state_signs_no_other_outcome() -> None:
    a, b = closing_pair()
    b.close()
    final = proposed(b)
    b.channel, _ = receive_refusal(b.channel, final.state.turn, final.state.state_hash)
    b.channel = with_entry(b.channel, make_entry(0, "{}", seq=2, prev=b.channel.view.last_hash[0]))
    assert propose(b.channel, START_MS)[1] is None  # turn 4 is A's
    a.channel = replace(request_close(a.channel), burnt_turn=3)
    a.channel = with_entry(a.channel, b.channel.pending[0].entry)
    _, again = propose(a.channel, START_MS)
    assert again is not None
    assert again.state.is_final
    _, reply = answer(b.channel, again)
    assert reply == Countersign(again)
    not_final = replace(a.channel, phase=Phase.ACTIVE)
    _, other = propose(not_final, START_MS)
    assert other is not None
    refused(b.channel, other, Code.CHANNEL_FINAL)


# -- stopping


def test_a_frozen_channel_signs_nothing() -> None:
    a, b, proposal = with_pending()
    frozen = freeze(b.channel, Code.FORK, "two states of one turn")
    assert freeze(frozen, Code.CHAIN, "later").frozen_by == (Code.FORK, "two states of one turn")
    seen = fault(Code.CHANNEL_FROZEN, answer, frozen, proposal)
    assert "two states of one turn" in seen.message
    assert propose(frozen, START_MS)[1] is None
    entry = make_entry(0, "{}", seq=2, prev=frozen.view.last_hash[0])
    fault(Code.CHANNEL_PHASE, add_entry, frozen, entry, parse_calls(entry, FIXED, TERMS))
    fault(Code.CHANNEL_PHASE, request_close, frozen)
    mine = freeze(a.channel, Code.FORK, "x")
    after, kept = receive_countersignature(mine, proposal.state.turn, proposal.state.state_hash)
    assert kept == proposal  # what both have signed is evidence
    assert after.phase is Phase.FROZEN


def test_no_turn_beyond_uint48() -> None:
    a, _, _ = with_pending()
    late = replace(a.channel, mine=None, burnt_turn=transition.MAX_TURN)
    assert propose(late, START_MS) == (late, None)


def test_the_check_finds_what_does_not_add_up() -> None:
    a, b, _ = with_pending()
    check(a.channel)
    wrong_view = replace(b.channel, view=replace(b.channel.view, net=b.channel.view.net.set(USD, 1)))
    last = b.channel.cosigned
    assert last is not None
    state = replace(last.state, variable=replace(last.state.variable, outcome=b"\0"))
    wrong_outcome = replace(b.channel, cosigned=replace(last, state=state))
    for channel in (wrong_view, wrong_outcome):
        with pytest.raises(InvariantBroken) as caught:
            check(channel)
        assert caught.value.code is Code.CONSERVATION


def test_a_market_of_a_stranger_is_not_in_a_channel() -> None:
    market = replace(market_of(0), holder=STRANGER.address)
    fault(Code.CHANNEL_TERMS, open_channel, FIXED, make_terms(markets=(market,)), A)
    assert user_order(0, BUY, 1, 1).order.market_id == market_of(0).market_id
