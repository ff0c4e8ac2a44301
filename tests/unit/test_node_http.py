"""HTTP: every failure is JSON with a stable code and a fitting status; the operator's paths need the token."""

import asyncio
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NoReturn

import aiohttp
import pytest
from aiohttp import web
from yarl import URL

from channel.errors import Code, InvariantBroken, LocalRefusal, PeerFault, XlnError
from node import http


async def echo(request: web.Request) -> web.Response:
    return http.json_response({"got": await http.read_json(request)})


async def fail(request: web.Request) -> NoReturn:
    match request.match_info["how"]:
        case "refused":
            raise LocalRefusal(Code.ORDER_BALANCE, "too little", have=2**60, who=b"\x01")
        case "broken":
            raise InvariantBroken(Code.CONSERVATION, "one unit too much")
        case _:
            raise RuntimeError("the secret is 42")


async def status(request: web.Request) -> web.Response:
    return http.json_response({"ok": True, "q": request.query.get("q")})


def app() -> web.Application:
    made = http.application(http.admin_middleware("t0ken"))
    made.router.add_post("/echo", echo)
    made.router.add_get("/fail/{how}", fail)
    made.router.add_get("/admin/status", status)
    made.router.add_post("/admin/echo", echo)
    return made


@pytest.fixture
async def url() -> AsyncIterator[str]:
    async with http.serve(app(), "127.0.0.1", 0) as url:
        yield url


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def test_a_body_goes_in_and_out(url: str, session: aiohttp.ClientSession) -> None:
    async with session.post(f"{url}/echo", data=b'{"a": [1, "x"]}') as response:
        assert response.status == 200
        assert response.content_type == "application/json"
        assert await response.json() == {"got": {"a": [1, "x"]}}


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"not json", 400, "json.parse"),
        (b"", 400, "json.parse"),
        (b"\xff", 400, "json.parse"),
        (b'{"a": 1, "a": 2}', 400, "json.duplicate_key"),
        (b"1.5", 400, "json.number"),
        (b'"' + b"x" * http.BODY_BYTES_MAX + b'"', 413, "frame.too_large"),
    ],
)
async def test_bad_bodies(url: str, session: aiohttp.ClientSession, body: bytes, status: int, code: str) -> None:
    async with session.post(f"{url}/echo", data=io.BytesIO(body)) as response:
        assert response.status == status
        assert (await response.json())["error"]["code"] == code


async def test_a_stream_that_is_too_large_is_cut(url: str, session: aiohttp.ClientSession) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield b" " * 65_536

    try:
        async with session.post(f"{url}/echo", data=endless()) as response:
            assert response.status == 413
            assert (await response.json())["error"]["code"] == "frame.too_large"
    except aiohttp.ClientOSError:
        pass  # the connection closed while we were still sending: as good


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/fail/refused", 422, "order.balance"),
        ("/fail/broken", 500, "invariant.conservation"),
        ("/fail/bug", 500, "internal"),
        ("/nowhere", 404, "rpc.method"),
        ("/echo", 405, "rpc.method"),
    ],
)
async def test_failures(url: str, session: aiohttp.ClientSession, path: str, status: int, code: str) -> None:
    async with session.get(url + path) as response:
        assert response.status == status
        text = await response.text()
        assert json.loads(text)["error"]["code"] == code
        assert "Traceback" not in text
        assert "42" not in text.replace(json.loads(text)["error"].get("data", {}).get("trace_id", "-"), "")


async def test_data_is_plain(url: str, session: aiohttp.ClientSession) -> None:
    async with session.get(f"{url}/fail/refused") as response:
        assert (await response.json())["error"]["data"] == {"have": str(2**60), "who": "0x01"}


@pytest.mark.parametrize("header", [None, "Bearer wrong", "t0ken", "bearer t0ken", "Bearer t0ken0"])
@pytest.mark.parametrize("path", ["/admin/status", "/%61dmin/status", "/admin/nowhere", "/admin"])
async def test_the_operators_paths_need_the_token(
    url: str, session: aiohttp.ClientSession, path: str, header: str | None
) -> None:
    headers = {"Authorization": header} if header else {}
    async with session.get(URL(url + path, encoded=True), headers=headers) as response:
        assert response.status == 401
        assert (await response.json())["error"]["code"] == "auth.invalid"


async def test_the_token_opens_the_operators_paths(url: str, session: aiohttp.ClientSession) -> None:
    async with session.get(f"{url}/admin/status", headers={"Authorization": "Bearer t0ken"}) as response:
        assert response.status == 200


async def test_every_code_has_a_status() -> None:
    for code in Code:
        assert 400 <= http.status_of(PeerFault(code, "x")) <= 504
    assert http.status_of(LocalRefusal(Code.STORAGE, "x")) == 503
    assert http.status_of(PeerFault(Code.ORDER_REPLAYED, "x")) == 409
    assert http.status_of(PeerFault(Code.RATE_LIMIT, "x")) == 429


async def test_the_operators_client(url: str, tmp_path: Path) -> None:
    with http.admin_file(tmp_path, url, "t0ken") as path:
        assert path.stat().st_mode & 0o777 == 0o600
        async with http.AdminClient(tmp_path) as admin:
            assert await admin.get("/status", q="1") == {"ok": True, "q": "1"}
            assert await admin.post("/echo", {"a": 1}) == {"got": {"a": 1}}
            with pytest.raises(PeerFault) as caught:
                await admin.get("/nowhere")
            assert caught.value.code is Code.METHOD
    with pytest.raises(LocalRefusal, match="no node runs") as refused:
        http.AdminClient(tmp_path)
    assert refused.value.code is Code.PEER_UNAVAILABLE


async def test_a_node_that_was_killed_is_said_to_be_gone(tmp_path: Path) -> None:
    async with http.serve(app(), "127.0.0.1", 0) as url:
        pass
    with http.admin_file(tmp_path, url, "t0ken"):
        async with http.AdminClient(tmp_path) as admin:
            with pytest.raises(LocalRefusal, match="does not answer") as caught:
                await admin.get("/status")
    assert caught.value.code is Code.PEER_UNAVAILABLE


async def test_an_admin_file_open_to_others_is_refused(url: str, tmp_path: Path) -> None:
    with http.admin_file(tmp_path, url, "t0ken") as path:
        path.chmod(0o644)
        with pytest.raises(XlnError, match="chmod 600"):
            http.AdminClient(tmp_path)


async def test_an_address_in_use_is_said_to_be(url: str) -> None:
    with pytest.raises(LocalRefusal, match="cannot listen") as caught:
        async with http.serve(app(), "127.0.0.1", int(url.rpartition(":")[2])):
            await asyncio.sleep(0)
    assert caught.value.code is Code.CONFIG
