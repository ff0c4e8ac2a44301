"""The trader API over a real core with a real channel behind it: every refusal has its code and changes nothing."""

import asyncio
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import WSMsgType
from aiohttp.test_utils import TestClient, TestServer

from broker import feeds
from broker.api import LOGIN_MAX_MS, make_app
from channel.orders import OrderType, SignedOrder, TimeInForce, cancel_digest, login_digest, order_to_json
from channel.signing import CURVE_ORDER, Signer
from channel.typed import WITHDRAWAL
from channel.units import ZERO_HASH, format_address, format_hex
from tests.support.memory_node import MemoryNode, write_and_load
from tests.support.pair import BTC, USD, Pair, custody_of, user

ALICE, BOB, MAKER = user(100), user(101), user(200)
Client = TestClient[Any, Any]
TOKEN = "0perator"


@pytest.fixture
def node(tmp_path: Path) -> MemoryNode:
    """Broker A with an open channel to B; Alice and Bob are A's users, the maker is B's."""
    pair = Pair()
    pair.open()
    node = MemoryNode(write_and_load(tmp_path), pair)
    for who in (ALICE, BOB):
        pair.deposit(pair.a, who, USD, 100_000 * 10**6)
        pair.deposit(pair.a, who, BTC, 2 * 10**8)
    pair.deposit(pair.b, MAKER, BTC, 5 * 10**8)
    pair.deposit(pair.b, MAKER, USD, 100_000 * 10**6)
    return node


@pytest.fixture
async def client(node: MemoryNode) -> AsyncIterator[Client]:
    async with TestClient(TestServer(make_app(node, TOKEN))) as client:
        yield client


def signed(
    node: MemoryNode, who: Signer = ALICE, side: int = 0, price: int = 6_000_000, lots: int = 1000, **how: Any
) -> SignedOrder:
    return node.pair.order(node.side, who, side, price, lots, **how)


async def post(client: Client, path: str, body: object, **how: Any) -> tuple[int, dict[str, Any]]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with client.post(path, data=io.BytesIO(data), **how) as response:
        return response.status, await response.json()


async def get(client: Client, path: str, **how: Any) -> tuple[int, dict[str, Any]]:
    async with client.get(path, **how) as response:
        return response.status, await response.json()


async def place(client: Client, order: SignedOrder, **changes: object) -> tuple[int, dict[str, Any]]:
    return await post(client, "/v1/orders", {**order_to_json(order), **changes})


async def refused(client: Client, node: MemoryNode, path: str, body: object) -> tuple[int, str]:
    """Status and code of a refusal, which must have changed nothing."""
    before = fingerprint(node)
    status, answer = await post(client, path, body)
    assert fingerprint(node) == before
    assert answer["error"]["message"]
    return status, answer["error"]["code"]


def fingerprint(node: MemoryNode) -> object:
    exchange = node.exchange
    balances = [(user, token, balance) for user, token, balance in exchange.ledger.accounts()]
    return balances, dict(exchange.orders), dict(exchange.closed), dict(exchange.book_seq), len(node.side.records)


def login(node: MemoryNode, who: Signer, expiry_ms: int | None = None, owner: Signer | None = None) -> dict[str, str]:
    expiry_ms = expiry_ms or node.pair.now + 60_000
    signature = who.sign(login_digest((owner or who).address, expiry_ms, node.domain))
    return {"Authorization": f"XLN {format_address((owner or who).address)}:{expiry_ms}:{format_hex(signature)}"}


# -- what is public


async def test_info_says_what_is_signed_for(client: Client, node: MemoryNode) -> None:
    status, info = await get(client, "/v1/info")
    assert status == 200
    assert info["broker"] == format_address(node.address)
    assert (info["custody"], info["chainId"]) == (format_address(node.custody), "0x7a69")
    assert [t["symbol"] for t in info["tokens"]] == ["BTC", "USD"]
    (market,) = info["markets"]
    assert (market["name"], market["tick"], market["lot"]) == ("btc/usd", "0.01", "0.0001")
    assert (market["tickQuote"], market["lotBase"]) == ("1", "10000")
    assert market["id"] == format_hex(node.side.market.market_id)
    (away,) = info["peerMarkets"]
    assert away["id"] == format_hex(node.pair.b.market.market_id)
    assert away["peer"] == away["holder"] == format_address(node.pair.b.signer.address)
    assert away["channel"] == format_hex(node.pair.fixed.channel_id)
    assert (await get(client, "/v1/health"))[1]["status"] == "ok"
    node.status = lambda: {"failure": "the disk is gone"}  # type: ignore[method-assign]
    status, answer = await get(client, "/v1/health")
    assert (status, answer["error"]["code"]) == (503, "storage.failed")


async def test_the_book_is_this_brokers_and_the_peers_as_one(client: Client, node: MemoryNode) -> None:
    pair = node.pair
    pair.place(pair.b, pair.order(pair.b, MAKER, 1, 6_010_000, 500))
    await place(client, signed(node, BOB, 1, 6_010_000, 200))
    await place(client, signed(node, BOB, 1, 6_020_000, 10))
    status, book = await get(client, "/v1/book?market=BTC/USD&depth=1")
    assert status == 200
    assert book["asks"] == [
        {"price": "60100", "ticks": 6_010_000, "amount": "0.07", "units": "7000000", "lots": 700, "local": "0.02",
         "localLots": 200}
    ]  # fmt: skip
    assert book["bids"] == []
    assert book["peers"] == [format_hex(pair.fixed.channel_id)]
    by_id = await get(client, f"/v1/book?market={format_hex(node.side.market.market_id)}&depth=9")
    assert [level["ticks"] for level in by_id[1]["asks"]] == [6_010_000, 6_020_000]
    for query, code in (
        ("", "rpc.params"),
        ("?market=eth/usd", "order.market"),
        ("?market=btc/usd&depth=0", "rpc.params"),
    ):
        assert (await get(client, f"/v1/book{query}"))[1]["error"]["code"] == code


async def test_trades_are_shown_newest_first(client: Client, node: MemoryNode) -> None:
    await place(client, signed(node, BOB, 1, 6_000_000, 10))
    await place(client, signed(node, BOB, 1, 6_000_100, 10))
    await place(client, signed(node, ALICE, 0, 6_000_100, 15))
    status, answer = await get(client, "/v1/trades?market=btc/usd")
    assert status == 200
    newest = answer["trades"][0]
    assert (newest["price"], newest["amount"], newest["lots"], newest["side"]) == ("60001", "0.0005", 5, "b")
    assert newest["remote"] is False
    assert answer["trades"][1]["price"] == "60000"
    assert len((await get(client, "/v1/trades?market=btc/usd&limit=1"))[1]["trades"]) == 1


# -- orders


async def test_an_order_rests_and_is_cancelled(client: Client, node: MemoryNode) -> None:
    order = signed(node)
    status, placed = await place(client, order)
    assert status == 201
    assert (placed["id"], placed["status"], placed["name"]) == (format_hex(order.order_id), "open", "btc/usd")
    assert (placed["price"], placed["ticks"], placed["amount"], placed["lots"]) == ("60000", 6_000_000, "0.1", 1000)
    assert (placed["open"], placed["openLots"], placed["filledLots"]) == ("0.1", 1000, 0)
    assert (await get(client, f"/v1/orders/{placed['id']}"))[1] == placed
    body = {
        "owner": format_address(ALICE.address),
        "sig": format_hex(ALICE.sign(cancel_digest(ALICE.address, order.order_id, node.domain))),
    }
    status, cancelled = await post(client, f"/v1/orders/{placed['id']}/cancel", body)
    assert (status, cancelled["status"], cancelled["cancelledLots"]) == (200, "cancelled", 1000)
    status, again = await post(client, f"/v1/orders/{placed['id']}/cancel", body)
    assert (status, again["error"]["code"]) == (404, "order.unknown")


async def test_an_order_that_a_peer_serves_better_goes_there(client: Client, node: MemoryNode) -> None:
    pair = node.pair
    pair.place(pair.b, pair.order(pair.b, MAKER, 1, 5_990_000, 300))
    await place(client, signed(node, BOB, 1, 6_000_000, 1000))
    status, placed = await place(client, signed(node, ALICE, 0, 6_000_000, 1000, tif=TimeInForce.IOC))
    assert status == 201
    final = (await get(client, f"/v1/orders/{placed['id']}"))[1]
    assert (final["status"], final["filled"]) == ("filled", "0.1")
    assert final["filledQuoteUnits"] == str(5_990_000 * 300 + 6_000_000 * 700)
    assert pair.b.exchange.ledger.balance(MAKER.address, USD).free > 100_000 * 10**6
    balances = (await get(client, account(ALICE, "balances"), headers=login(node, ALICE)))[1]["balances"]
    assert balances[0]["symbol"] == "BTC"
    assert balances[0]["free"] == "2.1"


def account(who: Signer, what: str) -> str:
    return f"/v1/accounts/{format_address(who.address)}/{what}"


async def test_a_market_order_without_liquidity_is_refused(client: Client, node: MemoryNode) -> None:
    order = signed(node, price=0, tif=TimeInForce.IOC, order_type=OrderType.MARKET)
    assert await refused(client, node, "/v1/orders", order_to_json(order)) == (422, "order.amount")


async def test_a_wrong_order_signature_is_refused(client: Client, node: MemoryNode) -> None:
    order = order_to_json(signed(node))
    assert await refused(client, node, "/v1/orders", {**order, "amount": 999}) == (422, "order.signature")
    assert await refused(client, node, "/v1/orders", {**order, "owner": format_address(BOB.address)}) == (
        422,
        "order.signature",
    )
    assert await refused(client, node, "/v1/orders", {**order, "sig": "0x1234"}) == (422, "order.signature")


async def test_a_high_s_signature_is_refused(client: Client, node: MemoryNode) -> None:
    order = signed(node)
    high = (CURVE_ORDER - int.from_bytes(order.signature[32:64], "big")).to_bytes(32, "big")
    malleated = order.signature[:32] + high + bytes((55 - order.signature[64],))
    body = {**order_to_json(order), "sig": format_hex(malleated)}
    assert await refused(client, node, "/v1/orders", body) == (400, "signature.high_s")
    body["sig"] = format_hex(order.signature[:64] + b"\x01")
    assert await refused(client, node, "/v1/orders", body) == (400, "signature.v")


async def test_a_replayed_order_is_refused(client: Client, node: MemoryNode) -> None:
    order = signed(node)
    assert (await place(client, order))[0] == 201
    assert await refused(client, node, "/v1/orders", order_to_json(order)) == (409, "order.replayed")


async def test_an_order_above_the_balance_is_refused(client: Client, node: MemoryNode) -> None:
    order = signed(node, side=1, lots=20_001)
    assert await refused(client, node, "/v1/orders", order_to_json(order)) == (422, "order.balance")


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"price": 0}, "order.tick"),
        ({"price": "6000000"}, "order.tick"),
        ({"price": -1}, "order.tick"),
        ({"price": 2**53 - 1, "amount": 0}, "order.amount"),
        ({"amount": "1"}, "order.amount"),
        ({"type": "stop"}, "order.type"),
        ({"tif": "FOK"}, "order.type"),
        ({"type": "market", "price": 0}, "order.type"),
        ({"side": "x"}, "rpc.params"),
        ({"nonce": 1}, "rpc.params"),
        ({"until": 0}, "rpc.params"),
        ({"extra": 1}, "rpc.params"),
        ({"owner": "0x12"}, "address.invalid"),
        ({"market": "btc/usd"}, "encoding.invalid"),
        ({"sig": "zz"}, "encoding.invalid"),
    ],
)
async def test_a_malformed_order_is_refused(
    client: Client, node: MemoryNode, changes: dict[str, object], code: str
) -> None:
    assert (await refused(client, node, "/v1/orders", {**order_to_json(signed(node)), **changes}))[1] == code


async def test_an_order_for_a_market_that_does_not_exist_is_refused(client: Client, node: MemoryNode) -> None:
    elsewhere = Pair().a.market.__class__(
        holder=node.address, chain_id=1, base=BTC, quote=USD, tick_quote=1, lot_base=10_000
    )
    assert await refused(client, node, "/v1/orders", order_to_json(signed(node, market=elsewhere))) == (
        404,
        "order.market",
    )


async def test_an_expired_order_is_refused(client: Client, node: MemoryNode) -> None:
    order = signed(node, valid_ms=0)
    assert await refused(client, node, "/v1/orders", order_to_json(order)) == (422, "order.expired")


async def test_only_the_owner_cancels(client: Client, node: MemoryNode) -> None:
    order = signed(node)
    await place(client, order)
    path = f"/v1/orders/{format_hex(order.order_id)}/cancel"
    by_bob = format_hex(BOB.sign(cancel_digest(BOB.address, order.order_id, node.domain)))
    as_bob = {"owner": format_address(BOB.address), "sig": by_bob}
    assert await refused(client, node, path, as_bob) == (422, "order.owner")
    as_alice = {"owner": format_address(ALICE.address), "sig": by_bob}
    assert await refused(client, node, path, as_alice) == (422, "order.signature")
    assert await refused(client, node, path, {"owner": format_address(ALICE.address)}) == (400, "rpc.params")
    status, unknown = await get(client, f"/v1/orders/{format_hex(ZERO_HASH)}")
    assert (status, unknown["error"]["code"]) == (404, "order.unknown")


# -- what is not even a request


async def test_bodies_that_are_not_strict_json_are_refused(client: Client, node: MemoryNode) -> None:
    good = json.dumps(order_to_json(signed(node))).encode()
    twice = good[:-1] + b', "side": "s"}'
    for body, status, code in (
        (b"{", 400, "json.parse"),
        (b"\xff", 400, "json.parse"),
        (b"", 400, "json.parse"),
        (twice, 400, "json.duplicate_key"),
        (good.replace(b"6000000", b"6000000.0"), 400, "json.number"),
        (b"[" * 100_000, 413, "frame.too_large"),
        (b"[" * 10_000, 400, "json.parse"),
        (b" " * (2 * 1024 * 1024), 413, "frame.too_large"),
    ):
        assert await refused(client, node, "/v1/orders", body) == (status, code)


async def test_unknown_routes_and_methods_have_a_code(client: Client) -> None:
    for path in ("/", "/v1", "/v1/nothing", "/v2/orders"):
        status, answer = await get(client, path)
        assert (status, answer["error"]["code"]) == (404, "rpc.method")
    status, answer = await get(client, "/v1/orders")
    assert (status, answer["error"]["code"]) == (405, "rpc.method")


async def test_too_many_requests_at_once_are_refused(node: MemoryNode, tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    node.config = write_and_load(tmp_path / "small")
    path = tmp_path / "small" / "broker.toml"
    path.write_text(path.read_text().replace("requests_max = 512", "requests_max = 1"))
    node.config = type(node.config).load(tmp_path / "small", env={})
    never, real = asyncio.Event(), node.cancel_order

    async def slow(*args: Any) -> Any:
        await never.wait()
        return await real(*args)

    node.cancel_order = slow  # type: ignore[method-assign]
    order = signed(node)
    body = {
        "owner": format_address(ALICE.address),
        "sig": format_hex(ALICE.sign(cancel_digest(ALICE.address, order.order_id, node.domain))),
    }
    async with TestClient(TestServer(make_app(node))) as client:
        await place(client, order)
        first = asyncio.create_task(post(client, f"/v1/orders/{format_hex(order.order_id)}/cancel", body))
        for _ in range(100):
            status, answer = await get(client, "/v1/info")
            if status == 503:
                break
        assert answer["error"]["code"] == "node.busy"
        never.set()
        assert (await first)[0] == 200
        assert (await get(client, "/v1/info"))[0] == 200


# -- accounts


async def test_an_account_needs_its_owners_login(client: Client, node: MemoryNode) -> None:
    await place(client, signed(node))
    path = account(ALICE, "orders")
    status, answer = await get(client, path, headers=login(node, ALICE))
    assert (status, answer["total"], answer["orders"][0]["openLots"]) == (200, 1, 1000)
    status, answer = await get(client, account(ALICE, "balances"), headers=login(node, ALICE))
    usd = answer["balances"][1]
    assert (usd["symbol"], usd["free"], usd["locked"], usd["lockedUnits"]) == ("USD", "94000", "6000", "6000000000")
    now = node.pair.now
    wrong: list[dict[str, str]] = [
        {},
        {"Authorization": "Bearer x"},
        {"Authorization": "XLN a:b"},
        {"Authorization": f"XLN {format_address(ALICE.address)}:soon:0x12"},
        login(node, BOB),
        login(node, BOB, owner=ALICE),
        login(node, ALICE, expiry_ms=now),
        login(node, ALICE, expiry_ms=now + LOGIN_MAX_MS + 60_000),
        {"Authorization": login(node, ALICE)["Authorization"].replace(":17", ":18", 1)},
    ]
    for headers in wrong:
        status, answer = await get(client, path, headers=headers)
        assert (status, answer["error"]["code"]) == (401, "auth.invalid"), headers


# -- withdrawals


def withdrawal(
    node: MemoryNode, amount: int, number: int = 1, who: Signer = ALICE, user: Signer = ALICE
) -> dict[str, Any]:
    withdrawal_id, deadline = number.to_bytes(32, "big"), node.pair.now // 1000 + 100
    struct = WITHDRAWAL.hash(user.address, USD, amount, user.address, withdrawal_id, deadline)
    return {
        "user": format_address(user.address),
        "token": format_address(USD),
        "amount": str(amount),
        "to": format_address(user.address),
        "id": format_hex(withdrawal_id),
        "deadline": deadline,
        "sig": format_hex(who.sign(node.domain.digest(struct))),
    }


async def test_a_withdrawal_sets_the_funds_apart(client: Client, node: MemoryNode) -> None:
    body = withdrawal(node, 1_500_000)
    status, made = await post(client, "/v1/withdrawals", body)
    assert (status, made["status"], made["amount"], made["amountUnits"]) == (202, "pending", "1.5", "1500000")
    assert (await get(client, f"/v1/withdrawals/{made['id']}"))[1] == made
    assert node.exchange.ledger.balance(ALICE.address, USD).withdrawing == 1_500_000
    path = "/v1/withdrawals"
    assert await refused(client, node, path, body) == (422, "withdrawal.invalid")
    assert await refused(client, node, path, withdrawal(node, 10**12, 2)) == (422, "balance.insufficient")
    assert await refused(client, node, path, withdrawal(node, 0, 3)) == (422, "withdrawal.invalid")
    assert await refused(client, node, path, withdrawal(node, 5, 4, who=BOB)) == (422, "signature.signer")
    assert await refused(client, node, path, {**withdrawal(node, 5, 5), "amount": "6"}) == (422, "signature.signer")
    assert await refused(client, node, path, {**withdrawal(node, 5, 5), "amount": "0.5"}) == (400, "amount.invalid")
    status, answer = await get(client, f"/v1/withdrawals/{format_hex(ZERO_HASH)}")
    assert answer["error"]["code"] == "withdrawal.invalid"


# -- the WebSocket


async def test_the_book_feed_has_a_snapshot_then_increments(client: Client, node: MemoryNode) -> None:
    pair = node.pair
    await place(client, signed(node, BOB, 1, 6_010_000, 200))
    async with client.ws_connect("/v1/ws") as ws:
        await ws.send_json({"op": "subscribe", "topic": "book", "market": "btc/usd"})
        first = await ws.receive_json(timeout=5)
        assert (first["topic"], first["type"], first["name"]) == ("book", "snapshot", "btc/usd")
        assert [(level["ticks"], level["lots"]) for level in first["asks"]] == [(6_010_000, 200)]
        await place(client, signed(node, ALICE, 0, 6_010_000, 50))
        second = await ws.receive_json(timeout=5)
        assert (second["type"], second["seq"]) == ("increment", first["seq"] + 1)
        assert [(c["side"], c["ticks"], c["lots"]) for c in second["changes"]] == [("s", 6_010_000, 150)]
        pair.place(pair.b, pair.order(pair.b, MAKER, 1, 6_010_000, 7))  # nothing happens here, but at the peer
        third = await ws.receive_json(timeout=5)
        assert third["seq"] == second["seq"] + 1
        assert [(c["lots"], c["localLots"]) for c in third["changes"]] == [(157, 150)]
        async with client.ws_connect("/v1/ws") as other:
            await other.send_json({"op": "subscribe", "topic": "book", "market": "btc/usd"})
            late = await other.receive_json(timeout=5)
            assert (late["seq"], late["asks"][0]["lots"]) == (third["seq"], 157)
        await ws.send_json({"op": "unsubscribe", "topic": "book", "market": "btc/usd"})
        assert (await ws.receive_json(timeout=5))["type"] == "unsubscribed"
        await place(client, signed(node, ALICE, 0, 5_000_000, 50))
        await ws.send_json({"op": "ping"})
        assert (await ws.receive_json(timeout=5))["type"] == "pong"


async def test_the_trades_feed_tells_trades(client: Client, node: MemoryNode) -> None:
    await place(client, signed(node, BOB, 1, 6_000_000, 10))
    async with client.ws_connect("/v1/ws") as ws:
        await ws.send_json({"op": "subscribe", "topic": "trades", "market": "btc/usd"})
        assert (await ws.receive_json(timeout=5))["trades"] == []
        await place(client, signed(node, ALICE, 0, 6_000_000, 4))
        told = await ws.receive_json(timeout=5)
        assert (told["type"], told["trade"]["amount"], told["trade"]["price"]) == ("trade", "0.0004", "60000")


async def test_the_websocket_refuses_and_stays(client: Client) -> None:
    async with client.ws_connect("/v1/ws") as ws:
        for text, code in (
            ("{", "json.parse"),
            ('{"op": "ping", "op": "ping"}', "json.duplicate_key"),
            ('{"op": "dance"}', "rpc.method"),
            ('{"op": "subscribe", "topic": "weather", "market": "btc/usd"}', "rpc.params"),
            ('{"op": "subscribe", "topic": "book", "market": "eth/usd"}', "order.market"),
            ('{"op": "subscribe", "topic": "book", "market": "btc/usd", "x": 1}', "rpc.request"),
            ("[]", "rpc.request"),
        ):
            await ws.send_str(text)
            answer = await ws.receive_json(timeout=5)
            assert (answer["type"], answer["error"]["code"]) == ("error", code)
        await ws.send_str('{"op": "ping"}')
        assert (await ws.receive_json(timeout=5))["type"] == "pong"
        await ws.send_str("x" * (feeds.MESSAGE_BYTES_MAX + 1))
        assert (await ws.receive(timeout=5)).type is WSMsgType.CLOSE
        assert ws.close_code == 1009


async def test_a_slow_websocket_client_is_closed(node: MemoryNode, monkeypatch: pytest.MonkeyPatch) -> None:
    stuck = asyncio.Event()

    async def never(self: feeds.Client) -> None:
        await stuck.wait()

    monkeypatch.setattr(feeds.Client, "write", never)
    async with TestClient(TestServer(make_app(node))) as client, client.ws_connect("/v1/ws") as ws:
        for _ in range(node.config.limits.ws_queue_max + 1):
            await ws.send_str('{"op": "ping"}')
        message = await ws.receive(timeout=5)
        assert message.type is WSMsgType.CLOSE
        assert message.data == 1013


async def test_plain_http_on_the_websocket_has_a_code(client: Client) -> None:
    status, answer = await get(client, "/v1/ws")
    assert (status, answer["error"]["code"]) == (400, "rpc.request")


# -- the operator


async def test_the_operators_paths_need_the_token(client: Client, node: MemoryNode) -> None:
    channel = format_hex(node.pair.fixed.channel_id)
    paths = ("status", "audit", "channels", f"channels/{channel}/state", f"channels/{channel}/journal")
    for path in paths:
        status, answer = await get(client, f"/admin/{path}")
        assert (status, answer["error"]["code"]) == (401, "auth.invalid")
        async with client.get(f"/admin/{path}", headers={"Authorization": f"Bearer {TOKEN}"}) as response:
            assert response.status == 200
    for path in ("channels", "collateral", f"channels/{channel}/close"):
        assert await refused(client, node, f"/admin/{path}", {}) == (401, "auth.invalid")


async def test_the_operator_opens_deposits_and_closes(client: Client, node: MemoryNode) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    body = {"peer": format_address(custody_of(node.address)), "token": "usd", "amount": "1.5", "peerAmount": "2"}
    status, answer = await post(client, "/admin/channels", body, headers=headers)
    assert status == 201
    assert node.opened == (custody_of(node.address), USD, 1_500_000, 2_000_000)
    for change, code in (
        ({"token": "EUR"}, "rpc.params"),
        ({"amount": "1.5000001"}, "amount.invalid"),
        ({"peer": "0x1"}, "address.invalid"),
        ({"x": 1}, "rpc.params"),
    ):
        status, answer = await post(client, "/admin/channels", {**body, **change}, headers=headers)
        assert answer["error"]["code"] == code
    deposit = {"token": format_address(BTC), "amount": "0.5"}
    status, answer = await post(client, "/admin/collateral", deposit, headers=headers)
    assert (status, node.collateral) == (200, [(BTC, 50_000_000)])
    channel = format_hex(node.pair.fixed.channel_id)
    status, answer = await post(client, f"/admin/channels/{channel}/close", None, headers=headers)
    assert status == 200
    assert answer["phase"] in ("final", "settled")
    status, answer = await post(client, f"/admin/channels/{format_hex(ZERO_HASH)}/close", None, headers=headers)
    assert (status, answer["error"]["code"]) == (404, "channel.unknown")
    async with client.get(f"/admin/channels/{format_hex(ZERO_HASH)}/journal", headers=headers) as response:
        assert response.status == 404
