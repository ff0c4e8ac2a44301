"""The JSON form of application data, and states as files."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channel.appdata import AppData, BalanceUpdate, CollateralLock, OpenOrdersSummary, Price, lock_id_of
from channel.errors import Code, PeerFault
from channel.jsonform import app_data_from_json, app_data_to_json, signed_state_from_json, state_to_json
from channel.signing import CURVE_ORDER, Signer
from channel.state import CosignedState, State, VariablePart
from channel.strictjson import dumps, loads
from channel.terms import Market, Token, terms_to_json
from channel.transition import cosigned_state
from channel.units import UINT64_MAX, UINT256_MAX, ZERO_HASH, Address, Hash, format_address, format_hex
from tests.support.channels import (
    BTC,
    BUY,
    CUSTODIES,
    ETH,
    FIXED,
    SELL,
    SIGNERS,
    START_MS,
    STRANGER,
    TERMS,
    USD,
    deliver,
    drain,
    make_fixed,
    make_terms,
    market_of,
    notify_call,
    open_pair,
    user_order,
)

A, B = (s.address for s in SIGNERS)
VECTORS = Path(__file__).parent.parent / "vectors"
STATES = json.loads((VECTORS / "nitro_states.json").read_text())["states"]
OUTCOMES = json.loads((VECTORS / "exit_outcomes.json").read_text())["cases"]


def fault(code: Code, function: Any, *args: Any) -> PeerFault:
    with pytest.raises(PeerFault) as caught:
        function(*args)
    assert caught.value.code is code, caught.value
    return caught.value


# -- application data


def test_the_design_notes_example() -> None:
    """The trade of the design: 0.1 ETH against 200 USDC, an open order, 0.011 WBTC locked."""
    weth, usdc, wbtc = ETH, USD, BTC
    market = Market(holder=B, chain_id=1, base=weth, quote=usdc, tick_quote=10, lot_base=10**13)
    terms = make_terms(
        tokens=(
            Token(address=weth, symbol="ETH", decimals=18),
            Token(address=usdc, symbol="USDC", decimals=6),
            Token(address=wbtc, symbol="WBTC", decimals=8),
        ),
        markets=(market,),
    )
    fixed = make_fixed(chain_id=1)
    data = AppData.of(
        terms_hash=terms.terms_hash,
        time_ms=1_700_000_000_000,
        journal_head=ZERO_HASH,
        balance_updates=[
            BalanceUpdate(holder=B, owner=A, chain_id=1, token=weth, available=0, locked=10**17),
            BalanceUpdate(holder=A, owner=B, chain_id=1, token=usdc, available=0, locked=200 * 10**6),
        ],
        open_orders=[
            OpenOrdersSummary(
                holder=B,
                owner=A,
                market_id=market.market_id,
                side=BUY,
                base=2 * 10**17,
                low_ticks=1000,
                high_ticks=1100,
                quote=210 * 10**6,
            )
        ],
        collateral=[
            CollateralLock(
                owner=A,
                lock_id=lock_id_of(fixed.channel_id, A),
                chain_id=1,
                token=wbtc,
                available=0,
                locked=1_100_000,
            )
        ],
    )
    a, b, e, u, w = (format_address(x) for x in (A, B, weth, usdc, wbtc))
    assert app_data_to_json(data, fixed, terms) == {
        "cl": {a: [["0x1", w, "0", "0.011"]]},
        "bu": {b: {a: [["0x1", e, "0", "0.1"]]}, a: {b: [["0x1", u, "0", "200"]]}},
        "oos": {b: {a: {"eth/usdc": {"b": ["0.2", "1000", "1100", "210"]}}}},
        "px": [],
        "jh": format_hex(ZERO_HASH),
        "t": 1_700_000_000_000,
        "terms": format_hex(terms.terms_hash),
    }


PARTICIPANTS = st.sampled_from((A, B))
TOKENS = st.sampled_from((ETH, USD, BTC))
UINT = st.integers(0, UINT256_MAX)
SOME = st.integers(1, UINT256_MAX)
MARKETS = st.sampled_from(TERMS.markets)


@st.composite
def summaries(draw: st.DrawFn) -> OpenOrdersSummary:
    market = draw(MARKETS)
    return OpenOrdersSummary(
        holder=market.holder,
        owner=draw(PARTICIPANTS),
        market_id=market.market_id,
        side=draw(st.sampled_from((BUY, SELL))),
        base=draw(SOME),
        low_ticks=draw(UINT),
        high_ticks=draw(UINT),
        quote=draw(UINT),
    )


DATA = st.builds(
    AppData.of,
    terms_hash=st.just(TERMS.terms_hash),
    time_ms=st.integers(0, 2**53 - 1),
    journal_head=st.binary(min_size=32, max_size=32).map(Hash),
    balance_updates=st.lists(
        st.builds(
            BalanceUpdate,
            holder=PARTICIPANTS,
            owner=PARTICIPANTS,
            chain_id=UINT,
            token=TOKENS,
            available=UINT,
            locked=SOME,
        ),
        max_size=5,
        unique_by=lambda row: row.key,
    ),
    open_orders=st.lists(summaries(), max_size=5, unique_by=lambda row: row.key),
    collateral=st.lists(
        st.builds(
            CollateralLock,
            owner=PARTICIPANTS,
            lock_id=st.sampled_from((ZERO_HASH, lock_id_of(FIXED.channel_id, A), lock_id_of(FIXED.channel_id, B))),
            chain_id=UINT,
            token=TOKENS,
            available=SOME,
            locked=UINT,
        ),
        max_size=5,
        unique_by=lambda row: row.key,
    ),
    prices=st.lists(
        st.builds(Price, asset=TOKENS, quote=TOKENS, price=SOME, time_ms=st.integers(0, 2**53 - 1)),
        max_size=3,
        unique_by=lambda row: row.key,
    ),
)


@given(DATA)
def test_application_data_round_trips(data: AppData) -> None:
    raw = loads(dumps(app_data_to_json(data, FIXED, TERMS)), max_bytes=1 << 20)
    again = app_data_from_json(raw, FIXED, TERMS)
    assert again == data
    assert again.encode() == data.encode()


def test_prices_are_decimal_numbers_whatever_the_decimals() -> None:
    tokens = (
        Token(address=ETH, symbol="BIG", decimals=36),
        Token(address=USD, symbol="USD", decimals=2),
        Token(address=BTC, symbol="BTC", decimals=8),
    )
    terms = make_terms(tokens=tokens, markets=())
    prices = [
        Price(asset=ETH, quote=USD, price=7, time_ms=1),  # 7 cents per 10^-18 BIG
        Price(asset=USD, quote=BTC, price=5 * 10**22, time_ms=1),
    ]
    data = AppData.of(terms_hash=terms.terms_hash, time_ms=1, journal_head=ZERO_HASH, prices=prices)
    raw = app_data_to_json(data, FIXED, terms)
    assert [row[2] for row in raw["px"]] == ["7" + "0" * 16, "0.05"]
    assert app_data_from_json(raw, FIXED, terms) == data


def test_what_has_no_json_form() -> None:
    data = AppData.of(terms_hash=ZERO_HASH, time_ms=0, journal_head=ZERO_HASH)
    fault(Code.NUMBER, app_data_to_json, replace(data, time_ms=UINT64_MAX), FIXED, TERMS)
    stranger = Address(bytes([9]) * 20)
    row = BalanceUpdate(holder=A, owner=B, chain_id=1, token=stranger, available=0, locked=1)
    fault(Code.CHANNEL_TERMS, app_data_to_json, replace(data, balance_updates=(row,)), FIXED, TERMS)
    summary = OpenOrdersSummary(
        holder=A, owner=B, market_id=market_of(1).market_id, side=0, base=1, low_ticks=1, high_ticks=1, quote=1
    )
    fault(Code.ORDER_MARKET, app_data_to_json, replace(data, open_orders=(summary,)), FIXED, TERMS)


a, b = format_address(A), format_address(B)
usd = format_address(USD)
EMPTY = {"cl": {}, "bu": {}, "oos": {}, "px": [], "jh": format_hex(ZERO_HASH), "t": 1, "terms": format_hex(ZERO_HASH)}
ROW = ["0x1", usd, "0", "1"]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"more": 1}, Code.CHANNEL_STATE),
        ({"t": "1"}, Code.CHANNEL_STATE),
        ({"t": True}, Code.CHANNEL_STATE),
        ({"jh": "0x"}, Code.ENCODING),
        ({"bu": []}, Code.CHANNEL_STATE),
        ({"bu": {a: {}}}, Code.CHANNEL_STATE),
        ({"bu": {a: []}}, Code.CHANNEL_STATE),
        ({"bu": {a: {b: []}}}, Code.CHANNEL_STATE),
        ({"bu": {a: {b: ROW}}}, Code.CHANNEL_STATE),
        ({"bu": {a: {b: [ROW[:3]]}}}, Code.CHANNEL_STATE),
        ({"bu": {a: {b: [[*ROW, format_hex(ZERO_HASH)]]}}}, Code.CHANNEL_STATE),
        ({"bu": {a: {b: [ROW, ROW]}}}, Code.CHANNEL_STATE),
        ({"bu": {a: {b: [ROW], b.lower(): [["0x2", *ROW[1:]]]}}}, Code.CHANNEL_STATE),
        ({"bu": {format_address(STRANGER.address): {b: [ROW]}}}, Code.CHANNEL_STATE),
        ({"bu": {a: {"me": [ROW]}}}, Code.ADDRESS),
        ({"bu": {a: {b: [["0x1", usd, "0", "0"]]}}}, Code.CHANNEL_STATE),
        ({"bu": {a: {b: [["1", usd, "0", "1"]]}}}, Code.ENCODING),
        ({"bu": {a: {b: [["0x1", usd, "0", "0.0000001"]]}}}, Code.AMOUNT),
        ({"bu": {a: {b: [["0x1", usd, 0, "1"]]}}}, Code.AMOUNT),
        ({"bu": {a: {b: [["0x1", format_address(bytes([9]) * 20), "0", "1"]]}}}, Code.CHANNEL_TERMS),
        ({"cl": {a: [ROW[:3]]}}, Code.CHANNEL_STATE),
        ({"cl": {a: [[*ROW, "0x00"]]}}, Code.ENCODING),
        ({"cl": {a: [[*ROW[:3], "0"]]}}, Code.CHANNEL_STATE),
        ({"oos": {b: {a: {}}}}, Code.CHANNEL_STATE),
        ({"oos": {b: {a: {"eth/usd": {}}}}}, Code.CHANNEL_STATE),
        ({"oos": {b: {a: {"eth/usd": {"x": ["1", "1", "1", "1"]}}}}}, Code.CHANNEL_STATE),
        ({"oos": {b: {a: {"eth/usd": {"b": ["1", "1", "1"]}}}}}, Code.CHANNEL_STATE),
        ({"oos": {b: {a: {"eth/usd": {"b": ["0", "1", "1", "1"]}}}}}, Code.CHANNEL_STATE),
        ({"oos": {b: {a: {"eth/eur": {"b": ["1", "1", "1", "1"]}}}}}, Code.ORDER_MARKET),
        ({"oos": {b: {a: {"eth/usd": {"b": ["1", "1.001", "1", "1"]}}}}}, Code.AMOUNT),
        ({"oos": {b: {a: {"eth/usd": {"b": ["1", 1, "1", "1"]}}}}}, Code.AMOUNT),
        ({"oos": {b: {a: {"eth/usd": {"b": ["1", "1", "1" * 137, "1"]}}}}}, Code.AMOUNT),
        ({"oos": {b: {a: {"eth/usd": {"b": ["1", "1", "1" + "0" * 80, "1"]}}}}}, Code.AMOUNT),
        ({"px": {}}, Code.CHANNEL_STATE),
        ({"px": [[usd, usd, "1"]]}, Code.CHANNEL_STATE),
        ({"px": [[usd, usd, "1", "1"]]}, Code.CHANNEL_STATE),
        ({"px": [[usd, usd, "0", 1]]}, Code.CHANNEL_STATE),
        ({"px": [[usd, usd, 1, 1]]}, Code.AMOUNT),
    ],
)
def test_json_that_is_no_application_data(change: dict[str, Any], code: Code) -> None:
    app_data_from_json(EMPTY, FIXED, TERMS)
    fault(code, app_data_from_json, {**EMPTY, **change}, FIXED, TERMS)


# -- states as files


def vector_file(case: dict[str, Any]) -> dict[str, Any]:
    expected = case["expected"]
    names = ("fixedPart", "turnNum", "isFinal", "appData")
    return {
        **{name: copy.deepcopy(case[name]) for name in names},
        "outcome": expected["encodedOutcome"],
        "signatures": copy.deepcopy(expected["signatures"]),
    }


@pytest.mark.parametrize("case", STATES, ids=lambda case: case["name"])
def test_the_vectors_as_files(case: dict[str, Any]) -> None:
    raw, expected = vector_file(case), case["expected"]
    signed = signed_state_from_json(raw)
    assert format_hex(signed.state.state_hash) == expected["stateHash"]
    assert [format_address(s) for s in signed.signers] == [s["signer"] for s in expected["signatures"]]
    assert signed.unsigned_by == ()
    assert signed.app_data is None
    assert signed.outcome_follows is None
    raw["signatures"] = [s["bytes"] for s in expected["signatures"]]
    assert signed_state_from_json(raw) == signed
    raw["signatures"] = [{k: s[k] for k in ("r", "s", "v")} for s in expected["signatures"]]
    raw["fixedPart"]["chainId"] = int(case["fixedPart"]["chainId"])
    raw["fixedPart"]["channelNonce"] = str(case["fixedPart"]["channelNonce"])
    assert signed_state_from_json(raw) == signed
    raw["fixedPart"]["chainId"] = hex(raw["fixedPart"]["chainId"])
    raw |= {"name": case["name"], "expected": expected, "privateKeys": case["privateKeys"]}
    assert signed_state_from_json(raw) == signed
    raw["signatures"] = raw["signatures"][::-1][:1]
    partly = signed_state_from_json(raw)
    assert partly.signers == signed.signers[-1:]
    assert partly.unsigned_by == signed.signers[:-1]


def test_a_vector_as_it_stands_says_what_would_be_right() -> None:
    case = {**STATES[0], "signatures": []}
    assert "encodedOutcome" in fault(Code.PARAMS, signed_state_from_json, case).message


@pytest.mark.parametrize("case", OUTCOMES, ids=lambda case: case["name"])
def test_outcomes_as_exit_rows(case: dict[str, Any]) -> None:
    raw = vector_file(STATES[0])
    raw |= {"outcome": case["exits"], "signatures": [], "outcomeHash": case["expected"]["outcomeHash"]}
    signed = signed_state_from_json(raw)
    assert format_hex(signed.state.variable.outcome) == case["expected"]["encoded"]
    assert signed.exits is not None
    assert len(signed.exits) == len(case["exits"])


def channel_state() -> CosignedState:
    one, other = open_pair()
    ref = one.send_create(BUY, 200_000, 10)
    deliver(one, other)
    order = user_order(1, SELL, 195_000, 4)
    other.send_calls(notify_call(ref, "filled", 6, [[195_000, 4, format_hex(order.order_id)]]))
    drain(one, other)
    last = one.channel.cosigned
    assert last is not None
    return cosigned_state(last, (SIGNERS[0].sign(last.state.digest), SIGNERS[1].sign(last.state.digest)))


COSIGNED = channel_state()


@pytest.mark.parametrize("terms", [None, TERMS])
def test_our_exports_round_trip(terms: Any) -> None:
    raw = loads(dumps(state_to_json(COSIGNED, terms)), max_bytes=1 << 20)
    signed = signed_state_from_json(raw)
    assert signed.state == COSIGNED.state
    assert signed.signatures == COSIGNED.signatures
    assert signed.signers == (A, B)
    assert signed.terms == terms
    assert signed.app_data is not None
    assert signed.app_data.open_orders
    assert signed.exits is not None
    assert [row.asset_holder for row in signed.exits] == [CUSTODIES[0], CUSTODIES[1]]
    assert signed.outcome_follows is (None if terms is None else True)


def test_an_outcome_that_does_not_follow_is_said() -> None:
    outcome = state_to_json(COSIGNED)["outcome"].replace(f"{780_000:064x}", f"{780_001:064x}")
    raw = {**state_to_json(COSIGNED, TERMS), "outcome": outcome, "signatures": []}
    assert signed_state_from_json(raw).outcome_follows is False
    for row in (
        BalanceUpdate(holder=A, owner=STRANGER.address, chain_id=1, token=USD, available=0, locked=1),
        BalanceUpdate(holder=A, owner=B, chain_id=1, token=USD, available=UINT256_MAX, locked=UINT256_MAX),
    ):
        data = AppData.of(terms_hash=TERMS.terms_hash, time_ms=1, journal_head=ZERO_HASH, balance_updates=[row])
        raw["appData"] = format_hex(data.encode())
        assert signed_state_from_json(raw).outcome_follows is False


BASE = state_to_json(COSIGNED, TERMS)
SIGNATURE = COSIGNED.signatures[0]
HIGH_S = (
    SIGNATURE[:32]
    + (CURVE_ORDER - int.from_bytes(SIGNATURE[32:64], "big")).to_bytes(32, "big")
    + bytes((55 - SIGNATURE[64],))
)


def signature_with(**changes: Any) -> list[Any]:
    return [{**BASE["signatures"][0], **changes}]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"more": 1}, Code.PARAMS),
        ({"turnNum": "2"}, Code.PARAMS),
        ({"turnNum": -1}, Code.PARAMS),
        ({"turnNum": 2**48}, Code.PARAMS),
        ({"turnNum": True}, Code.PARAMS),
        ({"isFinal": "false"}, Code.PARAMS),
        ({"isFinal": 0}, Code.PARAMS),
        ({"appData": "00"}, Code.ENCODING),
        ({"appData": None}, Code.ENCODING),
        ({"appData": "0x", "signatures": []}, Code.CHANNEL_TERMS),  # the file has terms
        ({"outcome": None}, Code.PARAMS),
        ({"outcome": {}}, Code.PARAMS),
        ({"outcome": "0x0"}, Code.ENCODING),
        ({"outcome": [1]}, Code.PARAMS),
        ({"outcome": [{}]}, Code.PARAMS),
        ({"fixedPart": {}}, Code.PARAMS),
        ({"fixedPart": {**BASE["fixedPart"], "more": 1}}, Code.PARAMS),
        ({"fixedPart": {**BASE["fixedPart"], "chainId": -1}}, Code.PARAMS),
        ({"fixedPart": {**BASE["fixedPart"], "chainId": 1.5}}, Code.PARAMS),
        ({"fixedPart": {**BASE["fixedPart"], "chainId": "1e3"}}, Code.AMOUNT),
        ({"fixedPart": {**BASE["fixedPart"], "chainId": "0x01"}}, Code.ENCODING),
        ({"fixedPart": {**BASE["fixedPart"], "channelNonce": str(2**48)}}, Code.PARAMS),
        ({"fixedPart": {**BASE["fixedPart"], "channelNonce": 2**48}}, Code.PARAMS),
        ({"fixedPart": {**BASE["fixedPart"], "participants": []}}, Code.PARAMS),
        ({"fixedPart": {**BASE["fixedPart"], "participants": ["0x0"] * 256}}, Code.PARAMS),
        ({"fixedPart": {**BASE["fixedPart"], "participants": "0x0"}}, Code.PARAMS),
        ({"fixedPart": {**BASE["fixedPart"], "challengeDuration": "60"}}, Code.PARAMS),
        ({"signatures": {}}, Code.PARAMS),
        ({"signatures": [1]}, Code.PARAMS),
        ({"signatures": [*BASE["signatures"], BASE["signatures"][0]]}, Code.PARAMS),
        ({"signatures": ["0x00"]}, Code.ENCODING),
        ({"signatures": signature_with(more=1)}, Code.PARAMS),
        ({"signatures": signature_with(v=256)}, Code.PARAMS),
        ({"signatures": signature_with(v="27")}, Code.PARAMS),
        ({"signatures": signature_with(bytes=format_hex(COSIGNED.signatures[1]))}, Code.SIGNATURE),
        ({"signatures": signature_with(signer=b)}, Code.SIGNATURE_SIGNER),
        ({"signatures": [format_hex(SIGNATURE[:64] + b"\0")]}, Code.SIGNATURE_V),
        ({"signatures": [format_hex(HIGH_S)]}, Code.SIGNATURE_HIGH_S),
        ({"signatures": [format_hex(bytes(64) + b"\x1b")]}, Code.SIGNATURE),
        ({"signatures": [format_hex(STRANGER.sign(COSIGNED.state.digest))]}, Code.SIGNATURE_SIGNER),
        ({"signatures": [format_hex(SIGNERS[0].sign(bytes(32)))]}, Code.SIGNATURE_SIGNER),
        ({"terms": None}, Code.PARAMS),
        ({"terms": {}}, Code.CHANNEL_TERMS),
        ({"terms": terms_to_json(make_terms(grace_s=1))}, Code.CHANNEL_TERMS),
        ({"stateHash": format_hex(bytes(32))}, Code.ENCODING),
        ({"channelId": None}, Code.ENCODING),
        ({"expected": {"outcomeHash": format_hex(bytes(32))}}, Code.ENCODING),
        ({"expected": {"encodedOutcome": "0x00"}}, Code.ENCODING),
        ({"expected": []}, Code.PARAMS),
    ],
)
def test_files_that_are_refused(change: dict[str, Any], code: Code) -> None:
    fault(code, signed_state_from_json, {**BASE, **change})


@pytest.mark.parametrize("name", ["fixedPart", "turnNum", "isFinal", "appData", "outcome", "signatures"])
def test_missing_members(name: str) -> None:
    seen = fault(Code.PARAMS, signed_state_from_json, {k: v for k, v in BASE.items() if k != name})
    assert name in seen.message
    for raw in (None, [], "x", 1):
        fault(Code.PARAMS, signed_state_from_json, raw)


def test_255_participants_in_any_order() -> None:
    signers = [Signer(n.to_bytes(32, "big")) for n in range(1, 256)]
    fixed = make_fixed(participants=tuple(s.address for s in signers[::-1]), channel_nonce=2**48 - 1)
    state = State(fixed=fixed, turn=2**48 - 1, is_final=True, variable=VariablePart(outcome=b"\1\2", app_data=b"\3"))
    raw = {**state_to_json(CosignedState(state=state, signatures=(signers[0].sign(state.digest),) * 2))}
    raw["signatures"] = [format_hex(s.sign(state.digest)) for s in signers]
    signed = signed_state_from_json(raw)
    assert signed.unsigned_by == ()
    assert signed.signers == tuple(s.address for s in signers)
    assert signed.exits is None
    assert START_MS < 2**48
