"""The journal and its replay: what both sides recorded gives their states back, and nothing in it can be changed."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from channel.calls import MAX_BATCH, parse_calls
from channel.entry import Entry
from channel.errors import Code, PeerFault
from channel.journal import (
    Record,
    StateRecord,
    header_from_json,
    header_to_json,
    record_from_json,
    record_to_json,
)
from channel.position import apply_entry
from channel.replay import Replay, replay, require_authorised
from channel.strictjson import dumps, loads
from channel.transition import Run, derive_state, next_journal_head
from channel.units import Hash, format_hex
from tests.support.channels import (
    BTC,
    BUY,
    FIXED,
    SELL,
    SIGNERS,
    START_MS,
    STRANGER,
    TERMS,
    XLN,
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
    order_record,
    signed_lock,
    user_order,
)


def trade(
    a: Side, b: Side, *, by: int, side: int, price: int, lots: int, nonce: int, counter: Any = None, fills: int = 1
) -> None:
    """One order of `by`, filled by the other in `fills` parts; both sides get the venue's order as evidence."""
    one, venue = (a, b) if by == 0 else (b, a)
    ref = one.send_create(side, price, lots, nonce=nonce)
    deliver(one, venue)
    order = counter or user_order(1 - by, 1 - side, price, lots, nonce=nonce)
    for record_of in (a, b):
        record_of.records.append(order_record(1 - by, order))
    left = lots
    for part in range(fills):
        size = left if part == fills - 1 else lots // fills
        left -= size
        venue.send_calls(notify_call(ref, "filled", left, [[price, size, format_hex(order.order_id)]]))
    deliver(venue, one)


def history() -> tuple[Side, Side]:
    a, b = open_pair()
    trade(a, b, by=0, side=BUY, price=200_000, lots=10, nonce=1, fills=3)
    drain(a, b)
    trade(a, b, by=1, side=BUY, price=190_000, lots=4, nonce=2)
    a.send_create(SELL, 210_000, 5, nonce=3)
    drain(a, b)
    deliver(a, b)
    b.send_calls(notify_call(2 * MAX_BATCH + MAX_BATCH, "cancelled", 5))
    a.close()
    drain(a, b)
    assert a.channel.phase.value == "final"
    return a, b


A_SIDE, B_SIDE = history()
LINES = [
    header_to_json(FIXED, TERMS),
    *(record_to_json(record, FIXED) for record in A_SIDE.records),
]
TEXT = "\n".join(dumps(line) for line in LINES)


def read(text: str) -> tuple[Any, Any, list[Record]]:
    lines = [loads(line, max_bytes=1 << 20) for line in text.split("\n")]
    fixed, terms = header_from_json(lines[0])
    return fixed, terms, [record_from_json(line, fixed, terms) for line in lines[1:]]


def fault(code: Code, function: Callable[..., Any], *args: Any) -> None:
    with pytest.raises(PeerFault) as caught:
        function(*args)
    assert caught.value.code is code, caught.value


def test_both_journals_replay_to_the_last_state() -> None:
    results = [replay(FIXED, TERMS, XLN.address, side.records) for side in (A_SIDE, B_SIDE)]
    for result in results:
        require_authorised(result)
        assert result.last is not None
        assert A_SIDE.channel.cosigned is not None
        assert result.last.state == A_SIDE.channel.cosigned.state
        assert result.last.state.is_final
        assert result.position == A_SIDE.channel.position
        assert result.unlisted_entries == 0
        assert result.entries == sum(A_SIDE.channel.position.last_seq)
        assert result.states == len(A_SIDE.cosigned)
        assert [(f.venue, f.owner_side, f.lots) for f in result.fills] == [(1, 0, 3), (1, 0, 3), (1, 0, 4), (0, 0, 4)]
        assert result.uncovered_turns == []


def test_the_journal_as_text_gives_the_records_back() -> None:
    fixed, terms, records = read(TEXT)
    assert (fixed, terms) == (FIXED, TERMS)
    assert records == A_SIDE.records
    assert fixed.channel_id == FIXED.channel_id
    require_authorised(replay(fixed, terms, XLN.address, records))


@given(st.integers(0, len(TEXT) - 1), st.integers(0, 6))
@settings(max_examples=300)
def test_a_flipped_bit_anywhere_is_found(at: int, bit: int) -> None:
    """Or it reads as the very same records: the case of a hex digit."""
    changed = TEXT[:at] + chr(ord(TEXT[at]) ^ (1 << bit)) + TEXT[at + 1 :]
    try:
        fixed, terms, records = read(changed)
        require_authorised(replay(fixed, terms, XLN.address, records))
    except PeerFault:
        return
    assert (fixed, terms, records) == (FIXED, TERMS, A_SIDE.records)


@given(st.integers(0, len(A_SIDE.records) - 1))
def test_a_missing_record_is_found(at: int) -> None:
    records = A_SIDE.records[:at] + A_SIDE.records[at + 1 :]
    try:
        result = replay(FIXED, TERMS, XLN.address, records)
        require_authorised(result)
    except PeerFault:
        return
    assert records == A_SIDE.records[:-1]  # a prefix is a journal too


@given(st.permutations(range(len(A_SIDE.records))))
def test_another_order_leads_to_the_same_states_or_is_found(order: list[int]) -> None:
    try:
        result = replay(FIXED, TERMS, XLN.address, [A_SIDE.records[i] for i in order])
    except PeerFault:
        return
    assert result.last is not None
    assert result.position == A_SIDE.channel.position


def test_what_a_journal_may_not_hold() -> None:
    records = A_SIDE.records
    entries = [r for r in records if isinstance(r, Entry)]
    states = [r for r in records if isinstance(r, StateRecord)]
    twice = records[: records.index(entries[0]) + 1]
    fault(Code.ATTEST_JOURNAL, replay, FIXED, TERMS, XLN.address, [*twice, entries[0]])
    fault(Code.ATTEST_JOURNAL, replay, FIXED, TERMS, XLN.address, [*records, entries[0]])
    fault(Code.ATTEST_JOURNAL, replay, FIXED, TERMS, XLN.address, [*records, replace(states[-1], turn=99)])
    start = records[: records.index(states[1]) + 1]
    fault(Code.ATTEST_JOURNAL, replay, FIXED, TERMS, XLN.address, [*start, states[1]])
    fault(Code.ATTEST_JOURNAL, replay, FIXED, TERMS, XLN.address, [*start, replace(states[1], turn=2)])
    fault(Code.ATTEST_JOURNAL, replay, FIXED, TERMS, XLN.address, [*start, replace(states[2], time_ms=1)])
    fault(Code.ATTEST_JOURNAL, replay, FIXED, TERMS, XLN.address, [*start, states[2]])  # its entries are missing
    listed = [*start, *entries]
    gap = replace(states[2], runs=(Run(0, 1, 1), Run(1, 9, 9)))
    fault(Code.ATTEST_JOURNAL, replay, FIXED, TERMS, XLN.address, [*listed, gap])
    other = make_entry(0, "{}", fixed=make_fixed(channel_nonce=1))
    fault(Code.ATTEST_JOURNAL, replay, FIXED, TERMS, XLN.address, [other])
    swapped = replace(states[0], signatures=states[0].signatures[::-1])
    index = records.index(states[0])
    fault(Code.SIGNATURE_SIGNER, replay, FIXED, TERMS, XLN.address, [*records[:index], swapped])


def test_locks_are_of_this_channel_and_by_xln() -> None:
    fault(Code.SIGNATURE_SIGNER, replay, FIXED, TERMS, STRANGER.address, [signed_lock(0)])
    other_terms = signed_lock(0, terms=make_terms(grace_s=1))
    other_channel = signed_lock(0, fixed=make_fixed(channel_nonce=1))
    for lock in (other_terms, other_channel):
        fault(Code.LOCK_CHANNEL, replay, FIXED, TERMS, XLN.address, [lock])


def signed_record(result: Replay, *, turn: int, is_final: bool, runs: tuple[Run, ...], entries: list[Entry]) -> Any:
    """A state that both have signed, whatever the rules say."""
    start = result.last
    assert start is not None
    position = result.position
    for entry in entries:
        position = apply_entry(position, entry, parse_calls(entry, FIXED, TERMS), FIXED, TERMS)
    proposal = derive_state(
        fixed=FIXED,
        terms=TERMS,
        position=position,
        locks=result.locks,
        turn=turn,
        is_final=is_final,
        time_ms=START_MS,
        runs=runs,
        journal_head=next_journal_head(start.journal_head, turn, [e.entry_hash for e in entries]),
    )
    return StateRecord(
        turn=turn,
        is_final=is_final,
        time_ms=START_MS,
        runs=runs,
        state_hash=proposal.state.state_hash,
        signatures=(SIGNERS[0].sign(proposal.state.digest), SIGNERS[1].sign(proposal.state.digest)),
    )


def test_states_that_both_signed_against_the_rules() -> None:
    a, b = open_pair()
    result = replay(FIXED, TERMS, XLN.address, a.records)
    empty = signed_record(result, turn=2, is_final=False, runs=(), entries=[])
    fault(Code.ATTEST_JOURNAL, replay, FIXED, TERMS, XLN.address, [*a.records, empty])
    a.send_create(BUY, 1, 1)
    entry = a.sent[0]
    final = signed_record(result, turn=2, is_final=True, runs=(Run(0, 1, 1),), entries=[entry])
    fault(Code.ATTEST_JOURNAL, replay, FIXED, TERMS, XLN.address, [*a.records, final])
    fine = signed_record(result, turn=2, is_final=False, runs=(Run(0, 1, 1),), entries=[entry])
    assert replay(FIXED, TERMS, XLN.address, [*a.records, fine]).states == 3
    assert b.channel.cosigned is not None


def test_an_entry_without_effect_in_a_state_is_found_when_it_does_not_apply() -> None:
    a, b = open_pair()
    stray = make_entry(1, dumps(notify_call(512, "cancelled", 5)))
    result = replay(FIXED, TERMS, XLN.address, [*a.records, stray])
    assert result.unlisted_entries == 1
    for fills in ([], [[1, 1, "0x" + "11" * 32]]):
        entry = make_entry(1, dumps(notify_call(512, "cancelled", 5, fills)))
        record = replace(signed_record(result, turn=2, is_final=False, runs=(), entries=[]), runs=(Run(1, 1, 1),))
        fault(Code.ENTRY_INVALID, replay, FIXED, TERMS, XLN.address, [*a.records, entry, record])
    assert b.channel.phase.value == "active"


# -- a user's order behind both sides of every fill


def authorised(*trades: dict[str, Any], records: list[Record] | None = None) -> None:
    a, b = open_pair()
    for number, given_trade in enumerate(trades, start=1):
        trade(a, b, **{"by": 0, "side": BUY, "price": 100, "lots": 10, "nonce": number, **given_trade})
    drain(a, b)
    require_authorised(replay(FIXED, TERMS, XLN.address, [*a.records, *(records or [])]))


def test_orders_that_authorise() -> None:
    authorised({})
    authorised({"counter": user_order(1, SELL, 90, 20)})
    authorised({"counter": user_order(1, SELL, 90, 20)}, {"counter": user_order(1, SELL, 90, 20)})
    authorised({"counter": user_order(1, SELL, 90, 10, market_id=market_of(0).market_id)})
    authorised({"by": 1, "side": SELL, "counter": user_order(0, BUY, 110, 10)})


@pytest.mark.parametrize(
    ("counter", "says"),
    [
        (user_order(1, BUY, 100, 10), "does not allow"),
        (user_order(1, SELL, 101, 10), "does not allow"),
        (user_order(1, SELL, 100, 9), "beyond its amount"),
        (user_order(1, SELL, 100, 10, market_id=market_of(1, BTC, lot=10**4).market_id), "another market"),
        (user_order(1, SELL, 100, 10, market_id=bytes(32)), "another market"),
    ],
)
def test_counter_orders_that_do_not_authorise(counter: Any, says: str) -> None:
    with pytest.raises(PeerFault, match=says) as caught:
        authorised({"counter": counter})
    assert caught.value.code is Code.ATTEST_ORDER


def test_two_fills_do_not_share_one_amount() -> None:
    with pytest.raises(PeerFault, match="beyond its amount"):
        authorised({"counter": user_order(1, SELL, 90, 10)}, {"counter": user_order(1, SELL, 90, 10)})


def test_an_order_that_nobody_signed() -> None:
    a, b = open_pair()
    ref = a.send_create(BUY, 100, 10)
    deliver(a, b)
    b.send_calls(notify_call(ref, "filled", 0, [[100, 10, "0x" + "11" * 32]]))
    drain(a, b)
    with pytest.raises(PeerFault, match="not signed by anybody"):
        require_authorised(replay(FIXED, TERMS, XLN.address, a.records))
    forged = user_order(1, SELL, 100, 10)
    forged = replace(forged, signature=user_order(1, SELL, 100, 11).signature)
    fault(Code.ORDER_SIGNATURE, replay, FIXED, TERMS, XLN.address, [order_record(1, forged)])


def venue_names(a: Side, b: Side, *orders: tuple[int, int]) -> list[Hash]:
    """A's orders (side, nonce) of 10 lots at 100, all open at B; their ids."""
    ids = []
    for side, nonce in orders:
        a.send_calls(create_call(0, side, 100, 10, nonce=nonce))
        ids.append(user_order(0, side, 100, 10, nonce=nonce).order_id)
    deliver(a, b)
    return ids


def attest_after(fills: list[tuple[int, Callable[[list[Hash]], Hash]]], *orders: tuple[int, int]) -> None:
    a, b = open_pair()
    ids = venue_names(a, b, *orders)
    for number, counter in fills:
        b.send_calls(notify_call((number + 1) * MAX_BATCH, "filled", 0, [[100, 10, format_hex(counter(ids))]]))
    drain(a, b)
    require_authorised(replay(FIXED, TERMS, XLN.address, a.records))


def test_the_venue_may_match_two_of_the_peers_users() -> None:
    attest_after([(0, lambda ids: ids[1]), (1, lambda ids: ids[0])], (BUY, 1), (SELL, 2))


@pytest.mark.parametrize(
    ("fills", "orders"),
    [
        ([(0, lambda ids: ids[1])], ((BUY, 1), (SELL, 2))),  # the other half is missing
        ([(0, lambda ids: ids[0])], ((BUY, 1),)),  # with itself
        ([(0, lambda ids: ids[1]), (1, lambda ids: ids[0])], ((BUY, 1), (BUY, 2))),  # both buy: the venue pays both
    ],
)
def test_the_peers_orders_are_no_orders_of_the_venues_users(fills: Any, orders: Any) -> None:
    """Else a venue could pay a peer from its users' funds without any of them having signed."""
    with pytest.raises(PeerFault, match="of a user of the other broker") as caught:
        attest_after(fills, *orders)
    assert caught.value.code is Code.ATTEST_ORDER


# -- records as JSON


@pytest.mark.parametrize(
    "raw",
    [
        None,
        [],
        {},
        {"entry": {}},
        {"entry": {"by": 2}},
        {"entry": {"by": True, **LINES[3].get("entry", {})}},
        {"state": {}, "more": 1},
        {"lock": {}},
        {"order": {}, "broker": 2},
        {"order": {}, "broker": True},
        {"order": {}},
        {"state": []},
    ],
)
def test_records_that_are_none(raw: Any) -> None:
    fault(Code.PARAMS, record_from_json, raw, FIXED, TERMS)


STATE = next(line["state"] for line in LINES if "state" in line and line["state"]["runs"])


@pytest.mark.parametrize(
    "change",
    [
        {"turn": -1},
        {"turn": "1"},
        {"turn": True},
        {"final": 0},
        {"t": None},
        {"runs": {}},
        {"runs": [[0, 1]]},
        {"runs": [[0, 1, "1"]]},
        {"runs": [[2, 1, 1]]},
        {"runs": [[0, 0, 1]]},
        {"runs": [[0, 2, 1]]},
        {"runs": [[0, 1, 2**53]]},
        {"sigs": []},
        {"sigs": "0x"},
        {"more": 1},
    ],
)
def test_state_records_that_are_none(change: dict[str, Any]) -> None:
    fault(Code.PARAMS, record_from_json, {"state": {**STATE, **change}}, FIXED, TERMS)


def test_entries_are_from_one_participant_to_the_other() -> None:
    third = make_fixed(participants=(FIXED.participants[0], STRANGER.address))
    line = record_to_json(make_entry(0, "{}", fixed=third), third)
    fault(Code.ENTRY_RECIPIENT, record_from_json, line, FIXED, TERMS)


def test_other_values_of_records() -> None:
    fault(Code.ENCODING, record_from_json, {"state": {**STATE, "hash": "0x"}}, FIXED, TERMS)
    fault(Code.ENCODING, record_from_json, {"state": {**STATE, "sigs": ["0x00", "0x00"]}}, FIXED, TERMS)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"chainId": 31337}, Code.ENCODING),
        ({"participants": "0x0"}, Code.PARAMS),
        ({"participants": []}, Code.ENCODING),
        ({"participants": ["0x0"] * 300}, Code.ENCODING),
        ({"channelNonce": "1"}, Code.PARAMS),
        ({"channelNonce": 2**48}, Code.ENCODING),
        ({"challengeDuration": None}, Code.PARAMS),
        ({"appDefinition": 1}, Code.ADDRESS),
        ({"more": 1}, Code.PARAMS),
    ],
)
def test_headers_that_are_none(change: dict[str, Any], code: Code) -> None:
    header = json.loads(dumps(LINES[0]))
    header["channel"]["fixedPart"].update(change)
    fault(code, header_from_json, header)


def test_a_header_is_nothing_more() -> None:
    for raw in ({}, [], {"channel": {}}, {**LINES[0], "more": 1}, {"channel": {**LINES[0]["channel"], "more": 1}}):
        fault(Code.PARAMS, header_from_json, raw)
