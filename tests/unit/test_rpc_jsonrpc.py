"""JSON-RPC shapes: each message both ways, each malformed one by its code, errors there and back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channel.errors import Code, LocalRefusal, PeerFault, XlnError
from channel.strictjson import loads
from rpc import jsonrpc
from rpc.jsonrpc import Batch, Envelope, Notification, RemoteError, Request, Response, parse


def decoded(payload: bytes) -> object:
    return loads(payload, max_bytes=2**20)


def test_messages_there_and_back() -> None:
    assert parse(decoded(jsonrpc.request(7, "ping", {"a": 1}))) == Request(id=7, method="ping", params={"a": 1})
    assert parse(decoded(jsonrpc.request("r1", "ping", {}))) == Request(id="r1", method="ping", params={})
    assert parse(decoded(jsonrpc.notification("note", {}))) == Notification(method="note", params={})
    assert parse(decoded(jsonrpc.response(0, None))) == Response(id=0, result=None, error=None)
    items = (jsonrpc.request(1, "a", {}), jsonrpc.notification("b", {}), jsonrpc.response(2, [1]))
    assert parse(decoded(jsonrpc.batch(items))) == Batch(
        items=(
            Request(id=1, method="a", params={}),
            Notification(method="b", params={}),
            Response(id=2, result=[1], error=None),
        )
    )


def test_an_entry_is_passed_on_as_it_is() -> None:
    entry = {"body": "{}", "to": 1, "anything": None}
    assert parse(entry) == Envelope(fields=entry)


def test_params_may_be_left_out() -> None:
    assert parse({"jsonrpc": "2.0", "method": "ping", "id": 1}) == Request(id=1, method="ping", params={})


V = {"jsonrpc": "2.0"}


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (1, Code.REQUEST),
        ("x", Code.REQUEST),
        (None, Code.REQUEST),
        ([], Code.REQUEST),
        ({}, Code.REQUEST),
        ({"method": "a"}, Code.REQUEST),
        ({"jsonrpc": "1.0", "method": "a"}, Code.REQUEST),
        (V, Code.REQUEST),
        (V | {"method": 1}, Code.REQUEST),
        (V | {"method": ""}, Code.REQUEST),
        (V | {"method": "m" * 65}, Code.REQUEST),
        (V | {"method": "a", "extra": 1}, Code.REQUEST),
        (V | {"method": "a", "id": None}, Code.REQUEST),
        (V | {"method": "a", "id": -1}, Code.REQUEST),
        (V | {"method": "a", "id": True}, Code.REQUEST),
        (V | {"method": "a", "id": ""}, Code.REQUEST),
        (V | {"method": "a", "id": "i" * 65}, Code.REQUEST),
        (V | {"method": "a", "id": [1]}, Code.REQUEST),
        (V | {"method": "a", "params": [1]}, Code.PARAMS),
        (V | {"method": "a", "params": None}, Code.PARAMS),
        (V | {"method": "a", "result": 1}, Code.REQUEST),
        (V | {"id": 1}, Code.REQUEST),
        (V | {"result": 1}, Code.REQUEST),
        (V | {"id": None, "result": 1}, Code.REQUEST),
        (V | {"id": 1, "result": 1, "error": {}}, Code.REQUEST),
        (V | {"id": 1, "error": None}, Code.REQUEST),
        (V | {"id": 1, "error": {"code": "x", "message": "y"}}, Code.REQUEST),
        (V | {"id": 1, "error": {"code": True, "message": "y"}}, Code.REQUEST),
        (V | {"id": 1, "error": {"code": 1}}, Code.REQUEST),
        (V | {"id": 1, "error": {"code": 1, "message": "y", "data": [1]}}, Code.REQUEST),
        (V | {"id": 1, "error": {"code": 1, "message": "y", "more": 1}}, Code.REQUEST),
        ([[V | {"method": "a"}]], Code.REQUEST),
        ([{"body": "{}"}], Code.REQUEST),
        ([V | {"method": "a"}, 1], Code.REQUEST),
        ([V | {"method": "a"}] * 513, Code.BATCH_TOO_LARGE),
        ([1] * 513, Code.BATCH_TOO_LARGE),
    ],
)
def test_malformed(value: object, code: Code) -> None:
    with pytest.raises(PeerFault) as caught:
        parse(value)
    assert caught.value.code is code


def test_512_calls_are_a_batch() -> None:
    message = parse([V | {"method": "a"}] * 512)
    assert isinstance(message, Batch)
    assert len(message.items) == 512
    with pytest.raises(ValueError, match="512"):
        jsonrpc.batch([b"{}"] * 513)
    with pytest.raises(ValueError, match="512"):
        jsonrpc.batch([])


def test_every_code_travels() -> None:
    for code in Code:
        sent = LocalRefusal(code, "because", raw=b"\x01", big=2**200, nested={"a": (1, b"")}, none=None)
        message = parse(decoded(jsonrpc.error_response(3, sent)))
        assert isinstance(message, Response)
        assert message.error is not None
        assert message.error["code"] == code.number
        with pytest.raises(RemoteError) as caught:
            message.unwrap()
        assert caught.value.code is code
        assert caught.value.message == "because"
        assert caught.value.data == {"raw": "0x01", "big": str(2**200), "nested": {"a": [1, "0x"]}, "none": None}


@pytest.mark.parametrize("label", ["new.code", None, 7, {"a": 1}])
def test_an_unknown_label_is_internal_and_its_text_is_kept(label: object) -> None:
    error = jsonrpc.remote_error({"code": -1, "message": "text", "data": {"code": label, "self": 1, "message": 2}})
    assert error.code is Code.INTERNAL
    assert "text" in error.message
    assert error.data == {"self": 1, "message": 2}
    if isinstance(label, str):
        assert label in error.message
    assert jsonrpc.remote_error({"code": -32601, "message": "m"}).code is Code.INTERNAL


def test_the_id_of_a_malformed_call_is_used_but_never_that_of_a_response() -> None:
    assert jsonrpc.id_of_call({"id": 3, "method": 1}) == 3
    assert jsonrpc.id_of_call({"id": "r1", "method": "a", "params": 1}) == "r1"
    assert jsonrpc.id_of_call({"id": "r1", "result": 1, "error": 1}) is None
    assert jsonrpc.id_of_call({"id": -3, "method": 1}) is None
    assert jsonrpc.id_of_call([{"id": 3, "method": 1}]) is None


ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["2.0", "a", ""]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["jsonrpc", "id", "method", "params", "result", "error", "code", "message", "data", "x"]),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


@given(ANY, st.booleans())
def test_any_value_is_a_message_or_a_fault(value: object, versioned: bool) -> None:
    if versioned and isinstance(value, dict):
        value = value | V
    code = None
    try:
        message = parse(value)
    except XlnError as error:
        code = error.code
    if code is None:
        assert isinstance(message, Request | Notification | Response | Batch)
    else:
        assert code in (Code.REQUEST, Code.PARAMS)
