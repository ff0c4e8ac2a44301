"""Amounts, addresses and quantities at the edge: exact, strict, and the same both ways."""

import pytest
from eth_utils import to_checksum_address
from hypothesis import given
from hypothesis import strategies as st

from channel.errors import Code, PeerFault
from channel.hashing import keccak
from channel.units import (
    UINT256_MAX,
    ceil_div,
    format_address,
    format_amount,
    format_hex,
    parse_address,
    parse_amount,
    parse_hash,
    parse_hex,
    parse_quantity,
    parse_uint,
)

UINT256 = st.integers(0, UINT256_MAX)
DECIMALS = st.integers(0, 77)


@given(UINT256, DECIMALS)
def test_amounts_round_trip(value: int, decimals: int) -> None:
    text = format_amount(value, decimals)
    assert parse_amount(text, decimals) == value
    assert not text.endswith("0") or "." not in text
    assert format_amount(-value, decimals) == ("-" if value else "") + text


@pytest.mark.parametrize(
    ("text", "decimals", "value"),
    [("0.1", 18, 10**17), ("200", 6, 200_000_000), ("0.011", 8, 1_100_000), ("1.50", 2, 150), ("0", 0, 0), ("7", 0, 7)],
)
def test_amounts_by_example(text: str, decimals: int, value: int) -> None:
    assert parse_amount(text, decimals) == value


@pytest.mark.parametrize(
    "text",
    [
        *(1, 1.5, None, True, ["1"], "1" * 79),
        "",
        ".1",
        "1.",
        "01",
        "00",
        "-1",
        "+1",
        "1e3",
        "1_0",
        " 1",
        "1 ",
        "0x1",
        "NaN",
        "١",
        "1.2.3",
        "1,0",
        "1\n",
    ],
)
def test_amounts_that_are_not_plain_decimals(text: object) -> None:
    with pytest.raises(PeerFault) as caught:
        parse_amount(text, 18)
    assert caught.value.code is Code.AMOUNT


def test_amounts_are_never_rounded_and_fit_256_bits() -> None:
    with pytest.raises(PeerFault, match="3 digits after the point; 2 are allowed"):
        parse_amount("0.125", 2)
    assert parse_amount(str(UINT256_MAX), 0) == UINT256_MAX
    with pytest.raises(PeerFault, match="256 bits"):
        parse_amount(str(UINT256_MAX + 1), 0)
    with pytest.raises(PeerFault, match="256 bits"):
        parse_amount(str(UINT256_MAX), 1)


@given(st.binary(min_size=20, max_size=20))
def test_addresses_round_trip_and_match_the_library(raw: bytes) -> None:
    text = format_address(raw)
    assert text == to_checksum_address(raw)
    assert parse_address(text) == parse_address(text.lower()) == raw
    assert parse_address("0x" + text[2:].upper()) == raw


@given(st.binary(min_size=20, max_size=20), st.integers(0, 39))
def test_a_wrong_checksum_is_refused(raw: bytes, at: int) -> None:
    text = format_address(raw)
    wrong = text[: 2 + at] + text[2 + at].swapcase() + text[3 + at :]
    if wrong != text and wrong[2:] not in (wrong[2:].lower(), wrong[2:].upper()):
        with pytest.raises(PeerFault, match=text) as caught:
            parse_address(wrong)
        assert caught.value.code is Code.ADDRESS


def test_the_native_token_has_a_short_form() -> None:
    assert parse_address("0x0") == bytes(20)
    assert format_address(bytes(20)) == "0x" + "0" * 40


@pytest.mark.parametrize(
    "text", ["", "0x", "0x00", "0x" + "0" * 39, "0x" + "g" * 40, "0X" + "0" * 40, 0, None, ["0x0"]]
)
def test_addresses_that_are_none(text: object) -> None:
    with pytest.raises(PeerFault) as caught:
        parse_address(text)
    assert caught.value.code is Code.ADDRESS


@given(UINT256)
def test_quantities_and_uints(value: int) -> None:
    assert parse_quantity(hex(value)) == value
    assert parse_uint(str(value)) == value


@pytest.mark.parametrize("text", ["0x", "0x01", "0xA", "1", "0x" + "1" * 65, "0x0x", 1, None, ""])
def test_quantities_that_are_none(text: object) -> None:
    with pytest.raises(PeerFault) as caught:
        parse_quantity(text)
    assert caught.value.code is Code.ENCODING


def test_uints_have_their_width() -> None:
    assert parse_uint("255", bits=8) == 255
    for text in ("256", "-1", "0x1", "01", "", 1, str(2**256)):
        with pytest.raises(PeerFault) as caught:
            parse_uint(text, bits=8)
        assert caught.value.code is Code.AMOUNT


@given(st.binary(max_size=100))
def test_hex_round_trips(raw: bytes) -> None:
    assert parse_hex(format_hex(raw)) == raw
    assert parse_hex(format_hex(raw).upper().replace("0X", "0x"), size=len(raw)) == raw


@pytest.mark.parametrize("text", ["", "0", "0x0", "00", "0xzz", "0x 1", 0, None])
def test_hex_that_is_none(text: object) -> None:
    with pytest.raises(PeerFault) as caught:
        parse_hex(text)
    assert caught.value.code is Code.ENCODING


def test_hashes_have_32_bytes() -> None:
    assert parse_hash("0x" + "ab" * 32) == b"\xab" * 32
    with pytest.raises(PeerFault, match="32 bytes, not 31"):
        parse_hash("0x" + "ab" * 31)


@given(st.integers(-(10**40), 10**40), st.integers(1, 10**20))
def test_ceil_div_rounds_up(numerator: int, denominator: int) -> None:
    quotient = ceil_div(numerator, denominator)
    assert 0 <= quotient * denominator - numerator < denominator


def test_keccak_is_not_sha3() -> None:
    assert keccak(b"").hex() == "c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470"
