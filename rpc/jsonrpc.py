"""JSON-RPC 2.0 as it travels inside a session, pure.

A frame is one JSON value: a request, a notification, a response, a batch of those, or an entry envelope (an object with
a `body`), which is passed on as it is: `channel.entry` verifies it, and its body is again parsed by `parse`.
Parameters are by name only. Ids are integers from 0 or text of 1 to 64 characters; `null` only in a response that
reports an error which belongs to no request.

    message = Request | Notification | Response | Batch | Envelope

Errors carry the number and, in `data.code`, the stable label of `channel.errors.Code`. Source: JSON-RPC 2.0 and DESIGN
section 5.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from channel.errors import Code, PeerFault, XlnError
from channel.strictjson import MAX_INTEGER, dumpb, shown
from channel.units import format_hex

MAX_BATCH = 512
MAX_ID_CHARS = 64
MAX_METHOD_CHARS = 64
MAX_ERROR_CHARS = 1024

Id = int | str
Params = dict[str, Any]


class RemoteError(XlnError):
    """What the other side answered or closed with. `code` is INTERNAL when its label is not one of ours."""

    def __init__(self, code: Code, message: str, data: Mapping[str, object] | None = None) -> None:
        super().__init__(code, message)
        self.data = dict(data or {})  # not as keywords: a peer chooses the keys


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    id: Id
    method: str
    params: Params


@dataclass(frozen=True, slots=True, kw_only=True)
class Notification:
    method: str
    params: Params


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """`error` is the JSON-RPC error object as it came, of checked shape; with it, `result` is None."""

    id: Id | None
    result: object
    error: dict[str, Any] | None

    def unwrap(self) -> object:
        """The result. Raises RemoteError."""
        if self.error is not None:
            raise_remote(self.error)
        return self.result


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    items: tuple[Request | Notification | Response, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """An entry envelope, not looked into."""

    fields: dict[str, Any]


Message = Request | Notification | Response | Batch | Envelope

_REQUEST_KEYS = frozenset(("jsonrpc", "id", "method", "params"))
_RESPONSE_KEYS = frozenset(("jsonrpc", "id", "result", "error"))
_ERROR_KEYS = frozenset(("code", "message", "data"))
_BY_LABEL = {code.label: code for code in Code}


def parse(value: object, *, max_batch: int = MAX_BATCH) -> Message:
    """A message from a decoded frame. Raises PeerFault REQUEST, PARAMS or BATCH_TOO_LARGE."""
    if type(value) is dict:
        return Envelope(fields=value) if "body" in value else _single(value)
    if type(value) is not list:
        raise PeerFault(Code.REQUEST, "a frame is a JSON-RPC object, a batch of them, or an entry")
    if not value:
        raise PeerFault(Code.REQUEST, "a batch must not be empty")
    if len(value) > max_batch:
        raise PeerFault(Code.BATCH_TOO_LARGE, f"a batch may have {max_batch} calls; this one has {len(value)}")
    return Batch(items=tuple([_single(item) for item in value]))


def _single(value: object) -> Request | Notification | Response:
    if type(value) is not dict or value.get("jsonrpc") != "2.0":
        raise PeerFault(Code.REQUEST, 'a message is an object with "jsonrpc": "2.0"')
    if "method" not in value:
        return _response(value)
    method = value["method"]
    if type(method) is not str or not 0 < len(method) <= MAX_METHOD_CHARS:
        raise PeerFault(Code.REQUEST, f"method must be text of 1 to {MAX_METHOD_CHARS} characters")
    _refuse_unknown(value, _REQUEST_KEYS, "a request")
    params = value.get("params", {})
    if type(params) is not dict:
        raise PeerFault(Code.PARAMS, "params must be an object: parameters are by name")
    if "id" not in value:
        return Notification(method=method, params=params)
    return Request(id=_id(value["id"]), method=method, params=params)


def _response(value: dict[str, Any]) -> Response:
    if ("result" in value) == ("error" in value):
        raise PeerFault(Code.REQUEST, "a message has a method, a result, or an error")
    if "id" not in value:
        raise PeerFault(Code.REQUEST, "a response has an id")
    _refuse_unknown(value, _RESPONSE_KEYS, "a response")
    identity = value["id"]
    if "result" in value:
        return Response(id=_id(identity), result=value["result"], error=None)
    error = value["error"]
    if type(error) is not dict or type(error.get("code")) is not int or type(error.get("message")) is not str:
        raise PeerFault(Code.REQUEST, "an error is an object with an integer code and a text message")
    if "data" in error and type(error["data"]) is not dict:
        raise PeerFault(Code.REQUEST, "data of an error must be an object")
    _refuse_unknown(error, _ERROR_KEYS, "an error")
    return Response(id=None if identity is None else _id(identity), result=None, error=error)


def _refuse_unknown(value: dict[str, Any], known: frozenset[str], what: str) -> None:
    if not known.issuperset(value):
        raise PeerFault(Code.REQUEST, f"{what} has unknown {shown(min(value.keys() - known))}")


def _id(value: object) -> Id:
    if type(value) is int and 0 <= value <= MAX_INTEGER:
        return value
    if type(value) is str and 0 < len(value) <= MAX_ID_CHARS:
        return value
    raise PeerFault(Code.REQUEST, f"an id is an integer from 0, or text of 1 to {MAX_ID_CHARS} characters")


def id_of_call(value: object) -> Id | None:
    """The id to answer a malformed frame with: that of what looks like a request, if it is usable, else None.

    Never that of something like a response: its id names a request of ours, and the answer would seem to be the
    peer's own.
    """
    if type(value) is not dict or "method" not in value:
        return None
    try:
        return _id(value.get("id"))
    except PeerFault:
        return None


def request(identity: Id, method: str, params: Mapping[str, object]) -> bytes:
    return dumpb({"jsonrpc": "2.0", "id": identity, "method": method, "params": params})


def notification(method: str, params: Mapping[str, object]) -> bytes:
    return dumpb({"jsonrpc": "2.0", "method": method, "params": params})


def response(identity: Id, result: object) -> bytes:
    return dumpb({"jsonrpc": "2.0", "id": identity, "result": result})


def error_response(identity: Id | None, error: XlnError) -> bytes:
    return dumpb({"jsonrpc": "2.0", "id": identity, "error": error_from(error)})


def batch(messages: Iterable[bytes]) -> bytes:
    """One frame of built messages. Raises ValueError when there is none, or more than 512."""
    items = tuple(messages)
    if not 0 < len(items) <= MAX_BATCH:
        raise ValueError(f"a batch has 1 to {MAX_BATCH} calls")
    return b"[" + b",".join(items) + b"]"


def error_from(error: XlnError) -> dict[str, Any]:
    """The JSON-RPC error object of one of our errors. Its data is made plain: bytes as hex, large numbers as text."""
    data: dict[str, object] = {str(key): _plain(value) for key, value in error.data.items()}
    data["code"] = error.code.label
    return {"code": error.code.number, "message": _cut(error.message), "data": data}


def _plain(value: object) -> object:
    match value:
        case None | bool():
            return value
        case int():
            return value if -MAX_INTEGER <= value <= MAX_INTEGER else str(value)
        case bytes():
            return format_hex(value)
        case str():
            return _cut(value)
        case dict():
            return {str(key): _plain(item) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_plain(item) for item in value]
        case _:
            return _cut(str(value))


def _cut(text: str) -> str:
    return text.encode("utf-8", "replace").decode()[:MAX_ERROR_CHARS]


def remote_error(error: Mapping[str, Any]) -> RemoteError:
    """A peer's error object, as an error of ours. An unknown label becomes INTERNAL, and the message keeps it."""
    data = dict(error.get("data") or {})
    label = data.pop("code", None)
    message = str(error.get("message", ""))[:MAX_ERROR_CHARS]
    code = _BY_LABEL.get(label) if isinstance(label, str) else None
    if code is not None:
        return RemoteError(code, message, data)
    name = shown(label) if isinstance(label, str) else error.get("code")
    return RemoteError(Code.INTERNAL, f"the peer reports {name}: {message}", data)


def raise_remote(error: Mapping[str, Any]) -> NoReturn:
    raise remote_error(error)
