"""JSON from a peer, strictly; and JSON to a peer, compactly.

Accepted is what RFC 8259 and every parser read the same way, and less: UTF-8 without a byte order mark; no key twice
in one object; integers only, strictly between -2^53 and 2^53 (larger amounts travel as text); no lone surrogates; a
bound on bytes and on depth, checked before the parser recurses, so that no input can exhaust the stack. DESIGN
section 3.

`Fields` reads one object whose shape is fixed: every member is asked for by name and type, and `done()` refuses what
nobody asked for.
"""

import json
import re
from typing import Any, NoReturn, cast

import orjson

from channel.errors import Code, PeerFault
from channel.units import Address, Hash, parse_address, parse_hash, parse_hex, parse_quantity, parse_uint

MAX_DEPTH = 16
MAX_INTEGER = 2**53 - 1

_MAX_INTEGER_CHARS = 17  # a sign and 16 digits; checked before int(), which is quadratic and refuses 4,300 digits
_MAX_SHOWN_CHARS = 40  # of what the peer sent, in a message
# A string, also one that never ends: each branch is possessive, so the scan is linear whatever comes in.
_STRING_RE = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_SURROGATE_RE = re.compile(r"\\u[dD][89a-fA-F]")
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_BRACES_TO_BRACKETS = bytes.maketrans(b"{}", b"[]")


def loads(data: bytes | str, *, max_bytes: int, max_depth: int = MAX_DEPTH) -> object:
    """The value of one JSON text: dict, list, str, int, bool or None.

    Raises PeerFault FRAME_TOO_LARGE, PARSE (encoding, syntax, depth), DUPLICATE_KEY or NUMBER. `max_bytes` bounds the
    UTF-8 length.
    """
    if len(data) > max_bytes:
        raise PeerFault(Code.FRAME_TOO_LARGE, f"a JSON text may have {max_bytes} bytes; this one has more")
    try:
        text = data.decode() if isinstance(data, bytes) else data
        if isinstance(data, str) and not data.isascii() and len(data.encode()) > max_bytes:
            raise PeerFault(Code.FRAME_TOO_LARGE, f"a JSON text may have {max_bytes} bytes; this one has more")
    except UnicodeError as error:
        raise PeerFault(Code.PARSE, "the text is not valid UTF-8") from error
    if text.count("[") + text.count("{") > max_depth:
        _check_depth(text, max_depth)
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise PeerFault(Code.PARSE, f"not JSON: {error.msg} at character {error.pos}") from error
    if _SURROGATE_RE.search(text):
        _check_surrogates(value)
    return value


def dumpb(value: object) -> bytes:
    """Compact UTF-8 JSON, members in insertion order. Raises TypeError for what JSON or `loads` does not take.

    A float would be written and then refused by the peer: our own values have none.
    """
    return orjson.dumps(value, option=_OPTIONS)


def dumps(value: object) -> str:
    """As `dumpb`, as text."""
    return orjson.dumps(value, option=_OPTIONS).decode()


_OPTIONS = (
    orjson.OPT_STRICT_INTEGER
    | orjson.OPT_PASSTHROUGH_DATACLASS
    | orjson.OPT_PASSTHROUGH_DATETIME
    | orjson.OPT_PASSTHROUGH_SUBCLASS
)


def _check_depth(text: str, max_depth: int) -> None:
    """Raises PeerFault PARSE when brackets nest deeper, or do not pair up. A few linear passes, no recursion."""
    left = _STRING_RE.sub(b"", text.encode()).translate(_BRACES_TO_BRACKETS, _NOT_BRACKETS)
    for _ in range(max_depth):
        if not left:
            return
        left = left.replace(b"[]", b"")  # one level from the inside
    if left:
        raise PeerFault(Code.PARSE, f"brackets nest deeper than {max_depth} levels, or do not pair up")


def _check_surrogates(value: object) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise PeerFault(Code.PARSE, "an escape such as \\ud800 stands alone: not a Unicode character") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise PeerFault(Code.DUPLICATE_KEY, f"the key {shown(key)} is there twice in one object")
            seen.add(key)
    return result


def _integer(digits: str) -> int:
    if len(digits) <= _MAX_INTEGER_CHARS:
        value = int(digits)
        if -MAX_INTEGER <= value <= MAX_INTEGER:
            return value
    raise PeerFault(Code.NUMBER, f"{shown(digits)} is beyond 2^53; large numbers travel as text")


def _refuse_number(text: str) -> NoReturn:
    raise PeerFault(Code.NUMBER, f"{shown(text)}: only integers are taken; amounts travel as decimal text")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_integer, parse_float=_refuse_number, parse_constant=_refuse_number
)


def shown(text: str) -> str:
    """What a peer sent, quoted and cut, fit for a message. Lone surrogates are escaped."""
    return ascii(text if len(text) <= _MAX_SHOWN_CHARS else text[:_MAX_SHOWN_CHARS] + "…")


class Fields:
    """Reads the members of one JSON object of a fixed shape. Not thread-safe, used once.

    Every reader raises PeerFault `code` (PARAMS unless told) when the member is missing or of a wrong type or size;
    the readers of hex, addresses and amounts raise what their parsers in `channel.units` raise. null is a wrong type:
    what is optional is left out.
    """

    __slots__ = ("_code", "_object", "_read", "what")

    def __init__(self, value: object, what: str, code: Code = Code.PARAMS) -> None:
        """`what` names the object in messages."""
        self._code = code
        self.what = what
        self._read: list[str] = []
        if type(value) is not dict:
            raise PeerFault(code, f"{what} must be an object")
        self._object: dict[str, Any] = value

    def has(self, name: str) -> bool:
        return name in self._object

    def any(self, name: str) -> object:
        """The member, whatever it is."""
        self._read.append(name)
        try:
            return cast(object, self._object[name])
        except KeyError:
            raise PeerFault(self._code, f"{self.what} needs {name}") from None

    def text(self, name: str, max_len: int, *, min_len: int = 0) -> str:
        """Text of `min_len` to `max_len` characters."""
        value = self.any(name)
        if type(value) is not str:
            raise self._wrong(name, "must be text")
        if not min_len <= len(value) <= max_len:
            raise self._wrong(name, f"must have {min_len} to {max_len} characters, not {len(value)}")
        return value

    def integer(self, name: str, low: int = 0, high: int = MAX_INTEGER) -> int:
        """A JSON integer, `low` <= it <= `high`."""
        value = self.any(name)
        if type(value) is not int:
            raise self._wrong(name, "must be an integer")
        if not low <= value <= high:
            raise self._wrong(name, f"must be from {low} to {high}")
        return value

    def boolean(self, name: str) -> bool:
        value = self.any(name)
        if type(value) is not bool:
            raise self._wrong(name, "must be true or false")
        return value

    def obj(self, name: str) -> dict[str, Any]:
        value = self.any(name)
        if type(value) is not dict:
            raise self._wrong(name, "must be an object")
        return value

    def fields(self, name: str) -> "Fields":
        """The member object, to be read in the same way."""
        return Fields(self.any(name), f"{name} of {self.what}", self._code)

    def list(self, name: str, max_items: int, *, min_items: int = 0) -> list[Any]:
        value = self.any(name)
        if type(value) is not list:
            raise self._wrong(name, "must be a list")
        if not min_items <= len(value) <= max_items:
            raise self._wrong(name, f"must have {min_items} to {max_items} items, not {len(value)}")
        return value

    def hex(self, name: str, size: int | None = None) -> bytes:
        """Bytes from 0x text; `size` in bytes, when fixed."""
        return parse_hex(self.any(name), size=size, what=self._name(name))

    def hash(self, name: str) -> Hash:
        return parse_hash(self.any(name), self._name(name))

    def address(self, name: str) -> Address:
        return parse_address(self.any(name), self._name(name))

    def quantity(self, name: str) -> int:
        """A 0x quantity, such as a chain id."""
        return parse_quantity(self.any(name), self._name(name))

    def uint(self, name: str, bits: int = 256) -> int:
        """Decimal digits in text."""
        return parse_uint(self.any(name), bits=bits, what=self._name(name))

    def optional_text(self, name: str, max_len: int, *, min_len: int = 0) -> str | None:
        return self.text(name, max_len, min_len=min_len) if name in self._object else None

    def optional_integer(self, name: str, low: int = 0, high: int = MAX_INTEGER) -> int | None:
        return self.integer(name, low, high) if name in self._object else None

    def optional_obj(self, name: str) -> dict[str, Any] | None:
        return self.obj(name) if name in self._object else None

    def optional_hex(self, name: str, size: int | None = None) -> bytes | None:
        return self.hex(name, size) if name in self._object else None

    def done(self) -> None:
        """Refuses members that were not asked for."""
        unknown = self._object.keys() - self._read
        if unknown:
            raise PeerFault(self._code, f"{self.what} has unknown {shown(min(unknown))}")

    def _name(self, name: str) -> str:
        return f"{name} of {self.what}"

    def _wrong(self, name: str, why: str) -> PeerFault:
        return PeerFault(self._code, f"{name} of {self.what} {why}")
