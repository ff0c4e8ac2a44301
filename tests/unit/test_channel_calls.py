"""Bodies: what is wrong in itself is Void with its code, whatever the rest says; nothing raises."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channel.calls import (
    MAX_BATCH,
    MAX_FILLS,
    Call,
    CancelOrder,
    CreateOrder,
    Fill,
    Notice,
    Status,
    Subscribe,
    Void,
    parse_calls,
)
from channel.errors import Code
from channel.orders import TimeInForce, order_to_json
from channel.units import format_hex
from tests.support.channels import (
    BTC,
    BUY,
    FIXED,
    SELL,
    TERMS,
    UNTIL_MS,
    USERS,
    body_of,
    create_call,
    make_entry,
    market_of,
    notify_call,
    user_order,
)


def calls_of(*calls: dict[str, Any], sender: int = 0, check_signatures: bool = True) -> tuple[Call, ...]:
    entry = make_entry(sender, body_of(*calls), seq=3)
    return parse_calls(entry, FIXED, TERMS, check_signatures=check_signatures)


def body(text: str) -> tuple[Call, ...]:
    return parse_calls(make_entry(0, text), FIXED, TERMS)


def void_code(call: dict[str, Any]) -> Code:
    (parsed,) = calls_of(call)
    assert isinstance(parsed, Void), parsed
    return parsed.code


def test_a_create_and_its_reference() -> None:
    signed = user_order(0, BUY, 200_000, 10)
    first, second = calls_of(create_call(0, BUY, 199_000, 7, signed=signed), create_call(0, SELL, 1, 1))
    assert first == CreateOrder(
        call_id=1,
        ref=3 * MAX_BATCH,
        market=market_of(1),
        side=BUY,
        price_ticks=199_000,
        lots=7,
        time_in_force=TimeInForce.GTC,
        valid_until_ms=UNTIL_MS,
        authority=signed,
    )
    assert isinstance(second, CreateOrder)
    assert second.ref == 3 * MAX_BATCH + 1


def test_an_order_may_be_signed_for_the_venue_itself() -> None:
    signed = user_order(0, BUY, 200_000, 10, market_id=market_of(1).market_id)
    (call,) = calls_of(create_call(0, BUY, 200_000, 10, signed=signed))
    assert isinstance(call, CreateOrder)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"market": format_hex(market_of(0).market_id)}, Code.ORDER_MARKET),  # the sender's own
        ({"market": format_hex(market_of(1, tick=9).market_id)}, Code.ORDER_MARKET),
        ({"market": "eth/usd"}, Code.ENCODING),
        ({"market": format_hex(market_of(1, BTC, lot=10**4).market_id)}, Code.ORDER_MARKET),  # signed for another
        ({"side": "s"}, Code.ORDER_MARKET),
        ({"side": 0}, Code.PARAMS),
        ({"side": []}, Code.PARAMS),
        ({"tif": "FOK"}, Code.PARAMS),
        ({"tif": []}, Code.PARAMS),
        ({"tif": {}}, Code.PARAMS),
        ({"price": 200_001}, Code.ORDER_TICK),
        ({"price": 0}, Code.ORDER_TICK),
        ({"price": "1"}, Code.ORDER_TICK),
        ({"price": True}, Code.ORDER_TICK),
        ({"amount": 11}, Code.ORDER_AMOUNT),
        ({"amount": 0}, Code.ORDER_AMOUNT),
        ({"amount": None}, Code.ORDER_AMOUNT),
        ({"until": UNTIL_MS + 1}, Code.ORDER_EXPIRED),
        ({"until": 0}, Code.PARAMS),
        ({"order": None}, Code.PARAMS),
        ({"order": {}}, Code.PARAMS),
        ({"order": order_to_json(user_order(1, BUY, 200_000, 10))}, Code.ORDER_SIGNATURE),  # the peer's user
        ({"order": order_to_json(user_order(0, BUY, 200_000, 10, owner=USERS[1].address))}, Code.ORDER_SIGNATURE),
        ({"order": order_to_json(user_order(0, BUY, 200_000, 10, market_id=bytes(32)))}, Code.ORDER_MARKET),
        ({"more": 1}, Code.PARAMS),
    ],
)
def test_creates_that_are_void(change: dict[str, Any], code: Code) -> None:
    call = create_call(0, BUY, 200_000, 10)
    assert void_code({**call, "params": {**call["params"], **change}}) is code


def test_a_missing_param_is_void() -> None:
    call = create_call(0, BUY, 200_000, 10)
    for name in call["params"]:
        params = {k: v for k, v in call["params"].items() if k != name}
        assert void_code({**call, "params": params}) is Code.PARAMS


def test_own_entries_need_no_recovery() -> None:
    call = create_call(0, BUY, 200_000, 10)
    call["params"]["order"]["sig"] = "0x" + "00" * 65
    assert isinstance(calls_of(call)[0], Void)
    assert isinstance(calls_of(call, check_signatures=False)[0], CreateOrder)


def test_cancels_subscriptions_and_notices() -> None:
    market = {"market": format_hex(market_of(1).market_id)}
    base = {"jsonrpc": "2.0"}
    fill = [200_000, 4, "0x" + "11" * 32]
    calls = calls_of(
        {**base, "id": "x", "method": "order.update", "params": {"op": "cancel", "order": 512}},
        {**base, "id": 0, "method": "order.update", "params": {"op": "cancel_all"}},
        {**base, "id": 1, "method": "orderbook.subscribe", "params": market},
        {**base, "id": 2, "method": "orderbook.unsubscribe", "params": market},
        notify_call(512, "filled", 6, [fill]),
        {**base, "method": "order.notify", "params": {"order": 512, "status": "expired", "left": 0, "reason": "r"}},
    )
    assert calls == (
        CancelOrder(call_id="x", ref=512),
        CancelOrder(call_id=0, ref=None),
        Subscribe(call_id=1, market_id=market_of(1).market_id, on=True),
        Subscribe(call_id=2, market_id=market_of(1).market_id, on=False),
        Notice(
            ref=512,
            status=Status.FILLED,
            fills=(Fill(price_ticks=200_000, lots=4, counter_order=b"\x11" * 32),),  # type: ignore[arg-type]
            left_lots=6,
            reason="",
        ),
        Notice(ref=512, status=Status.EXPIRED, fills=(), left_lots=0, reason="r"),
    )


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("order.update", {}),
        ("order.update", {"op": "cancel"}),
        ("order.update", {"op": "cancel", "order": 511}),
        ("order.update", {"op": "cancel", "order": "512"}),
        ("order.update", {"op": "cancel", "order": 512, "more": 1}),
        ("order.update", {"op": "cancel_all", "order": 512}),
        ("order.update", {"op": ["cancel_all"]}),
        ("order.notify", {"order": 512, "status": "filled"}),
        ("order.notify", {"order": 512, "status": "rejected", "left": 0}),
        ("order.notify", {"order": 512, "status": [], "left": 0}),
        ("order.notify", {"order": 512, "status": "filled", "left": -1}),
        ("order.notify", {"order": 0, "status": "filled", "left": 1}),
        ("order.notify", {"order": 512, "status": "filled", "left": 0, "fills": {}}),
        ("order.notify", {"order": 512, "status": "filled", "left": 0, "fills": [[1, 1]]}),
        ("order.notify", {"order": 512, "status": "filled", "left": 0, "fills": [[0, 1, "0x" + "11" * 32]]}),
        ("order.notify", {"order": 512, "status": "filled", "left": 0, "fills": [[1, 0, "0x" + "11" * 32]]}),
        ("order.notify", {"order": 512, "status": "filled", "left": 0, "fills": [[]] * (MAX_FILLS + 1)}),
        ("order.notify", {"order": 512, "status": "filled", "left": 0, "reason": "r" * 65}),
        ("order.notify", {"order": 512, "status": "filled", "left": 0, "reason": None}),
        ("order.notify", {"order": 512, "status": "filled", "left": 0, "more": 1}),
        ("orderbook.subscribe", {}),
        ("orderbook.subscribe", {"market": "0x" + "11" * 32, "more": 1}),
        ("order.create", []),
    ],
)
def test_params_that_are_void(method: str, params: Any) -> None:
    assert void_code({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}) is Code.PARAMS


@pytest.mark.parametrize(
    ("call", "code"),
    [
        ({}, Code.REQUEST),
        ({"jsonrpc": "1.0", "method": "order.update"}, Code.REQUEST),
        ({"jsonrpc": "2.0", "method": "order.update", "extra": 1}, Code.REQUEST),
        ({"jsonrpc": "2.0", "id": -1, "method": "order.update"}, Code.REQUEST),
        ({"jsonrpc": "2.0", "id": True, "method": "order.update"}, Code.REQUEST),
        ({"jsonrpc": "2.0", "id": [], "method": "order.update"}, Code.REQUEST),
        ({"jsonrpc": "2.0", "id": "x" * 65, "method": "order.update"}, Code.REQUEST),
        ({"jsonrpc": "2.0", "id": 1, "method": "order.steal"}, Code.METHOD),
        ({"jsonrpc": "2.0", "id": 1, "method": []}, Code.METHOD),
        ({"jsonrpc": "2.0", "id": 1}, Code.METHOD),
    ],
)
def test_calls_that_are_no_calls(call: dict[str, Any], code: Code) -> None:
    assert void_code(call) is code


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", Code.PARSE),
        ("{", Code.PARSE),
        ('{"jsonrpc":"2.0","jsonrpc":"2.0"}', Code.DUPLICATE_KEY),
        ("1.5", Code.NUMBER),
        ("[]", Code.BATCH_TOO_LARGE),
        ("[" + ",".join(["{}"] * (MAX_BATCH + 1)) + "]", Code.BATCH_TOO_LARGE),
        ("[" * 100 + "]" * 100, Code.PARSE),
        ("null", Code.REQUEST),
        ('"text"', Code.REQUEST),
    ],
)
def test_bodies_that_are_void(text: str, code: Code) -> None:
    (call,) = body(text)
    assert isinstance(call, Void)
    assert call.code is code
    assert call.call_id is None


def test_a_void_call_keeps_its_place_and_its_id() -> None:
    calls = calls_of({"jsonrpc": "2.0", "id": 9, "method": "no"}, create_call(0, BUY, 1, 1))
    assert isinstance(calls[0], Void)
    assert calls[0].call_id == 9
    assert isinstance(calls[1], CreateOrder)
    assert calls[1].ref == 3 * MAX_BATCH + 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
METHODS = ("order.create", "order.update", "order.notify", "orderbook.subscribe", "orderbook.unsubscribe")


@given(st.data())
def test_nothing_that_a_peer_writes_raises(data: st.DataObject) -> None:
    """Well-formed calls with any value in any place."""
    call = data.draw(
        st.sampled_from(
            [
                create_call(0, BUY, 200_000, 10),
                notify_call(512, "filled", 6, [[200_000, 4, "0x" + "11" * 32]]),
                {"jsonrpc": "2.0", "id": 1, "method": data.draw(st.sampled_from(METHODS)), "params": {}},
            ]
        )
    )
    call = json.loads(json.dumps(call))
    path = data.draw(st.sampled_from([("params",), ("params", "order"), ()]))
    place: Any = call
    for name in path:
        place = place.get(name) if isinstance(place, dict) else None
    if isinstance(place, dict):
        place[data.draw(st.sampled_from([*place, "other"]))] = data.draw(JSON)
    for parsed in calls_of(call):
        assert isinstance(parsed, Call)


@given(JSON)
def test_any_json_is_void(value: Any) -> None:
    for call in body(json.dumps(value)):
        assert isinstance(call, Void)
