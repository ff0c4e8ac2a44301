"""Strict JSON: what is refused, by its code, and that whatever is taken means what every parser says it means."""

import json
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channel.errors import Code, PeerFault, XlnError
from channel.strictjson import MAX_INTEGER, Fields, dumpb, dumps, loads

MAX_BYTES = 2**20


def refused(data: bytes | str, **options: int) -> Code:
    with pytest.raises(PeerFault) as caught:
        loads(data, **{"max_bytes": MAX_BYTES, **options})
    assert caught.value.message.isprintable()
    return caught.value.code


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b"{}", {}),
        (b' {"a": [1, -2, "x\\n\\u00e9", true, false, null]}\n', {"a": [1, -2, "x\né", True, False, None]}),
        ('"é"'.encode(), "é"),
        ('"é"', "é"),
        (b'"\\ud83d\\ude00"', "😀"),
        (b'"[[[[[[[[[[[[[[[[[[[[[["', "[" * 22),
        (b'"\\"[[[[[[[[[[[[[[[[[[[[[["', '"' + "[" * 22),
        (b"9007199254740991", MAX_INTEGER),
        (b"-9007199254740991", -MAX_INTEGER),
        (b"-0", 0),
        (b'{"a":{"a":1}}', {"a": {"a": 1}}),
    ],
)
def test_taken(text: bytes | str, value: object) -> None:
    assert loads(text, max_bytes=MAX_BYTES) == value


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (b"", Code.PARSE),
        (b"hello", Code.PARSE),
        (b"{", Code.PARSE),
        (b"{} {}", Code.PARSE),
        (b"{'a': 1}", Code.PARSE),
        (b'{"a": 1,}', Code.PARSE),
        (b"[1,]", Code.PARSE),
        (b"01", Code.PARSE),
        (b"+1", Code.PARSE),
        (b'"\n"', Code.PARSE),
        (b'"\xff"', Code.PARSE),
        (b'\xef\xbb\xbf{"a":1}', Code.PARSE),
        ("{}".encode("utf-16"), Code.PARSE),
        ('"\ud800"', Code.PARSE),
        (b'"\\ud800"', Code.PARSE),
        (b'{"\\uDfff": 1}', Code.PARSE),
        (b'{"a": 1, "a": 1}', Code.DUPLICATE_KEY),
        (b'[{"b": {"a": 1, "x": 2, "\\u0061": 3}}]', Code.DUPLICATE_KEY),
        (b"1.0", Code.NUMBER),
        (b'{"a": 0.1}', Code.NUMBER),
        (b"1e3", Code.NUMBER),
        (b"[1E-3]", Code.NUMBER),
        (b"NaN", Code.NUMBER),
        (b"[Infinity]", Code.NUMBER),
        (b"-Infinity", Code.NUMBER),
        (b"9007199254740992", Code.NUMBER),
        (b"-9007199254740992", Code.NUMBER),
        (b"9" * 5000, Code.NUMBER),
    ],
)
def test_refused(text: bytes | str, code: Code) -> None:
    assert refused(text) is code


def test_size_is_counted_in_bytes() -> None:
    assert loads('"éé"', max_bytes=6) == "éé"
    assert refused('"éé"', max_bytes=5) is Code.FRAME_TOO_LARGE
    assert refused('"éé"'.encode(), max_bytes=5) is Code.FRAME_TOO_LARGE
    assert refused("[]" * 10, max_bytes=5) is Code.FRAME_TOO_LARGE


@pytest.mark.parametrize("bracket", ["[]", "{}"])
def test_depth(bracket: str) -> None:
    opening, closing = ("[", "]") if bracket == "[]" else ('{"a":', "}")
    fits = opening * 16 + "1" + closing * 16
    assert json.loads(fits) == loads(fits, max_bytes=MAX_BYTES)
    assert refused(opening * 17 + "1" + closing * 17) is Code.PARSE
    assert refused(f"[{fits}]") is Code.PARSE
    assert loads("[" + ",".join(["[[]]"] * 1000) + "]", max_bytes=MAX_BYTES) == [[[]]] * 1000
    assert refused("[" + ",".join(["[[]]"] * 1000) + "]", max_depth=2) is Code.PARSE


@pytest.mark.parametrize(
    "text",
    [
        "[" * 1_000_000,
        '{"a":' * 200_000,
        "[" * 500_000 + "]" * 500_000,
        "[" * 20 + '"' + '\\"' * 500_000,
        "[" * 20 + '"' * 999_999,
        "[" * 20 + '"' + "\\" * 900_000,
        "[" * 20 + "\\" * 900_000,
    ],
)
def test_hostile_texts_take_no_stack_and_no_time(text: str) -> None:
    limit = sys.getrecursionlimit()
    started = time.process_time()
    sys.setrecursionlimit(10_000_000)  # if anything recursed, the process would die here
    try:
        assert refused(text) is Code.PARSE
    finally:
        sys.setrecursionlimit(limit)
    assert time.process_time() - started < 2


@given(st.binary(max_size=200))
def test_any_bytes_are_a_value_or_a_fault(data: bytes) -> None:
    try:
        value = loads(data, max_bytes=MAX_BYTES)
    except XlnError:
        return
    assert value == json.loads(data)


JSON_TEXT = st.text(alphabet='{}[]",:\\ud8a01eE.-+ntrfals\n x', max_size=60)


@given(JSON_TEXT)
def test_what_looks_like_json_means_what_json_says(text: str) -> None:
    try:
        value = loads(text, max_bytes=MAX_BYTES)
    except XlnError:
        return
    assert value == json.loads(text)


LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-MAX_INTEGER, MAX_INTEGER)
    | st.text(st.characters(exclude_categories=["Cs"]))
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text('abé"[', max_size=3), inner, max_size=4),
    max_leaves=20,
)


@given(VALUES)
def test_round_trip(value: object) -> None:
    text = dumps(value)
    assert text.encode() == dumpb(value)
    assert loads(text, max_bytes=MAX_BYTES, max_depth=64) == value


def test_dumps_keeps_order_and_refuses_what_the_peer_would() -> None:
    assert dumps({"b": 1, "a": "é", "c": [None, True]}) == '{"b":1,"a":"é","c":[null,true]}'
    for value in (2**53, {1: 2}, b"x", {"a": {1, 2}}, "\ud800"):
        with pytest.raises(TypeError):
            dumps(value)


def test_fields_read_a_fixed_shape() -> None:
    fields = Fields({"a": "x", "b": 3, "c": {}, "d": [1], "e": True, "f": "0x0102", "o": "y"}, "the thing")
    assert fields.text("a", 3) == "x"
    assert fields.integer("b", 0, 3) == 3
    assert fields.obj("c") == {}
    assert fields.list("d", 1) == [1]
    assert fields.boolean("e") is True
    assert fields.hex("f", 2) == b"\x01\x02"
    assert fields.optional_text("o", 9) == "y"
    assert fields.optional_text("p", 9) is None
    assert fields.optional_integer("p") is None
    assert fields.optional_obj("p") is None
    assert fields.optional_hex("p") is None
    assert not fields.has("p")
    fields.done()


@pytest.mark.parametrize(
    ("value", "read"),
    [
        ([], lambda f: None),
        ({}, lambda f: f.text("a", 3)),
        ({"a": None}, lambda f: f.text("a", 3)),
        ({"a": "long"}, lambda f: f.text("a", 3)),
        ({"a": ""}, lambda f: f.text("a", 3, min_len=1)),
        ({"a": True}, lambda f: f.integer("a")),
        ({"a": "1"}, lambda f: f.integer("a")),
        ({"a": -1}, lambda f: f.integer("a")),
        ({"a": 4}, lambda f: f.integer("a", 0, 3)),
        ({"a": 1}, lambda f: f.boolean("a")),
        ({"a": []}, lambda f: f.obj("a")),
        ({"a": {}}, lambda f: f.list("a", 3)),
        ({"a": [1, 2]}, lambda f: f.list("a", 1)),
        ({"a": 1}, lambda f: f.done()),
        ({"a": 1, "b": 1}, lambda f: (f.integer("a"), f.integer("a"), f.done())),
        ({"a": {"b": 1}}, lambda f: f.fields("a").done()),
        ({"a": None}, lambda f: f.optional_text("a", 3)),
    ],
)
def test_fields_refuse(value: object, read: object) -> None:
    with pytest.raises(PeerFault) as caught:
        read(Fields(value, "the thing"))
    assert caught.value.code is Code.PARAMS
    assert "the thing" in caught.value.message


def test_fields_take_another_code_and_use_the_parsers_of_units() -> None:
    with pytest.raises(PeerFault) as caught:
        Fields({}, "the thing", Code.ENTRY_INVALID).text("a", 1)
    assert caught.value.code is Code.ENTRY_INVALID
    with pytest.raises(PeerFault) as caught:
        Fields({"a": 1}, "the thing").address("a")
    assert caught.value.code is Code.ADDRESS
    assert Fields({"a": "12"}, "the thing").uint("a") == 12
    assert Fields({"a": "0x1"}, "the thing").quantity("a") == 1
    assert Fields({"a": "0x" + "11" * 32}, "the thing").hash("a") == b"\x11" * 32
