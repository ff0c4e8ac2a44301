"""What a node must refuse, each by its own stable code, with nothing changed: against a real broker B and XLN.

Traders' bad input comes over REST. A bad peer is broker A itself: its process has ended, and the test speaks with its
real key (`tests.support.live.Impostor`), honestly until the channel is at rest, then not. Before and after each refusal
B's ledgers, book, channel, journal and executed actions are compared; afterwards the channel still trades.
"""

import asyncio
import contextlib
import secrets
import sqlite3
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio

from broker.actions import CloseChannel, PeerRefusal, PlaceOrder, SubscribeBook
from broker.config import KEY_FILE
from broker.effects import SendEntry
from channel.entry import Entry
from channel.errors import Code, LocalRefusal, PeerFault
from channel.journal import fixed_to_json, runs_to_json
from channel.locks import Lock, SignedLock, lock_to_json
from channel.orders import SignedOrder, order_to_json
from channel.signing import Signer, eth_sign_digest, require_signer
from channel.strictjson import dumpb, loads
from channel.terms import terms_to_json
from channel.transition import Phase, Proposal, derive_state
from channel.typed import REFUSAL, collateral_domain
from channel.units import Address, ChannelId, Hash, format_address, format_hex
from contracts.network import Adjudicator
from node import keyfile
from rpc.jsonrpc import RemoteError, Request
from rpc.transport import Connection, Identity, connect
from tests.support.live import (
    BIG_FRAMES,
    BUY,
    SELL,
    Impostor,
    Json,
    Live,
    Trader,
    high_s,
    other_market,
    until,
)

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

ASK = 6_000_000
REST_BODY = 2 * 2**20
RPC_S = 10.0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def live(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Live]:
    """A network whose channel trades; users of B have asks and a bid in its book."""
    async with Live.start(tmp_path_factory.mktemp("bad") / "net") as live:
        await live.trading()
        maker = Trader(live, live.net.b, live.users["b"][0])
        await maker.sell(ASK, 1_000)
        await maker.buy(ASK - 100_000, 100)
        yield live


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def impostor(live: Live, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Impostor]:
    """Broker A, spoken for by the test from here on."""
    await live.quiet((await live.channel(live.net.b))["channelId"])
    await live.net.kill9(live.net.a)
    async with Impostor.of(live, live.net.a, tmp_path_factory.mktemp("impostor") / "a") as impostor:
        yield impostor


@pytest.fixture
def trader(live: Live) -> Trader:
    """A user of B."""
    return Trader(live, live.net.b, live.users["b"][1])


def rows(live: Live, query: str) -> list[Any]:
    """From B's database, as anybody who may read the file could."""
    with contextlib.closing(sqlite3.connect(f"file:{live.net.b.folder}/broker.sqlite?mode=ro", uri=True)) as db:
        return db.execute(query).fetchall()


async def everything(live: Live) -> Json:
    """B's state, and what its database has: its writer is a moment behind, so until that holds still."""
    last: Json = {}

    async def still() -> Json | None:
        nonlocal last
        counts = {t: rows(live, f"SELECT count(*) FROM {t}") for t in ("actions", "journal", "signed", "answers")}
        found = {**await live.snapshot(live.net.b), **counts}
        if found == last:
            return found
        last = found
        return None

    return await until(still, "B is at rest", 5)


@contextlib.asynccontextmanager
async def unchanged(live: Live) -> AsyncIterator[None]:
    before = await everything(live)
    yield
    assert await everything(live) == before


@contextlib.asynccontextmanager
async def refused(live: Live, code: Code) -> AsyncIterator[None]:
    async with unchanged(live):
        with pytest.raises((PeerFault, LocalRefusal, RemoteError)) as caught:
            yield
    assert caught.value.code.label == code.label, caught.value


# -- traders


async def test_an_order_with_a_wrong_signature(live: Live, trader: Trader) -> None:
    good = trader.order(BUY, ASK - 100, 1)
    for signature, code in (
        (Signer(secrets.token_bytes(32)).sign(good.order_id), Code.ORDER_SIGNATURE),
        (good.signature[:-1], Code.ORDER_SIGNATURE),
        (high_s(good.signature), Code.SIGNATURE_HIGH_S),
        (good.signature[:64] + bytes((good.signature[64] - 27,)), Code.SIGNATURE_V),
    ):
        async with refused(live, code):
            await trader.send(replace(good, signature=signature))
    async with refused(live, Code.ORDER_SIGNATURE):  # a good signature, under another order
        await trader.send(replace(good, order=replace(good.order, amount_lots=2)))


async def test_a_replayed_order(live: Live, trader: Trader) -> None:
    signed = trader.order(BUY, ASK - 200, 1)
    first = await trader.send(signed)
    async with refused(live, Code.ORDER_REPLAYED):
        await trader.send(signed)
    async with live.net.client(live.net.b, trader.signer) as client:
        await client.cancel(first["id"])
    async with refused(live, Code.ORDER_REPLAYED):  # nor after its end
        await trader.send(signed)


async def test_an_order_above_the_balance(live: Live, trader: Trader) -> None:
    for side, lots in ((BUY, 10**9), (SELL, 10**7)):
        async with refused(live, Code.ORDER_BALANCE):
            await trader.send(trader.order(side, ASK - 100, lots))


async def test_an_order_with_a_wrong_tick(live: Live, trader: Trader) -> None:
    url, good = f"{live.net.b.api_url}/v1/orders", order_to_json(trader.order(BUY, ASK - 100, 1))
    for price in (0, -1, "60000.5", True):
        async with refused(live, Code.ORDER_TICK):
            await live.post(url, good | {"price": price})
    async with refused(live, Code.NUMBER):
        await live.post(url, dumpb(good).replace(b'"price":5999900', b'"price":5999900.5'))
    client = live.net.client(live.net.b, trader.signer)
    async with client, refused(live, Code.ORDER_TICK):  # the client does not round either
        await client.buy("btc/usd", "0.1", "59000.005")


async def test_an_order_for_a_market_that_does_not_exist(live: Live, trader: Trader) -> None:
    async with refused(live, Code.ORDER_MARKET):
        await trader.send(trader.order(BUY, ASK - 100, 1, market_id=other_market(trader.market)))
    async with refused(live, Code.ORDER_MARKET):
        await live.request("GET", f"{live.net.b.api_url}/v1/book?market=doge/usd")


async def test_a_body_that_is_no_json(live: Live) -> None:
    for body in (b"", b"{", b"price=1", b"\xff\xfe", b"[" * 1_000):
        async with refused(live, Code.PARSE):
            await live.post(f"{live.net.b.api_url}/v1/orders", body)


async def test_a_body_with_duplicate_keys(live: Live, trader: Trader) -> None:
    good = dumpb(order_to_json(trader.order(BUY, ASK - 100, 1)))
    async with refused(live, Code.DUPLICATE_KEY):
        await live.post(f"{live.net.b.api_url}/v1/orders", good[:-1] + b',"price":1}')


async def test_a_body_of_2_mib(live: Live) -> None:
    for path in ("/v1/orders", "/v1/withdrawals", "/v1/orders/0x" + "00" * 32 + "/cancel"):
        async with refused(live, Code.FRAME_TOO_LARGE):
            await live.post(live.net.b.api_url + path, b'{"a":"' + b"x" * REST_BODY + b'"}')


async def test_a_route_and_a_method_that_do_not_exist(live: Live) -> None:
    for method, path in (("GET", "/v1/nothing"), ("PUT", "/v1/orders"), ("GET", "/v1/orders")):
        async with refused(live, Code.METHOD):
            await live.request(method, live.net.b.api_url + path)
    async with refused(live, Code.AUTH):
        await live.request("GET", live.net.b.api_url + "/admin/audit")


# -- a bad peer: helpers


def user_order(impostor: Impostor, side: int = BUY, lots: int = 5, price: int = ASK) -> SignedOrder:
    """Of a user of A."""
    live = impostor.live
    return Trader(live, live.net.a, live.users["a"][0], _nonce=secrets.randbits(60)).order(side, price, lots, ioc=True)


async def trade(impostor: Impostor) -> tuple[Entry, int]:
    """An honest remote order of A's user, filled at B. Its entry, and the id of its call."""
    signed = user_order(impostor)
    action = PlaceOrder(signed, ((impostor.channel_id, signed.order.amount_lots),), signed.order.price_ticks)
    effects = await impostor.engine.execute(action)
    (entry,) = [effect.entry for effect in effects if isinstance(effect, SendEntry)]
    body = loads(entry.body, max_bytes=10**6)
    assert isinstance(body, dict)

    async def filled() -> bool | None:
        live = impostor.engine.core.exchange.closed.get(signed.order_id)
        return (live is not None and live.status == "filled") or None

    await until(filled, "the order is filled")
    return entry, body["id"]


async def still_trades(impostor: Impostor) -> None:
    """The channel goes on as if nothing had been: a trade, co-signed by both, and every balance adds up."""
    async with impostor.session():
        before = impostor.desk.channel.next_turn
        await trade(impostor)
        await impostor.settle()
        cosigned = impostor.desk.channel.cosigned
        assert cosigned is not None
        assert cosigned.state.turn >= before
    described = await impostor.live.channel(impostor.peer)
    assert (described["phase"], described["frozen"]) == ("active", None)
    result = await impostor.live.replayed(impostor.peer, described["channelId"])
    assert result.last is not None
    assert result.last.state.state_hash == cosigned.state.state_hash


async def become_mover(impostor: Impostor) -> None:
    """At rest, with the next turn A's."""
    if not impostor.desk.channel.is_mover:
        market = next(m for m in impostor.desk.channel.terms.markets if m.holder == impostor.peer.address)
        await impostor.engine.execute(SubscribeBook(impostor.channel_id, Hash(market.market_id), True))
        await impostor.settle()
    assert impostor.desk.channel.is_mover


def proposal_params(
    impostor: Impostor, proposal: Proposal, *, state_hash: Hash | None = None, signature: bytes | None = None
) -> Json:
    found = state_hash or proposal.state.state_hash
    return {
        "ch": format_hex(impostor.channel_id),
        "turn": proposal.state.turn,
        "final": proposal.state.is_final,
        "t": proposal.time_ms,
        "runs": runs_to_json(proposal.runs),
        "hash": format_hex(found),
        "sig": format_hex(signature or impostor.signer.sign(eth_sign_digest(found))),
    }


def derived(impostor: Impostor, turn: int) -> Proposal:
    """A state of `turn` without entries on top of the last one, right in every byte."""
    channel = impostor.desk.channel
    assert channel.cosigned is not None
    return derive_state(
        fixed=channel.fixed,
        terms=channel.terms,
        position=channel.position,
        locks=channel.locks,
        turn=turn,
        is_final=False,
        time_ms=channel.cosigned.time_ms,
        runs=(),
        journal_head=channel.cosigned.journal_head,
    )


async def asked(connection: Connection, method: str, params: Json) -> object:
    return await connection.request(method, params, RPC_S)


# -- a bad peer: frames and sessions


async def test_an_unknown_peer(live: Live, impostor: Impostor) -> None:
    stranger = Identity(Signer(secrets.token_bytes(32)), impostor.identity.chain_id, impostor.identity.adjudicator)
    for node in (live.net.b, live.net.xln):
        async with refused(live, Code.SESSION_UNKNOWN_PEER):
            await connect(node.rpc_url, stranger, node.address)


async def test_a_frame_that_is_no_json(live: Live, impostor: Impostor) -> None:
    async with impostor.session() as connection, unchanged(live):
        for raw in (b"{nope", b"", b"\xff\xff"):
            impostor.seen.clear()
            impostor.send(raw)
            assert (await impostor.refused()).code.label == "json.parse"
        assert await asked(connection, "ping", {})


async def test_a_frame_with_duplicate_keys(live: Live, impostor: Impostor) -> None:
    async with impostor.session() as connection, unchanged(live):
        impostor.send(b'{"jsonrpc":"2.0","id":1,"method":"ping","method":"channel.close","params":{}}')
        assert (await impostor.refused()).code.label == "json.duplicate_key"
        assert await asked(connection, "ping", {})


async def test_a_frame_of_2_mib(live: Live, impostor: Impostor) -> None:
    async with impostor.session(BIG_FRAMES) as connection, unchanged(live):
        impostor.send(b'{"jsonrpc":"2.0","method":"ping","params":{"x":"' + b"x" * 2 * 2**20 + b'"}}')
        await asyncio.wait_for(connection.wait_closed(), RPC_S)
        assert connection.failure is not None
        assert connection.failure.code.label == "frame.too_large"
        await until(lambda: is_down(live), "B has seen the end of it")
    await still_trades(impostor)


async def is_down(live: Live) -> bool | None:
    return not (await live.channel(live.net.b))["connected"] or None


async def test_an_unknown_method(live: Live, impostor: Impostor) -> None:
    async with impostor.session() as connection:
        for method in ("channel.topup", "xln.lock", "order.create", "x" * 64):
            async with refused(live, Code.METHOD):
                await asked(connection, method, {})
        async with unchanged(live):
            impostor.send({"jsonrpc": "2.0", "method": "trade.event", "params": {}})
            assert (await impostor.refused()).code is Code.METHOD


# -- a bad peer: entries


async def test_an_entry_whose_users_signature_is_wrong(live: Live, impostor: Impostor) -> None:
    """The entry is A's and stays in the journal; the order in it has no effect whatever."""
    async with impostor.session():
        before = await live.snapshot(live.net.b)
        signed = user_order(impostor)
        forged = replace(signed, signature=Signer(secrets.token_bytes(32)).sign(signed.order_id))
        entry = impostor.entry(impostor.create_call(forged, 7))
        impostor.adopt(entry)
        impostor.send(entry)
        assert (await impostor.refused(7)).code.label == "order.signature"
        await impostor.settle()
        after = await live.snapshot(live.net.b)
    for name in ("audit", "book", "trades"):
        assert after[name] == before[name]
    for name in ("openOrders", "exposure", "unsettledValue", "owes", "isOwed", "entriesSent"):
        assert after["channel"][name] == before["channel"][name], name
    assert after["channel"]["entriesReceived"] == before["channel"]["entriesReceived"] + 1
    await still_trades(impostor)


async def test_an_entry_with_a_used_seq_and_other_bytes(live: Live, impostor: Impostor) -> None:
    async with impostor.session():
        first, _ = await trade(impostor)
        # At once, while the first may not be on the disk yet, and again when it is co-signed.
        other = impostor.entry(impostor.create_call(user_order(impostor), 9), seq=first.seq, prev=first.prev)
        impostor.send(other)
        assert (await impostor.refused()).code.label == "entry.equivocation"
        await impostor.settle()
        impostor.seen.clear()
        async with unchanged(live):
            impostor.send(other)
            assert (await impostor.refused()).code.label == "entry.equivocation"
        kept = rows(live, "SELECT bytes FROM evidence WHERE code = 'entry.equivocation'")
        assert format_hex(other.signature) in kept[-1][0]
    await still_trades(impostor)


async def test_the_same_entry_again(live: Live, impostor: Impostor) -> None:
    async with impostor.session():
        entry, call_id = await trade(impostor)
        await impostor.settle()
        first = await impostor.answered(call_id)
        async with unchanged(live):
            impostor.send(entry)
            assert await impostor.answered(call_id, 2) == first
            impostor.send(entry)
            assert await impostor.answered(call_id, 3) == first
    await still_trades(impostor)


async def test_an_entry_after_a_gap(live: Live, impostor: Impostor) -> None:
    async with impostor.session(), unchanged(live):
        view = impostor.desk.channel.view
        call = impostor.create_call(user_order(impostor), 11)
        impostor.send(impostor.entry(call, seq=view.last_seq[impostor.desk.me] + 2))
        error = await impostor.refused()
        assert error.code.label == "entry.gap"
        assert error.data["next"] == view.last_seq[impostor.desk.me] + 1
    await still_trades(impostor)


async def test_an_entry_that_does_not_continue_the_hash_chain(live: Live, impostor: Impostor) -> None:
    async with impostor.session(), unchanged(live):
        impostor.send(impostor.entry(impostor.create_call(user_order(impostor), 12), prev=Hash(b"\x11" * 32)))
        assert (await impostor.refused()).code.label == "entry.prev"
    await still_trades(impostor)


async def test_an_entry_that_somebody_else_signed_or_that_is_for_somebody_else(live: Live, impostor: Impostor) -> None:
    async with impostor.session():
        entry = impostor.entry(impostor.create_call(user_order(impostor), 13))
        stranger = Signer(secrets.token_bytes(32))
        elsewhere = impostor.entry("{}", to=Address(b"\x22" * 20))
        unknown = impostor.entry("{}", channel_id=ChannelId(Hash(b"\x33" * 32)))
        for bad, label in (
            (replace(entry, signature=stranger.sign(entry.entry_hash)), "entry.signature"),
            (elsewhere, "entry.recipient"),
            (unknown, "channel.unknown"),
        ):
            async with unchanged(live):
                impostor.seen.clear()
                impostor.send(bad)
                assert (await impostor.refused()).code.label == label
    await still_trades(impostor)


async def test_a_high_s_signature_on_an_entry(live: Live, impostor: Impostor) -> None:
    async with impostor.session(), unchanged(live):
        entry = impostor.entry(impostor.create_call(user_order(impostor), 14))
        impostor.send(replace(entry, signature=high_s(entry.signature)))
        assert (await impostor.refused()).code.label == "signature.high_s"
    await still_trades(impostor)


# -- a bad peer: turns


async def test_a_proposal_from_the_wrong_mover(live: Live, impostor: Impostor) -> None:
    async with impostor.session() as connection:
        turn = impostor.desk.channel.next_turn
        turn += turn % 2 == impostor.desk.me  # B's turn
        async with refused(live, Code.CHANNEL_MOVER):
            await asked(connection, "channel.propose", proposal_params(impostor, derived(impostor, turn)))
    await still_trades(impostor)


async def test_a_proposal_for_a_turn_that_is_not_next(live: Live, impostor: Impostor) -> None:
    async with impostor.session() as connection:
        turn = impostor.desk.channel.next_turn
        turn += turn % 2 != impostor.desk.me
        for skipped in (turn + 2, turn + 200):
            async with refused(live, Code.CHANNEL_TURN):
                await asked(connection, "channel.propose", proposal_params(impostor, derived(impostor, skipped)))
    await still_trades(impostor)


async def test_a_high_s_signature_on_a_proposal(live: Live, impostor: Impostor) -> None:
    async with impostor.session() as connection:
        await become_mover(impostor)
        proposal = derived(impostor, impostor.desk.channel.next_turn)
        signature = impostor.signer.sign(proposal.state.digest)
        async with refused(live, Code.SIGNATURE_HIGH_S):
            await asked(connection, "channel.propose", proposal_params(impostor, proposal, signature=high_s(signature)))
        stranger = Signer(secrets.token_bytes(32)).sign(proposal.state.digest)
        async with refused(live, Code.SIGNATURE_SIGNER):
            await asked(connection, "channel.propose", proposal_params(impostor, proposal, signature=stranger))
    await still_trades(impostor)


async def test_a_state_that_pays_the_proposer_one_unit_too_much(live: Live, impostor: Impostor) -> None:
    async with impostor.session() as connection:
        await become_mover(impostor)
        await trade(impostor)  # the entry and B's notice wait for A's turn
        right = (await held(impostor)).state
        mine = impostor.desk.channel.mine
        assert mine is not None
        usd = live.net.usd.address
        channel = impostor.desk.channel
        net = mine.position.net.set(usd, mine.position.net.get(usd, 0) + 1)  # B owes A one unit more
        greedy = derive_state(
            fixed=channel.fixed,
            terms=channel.terms,
            position=replace(mine.position, net=net),
            locks=channel.locks,
            turn=right.turn,
            is_final=False,
            time_ms=mine.time_ms,
            runs=mine.runs,
            journal_head=mine.journal_head,
        )
        assert greedy.state.state_hash != right.state_hash
        before = await everything(live)
        await asked(connection, "channel.propose", proposal_params(impostor, greedy))
        refusal = await refusal_of(impostor, right.turn)
        assert refusal["code"] == "channel.state"
        assert refusal["hash"] == format_hex(greedy.state.state_hash)
        digest = impostor.desk.domain.digest(
            REFUSAL.hash(impostor.channel_id, right.turn, greedy.state.state_hash, refusal["code"])
        )
        require_signer(digest, bytes.fromhex(refusal["sig"][2:]), live.net.b.address, "the refusal")

        # Shown again, it is refused in the same bytes; and what is right comes too late for this turn.
        impostor.seen.clear()
        await asked(connection, "channel.propose", proposal_params(impostor, greedy))
        assert await refusal_of(impostor, right.turn) == refusal
        with pytest.raises(RemoteError) as caught:
            await asked(connection, "channel.propose", proposal_params(impostor, mine))
        assert caught.value.code.label == "channel.turn"

        # Nothing but the turn is used up: B goes on with the next one, which lists the same entries.
        impostor.held.clear()
        impostor.engine.execute(PeerRefusal(impostor.channel_id, right.turn, right.state_hash))
        await impostor.settle()
        after = await everything(live)
    assert after["audit"] == before["audit"]
    assert after["book"] == before["book"]
    assert after["channel"]["turn"] == right.turn + 1
    assert after["channel"]["entriesReceived"] == before["channel"]["entriesReceived"]
    turns = {turn for (turn,) in rows(live, "SELECT turn FROM signed")}
    assert right.turn not in turns, "B has signed nothing for the burnt turn"
    await still_trades(impostor)


async def held(impostor: Impostor) -> Any:
    effect = await impostor.propose()
    assert effect is not None
    return effect.proposal


async def refusal_of(impostor: Impostor, turn: int) -> Json:
    async def there() -> Json | None:
        found = [
            m.params
            for m in impostor.seen
            if isinstance(m, Request) and m.method == "channel.refuse" and m.params["turn"] == turn
        ]
        return found[-1] if found else None

    return await until(there, "a refusal")


# -- a bad peer: locks


async def test_a_lock_for_another_channel(live: Live, impostor: Impostor) -> None:
    """Really signed by XLN, but for something else: shown by a peer, asked of XLN, registered on chain."""
    net = live.net
    xln = keyfile.load(net.xln.folder / KEY_FILE, keyfile.read_password(net.xln.folder / "password"))
    own = impostor.desk.signed_locks[impostor.desk.me]
    assert own is not None
    domain = collateral_domain(impostor.identity.chain_id, net.addresses.collateral)

    def signed(lock: Lock) -> Json:
        return {"lock": lock_to_json(SignedLock(lock=lock, signature=xln.sign(lock.digest(domain))))}

    elsewhere = replace(own.lock, channel_id=ChannelId(Hash(b"\x44" * 32)))
    other_terms = replace(own.lock, terms_hash=Hash(b"\x55" * 32))
    async with impostor.session() as connection:
        for lock, code in (
            (elsewhere, Code.LOCK_CHANNEL),
            (other_terms, Code.LOCK_CHANNEL),
            (replace(own.lock, amount=own.lock.amount + 1), Code.LOCK_EXISTS),
            (replace(own.lock, owner=net.b.address), Code.CHANNEL_LOCK),
        ):
            async with refused(live, code):
                await asked(connection, "channel.lock", signed(lock))
        unsigned = SignedLock(lock=own.lock, signature=impostor.signer.sign(own.lock.digest(domain)))
        async with refused(live, Code.SIGNATURE_SIGNER):
            await asked(connection, "channel.lock", {"lock": lock_to_json(unsigned)})

    channel = impostor.desk.channel
    to_xln = await connect(net.xln.rpc_url, impostor.identity, net.xln.address)
    try:
        others = (net.b.address, Address(b"\xff" * 20))
        for fixed in (
            replace(channel.fixed, participants=others),
            replace(channel.fixed, app_definition=Address(b"\x66" * 20)),
            replace(channel.fixed, chain_id=1),
        ):
            params = {
                "fixedPart": fixed_to_json(fixed),
                "terms": terms_to_json(channel.terms),
                "token": format_address(own.lock.token),
                "amount": "1",
            }
            async with refused(live, Code.LOCK_CHANNEL):
                await asked(to_xln, "xln.lock", params)
    finally:
        await to_xln.close()

    before = await net.collateral.locked(net.a.address, own.lock.token)
    async with refused(live, Code.CHAIN_REVERTED):
        await net.collateral.register_lock(
            net.deployer,
            channel_id=elsewhere.channel_id,
            terms_hash=own.lock.terms_hash,
            owner=own.lock.owner,
            token=own.lock.token,
            amount=own.lock.amount,
            expiry_unix_s=own.lock.expiry_s,
            open_by_unix_s=own.lock.open_by_s,
            signature=own.signature,
        )
    assert await net.collateral.locked(net.a.address, own.lock.token) == before


# -- payouts; closes the channel, so it comes last


async def test_a_payout_without_attestation(live: Live, impostor: Impostor) -> None:
    net, channel_id = live.net, impostor.channel_id
    async with impostor.session() as connection:
        if not impostor.desk.channel.position.owed(1, net.btc.address):
            await trade(impostor)
        await asked(connection, "channel.close", {"ch": format_hex(channel_id)})
        await impostor.engine.execute(CloseChannel(channel_id))

        async def final() -> bool | None:
            if impostor.desk.channel.is_mover:
                await impostor.propose()
            impostor.send_held()
            return impostor.desk.channel.phase is Phase.FINAL or None

        await until(final, "the final state")
    assert impostor.desk.last_cosigned is not None
    proposal, signatures = impostor.desk.last_cosigned
    state, outcome = proposal.state, proposal.state.variable.outcome
    await Adjudicator(net.chain, net.addresses.adjudicator).conclude(
        net.deployer,
        fixed=state.fixed,
        turn=state.turn,
        app_data=state.variable.app_data,
        outcome_hash=state.outcome_hash,
        signatures=signatures,
    )
    custody = net.custody(net.b)
    owed = proposal.position.owed(1, net.btc.address)
    assert owed > 0
    balances = [await net.chain.balance(t.address, custody.address) for t in net.tokens]
    arguments: Json = {"channel_id": channel_id, "outcome": outcome, "tokens": [net.btc.address], "amounts": [owed]}
    brokers = [impostor.signer.sign(state.digest), signatures[1]]
    for attestations in ([], brokers[:1], sorted(brokers)):
        with pytest.raises(LocalRefusal, match="CustodyUnattested") as caught:
            await custody.payout(net.deployer, **arguments, attestations=attestations)
        assert caught.value.code.label == "chain.reverted"
    assert not await custody.paid_out(channel_id)
    assert [await net.chain.balance(t.address, custody.address) for t in net.tokens] == balances
