"""Entries, orders and locks: who signed what for whom, strictly."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channel.entry import MAX_BODY_BYTES, entry_from_json, entry_to_json
from channel.errors import Code, PeerFault
from channel.locks import lock_from_json, lock_to_json, release_digest, verify_lock
from channel.orders import (
    MAX_LOTS,
    MAX_TICKS,
    OrderType,
    TimeInForce,
    cancel_digest,
    fits_market,
    login_digest,
    order_from_json,
    order_to_json,
    verify_order,
)
from channel.signing import CURVE_ORDER
from channel.typed import collateral_domain
from channel.units import Address, Hash, format_address, format_hex
from tests.support.channels import (
    BTC,
    BUY,
    CHAIN_ID,
    COLLATERAL,
    CUSTODY_DOMAINS,
    FIXED,
    NODE_DOMAIN,
    SELL,
    SIGNERS,
    STRANGER,
    UNTIL_MS,
    USERS,
    XLN,
    make_entry,
    market_of,
    signed_lock,
    user_order,
)

A, B = (s.address for s in SIGNERS)


def parse(raw: Any, sender: Address = A, recipient: Address = B) -> Any:
    return entry_from_json(raw, NODE_DOMAIN, sender, recipient)


def code_of(parse_it: Any) -> Code:
    with pytest.raises(PeerFault) as caught:
        parse_it()
    return caught.value.code


def high_s(signature: bytes) -> bytes:
    s = CURVE_ORDER - int.from_bytes(signature[32:64], "big")
    return signature[:32] + s.to_bytes(32, "big") + bytes((55 - signature[64],))


@given(st.text(max_size=50), st.integers(1, 2**53 - 1), st.integers(0, 2**53 - 1))
def test_entries_round_trip(body: str, seq: int, ts_ms: int) -> None:
    entry = make_entry(0, body, seq=seq, ts_ms=ts_ms)
    assert parse(entry_to_json(entry)) == entry
    assert parse(entry_to_json(entry)).entry_hash == entry.entry_hash


RAW = entry_to_json(make_entry(0, "{}"))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"to": format_address(A)}, Code.ENTRY_RECIPIENT),
        ({"to": format_address(STRANGER.address)}, Code.ENTRY_RECIPIENT),
        ({"to": "0x1"}, Code.ADDRESS),
        ({"ch": format_hex(bytes(32))}, Code.ENTRY_SIGNATURE),
        ({"ch": "0x00"}, Code.ENCODING),
        ({"seq": 2}, Code.ENTRY_SIGNATURE),
        ({"seq": 0}, Code.PARAMS),
        ({"seq": True}, Code.PARAMS),
        ({"seq": "1"}, Code.PARAMS),
        ({"seq": 2**53}, Code.PARAMS),
        ({"prev": format_hex(b"\1" * 32)}, Code.ENTRY_SIGNATURE),
        ({"ts": 1}, Code.ENTRY_SIGNATURE),
        ({"ts": -1}, Code.PARAMS),
        ({"body": "{} "}, Code.ENTRY_SIGNATURE),
        ({"body": {}}, Code.PARAMS),
        ({"body": "x" * (MAX_BODY_BYTES + 1)}, Code.PARAMS),
        ({"body": "ü" * (MAX_BODY_BYTES // 2 + 1)}, Code.PARAMS),
        ({"sig": "0x"}, Code.ENTRY_SIGNATURE),
        ({"sig": None}, Code.ENCODING),
        ({"sig": RAW["sig"][:-2] + "00"}, Code.SIGNATURE_V),
        ({"sig": format_hex(high_s(bytes.fromhex(RAW["sig"][2:])))}, Code.SIGNATURE_HIGH_S),
        ({"more": 1}, Code.PARAMS),
    ],
)
def test_entries_that_are_refused(change: dict[str, Any], code: Code) -> None:
    assert code_of(lambda: parse({**RAW, **change})) is code


def test_an_entry_is_of_who_signed_it() -> None:
    assert code_of(lambda: parse(RAW, sender=STRANGER.address)) is Code.ENTRY_SIGNATURE
    assert code_of(lambda: parse([])) is Code.PARAMS
    assert code_of(lambda: parse({k: v for k, v in RAW.items() if k != "ts"})) is Code.PARAMS


# -- orders

SIGNED = user_order(0, BUY, 200_000, 10)
ORDER = order_to_json(SIGNED)


@given(
    st.sampled_from((BUY, SELL)),
    st.integers(1, MAX_TICKS),
    st.integers(1, MAX_LOTS),
    st.integers(0, 2**64 - 1),
    st.sampled_from(TimeInForce),
    st.binary(min_size=32, max_size=32),
)
def test_orders_round_trip(side: int, price: int, lots: int, nonce: int, tif: TimeInForce, replaces: bytes) -> None:
    signed = user_order(0, side, price, lots, nonce=nonce, time_in_force=tif, replaces=Hash(replaces))
    again = order_from_json(order_to_json(signed), CUSTODY_DOMAINS[0])
    assert again == signed
    assert again.order_id == signed.order_id
    verify_order(again)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"side": "buy"}, Code.PARAMS),
        ({"side": []}, Code.PARAMS),
        ({"type": "stop"}, Code.ORDER_TYPE),
        ({"type": {}}, Code.ORDER_TYPE),
        ({"tif": "FOK"}, Code.ORDER_TYPE),
        ({"type": "market", "price": 0}, Code.ORDER_TYPE),  # a market order is IOC
        ({"type": "market", "tif": "IOC"}, Code.ORDER_TICK),  # and has no price
        ({"price": 0}, Code.ORDER_TICK),
        ({"price": -1}, Code.ORDER_TICK),
        ({"price": "200000"}, Code.ORDER_TICK),
        ({"price": True}, Code.ORDER_TICK),
        ({"price": MAX_TICKS + 1}, Code.ORDER_TICK),
        ({"amount": 0}, Code.ORDER_AMOUNT),
        ({"amount": MAX_LOTS + 1}, Code.ORDER_AMOUNT),
        ({"amount": None}, Code.ORDER_AMOUNT),
        ({"until": 0}, Code.PARAMS),
        ({"until": "1"}, Code.PARAMS),
        ({"nonce": 1}, Code.PARAMS),
        ({"nonce": "-1"}, Code.PARAMS),
        ({"nonce": str(2**64)}, Code.PARAMS),
        ({"nonce": "1" * 21}, Code.PARAMS),
        ({"nonce": "١"}, Code.PARAMS),
        ({"replaces": "0x0"}, Code.ENCODING),
        ({"market": "eth/usd"}, Code.ENCODING),
        ({"owner": "me"}, Code.ADDRESS),
        ({"sig": 1}, Code.ENCODING),
        ({"more": 1}, Code.PARAMS),
    ],
)
def test_orders_that_do_not_parse(change: dict[str, Any], code: Code) -> None:
    assert code_of(lambda: order_from_json({**ORDER, **change}, CUSTODY_DOMAINS[0])) is code


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"side": "s"}, Code.ORDER_SIGNATURE),
        ({"tif": "IOC"}, Code.ORDER_SIGNATURE),
        ({"price": 200_001}, Code.ORDER_SIGNATURE),
        ({"amount": 11}, Code.ORDER_SIGNATURE),
        ({"until": UNTIL_MS + 1}, Code.ORDER_SIGNATURE),
        ({"nonce": "2"}, Code.ORDER_SIGNATURE),
        ({"market": format_hex(market_of(1).market_id)}, Code.ORDER_SIGNATURE),
        ({"owner": format_address(USERS[1].address)}, Code.ORDER_SIGNATURE),
        ({"replaces": format_hex(b"\1" * 32)}, Code.ORDER_SIGNATURE),
        ({"sig": "0x" + "00" * 64}, Code.ORDER_SIGNATURE),
        ({"sig": format_hex(high_s(SIGNED.signature))}, Code.SIGNATURE_HIGH_S),
        ({"sig": format_hex(SIGNED.signature[:64] + b"\0")}, Code.SIGNATURE_V),
    ],
)
def test_orders_that_their_owner_did_not_sign(change: dict[str, Any], code: Code) -> None:
    order = order_from_json({**ORDER, **change}, CUSTODY_DOMAINS[0])
    assert code_of(lambda: verify_order(order)) is code


def test_an_order_is_for_one_custody() -> None:
    elsewhere = order_from_json(ORDER, CUSTODY_DOMAINS[1])
    assert elsewhere.order_id != SIGNED.order_id
    assert code_of(lambda: verify_order(elsewhere)) is Code.ORDER_SIGNATURE


def test_what_an_order_allows() -> None:
    buy, sell = user_order(0, BUY, 100, 1).order, user_order(0, SELL, 100, 1).order
    assert [buy.allows(p) for p in (99, 100, 101)] == [True, True, False]
    assert [sell.allows(p) for p in (99, 100, 101)] == [False, True, True]
    at_any_price = user_order(0, BUY, 0, 1, order_type=OrderType.MARKET, time_in_force=TimeInForce.IOC)
    assert at_any_price.order.allows(MAX_TICKS)
    assert order_from_json(order_to_json(at_any_price), CUSTODY_DOMAINS[0]) == at_any_price


def test_an_order_fits_markets_of_its_shape() -> None:
    order = user_order(0, BUY, 100, 1).order
    assert fits_market(order, market_of(0), market_of(0))
    assert fits_market(order, market_of(0), market_of(1))
    assert not fits_market(order, market_of(0), market_of(1, tick=2))
    assert not fits_market(order, market_of(0, BTC), market_of(1, BTC))


def test_digests_differ_by_purpose_and_domain() -> None:
    owner, order_id = USERS[0].address, SIGNED.order_id
    digests = {
        digest
        for domain in CUSTODY_DOMAINS
        for digest in (cancel_digest(owner, order_id, domain), login_digest(owner, UNTIL_MS, domain))
    }
    assert len(digests) == 4


# -- locks

LOCK_DOMAIN = collateral_domain(CHAIN_ID, COLLATERAL)


def test_locks_round_trip_and_are_signed_by_xln() -> None:
    lock = signed_lock(0)
    again = lock_from_json(lock_to_json(lock))
    assert again == lock
    verify_lock(again, LOCK_DOMAIN, XLN.address)
    assert code_of(lambda: verify_lock(again, LOCK_DOMAIN, A)) is Code.SIGNATURE_SIGNER
    elsewhere = collateral_domain(CHAIN_ID + 1, COLLATERAL)
    assert code_of(lambda: verify_lock(again, elsewhere, XLN.address)) is Code.SIGNATURE_SIGNER
    assert release_digest(FIXED.channel_id, A, LOCK_DOMAIN) != release_digest(FIXED.channel_id, B, LOCK_DOMAIN)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"amount": 1}, Code.AMOUNT),
        ({"amount": "-1"}, Code.AMOUNT),
        ({"expiry": 1_800_000_000}, Code.PARAMS),
        ({"expiry": "2000000000"}, Code.PARAMS),
        ({"openBy": 0}, Code.PARAMS),
        ({"openBy": True}, Code.PARAMS),
        ({"expiry": 2**64}, Code.PARAMS),
        ({"sig": "0x00"}, Code.ENCODING),
        ({"token": "usd"}, Code.ADDRESS),
        ({"owner": None}, Code.ADDRESS),
        ({"ch": None}, Code.ENCODING),
        ({"more": 1}, Code.PARAMS),
    ],
)
def test_locks_that_do_not_parse(change: dict[str, Any], code: Code) -> None:
    assert code_of(lambda: lock_from_json({**lock_to_json(signed_lock(0)), **change})) is code


@pytest.mark.parametrize(
    "change", [{"amount": "1"}, {"expiry": 2_000_000_001}, {"owner": format_address(B)}, {"ch": format_hex(bytes(32))}]
)
def test_a_changed_lock_is_not_signed(change: dict[str, Any]) -> None:
    lock = lock_from_json({**lock_to_json(signed_lock(0)), **change})
    assert code_of(lambda: verify_lock(lock, LOCK_DOMAIN, XLN.address)) is Code.SIGNATURE_SIGNER
