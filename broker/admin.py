"""The operator's paths of a broker, under /admin, and the client that its command line uses.

    GET  /admin/status
    GET  /admin/audit                       the identity of DESIGN section 8, per token
    GET  /admin/channels
    POST /admin/channels                    {"peer", "token", "amount", "peerAmount"}: open one
    POST /admin/channels/{id}/close
    GET  /admin/channels/{id}/state         the last co-signed state
    GET  /admin/channels/{id}/journal       JSON lines, streamed
    POST /admin/collateral                  {"token", "amount"}: deposit into XlnCollateral

Tokens are named by symbol or address, amounts are decimal text in whole tokens. Let through by the token in admin.json
(`node.http.admin_middleware`).
"""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final

import aiohttp
from aiohttp import web

from channel.errors import Code, LocalRefusal, PeerFault
from channel.strictjson import Fields
from channel.units import Address, ChannelId, parse_amount, parse_hash
from node import http
from node.http import AdminClient, read_answer

if TYPE_CHECKING:
    from broker.api import Node

LINE_BYTES_MAX: Final = 8 * 1024 * 1024
STREAM_DEADLINE_S: Final = 600.0
READ_DEADLINE_S: Final = 30.0


def add_routes(app: web.Application, node: "Node") -> None:
    """Adds the paths above to an application that has `node.http.admin_middleware`."""
    operator = _Operator(node)
    app.router.add_get("/admin/status", operator.status)
    app.router.add_get("/admin/audit", operator.audit)
    app.router.add_get("/admin/channels", operator.channels)
    app.router.add_post("/admin/channels", operator.open_channel)
    app.router.add_post("/admin/channels/{id}/close", operator.close_channel)
    app.router.add_get("/admin/channels/{id}/state", operator.state)
    app.router.add_get("/admin/channels/{id}/journal", operator.journal)
    app.router.add_post("/admin/collateral", operator.collateral)


class _Operator:
    def __init__(self, node: "Node") -> None:
        self._node = node

    async def status(self, _: web.Request) -> web.Response:
        return http.json_response(self._node.status())

    async def audit(self, _: web.Request) -> web.Response:
        return http.json_response(self._node.audit())

    async def channels(self, _: web.Request) -> web.Response:
        return http.json_response({"channels": self._node.channels()})

    async def open_channel(self, request: web.Request) -> web.Response:
        body = Fields(await http.read_json(request), "the request to open a channel")
        peer = body.address("peer")
        token, amount = self._token_amount(body)
        peer_amount = self._amount(token, body.text("peerAmount", 100), "peerAmount")
        body.done()
        return http.json_response(await self._node.open_channel(peer, token, amount, peer_amount), status=201)

    async def close_channel(self, request: web.Request) -> web.Response:
        return http.json_response(await self._node.close_channel(_channel_id(request)))

    async def state(self, request: web.Request) -> web.Response:
        return http.json_response(self._node.export_state(_channel_id(request)))

    async def journal(self, request: web.Request) -> web.StreamResponse:
        lines = self._node.export_journal(_channel_id(request))
        first = await anext(lines, None)  # what is refused is refused before the answer begins
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        if first is not None:
            await response.write(first.encode() + b"\n")
            async for line in lines:
                await response.write(line.encode() + b"\n")
        await response.write_eof()
        return response

    async def collateral(self, request: web.Request) -> web.Response:
        body = Fields(await http.read_json(request), "the deposit of collateral")
        token, amount = self._token_amount(body)
        body.done()
        return http.json_response(await self._node.deposit_collateral(token, amount))

    def _token_amount(self, body: Fields) -> tuple[Address, int]:
        token = self._node.config.token_named(body.text("token", 64)).address
        return token, self._amount(token, body.text("amount", 100), "amount")

    def _amount(self, token: Address, text: str, what: str) -> int:
        known = self._node.config.token(token)
        assert known is not None
        return parse_amount(text, known.decimals, what)


def _channel_id(request: web.Request) -> ChannelId:
    return ChannelId(parse_hash(request.match_info["id"], "the channel's id"))


class BrokerAdmin(AdminClient):
    """The operator's client, with streams."""

    async def stream(self, path: str) -> AsyncIterator[bytes]:
        """The lines of GET /admin<path>, without their ends. Raises as `get` does, PeerFault FRAME_TOO_LARGE."""
        assert self._session is not None, "use `async with`"
        deadline = aiohttp.ClientTimeout(total=STREAM_DEADLINE_S, sock_read=READ_DEADLINE_S)
        try:
            async with self._session.get(self._url + http.ADMIN_PREFIX + path, timeout=deadline) as response:
                if response.status != 200:
                    await read_answer(response)
                    return
                line = bytearray()
                async for chunk in response.content.iter_any():
                    line += chunk
                    if len(line) > LINE_BYTES_MAX + len(chunk):
                        raise PeerFault(Code.FRAME_TOO_LARGE, f"a line may have {LINE_BYTES_MAX} bytes")
                    *whole, rest = bytes(line).split(b"\n")
                    line = bytearray(rest)
                    for item in whole:
                        yield item
                if line:
                    raise PeerFault(Code.PARSE, "the stream broke off in the middle of a line")
        except TimeoutError:
            raise LocalRefusal(Code.TIMEOUT, f"the node at {self._url} does not answer in time") from None
        except aiohttp.ClientError as error:
            raise LocalRefusal(Code.PEER_UNAVAILABLE, f"the node at {self._url} broke off: {error}") from error
