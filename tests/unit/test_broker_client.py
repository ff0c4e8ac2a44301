"""The trader's client against the real API: exact conversions, signatures that the broker takes, errors with codes."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from broker.api import make_app
from broker.client import BrokerClient, MarketInfo, TokenInfo
from channel.errors import Code, LocalRefusal, PeerFault, XlnError
from channel.units import ZERO_HASH, Hash, format_hex
from node import http
from tests.support.memory_node import MemoryNode, write_and_load
from tests.support.pair import BTC, USD, Pair, market_of, signers, user

ALICE, BOB, MAKER = user(100), user(101), user(200)
SHAPE = MarketInfo(
    market=market_of(signers()[0].address),
    name="btc/usd",
    base=TokenInfo(symbol="BTC", address=BTC, decimals=8),
    quote=TokenInfo(symbol="USD", address=USD, decimals=6),
    tick="0.01",
    lot="0.0001",
)


@pytest.fixture
def node(tmp_path: Path) -> MemoryNode:
    pair = Pair()
    pair.open()
    node = MemoryNode(write_and_load(tmp_path), pair)
    for who in (ALICE, BOB):
        pair.deposit(pair.a, who, USD, 100_000 * 10**6)
        pair.deposit(pair.a, who, BTC, 2 * 10**8)
    pair.deposit(pair.b, MAKER, BTC, 5 * 10**8)
    return node


@pytest.fixture
async def url(node: MemoryNode) -> AsyncIterator[str]:
    async with http.serve(make_app(node), "127.0.0.1", 0, shutdown_s=0.2) as url:
        yield url


@pytest.fixture
async def alice(url: str, node: MemoryNode) -> AsyncIterator[BrokerClient]:
    async with BrokerClient(url, ALICE, now_ms=node.clock.now_ms) as client:
        yield client


@pytest.fixture
async def bob(url: str, node: MemoryNode) -> AsyncIterator[BrokerClient]:
    async with BrokerClient(url, BOB, now_ms=node.clock.now_ms) as client:
        yield client


async def code_of(work: object) -> Code:
    with pytest.raises(XlnError) as error:
        await work  # type: ignore[misc]
    return error.value.code


@given(st.integers(1, 2**53 - 1))
def test_ticks_and_lots_are_exact(number: int) -> None:
    assert SHAPE.ticks(f"{number // 100}.{number % 100:02d}") == number
    assert SHAPE.lots(f"{number // 10_000}.{number % 10_000:04d}") == number


@pytest.mark.parametrize("price", ["0", "0.001", "60000.005", "-1", "1e3", "", "0.0000000000000000001", str(2**53)])
def test_a_price_between_ticks_is_refused(price: str) -> None:
    with pytest.raises(PeerFault) as error:
        SHAPE.ticks(price)
    assert error.value.code is Code.ORDER_TICK


@pytest.mark.parametrize("amount", ["0", "0.00001", "1.00005", "-1", "0.000000001", "x"])
def test_an_amount_between_lots_is_refused(amount: str) -> None:
    with pytest.raises(PeerFault) as error:
        SHAPE.lots(amount)
    assert error.value.code is Code.ORDER_AMOUNT


async def test_orders_are_placed_amended_and_cancelled(alice: BrokerClient, node: MemoryNode) -> None:
    placed = await alice.buy("btc/usd", "0.1", "60000")
    assert (placed.status, placed.price, placed.amount, placed.open_lots) == ("open", "60000", "0.1", 1000)
    amended = await alice.amend(placed.order_id, price="60000.5", amount="0.05")
    assert (amended.price, amended.amount, amended.status) == ("60000.5", "0.05", "open")
    assert (await alice.order(placed.order_id)).status == "replaced"
    assert [order.order_id for order in await alice.open_orders()] == [amended.order_id]
    cancelled = await alice.cancel(format_hex(amended.order_id))
    assert (cancelled.status, cancelled.cancelled_lots) == ("cancelled", 500)
    assert await code_of(alice.amend(amended.order_id, amount="1")) is Code.ORDER_UNKNOWN
    assert node.exchange.ledger.balance(ALICE.address, USD).locked == 0


async def test_users_trade_and_see_it(alice: BrokerClient, bob: BrokerClient) -> None:
    resting = await bob.sell("btc/usd", "0.1", "60000")
    taken = await alice.buy("btc/usd", "0.04")
    assert (taken.order_type, taken.tif, taken.price, taken.filled) == ("market", "IOC", None, "0.04")
    assert taken.filled_quote == "2400"
    assert (await bob.order(resting.order_id)).open_lots == 600
    balances = await alice.balances()
    assert (balances["BTC"].free, balances["USD"].free) == ("2.04", "97600")
    assert balances["USD"].units["total"] == 97_600 * 10**6
    (trade,) = await bob.trades("btc/usd")
    assert (trade.price, trade.amount, trade.side, trade.remote) == ("60000", "0.04", "b", False)
    book = await alice.book("btc/usd")
    assert [(level.price, level.amount, level.local_lots) for level in book.asks] == [("60000", "0.06", 600)]


async def test_an_order_can_be_for_a_peers_market_by_its_id(alice: BrokerClient, node: MemoryNode) -> None:
    pair = node.pair
    pair.place(pair.b, pair.order(pair.b, MAKER, 1, 5_990_000, 300))
    away = (await alice.info()).peer_markets[0]
    placed = await alice.buy(format_hex(away.market_id), "0.02", "60000")
    assert (await alice.order(placed.order_id)).filled == "0.02"


async def test_the_brokers_codes_come_through(alice: BrokerClient) -> None:
    assert await code_of(alice.buy("btc/usd", "0.1")) is Code.ORDER_AMOUNT  # no liquidity
    assert await code_of(alice.sell("btc/usd", "3", "60000")) is Code.ORDER_BALANCE
    assert await code_of(alice.buy("eth/usd", "1", "1")) is Code.ORDER_MARKET
    assert await code_of(alice.buy("btc/usd", "1", "0.005")) is Code.ORDER_TICK
    assert await code_of(alice.create_order("btc/usd", "b", "1", "1", "FOK")) is Code.ORDER_TYPE
    assert await code_of(alice.create_order("btc/usd", "b", "1", "1", valid_s=91 * 86_400)) is Code.ORDER_EXPIRED
    assert await code_of(alice.cancel(ZERO_HASH)) is Code.ORDER_UNKNOWN
    assert await code_of(alice.order("0x12")) is Code.ENCODING
    assert await code_of(alice.withdraw("EUR", "1")) is Code.PARAMS
    assert await code_of(alice.withdraw("USD", "0.0000001")) is Code.AMOUNT
    assert await code_of(alice.withdraw("USD", "100001")) is Code.BALANCE


async def test_a_withdrawal_is_asked_for(alice: BrokerClient, node: MemoryNode) -> None:
    made = await alice.withdraw("usd", "12.5")
    assert (made.status, made.amount, made.amount_units, made.to) == ("pending", "12.5", 12_500_000, ALICE.address)
    assert await alice.withdrawal(made.withdrawal_id) == made
    assert (await alice.balances())["USD"].withdrawing == "12.5"
    assert list(node.exchange.withdrawals) == [made.withdrawal_id]


async def test_without_a_key_only_what_is_public(url: str) -> None:
    async with BrokerClient(url) as client:
        assert (await client.book("btc/usd")).asks == ()
        assert await code_of(client.balances()) is Code.AUTH
        assert await code_of(client.buy("btc/usd", "1", "1")) is Code.AUTH


async def test_the_book_can_be_watched(alice: BrokerClient, bob: BrokerClient) -> None:
    feed = alice.watch_book("btc/usd")
    first = await asyncio.wait_for(anext(feed), 5)
    assert (first.bids, first.asks) == ((), ())
    await bob.sell("btc/usd", "0.1", "60000")
    second = await asyncio.wait_for(anext(feed), 5)
    assert [(level.price, level.lots) for level in second.asks] == [("60000", 1000)]
    await alice.buy("btc/usd", "0.1", "60000")
    third = await asyncio.wait_for(anext(feed), 5)
    assert (third.asks, third.seq) == ((), second.seq + 1)
    await feed.aclose()  # type: ignore[attr-defined]
    assert await code_of(anext(alice.watch_book("eth/usd"))) is Code.ORDER_MARKET


async def test_a_broker_that_is_not_there_or_silent_has_a_code() -> None:
    async def silent(_: web.Request) -> web.Response:
        await asyncio.sleep(30)
        return web.Response()

    app = web.Application()
    app.router.add_get("/v1/info", silent)
    async with http.serve(app, "127.0.0.1", 0, shutdown_s=0.1) as url, BrokerClient(url, deadline_s=0.2) as client:
        with pytest.raises(LocalRefusal) as error:
            await client.info()
        assert error.value.code is Code.TIMEOUT
    async with BrokerClient(url) as client:
        with pytest.raises(LocalRefusal) as error:
            await client.info()
        assert error.value.code is Code.PEER_UNAVAILABLE


async def test_an_order_that_is_not_answered_is_named(url: str, node: MemoryNode) -> None:
    async def never(*_: object) -> None:
        await asyncio.sleep(30)

    node.place_order = never  # type: ignore[assignment,method-assign]
    async with BrokerClient(url, ALICE, now_ms=node.clock.now_ms, deadline_s=0.5) as client:
        with pytest.raises(LocalRefusal) as error:
            await client.buy("btc/usd", "0.1", "60000")
    assert error.value.code is Code.TIMEOUT
    assert str(error.value.data["order"]) in error.value.message


async def test_a_market_whose_id_is_not_its_own_is_not_signed_for(node: MemoryNode) -> None:
    async with http.serve(make_app(node), "127.0.0.1", 0) as honest, BrokerClient(honest) as client:
        raw = await client._get("/v1/info")
    assert isinstance(raw, dict)
    raw["markets"][0]["tickQuote"] = "2"

    async def lie(_: web.Request) -> web.Response:
        return http.json_response(raw)

    app = web.Application()
    app.router.add_get("/v1/info", lie)
    async with http.serve(app, "127.0.0.1", 0) as url, BrokerClient(url, ALICE) as client:
        assert await code_of(client.buy("btc/usd", "1", "1")) is Code.ORDER_MARKET


async def test_an_answer_of_another_shape_has_a_code() -> None:
    async def nonsense(_: web.Request) -> web.Response:
        return http.json_response({"bids": 5})

    app = web.Application()
    app.router.add_get("/v1/book", nonsense)
    async with http.serve(app, "127.0.0.1", 0) as url, BrokerClient(url) as client:
        assert await code_of(client.book("btc/usd")) is Code.PARSE
        assert await code_of(client.order(Hash(bytes(32)))) is Code.PARSE
