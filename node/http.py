"""HTTP as every process of ours serves it: strict JSON in, JSON out, stable error codes, and the operator's way in.

Every failure is `{"error": {"code": label, "message": …, "data": {…}}}` with a fitting status, never a traceback.
Bodies are read up to a limit, within a deadline, and parsed by `channel.strictjson`.

Paths under /admin are for the operator. The node draws a token at start and writes it with its URL to
`<folder>/admin.json` (mode 0600); who can read that file may speak for the operator. Command lines use `AdminClient`.
"""

import asyncio
import contextlib
import hmac
import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Final, Self

import aiohttp
import orjson
from aiohttp import web
from aiohttp.typedefs import Middleware

from channel import strictjson
from channel.errors import Code, InvariantBroken, LocalRefusal, PeerFault, XlnError
from node import logs
from node.files import read_private, write_private

BODY_BYTES_MAX: Final = 1024 * 1024
BODY_DEADLINE_S: Final = 15.0
ANSWER_BYTES_MAX: Final = 64 * 1024 * 1024
ADMIN_FILE: Final = "admin.json"
ADMIN_PREFIX: Final = "/admin"

_log = logs.get("node.http")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_STATUS: Final[Mapping[Code, int]] = {
    **dict.fromkeys(
        (
            Code.PARSE,
            Code.DUPLICATE_KEY,
            Code.NUMBER,
            Code.REQUEST,
            Code.PARAMS,
            Code.AMOUNT,
            Code.ADDRESS,
            Code.ENCODING,
            Code.ENTRY_INVALID,
            Code.SIGNATURE,
            Code.SIGNATURE_HIGH_S,
            Code.SIGNATURE_V,
        ),
        400,
    ),
    Code.AUTH: 401,
    **dict.fromkeys(
        (
            Code.METHOD,
            Code.ORDER_UNKNOWN,
            Code.ORDER_MARKET,
            Code.CHANNEL_UNKNOWN,
            Code.BROKER_UNKNOWN,
            Code.SESSION_UNKNOWN_PEER,
        ),
        404,
    ),
    **dict.fromkeys(
        (Code.ORDER_REPLAYED, Code.LOCK_EXISTS, Code.CHANNEL_PHASE, Code.CHANNEL_TURN, Code.ENTRY_EQUIVOCATION), 409
    ),
    **dict.fromkeys((Code.FRAME_TOO_LARGE, Code.BATCH_TOO_LARGE), 413),
    Code.RATE_LIMIT: 429,
    **dict.fromkeys(
        (Code.BUSY, Code.STORAGE, Code.CHAIN, Code.CHAIN_STALE, Code.PEER_UNAVAILABLE, Code.CHANNEL_FROZEN), 503
    ),
    Code.TIMEOUT: 504,
    **dict.fromkeys((Code.INTERNAL, Code.CONFIG, Code.KEYFILE, Code.CONSERVATION, Code.FORK), 500),
}


def status_of(error: XlnError) -> int:
    """The HTTP status of a failure. A well-formed request that is refused, for reasons not in the table, is 422."""
    if isinstance(error, InvariantBroken) and error.code is not Code.STORAGE:
        return 500
    return _STATUS.get(error.code, 422)


# ---- answers


def json_response(data: object, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """A JSON answer. Integers must fit 53 bits, amounts are text. Raises TypeError for what JSON does not have."""
    body = orjson.dumps(data, option=orjson.OPT_STRICT_INTEGER)
    return web.Response(body=body, status=status, content_type="application/json", headers=headers)


def error_body(error: XlnError) -> dict[str, object]:
    """The JSON form of a failure."""
    body: dict[str, object] = {"code": error.code.label, "message": error.message}
    if error.data:
        body["data"] = {key: _plain(value) for key, value in error.data.items()}
    return {"error": body}


def error_response(error: XlnError) -> web.Response:
    headers = {"WWW-Authenticate": "Bearer"} if error.code is Code.AUTH else None
    return json_response(error_body(error), status=status_of(error), headers=headers)


def _plain(value: object) -> object:
    match value:
        case None | bool() | str():
            return value
        case int():
            return value if abs(value) < 2**53 else str(value)
        case bytes():
            return "0x" + value.hex()
        case list() | tuple():
            return [_plain(item) for item in value]
        case dict():
            return {str(key): _plain(item) for key, item in value.items()}
        case _:
            return str(value)


@web.middleware
async def error_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turns every failure of a handler into a JSON answer. Must be the first (outermost) middleware."""
    try:
        return await handler(request)
    except XlnError as error:
        if isinstance(error, InvariantBroken):
            _log.exception("request broke an invariant", method=request.method, path=request.path)
        return error_response(error)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        return _http_error(request, error)
    except (asyncio.CancelledError, ConnectionResetError):
        raise
    except Exception:  # noqa: BLE001 - logged with its traceback; the caller gets a stable code, not a hung connection
        trace_id = secrets.token_hex(4)
        _log.exception("request failed", method=request.method, path=request.path, trace_id=trace_id)
        failure = InvariantBroken(Code.INTERNAL, f"internal error; the log has it under {trace_id}", trace_id=trace_id)
        return error_response(failure)


def _http_error(request: web.Request, error: web.HTTPException) -> web.Response:
    match error.status:
        case 404:
            code, message = Code.METHOD, f"there is nothing at {request.path[:200]}"
        case 405:
            allowed = ", ".join(sorted(getattr(error, "allowed_methods", ())))
            code, message = Code.METHOD, f"{request.path[:200]} takes {allowed}, not {request.method[:20]}"
        case 413:
            code, message = Code.FRAME_TOO_LARGE, f"a body may have {BODY_BYTES_MAX} bytes"
        case _:
            code, message = Code.REQUEST, error.reason or "the request is wrong"
    headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else None
    return json_response(error_body(PeerFault(code, message)), status=error.status, headers=headers)


async def read_json(request: web.Request, *, bytes_max: int = BODY_BYTES_MAX) -> object:
    """The body as strict JSON.

    Raises PeerFault FRAME_TOO_LARGE, PARSE, DUPLICATE_KEY or NUMBER, LocalRefusal TIMEOUT.
    """
    too_large = PeerFault(Code.FRAME_TOO_LARGE, f"a body may have {bytes_max} bytes")
    if request.content_length is not None and request.content_length > bytes_max:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_DEADLINE_S):
            async for chunk in request.content.iter_any():
                body += chunk
                if len(body) > bytes_max:
                    raise too_large
    except TimeoutError:
        raise LocalRefusal(Code.TIMEOUT, f"the body did not arrive within {BODY_DEADLINE_S:.0f} s") from None
    except aiohttp.ClientError as error:  # the payload broke off, or its encoding is wrong
        raise PeerFault(Code.PARSE, "the body is incomplete or badly encoded") from error
    return strictjson.loads(bytes(body), max_bytes=bytes_max)


# ---- serving


def application(*middlewares: Middleware) -> web.Application:
    """An application with `error_middleware` first and the limit on bodies set."""
    return web.Application(middlewares=[error_middleware, *middlewares], client_max_size=BODY_BYTES_MAX)


@contextlib.asynccontextmanager
async def serve(app: web.Application, host: str, port: int, *, shutdown_s: float = 3.0) -> AsyncIterator[str]:
    """Serves `app` inside the block; gives its URL, with the port that was taken when `port` is 0.

    Raises LocalRefusal CONFIG when the address cannot be listened on.
    """
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=shutdown_s)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        try:
            await site.start()
        except OSError as error:
            raise LocalRefusal(
                Code.CONFIG, f"cannot listen on {host}:{port}: {error.strerror or error}; choose another address"
            ) from error
        actual_port = runner.addresses[0][1]
        yield f"http://{f'[{host}]' if ':' in host else host}:{actual_port}"
    finally:
        await runner.cleanup()


# ---- the operator


def admin_middleware(token: str) -> Middleware:
    """Lets only `Authorization: Bearer <token>` through to paths under /admin. Raises PeerFault AUTH."""
    expected = f"Bearer {token}".encode()

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        route = request.match_info.route.resource
        # Both what was asked and what it was routed to: no spelling of a path gets round this.
        names = (request.path, route.canonical if route is not None else "")
        if any(name == ADMIN_PREFIX or name.startswith(ADMIN_PREFIX + "/") for name in names):
            given = request.headers.get("Authorization", "").encode(errors="surrogateescape")
            if not hmac.compare_digest(given, expected):
                raise PeerFault(Code.AUTH, "this needs the operator's token, which admin.json in the node's folder has")
        return await handler(request)

    return middleware


def new_token() -> str:
    return secrets.token_urlsafe(32)


@contextlib.contextmanager
def admin_file(folder: Path, url: str, token: str) -> Iterator[Path]:
    """Publishes URL and token to the operator's command lines inside the block. Raises LocalRefusal CONFIG."""
    path = folder / ADMIN_FILE
    content = orjson.dumps({"url": url, "token": token, "pid": os.getpid()}, option=orjson.OPT_INDENT_2)
    write_private(path, content + b"\n", replace=True)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


class AdminClient:
    """A running node, spoken to as its operator. `async with AdminClient(folder) as admin: await admin.get("/status")`.

    Raises LocalRefusal PEER_UNAVAILABLE when no node runs there, TIMEOUT, and whatever the node answers, with its code.
    """

    def __init__(self, folder: Path, *, deadline_s: float = 30.0) -> None:
        self._folder = folder
        path = folder / ADMIN_FILE
        if not path.exists():
            raise LocalRefusal(
                Code.PEER_UNAVAILABLE, f"no node runs on {folder} (there is no {ADMIN_FILE}); start it with `run`"
            )
        try:
            content = orjson.loads(read_private(path, what="admin file"))
            self._url, token, self._pid = str(content["url"]), str(content["token"]), int(content["pid"])
        except (ValueError, KeyError, TypeError) as error:
            raise PeerFault(Code.CONFIG, f"{path} is damaged; start the node again") from error
        self._headers = {"Authorization": f"Bearer {token}"}
        self._deadline = aiohttp.ClientTimeout(total=deadline_s)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(timeout=self._deadline, headers=self._headers)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def get(self, path: str, **query: str) -> object:
        """GET /admin<path>."""
        return await self._request("GET", path, query=query)

    async def post(self, path: str, body: object = None) -> object:
        """POST /admin<path> with a JSON body."""
        return await self._request("POST", path, body=body)

    async def _request(
        self, method: str, path: str, *, query: Mapping[str, str] | None = None, body: object = None
    ) -> object:
        assert self._session is not None, "use `async with`"
        try:
            async with self._session.request(
                method,
                self._url + ADMIN_PREFIX + path,
                params=query,
                data=orjson.dumps(body) if method == "POST" else None,
                headers={"Content-Type": "application/json"} if method == "POST" else None,
            ) as response:
                return await read_answer(response)
        except TimeoutError:
            raise LocalRefusal(Code.TIMEOUT, f"the node at {self._url} does not answer in time") from None
        except aiohttp.ClientError as error:
            raise LocalRefusal(
                Code.PEER_UNAVAILABLE,
                f"the node on {self._folder} (process {self._pid}, {self._url}) does not answer: {error}; "
                "if it was killed, start it again with `run`",
            ) from error


async def read_answer(response: aiohttp.ClientResponse) -> object:
    """The JSON of an answer; a failure is raised as what it was on the other side.

    Raises PeerFault with the code that was answered (LocalRefusal for status 503 and 504), PeerFault PARSE for an
    answer that is not ours, aiohttp.ClientError.
    """
    raw = bytearray()
    async for chunk in response.content.iter_any():
        raw += chunk
        if len(raw) > ANSWER_BYTES_MAX:
            raise PeerFault(Code.FRAME_TOO_LARGE, f"an answer may have {ANSWER_BYTES_MAX} bytes")
    try:
        value: object = orjson.loads(raw)
    except ValueError:
        raise PeerFault(Code.PARSE, f"status {response.status} with an answer that is not JSON") from None
    if response.status < 400:
        return value
    error = value.get("error") if isinstance(value, dict) else None
    if not isinstance(error, dict):
        raise PeerFault(Code.PARSE, f"status {response.status} without an error code")
    code = _CODES.get(str(error.get("code")), Code.INTERNAL)
    data = error.get("data")
    fields = {str(key): item for key, item in data.items()} if isinstance(data, dict) else {}
    kind = LocalRefusal if response.status in (503, 504) else PeerFault
    raise kind(code, str(error.get("message")), **{k: v for k, v in fields.items() if k not in ("code", "message")})


_CODES: Final = {code.label: code for code in Code}
