"""One side of a channel: entries made and numbered, turns signed once, refusals and repetitions in the same bytes."""

from dataclasses import replace

import pytest

from broker.desk import MAX_BURNT_IN_A_ROW, Desk
from broker.effects import (
    Cosigned,
    Effect,
    Journalled,
    SendCountersignature,
    SendEntry,
    SendProposal,
    SendRefusal,
    Signed,
)
from channel.calls import MAX_BATCH, ORDER_UPDATE, Void
from channel.entry import Entry, entry_digest
from channel.errors import Code, InvariantBroken, LocalRefusal, PeerFault
from channel.journal import StateRecord
from channel.position import OpenOrder
from channel.signing import Signer, require_signer
from channel.strictjson import loads
from channel.transition import Phase
from channel.typed import REFUSAL
from channel.units import ZERO_HASH, ChannelId, Hash
from tests.support.pair import BTC, NOW, USD, Pair, Side, market_of, user

ALICE = user(11)
CANCEL: dict[str, object] = {"op": "cancel_all"}


@pytest.fixture
def pair() -> Pair:
    pair = Pair()
    pair.open()
    return pair


def desk_of(pair: Pair, side: Side) -> Desk:
    return side.core.desks[pair.fixed.channel_id]


def mover(pair: Pair) -> tuple[Desk, Desk]:
    """The desk whose turn is next, and the other."""
    a, b = desk_of(pair, pair.a), desk_of(pair, pair.b)
    return (a, b) if a.channel.is_mover else (b, a)


def speak(desk: Desk) -> Entry:
    """One call of the desk, as an entry."""
    desk.add_call(ORDER_UPDATE, CANCEL, NOW, answered=True)
    (entry,) = [e.entry for e in desk.flush(NOW) if isinstance(e, SendEntry)]
    return entry


def exchanged(pair: Pair) -> tuple[Desk, Desk, SendProposal]:
    """The mover has said something and proposed it; the other has the entry, not the proposal."""
    first, second = mover(pair)
    second.receive_entry(speak(first))
    return first, second, proposed(first)


def proposed(desk: Desk) -> SendProposal:
    (effect,) = [e for e in desk.propose(NOW + 1_000_000) if isinstance(e, SendProposal)]
    return effect


def receive(desk: Desk, effect: SendProposal, **changes: object) -> list[Effect]:
    p = effect.proposal
    arguments: dict[str, object] = {
        "turn": p.state.turn, "is_final": p.state.is_final, "time_ms": p.time_ms, "runs": p.runs,
        "state_hash": p.state.state_hash, "signature": effect.signature,
    }  # fmt: skip
    return desk.receive_proposal(**(arguments | changes))  # type: ignore[arg-type]


# -- locks


def test_a_lock_for_another_channel_or_other_terms() -> None:
    pair = Pair()
    desk = Desk(pair.fixed, pair.terms, pair.a.signer)
    lock = pair.lock(pair.b)
    for wrong in (
        replace(lock.lock, channel_id=ChannelId(Hash(b"\x01" * 32))),
        replace(lock.lock, terms_hash=Hash(b"\x02" * 32)),
    ):
        with pytest.raises(PeerFault) as caught:
            desk.lock_signed(replace(lock, lock=wrong))
        assert caught.value.code is Code.LOCK_CHANNEL
    assert desk.signed_locks == [None, None]
    assert desk.lock_signed(lock) == [Journalled(desk.channel_id, lock)]
    assert desk.lock_signed(lock) == [], "seen again, it is not journalled again"
    with pytest.raises(PeerFault) as caught:
        desk.lock_signed(replace(lock, lock=replace(lock.lock, amount=lock.lock.amount + 1)))
    assert caught.value.code is Code.LOCK_EXISTS


# -- entries


def test_entries_are_dense_chained_and_signed(pair: Pair) -> None:
    desk, other = desk_of(pair, pair.a), desk_of(pair, pair.b)
    last = ZERO_HASH
    for seq in (1, 2, 3):
        entry = speak(desk)
        assert (entry.seq, entry.prev, entry.to) == (seq, last, other.channel.fixed.participants[1])
        require_signer(entry.entry_hash, entry.signature, pair.a.signer.address)
        last = entry.entry_hash
        other.receive_entry(entry)
    assert other.channel.view == desk.channel.view


def test_calls_share_an_entry_until_it_is_full(pair: Pair) -> None:
    desk = desk_of(pair, pair.a)
    refs = []
    effects: list[Effect] = []
    for _ in range(MAX_BATCH + 2):
        ref, flushed = desk.add_call(ORDER_UPDATE, CANCEL, NOW, answered=True)
        refs.append(ref)
        effects += flushed
    effects += desk.flush(NOW)
    assert desk.flush(NOW) == []
    first, second = [e.entry for e in effects if isinstance(e, SendEntry)]
    bodies = [loads(entry.body, max_bytes=10**6) for entry in (first, second)]
    assert [len(body) for body in bodies] == [MAX_BATCH, 2]  # type: ignore[arg-type]
    assert [call["id"] for body in bodies for call in body] == refs  # type: ignore[union-attr, index, call-overload]
    assert refs == [*range(MAX_BATCH, 2 * MAX_BATCH), 2 * MAX_BATCH, 2 * MAX_BATCH + 1]


def test_an_entry_that_does_not_fit_changes_nothing(pair: Pair) -> None:
    desk, other = desk_of(pair, pair.a), desk_of(pair, pair.b)
    first, second = speak(desk), speak(desk)
    before = other.channel
    for entry, code in ((second, Code.ENTRY_GAP), (replace(first, prev=Hash(b"\x03" * 32)), Code.ENTRY_PREV)):
        with pytest.raises(PeerFault) as caught:
            other.receive_entry(entry)
        assert caught.value.code is code
    assert other.channel == before


def test_a_body_that_is_wrong_in_itself_is_void_and_keeps_its_place(pair: Pair) -> None:
    desk, other = desk_of(pair, pair.a), desk_of(pair, pair.b)
    body = '{"jsonrpc":"2.0","method":"order.update","params":{"op":"cancel_all","op":"x"}}'
    fields = {"to": pair.b.signer.address, "channel_id": desk.channel_id, "seq": 1, "prev": ZERO_HASH, "ts_ms": 1}
    digest = entry_digest(desk.domain, **fields, body=body)  # type: ignore[arg-type]
    entry = Entry(  # type: ignore[call-arg]
        sender=pair.a.signer.address, signature=pair.a.signer.sign(digest), entry_hash=digest, body=body, **fields
    )
    (call,), _ = other.receive_entry(entry)
    assert isinstance(call, Void)
    assert call.code is Code.DUPLICATE_KEY
    assert other.channel.view.last_seq == (1, 0)


# -- admission


def test_objections_by_their_code(pair: Pair) -> None:
    desk = desk_of(pair, pair.a)
    market = market_of(pair.b.signer.address)

    def order(lots: int) -> OpenOrder:
        return OpenOrder(0, 512, market, 0, 6_000_000, lots, ZERO_HASH)

    assert desk.objection(order(10), counted=False) is None
    uncovered = desk.objection(order(10**9), counted=False)
    assert uncovered is not None
    assert uncovered[0] is Code.ORDER_UNCOVERED
    limited = Pair(unsettled_limit=60 * 10**6)
    limited.open()
    narrow = desk_of(limited, limited.a)
    assert narrow.objection(order(10), counted=False) is None
    beyond = narrow.objection(order(11), counted=False)
    assert beyond is not None
    assert beyond[0] is Code.ORDER_LIMIT
    assert narrow.objection(order(10), counted=False, extra_quote=1) is not None
    desk.request_close()
    closing = desk.objection(order(10), counted=False)
    assert closing is not None
    assert closing[0] is Code.CHANNEL_PHASE


# -- turns


def test_a_proposal_is_signed_recorded_and_countersigned(pair: Pair) -> None:
    first, second, proposal = exchanged(pair)
    state = proposal.proposal.state
    require_signer(state.digest, proposal.signature, first.channel.fixed.participants[first.me])
    signed, journalled, cosigned, countersignature = receive(second, proposal)
    assert signed == Signed(second.channel_id, state.turn, state.state_hash, False)
    assert isinstance(journalled, Journalled)
    assert isinstance(journalled.record, StateRecord)
    assert isinstance(cosigned, Cosigned)
    assert isinstance(countersignature, SendCountersignature)
    require_signer(state.digest, countersignature.signature, second.channel.fixed.participants[second.me])
    taken = first.receive_countersignature(state.turn, state.state_hash, countersignature.signature)
    assert [type(e) for e in taken] == [Journalled, Cosigned]
    assert taken[0] == journalled, "both journals have the same record"
    assert first.last_cosigned == second.last_cosigned
    assert first.outstanding is None
    assert first.receive_countersignature(state.turn, state.state_hash, countersignature.signature) == []


def test_a_proposal_shown_again_gets_the_same_countersignature_and_no_second_row(pair: Pair) -> None:
    """FAULT 5."""
    _, second, proposal = exchanged(pair)
    *_, countersignature = receive(second, proposal)
    assert receive(second, proposal) == [countersignature]


def test_a_proposal_is_made_once_and_kept_until_it_is_answered(pair: Pair) -> None:
    first, second, proposal = exchanged(pair)
    speak(first)
    assert first.propose(NOW + 2_000_000) == [], "one at a time"
    assert first.resend() == [proposal]
    assert second.propose(NOW) == [], "it is not its turn"


@pytest.mark.parametrize("change", ["hash", "time", "final"])
def test_a_wrong_state_is_refused_signed_and_burns_its_turn(pair: Pair, change: str) -> None:
    first, second, proposal = exchanged(pair)
    state = proposal.proposal.state
    changes: dict[str, dict[str, object]] = {
        "hash": {"state_hash": Hash(b"\x09" * 32)},
        "time": {"time_ms": 1},
        "final": {"is_final": True},
    }
    before = second.channel.cosigned
    (refusal,) = receive(second, proposal, **changes[change])
    assert isinstance(refusal, SendRefusal)
    assert refusal.code in (Code.CHANNEL_STATE, Code.CHANNEL_FINAL)
    digest = second.domain.digest(REFUSAL.hash(second.channel_id, state.turn, refusal.state_hash, refusal.code.label))
    require_signer(digest, refusal.signature, second.channel.fixed.participants[second.me])
    assert receive(second, proposal, **changes[change]) == [refusal], "the same bytes again"
    assert second.channel.cosigned == before
    assert second.channel.next_turn == state.turn + 1
    assert second.channel.is_mover
    with pytest.raises(PeerFault) as caught:
        receive(second, proposal, state_hash=Hash(b"\x0a" * 32))
    assert caught.value.code is Code.CHANNEL_TURN

    first.receive_refusal(state.turn, state.state_hash)
    assert first.outstanding is None
    assert first.receive_refusal(state.turn, state.state_hash) == []
    turn = proposed(second)  # on top of the last co-signed state, with the same entries
    assert turn.proposal.state.turn == state.turn + 1
    assert [type(e) for e in receive(first, turn)] == [Signed, Journalled, Cosigned, SendCountersignature]


def test_a_refusal_and_a_countersignature_that_cross_make_no_fork(pair: Pair) -> None:
    """FAULT 8: what is co-signed is not burnt by a refusal that comes late, and the other way round."""
    first, second, proposal = exchanged(pair)
    state = proposal.proposal.state
    *_, countersignature = receive(second, proposal)
    assert isinstance(countersignature, SendCountersignature)
    first.receive_countersignature(state.turn, state.state_hash, countersignature.signature)
    with pytest.raises(PeerFault) as caught:
        first.receive_refusal(state.turn, state.state_hash)
    assert caught.value.code is Code.CHANNEL_TURN
    assert first.channel.next_turn == second.channel.next_turn == state.turn + 1


def test_two_states_of_one_turn_are_a_fork(pair: Pair) -> None:
    """FAULT 9."""
    _, second, proposal = exchanged(pair)
    receive(second, proposal)
    before = second.channel
    with pytest.raises(InvariantBroken) as caught:
        receive(second, proposal, state_hash=Hash(b"\x0b" * 32))
    assert caught.value.code is Code.FORK
    assert second.channel == before
    second.freeze(Code.FORK, "two states")
    assert second.channel.phase is Phase.FROZEN
    assert second.resend(0) == []
    with pytest.raises(PeerFault) as frozen:
        receive(second, proposal)
    assert frozen.value.code is Code.CHANNEL_FROZEN


def test_who_lacks_a_countersignature_gets_it_before_anything_new(pair: Pair) -> None:
    """FAULT 4."""
    first, second, proposal = exchanged(pair)
    *_, countersignature = receive(second, proposal)
    turn = proposal.proposal.state.turn
    speak(second)
    new = proposed(second)
    assert second.resend(turn - 1) == [countersignature, new]
    assert second.resend(turn) == [new]
    assert first.resend(turn - 1) == [proposal]


def test_a_countersignature_that_is_not_for_the_proposal(pair: Pair) -> None:
    first, _, proposal = exchanged(pair)
    stranger = Signer(b"\x31" * 32).sign(b"\x00" * 32)
    turn = proposal.proposal.state.turn
    for wrong in (turn, turn + 1):
        with pytest.raises(PeerFault) as caught:
            first.receive_countersignature(wrong, Hash(b"\x0c" * 32), stranger)
        assert caught.value.code is Code.CHANNEL_TURN
    assert first.resend() == [proposal]


def test_refusals_without_end_stop_the_proposals(pair: Pair) -> None:
    first, second = mover(pair)
    second.receive_entry(speak(first))
    movers, number = [first, second], 0

    def one_more() -> None:
        nonlocal number
        desk, other = movers[number % 2], movers[1 - number % 2]
        state = proposed(desk)
        receive(other, state, state_hash=Hash(number.to_bytes(32, "big")))
        desk.receive_refusal(state.proposal.state.turn, state.proposal.state.state_hash)
        number += 1

    for _ in range(MAX_BURNT_IN_A_ROW):
        one_more()
    with pytest.raises(LocalRefusal) as caught:
        one_more()
    assert caught.value.code is Code.CHANNEL_TURN
    assert number == MAX_BURNT_IN_A_ROW


def test_after_the_final_proposal_nothing_else_is_signed(pair: Pair) -> None:
    pair.deposit(pair.a, ALICE, USD, 10**9)
    pair.deposit(pair.a, ALICE, BTC, 10**9)
    first, second = mover(pair)
    for desk in (first, second):
        desk.request_close()
    proposal = proposed(first)
    assert proposal.proposal.state.is_final
    first.add_call(ORDER_UPDATE, CANCEL, NOW, answered=True)
    with pytest.raises(InvariantBroken):
        first.flush(NOW)
    receive(second, proposal)
    assert second.channel.phase is Phase.FINAL
