"""Names for numbers and bytes, and the exact conversions at the edge.

Amounts are `int` base units inside and decimal strings on the wire; addresses are 20 bytes inside and EIP-55 text
outside; chain ids are ints inside and 0x quantities on the wire. DESIGN section 3. No float, no Decimal: a Decimal
context of 28 digits corrupts a large uint256.
"""

import re
from functools import lru_cache
from typing import NewType

from channel.errors import Code, PeerFault
from channel.hashing import keccak

Address = NewType("Address", bytes)  # 20 bytes
Hash = NewType("Hash", bytes)  # 32 bytes
ChannelId = NewType("ChannelId", bytes)  # 32 bytes
MarketId = NewType("MarketId", bytes)  # 32 bytes

ZERO_ADDRESS = Address(bytes(20))
ZERO_HASH = Hash(bytes(32))
UINT256_MAX = 2**256 - 1
UINT64_MAX = 2**64 - 1
UINT48_MAX = 2**48 - 1

_HEX_RE = re.compile(r"0x(?:[0-9a-fA-F]{2})*", re.ASCII)
_ADDRESS_RE = re.compile(r"0x[0-9a-fA-F]{40}", re.ASCII)
_QUANTITY_RE = re.compile(r"0x(?:0|[1-9a-f][0-9a-f]{0,63})", re.ASCII)
_DECIMAL_RE = re.compile(r"(0|[1-9][0-9]{0,77})(?:\.([0-9]{1,77}))?", re.ASCII)
_UINT_RE = re.compile(r"0|[1-9][0-9]{0,77}", re.ASCII)


def parse_hex(text: object, *, size: int | None = None, what: str = "value") -> bytes:
    """Bytes from 0x text. `size` in bytes, when fixed. Raises PeerFault ENCODING."""
    if not isinstance(text, str) or not _HEX_RE.fullmatch(text):
        raise PeerFault(Code.ENCODING, f"{what} must be 0x followed by an even number of hex digits")
    raw = bytes.fromhex(text[2:])
    if size is not None and len(raw) != size:
        raise PeerFault(Code.ENCODING, f"{what} must be {size} bytes, not {len(raw)}")
    return raw


def parse_hash(text: object, what: str = "hash") -> Hash:
    return Hash(parse_hex(text, size=32, what=what))


def format_hex(raw: bytes) -> str:
    return "0x" + raw.hex()


def parse_address(text: object, what: str = "address") -> Address:
    """20 bytes from EIP-55 text; all-lower and all-upper case are taken as written without a checksum.

    `0x0` is accepted for the native token. Raises PeerFault ADDRESS.
    """
    if text == "0x0":
        return ZERO_ADDRESS
    if not isinstance(text, str) or not _ADDRESS_RE.fullmatch(text):
        raise PeerFault(Code.ADDRESS, f"{what} must be 0x and 40 hex digits")
    raw = Address(bytes.fromhex(text[2:]))
    digits = text[2:]
    if digits not in (digits.lower(), digits.upper()) and format_address(raw) != text:
        raise PeerFault(
            Code.ADDRESS, f"{what} {text} has a wrong EIP-55 checksum; {format_address(raw)} would be right"
        )
    return raw


@lru_cache(maxsize=4096)  # the checksum costs a hash, and a node writes the same few addresses all day
def format_address(raw: bytes) -> str:
    """EIP-55 text of a 20-byte address."""
    lower = raw.hex()
    check = keccak(lower.encode()).hex()
    return "0x" + "".join(c.upper() if n > "7" else c for c, n in zip(lower, check, strict=False))


def parse_quantity(text: object, what: str = "quantity") -> int:
    """An int from a 0x quantity without leading zeros. Raises PeerFault ENCODING."""
    if not isinstance(text, str) or not _QUANTITY_RE.fullmatch(text):
        raise PeerFault(Code.ENCODING, f"{what} must be a lower-case 0x quantity without leading zeros, such as 0x1")
    return int(text, 16)


def parse_uint(text: object, *, bits: int = 256, what: str = "value") -> int:
    """An int from plain decimal digits in text. Raises PeerFault AMOUNT."""
    if not isinstance(text, str) or not _UINT_RE.fullmatch(text) or int(text) >> bits:
        raise PeerFault(Code.AMOUNT, f"{what} must be decimal digits in quotes, below 2^{bits}")
    return int(text)


def parse_amount(text: object, decimals: int, what: str = "amount") -> int:
    """Base units from a decimal string, exactly: digits beyond `decimals` are an error, never rounded.

    Trailing zeros after the point are allowed as long as they fit the decimals. Raises PeerFault AMOUNT.
    """
    match = _DECIMAL_RE.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise PeerFault(Code.AMOUNT, f'{what} must be a decimal number in quotes, such as "0.1"')
    whole, fraction = match.group(1), match.group(2) or ""
    if len(fraction) > decimals:
        raise PeerFault(
            Code.AMOUNT, f"{what} {text} has {len(fraction)} digits after the point; {decimals} are allowed"
        )
    value: int = int(whole) * 10**decimals + int(fraction.ljust(decimals, "0") or "0")
    if value > UINT256_MAX:
        raise PeerFault(Code.AMOUNT, f"{what} {text} does not fit in 256 bits")
    return value


def format_amount(value: int, decimals: int) -> str:
    """The shortest decimal string of `value` base units. Negative values get a minus sign."""
    sign = "-" if value < 0 else ""
    digits = str(abs(value)).rjust(decimals + 1, "0")
    whole, fraction = (digits[:-decimals], digits[-decimals:].rstrip("0")) if decimals else (digits, "")
    return f"{sign}{whole}.{fraction}" if fraction else sign + whole


def ceil_div(numerator: int, denominator: int) -> int:
    """Division rounded up: used where the one who owes must not gain from rounding."""
    return -(-numerator // denominator)
