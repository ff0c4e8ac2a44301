"""Terms: their hash against eth_abi, their JSON form, and what they may not say."""

from dataclasses import replace
from typing import Any

import pytest
from eth_abi.abi import encode
from hypothesis import given
from hypothesis import strategies as st

from channel.errors import Code, PeerFault
from channel.hashing import keccak
from channel.terms import MAX_LOT_BASE, Market, Token, terms_from_json, terms_to_json, tick_scale
from channel.units import Address, format_address
from tests.support.channels import BTC, CUSTODIES, ETH, SIGNERS, TERMS, USD, make_terms, market_of


def test_the_hash_is_that_of_the_abi_encoding() -> None:
    """The type is written out here once more, as Solidity would declare it."""
    token, market = "(address,string,uint8,uint16)", "(address,uint256,address,address,uint256,uint256)"
    terms_type = (
        f"(address[2],address,{token}[],{market}[],uint32,address,uint256,(address,uint256)[],address,"
        "(string,uint256,uint256)[],address[],uint8,uint64,uint64,uint64,uint64,uint64,uint64)"
    )
    a = format_address
    t = TERMS
    values = (
        [a(c) for c in t.custodies],
        a(t.collateral),
        [(a(x.address), x.symbol, x.decimals, x.haircut_bps) for x in t.tokens],
        [(a(m.holder), m.chain_id, a(m.base), a(m.quote), m.tick_quote, m.lot_base) for m in t.markets],
        t.cover_ratio_bps,
        a(t.value_token),
        t.unsettled_limit,
        [(a(asset), price) for asset, price in t.prices],
        a(bytes(20)),
        [],
        [],
        0,
        0,
        t.grace_s,
        t.evidence_s,
        t.verdict_s,
        t.appeal_s,
        t.claim_s,
    )
    assert t.terms_hash == keccak(encode([terms_type], [values]))


def test_market_ids_are_those_of_the_abi_encoding() -> None:
    m = market_of(1)
    types = ["address", "uint256", "address", "address", "uint256", "uint256"]
    values = [m.holder, m.chain_id, m.base, m.quote, m.tick_quote, m.lot_base]
    assert m.market_id == keccak(encode(types, values))


@pytest.mark.parametrize(
    "change",
    [
        {"custodies": (CUSTODIES[1], CUSTODIES[0])},
        {"collateral": Address(bytes([1]) * 20)},
        {"tokens": (*TERMS.tokens[:2], replace(TERMS.tokens[2], haircut_bps=1001))},
        {"tokens": (TERMS.tokens[1], TERMS.tokens[0], TERMS.tokens[2])},
        {"markets": TERMS.markets[:3]},
        {"cover_ratio_bps": 12_001},
        {"value_token": BTC},
        {"unsettled_limit": 1},
        {"prices": ((ETH, 1), *TERMS.prices[1:])},
        {"grace_s": 11},
        {"evidence_s": 21},
        {"verdict_s": 21},
        {"appeal_s": 21},
        {"claim_s": 61},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_field_is_in_the_hash(change: dict[str, Any]) -> None:
    assert make_terms(**change).terms_hash != TERMS.terms_hash


def test_json_round_trip() -> None:
    raw = terms_to_json(TERMS)
    again = terms_from_json(raw)
    assert again == TERMS
    assert again.terms_hash == TERMS.terms_hash


def _replaced(raw: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    copy = dict(raw) if isinstance(raw, dict) else list(raw)
    if path[0] == "+":
        copy[value] = 1  # type: ignore[call-overload]
    else:
        copy[path[0]] = _replaced(copy[path[0]], path[1:], value)
    return copy


@pytest.mark.parametrize(
    ("path", "value", "code"),
    [
        (("+",), "fees", Code.CHANNEL_TERMS),
        ((), [], Code.CHANNEL_TERMS),
        (("custodies",), [], Code.CHANNEL_TERMS),
        (("custodies",), "0x0", Code.CHANNEL_TERMS),
        (("custodies", 0), "0x1", Code.ADDRESS),
        (("custodies", 0), format_address(CUSTODIES[1]), Code.CHANNEL_TERMS),
        (("custodies", 0), "0x0", Code.CHANNEL_TERMS),
        (("tokens",), [], Code.CHANNEL_TERMS),
        (("tokens",), [{}] * 33, Code.CHANNEL_TERMS),
        (("tokens", 0, "symbol"), "", Code.CHANNEL_TERMS),
        (("tokens", 0, "symbol"), "a/b", Code.CHANNEL_TERMS),
        (("tokens", 0, "symbol"), "ä", Code.CHANNEL_TERMS),
        (("tokens", 0, "symbol"), "A" * 17, Code.CHANNEL_TERMS),
        (("tokens", 0, "symbol"), 1, Code.CHANNEL_TERMS),
        (("tokens", 0, "symbol"), "usd", Code.CHANNEL_TERMS),
        (("tokens", 0, "decimals"), 37, Code.CHANNEL_TERMS),
        (("tokens", 0, "decimals"), -1, Code.CHANNEL_TERMS),
        (("tokens", 0, "decimals"), "18", Code.CHANNEL_TERMS),
        (("tokens", 0, "decimals"), True, Code.CHANNEL_TERMS),
        (("tokens", 0, "haircutBps"), 10_000, Code.CHANNEL_TERMS),
        (("tokens", 0, "token"), format_address(USD), Code.CHANNEL_TERMS),
        (("markets",), [{}] * 33, Code.CHANNEL_TERMS),
        (("markets", 0), {}, Code.CHANNEL_TERMS),
        (("markets", 0, "base"), format_address(bytes([9]) * 20), Code.CHANNEL_TERMS),
        (("markets", 0, "base"), format_address(USD), Code.CHANNEL_TERMS),
        (("markets", 0, "tick"), "0", Code.CHANNEL_TERMS),
        (("markets", 0, "tick"), str(2**64), Code.CHANNEL_TERMS),
        (("markets", 0, "tick"), 1, Code.AMOUNT),
        (("markets", 0, "lot"), "0", Code.CHANNEL_TERMS),
        (("markets", 0, "lot"), str(MAX_LOT_BASE + 1), Code.CHANNEL_TERMS),
        (("markets", 0, "lot"), "3", Code.ORDER_TICK),
        (("markets", 0, "chainId"), 1, Code.ENCODING),
        (("coverRatioBps",), 9_999, Code.CHANNEL_TERMS),
        (("coverRatioBps",), 1_000_001, Code.CHANNEL_TERMS),
        (("valueToken",), format_address(bytes([9]) * 20), Code.CHANNEL_TERMS),
        (("unsettledLimit",), 5, Code.AMOUNT),
        (("prices",), [], Code.CHANNEL_TERMS),
        (("prices", 0), [], Code.CHANNEL_TERMS),
        (("prices", 0, 1), "0", Code.CHANNEL_TERMS),
        (("prices", 0, 0), format_address(USD), Code.CHANNEL_TERMS),
        (("windowsS", "grace"), 30 * 24 * 3600 + 1, Code.CHANNEL_TERMS),
        (("windowsS", "claim"), None, Code.CHANNEL_TERMS),
        (("windowsS",), {}, Code.CHANNEL_TERMS),
    ],
)
def test_terms_that_are_refused(path: tuple[Any, ...], value: Any, code: Code) -> None:
    with pytest.raises(PeerFault) as caught:
        terms_from_json(_replaced(terms_to_json(TERMS), path, value))
    assert caught.value.code is code


def test_a_market_is_listed_once_and_names_differ_per_holder() -> None:
    with pytest.raises(PeerFault, match="each market is listed once"):
        make_terms(markets=(market_of(0), market_of(0)))
    with pytest.raises(PeerFault, match="different names"):
        make_terms(markets=(market_of(0), market_of(0, tick=2)))


def test_lookups() -> None:
    a, b = (s.address for s in SIGNERS)
    assert TERMS.token(USD).symbol == "USD"
    with pytest.raises(PeerFault, match="not in the terms"):
        TERMS.token(Address(bytes([9]) * 20))
    assert TERMS.market(market_of(0).market_id) == market_of(0)
    assert TERMS.market(market_of(0, tick=7).market_id) is None
    assert TERMS.market_name(market_of(1, BTC, lot=10**4).market_id) == "wbtc/usd"
    assert TERMS.market_named(a, "eth/usd") == market_of(0)
    assert TERMS.market_named(b, "eth/usd") == market_of(1)
    with pytest.raises(PeerFault) as caught:
        TERMS.market_named(a, "eth/eur")
    assert caught.value.code is Code.ORDER_MARKET
    assert TERMS.price(ETH) == 2_000 * 10**6
    assert TERMS.shortest_challenge_s == 60


def test_same_shape_is_about_everything_but_the_holder() -> None:
    assert market_of(0).same_shape(market_of(1))
    assert not market_of(0).same_shape(market_of(1, tick=2))
    assert not market_of(0).same_shape(market_of(1, BTC))


@given(st.integers(0, 18), st.integers(0, 18), st.integers(1, 10**9), st.integers(0, 18))
def test_a_tick_is_an_exact_decimal(base_decimals: int, quote_decimals: int, tick: int, lot_digits: int) -> None:
    market = Market(
        holder=SIGNERS[0].address, chain_id=1, base=ETH, quote=USD, tick_quote=tick, lot_base=10**lot_digits
    )
    try:
        numerator, digits = tick_scale(market, base_decimals, quote_decimals)
    except PeerFault as fault:
        assert fault.code is Code.ORDER_TICK
        return
    # price x base tokens = quote tokens, for a price of one tick and a base of one lot
    assert numerator * 10**lot_digits * 10**quote_decimals == tick * 10**base_decimals * 10**digits


def test_a_symbol_of_letters_and_digits_is_fine() -> None:
    assert Token(address=USD, symbol="1INCH", decimals=18).haircut_bps == 0
