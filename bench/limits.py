"""What one core and the disk of this machine can do: signatures, hashes, codecs, JSON, commits, round trips.

Ours stand beside the library that people would otherwise take (a peer), or beside what the system allows (a limit).
Before two are timed they are compared: both must give the same bytes, else `LimitsError`.
"""

import asyncio
import json
import os
import sqlite3
import statistics
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final

import aiohttp
import orjson
from eth_abi.abi import decode as abi_decode
from eth_abi.abi import encode as abi_encode
from eth_account import Account
from eth_account.messages import _hash_eip191_message, encode_typed_data
from eth_hash.auto import keccak as other_keccak
from nacl.bindings import crypto_box_beforenm, crypto_box_easy_afternm, crypto_box_keypair, crypto_box_open_easy_afternm
from websockets.asyncio.client import connect

from bench.measure import Beside, Effort, Section, median_of, quantiles, rate
from bench.pair import BTC, CHAIN_ID, USD, market_of
from channel.appdata import AppData, BalanceUpdate, CollateralLock, OpenOrdersSummary, decode_app_data
from channel.entry import Entry, entry_digest, entry_to_json
from channel.hashing import keccak
from channel.orders import Order, OrderType, TimeInForce, order_from_json, order_to_json, sign_order
from channel.signing import Signer, recover
from channel.strictjson import dumpb, dumps, loads
from channel.typed import custody_domain, node_domain
from channel.units import ZERO_HASH, Address, ChannelId, Hash, format_address, format_hex
from node.process import Children
from node.store import Store

GROUP: Final = 64
# Names of figures that `bench.share` looks up.
SIGN: Final = "sign"
RECOVER: Final = "recover, strict"
TYPED_HASH: Final = "EIP-712 hash of an order"
ENCODE: Final = "appData encode (4 bu, 4 oos, 2 cl)"
DUMPS: Final = "JSON of an entry: dumps"
ORDER_JSON: Final = "order from JSON, with its hash"
SEAL: Final = "seal a frame (NaCl box)"
OPEN: Final = "open a frame (NaCl box)"
COMMIT: Final = "commits of one row, one by one"
WEBSOCKET: Final = "WebSocket round trip, p50"
HTTP: Final = "HTTP round trip, p50"
LOADS: Final = "JSON of an entry: loads, strict"
GROUPED: Final = f"rows, grouped by {GROUP} in a commit"
BLOCK: Final = 4096  # bytes: a page of SQLite
FRAME_BYTES: Final = 2**20
APP_DATA_TYPE: Final = (
    "(bytes32,uint64,bytes32,"
    "(address,address,uint256,address,uint256,uint256)[],"
    "(address,address,bytes32,uint8,uint256,uint256,uint256,uint256)[],"
    "(address,bytes32,uint256,address,uint256,uint256)[],"
    "(address,address,uint256,uint64)[])"
)
ECHO_DEADLINE_S: Final = 10.0
SQL: Final = "INSERT INTO rows (body) VALUES (?)"
MIGRATIONS: Final = ("CREATE TABLE rows (n INTEGER PRIMARY KEY, body TEXT NOT NULL) STRICT",)

A, B = Signer(b"\x21" * 32), Signer(b"\x22" * 32)
CUSTODY: Final = Address(b"\xcc" * 20)


class LimitsError(Exception):
    """Two implementations that should do the same do not: timing them would say nothing."""


def _same(what: str, ours: object, theirs: object) -> None:
    if ours != theirs:
        raise LimitsError(f"{what}: ours gives {ours!r}, the other {theirs!r}")


async def measure_limits(effort: Effort, folder: Path, say: Callable[[str], None]) -> Section:
    """`folder`: exists, on the disk that is measured; what is written there is the caller's to remove."""
    section = Section(key="limits", title="Limits of this machine, one core")
    say("signatures, hashes, codecs")
    for measure in (_signatures, _hashes, _app_data, _json, _sealing):
        measure(section, effort)
        await asyncio.sleep(0)  # Ctrl-C is heard here
    say("commits")
    await _commits(section, effort, folder)
    say("round trips")
    await _round_trips(section, effort, folder)
    section.notes.append(
        f"Rates are medians of {effort.repetitions} repetitions. Peers do the same work in the same process;"
        " limits are what the system gives at most."
    )
    return section


# -- signatures and hashes


def _signatures(section: Section, effort: Effort) -> None:
    digest = keccak(b"bench")
    signature = A.sign(digest)
    account = Account.from_key(b"\x21" * 32)
    _same("signature", signature, bytes(account.unsafe_sign_hash(digest).signature))
    _same("recovered", format_address(recover(digest, signature)), Account._recover_hash(digest, signature=signature))
    section.add_beside(
        SIGN, rate(lambda: A.sign(digest), effort), "/s",
        "eth_account", rate(lambda: account.unsafe_sign_hash(digest), effort), Beside.PEER,
    )  # fmt: skip
    section.add_beside(
        RECOVER, rate(lambda: recover(digest, signature), effort), "/s",
        "eth_account", rate(lambda: Account._recover_hash(digest, signature=signature), effort), Beside.PEER,
    )  # fmt: skip


def sample_order() -> Order:
    return Order(
        owner=A.address,
        market_id=market_of(B.address).market_id,
        side=0,
        order_type=OrderType.LIMIT,
        time_in_force=TimeInForce.IOC,
        price_ticks=6_000_001,
        amount_lots=250,
        valid_until_ms=1_700_000_030_000,
        nonce=2**63 + 5,
    )


def _hashes(section: Section, effort: Effort) -> None:
    blob = bytes(range(250)) + bytes(50)
    _same("keccak", keccak(blob), other_keccak(blob))
    section.add_beside(
        "keccak of 300 bytes", rate(lambda: keccak(blob), effort), "/s",
        f"eth_hash ({other_keccak_backend()})", rate(lambda: other_keccak(blob), effort), Beside.PEER,
    )  # fmt: skip
    order, domain = sample_order(), custody_domain(CHAIN_ID, CUSTODY)
    typed = _typed_order(order)

    def theirs() -> bytes:
        return bytes(_hash_eip191_message(encode_typed_data(full_message=typed)))

    _same("typed hash", order.digest(domain), theirs())
    section.add_beside(
        TYPED_HASH, rate(lambda: order.digest(domain), effort), "/s",
        "eth_account", rate(theirs, effort), Beside.PEER,
    )  # fmt: skip


def other_keccak_backend() -> str:
    """The name of the backend that eth_hash chooses on this machine, "pycryptodome" say."""
    other_keccak(b"")
    backend = getattr(other_keccak.hasher, "__self__", None)
    return type(backend).__module__.rpartition(".")[2]


def _typed_order(order: Order) -> dict[str, Any]:
    """The order as wallets get it to sign."""
    fields = (
        ("owner", "address", format_address(order.owner)),
        ("marketId", "bytes32", order.market_id),
        ("side", "uint8", order.side),
        ("orderType", "uint8", int(order.order_type)),
        ("timeInForce", "uint8", int(order.time_in_force)),
        ("priceTicks", "uint256", order.price_ticks),
        ("amountLots", "uint256", order.amount_lots),
        ("validUntilMs", "uint64", order.valid_until_ms),
        ("nonce", "uint64", order.nonce),
        ("replaces", "bytes32", order.replaces),
    )
    domain = (
        ("name", "string", "XLN Custody"),
        ("version", "string", "1"),
        ("chainId", "uint256", CHAIN_ID),
        ("verifyingContract", "address", format_address(CUSTODY)),
    )
    return {
        "types": {
            "EIP712Domain": [{"name": name, "type": kind} for name, kind, _ in domain],
            "Order": [{"name": name, "type": kind} for name, kind, _ in fields],
        },
        "primaryType": "Order",
        "domain": {name: value for name, _, value in domain},
        "message": {name: value for name, _, value in fields},
    }


# -- codecs


def sample_app_data() -> AppData:
    """4 rows of balances, 4 of open orders, 2 locks: a channel that trades two tokens both ways."""
    pairs = ((A.address, B.address), (B.address, A.address))
    return AppData.of(
        terms_hash=Hash(keccak(b"terms")),
        time_ms=1_700_000_000_000,
        journal_head=Hash(keccak(b"head")),
        balance_updates=[
            BalanceUpdate(
                holder=holder, owner=owner, chain_id=CHAIN_ID, token=token, available=0, locked=10**18 + owner[0]
            )
            for holder, owner in pairs
            for token in (BTC, USD)
        ],
        open_orders=[
            OpenOrdersSummary(
                holder=holder,
                owner=owner,
                market_id=market_of(holder).market_id,
                side=side,
                base=10**8,
                low_ticks=5_990_000,
                high_ticks=6_010_000,
                quote=6 * 10**12,
            )
            for holder, owner in pairs
            for side in (0, 1)
        ],
        collateral=[
            CollateralLock(
                owner=owner, lock_id=Hash(keccak(owner)), chain_id=CHAIN_ID, token=USD, available=0, locked=10**13
            )
            for owner, _ in pairs
        ],
    )


def _app_data(section: Section, effort: Effort) -> None:
    data = sample_app_data()
    values: tuple[object, ...] = (
        data.terms_hash,
        data.time_ms,
        data.journal_head,
        [(r.holder, r.owner, r.chain_id, r.token, r.available, r.locked) for r in data.balance_updates],
        [
            (r.holder, r.owner, r.market_id, r.side, r.base, r.low_ticks, r.high_ticks, r.quote)
            for r in data.open_orders
        ],
        [(r.owner, r.lock_id, r.chain_id, r.token, r.available, r.locked) for r in data.collateral],
        [],
    )
    raw = data.encode()
    _same("appData", raw, abi_encode([APP_DATA_TYPE], [values]))
    _same("appData read back", decode_app_data(raw), data)
    section.add_beside(
        ENCODE, rate(data.encode, effort), "/s",
        "eth_abi", rate(lambda: abi_encode([APP_DATA_TYPE], [values]), effort), Beside.PEER,
    )  # fmt: skip
    section.add_beside(
        "appData decode, canonical only", rate(lambda: decode_app_data(raw), effort), "/s",
        "eth_abi", rate(lambda: abi_decode([APP_DATA_TYPE], raw), effort), Beside.PEER,
    )  # fmt: skip


def sample_entry() -> dict[str, Any]:
    """An entry with one remote order, as it is sent."""
    signed = sign_order(sample_order(), custody_domain(CHAIN_ID, CUSTODY), A.sign)
    params = {
        "market": format_hex(market_of(B.address).market_id),
        "side": "b",
        "price": 6_000_001,
        "amount": 250,
        "tif": "IOC",
        "until": 1_700_000_030_000,
        "order": order_to_json(signed),
    }
    body = dumps({"jsonrpc": "2.0", "method": "order.create", "params": params, "id": 512})
    domain, channel_id = node_domain(CHAIN_ID, CUSTODY), ChannelId(keccak(b"channel"))
    digest = entry_digest(
        domain, to=B.address, channel_id=channel_id, seq=1, prev=ZERO_HASH, ts_ms=1_700_000_000_000, body=body
    )
    return entry_to_json(
        Entry(
            sender=A.address,
            to=B.address,
            channel_id=channel_id,
            seq=1,
            prev=ZERO_HASH,
            ts_ms=1_700_000_000_000,
            body=body,
            signature=A.sign(digest),
            entry_hash=digest,
        )
    )


def _json(section: Section, effort: Effort) -> None:
    entry = sample_entry()
    text = dumpb(entry)
    _same("JSON", loads(text, max_bytes=FRAME_BYTES), json.loads(text))
    section.add_beside(
        LOADS,
        rate(lambda: loads(text, max_bytes=FRAME_BYTES), effort),
        "/s",
        "orjson, not strict",
        rate(lambda: orjson.loads(text), effort),
        Beside.LIMIT,
        note=f"{len(text)} bytes",
    )
    section.add_beside(
        DUMPS, rate(lambda: dumpb(entry), effort), "/s",
        "json", rate(lambda: json.dumps(entry, separators=(",", ":")), effort), Beside.PEER,
    )  # fmt: skip
    order, domain = entry_order(), custody_domain(CHAIN_ID, CUSTODY)
    section.add(ORDER_JSON, rate(lambda: order_from_json(order, domain), effort), "/s")


def entry_order() -> object:
    return order_to_json(sign_order(sample_order(), custody_domain(CHAIN_ID, CUSTODY), A.sign))


def _sealing(section: Section, effort: Effort) -> None:
    """What every frame between nodes goes through, once on each side."""
    (public, _), (_, secret) = crypto_box_keypair(), crypto_box_keypair()
    shared, nonce, plain = crypto_box_beforenm(public, secret), bytes(24), dumpb(sample_entry())
    sealed = crypto_box_easy_afternm(plain, nonce, shared)
    section.add(SEAL, rate(lambda: crypto_box_easy_afternm(plain, nonce, shared), effort), "/s")
    section.add(OPEN, rate(lambda: crypto_box_open_easy_afternm(sealed, nonce, shared), effort), "/s")


# -- the disk


async def _commits(section: Section, effort: Effort, folder: Path) -> None:
    raw = median_of(effort.repetitions, lambda: _raw_syncs(folder / "raw", effort.commits // effort.repetitions))
    body = dumps(sample_entry())
    store = Store.open(folder / "store" / "bench.sqlite", MIGRATIONS, group_batches_max=GROUP)
    async with store:
        single, grouped = [], []
        for _ in range(effort.repetitions):
            count = effort.commits // effort.repetitions
            started_s = time.perf_counter()
            for _ in range(count):
                await store.commit(((SQL, (body,)),))
            single.append(count / (time.perf_counter() - started_s))
        for _ in range(effort.repetitions):
            count = effort.grouped_rows // effort.repetitions
            started_s = time.perf_counter()
            await asyncio.gather(*(store.submit(((SQL, (body,)),)) for _ in range(count)))
            grouped.append(count / (time.perf_counter() - started_s))
    section.add("write of 4 KiB + fdatasync, in place", raw, "/s", note="what the disk does at most, one by one")
    section.add_beside(
        COMMIT, statistics.median(single), "/s", "fdatasync", raw, Beside.LIMIT,
        note="write-ahead log, synchronous=FULL; a row is an entry",
    )  # fmt: skip
    limit = 1 / (1 / (GROUP * raw) + 1 / _memory_rows(effort, body))
    section.add_beside(
        GROUPED, statistics.median(grouped), "/s",
        f"SQLite in memory, and an fdatasync for {GROUP}", limit, Beside.LIMIT,
        note="through node.store, with a future for each",
    )  # fmt: skip


def _raw_syncs(path: Path, count: int) -> float:
    """Writes a second; the file has its size before, as a log has that is used again."""
    sync = getattr(os, "fdatasync", os.fsync)
    block = os.urandom(BLOCK)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, bytes(BLOCK * GROUP))
        os.fsync(descriptor)
        started_s = time.perf_counter()
        for number in range(count):
            os.pwrite(descriptor, block, number % GROUP * BLOCK)
            sync(descriptor)
        return count / (time.perf_counter() - started_s)
    finally:
        os.close(descriptor)


def _memory_rows(effort: Effort, body: str) -> float:
    """Rows a second that SQLite takes where there is no disk."""
    db = sqlite3.connect(":memory:", isolation_level=None)
    try:
        db.execute(MIGRATIONS[0])
        db.execute("BEGIN")
        return rate(lambda: db.execute(SQL, (body,)), effort)
    finally:
        db.close()


# -- the loopback


async def _round_trips(section: Section, effort: Effort, folder: Path) -> None:
    """To another process and back, one at a time: the floor under every latency between two processes."""
    message = dumpb(sample_entry())
    async with Children() as children:
        child = await children.start("echo", "bench.echo", folder=folder / "echo")
        async with asyncio.timeout(ECHO_DEADLINE_S + effort.round_trips / 100):
            async with connect(str(child.ready["ws"]), compression=None, proxy=None) as ws:

                async def over_websocket() -> None:
                    await ws.send(message)
                    await ws.recv()

                p50, p99, _ = quantiles(await _timed(over_websocket, effort.round_trips))
                section.add(WEBSOCKET, p50, "ms", note=f"websockets, {len(message)} bytes each way")
                section.add("WebSocket round trip, p99", p99, "ms")
            url = str(child.ready["http"])
            async with aiohttp.ClientSession() as session:

                async def over_http() -> None:
                    async with session.post(url, data=message) as response:
                        await response.read()

                p50, p99, _ = quantiles(await _timed(over_http, effort.round_trips))
                section.add(HTTP, p50, "ms", note="aiohttp, on one connection")
                section.add("HTTP round trip, p99", p99, "ms")


async def _timed(once: Callable[[], Coroutine[Any, Any, None]], count: int) -> list[float]:
    """Milliseconds of each of `count` calls, after a few that do not count."""
    for _ in range(min(20, count)):
        await once()
    took_ms = []
    for _ in range(count):
        started_s = time.perf_counter()
        await once()
        took_ms.append((time.perf_counter() - started_s) * 1000)
    return took_ms
