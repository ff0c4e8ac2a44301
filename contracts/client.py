"""The chain as our nodes use it: JSON-RPC over HTTP, typed, with a deadline on every call.

Purpose: `ChainClient` reads and sends, `Sender` turns calls of contracts into transactions of one key. What contracts
exist and what they can do is in `contracts.network`.

Errors: LocalRefusal CHAIN when the endpoint cannot be reached, answers nonsense or refuses; CHAIN_REVERTED with the
decoded custom error in `data["error"]` and `data["arguments"]`; TIMEOUT when a transaction is not mined in time.

Invariants:
- addresses are 20 raw bytes on this side, text only in the JSON;
- a `Sender` owns the nonces of its key: one process, one `Sender` for each key. A transaction whose fate is unknown
  is sent again with the same bytes, never signed anew under another nonce;
- a receipt is news, not the truth: a block can still be replaced. Effects on balances follow the watcher.

Source: execution-apis; EIP-1559, EIP-2718. aiohttp and eth_abi directly: web3's HTTP provider opens a connection per
request, takes a thread for each, and costs a second and more of every start.
"""

import asyncio
import itertools
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import aiohttp
import orjson
import rlp  # type: ignore[import-untyped]

from channel.errors import Code, LocalRefusal, PeerFault
from channel.hashing import keccak
from channel.signing import Signer
from channel.units import (
    ZERO_ADDRESS,
    Address,
    Hash,
    format_address,
    format_hex,
    parse_address,
    parse_hash,
    parse_hex,
    parse_quantity,
)
from contracts.abi import Call, decode_revert, interface
from contracts.events import RawLog, parse_log

DEADLINE_S = 10.0
RECEIPT_DEADLINE_S = 120.0
RECEIPT_POLL_S = 0.1
RECEIPT_POLL_MAX_S = 1.0
ANSWER_MAX_BYTES = 32 * 1024 * 1024
CONNECTIONS_MAX = 16
IN_FLIGHT_MAX = 64  # requests at a time; more wait here
SEND_ATTEMPTS = 3
FEE_CACHE_S = 1.0
GAS_MARGIN_PERCENT = 20  # above the endpoint's estimate


class _RpcFailure(Exception):
    """The endpoint's error object. Does not leave this module."""

    def __init__(self, method: str, code: int, message: str, data: object) -> None:
        super().__init__(message)
        self.method = method
        self.code = code
        self.message = message
        self.data = data

    def revert_data(self) -> bytes | None:
        """The bytes a contract reverted with, or None when this is no revert."""
        data = self.data.get("data") if isinstance(self.data, Mapping) else self.data
        if isinstance(data, str) and data.startswith("0x"):
            try:
                return parse_hex(data)
            except PeerFault:
                return None
        return b"" if self.code == 3 or "revert" in self.message.lower() else None

    def refusal(self) -> LocalRefusal:
        return LocalRefusal(Code.CHAIN, f"the chain refused {self.method}: {self.message[:500]}", rpc_code=self.code)


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockRef:
    """A block: where it is in the chain and when. `timestamp` in unix seconds."""

    number: int
    hash: Hash
    parent_hash: Hash
    timestamp: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """A mined transaction. `status` 1 is success; `created` is the new contract's address, if it made one."""

    tx_hash: Hash
    block_number: int
    block_hash: Hash
    gas_used: int
    gas_price_wei: int
    status: int
    logs: tuple[RawLog, ...]
    created: Address | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fees:
    """EIP-1559 fees in wei per gas."""

    max_fee_wei: int
    priority_fee_wei: int


def _block_tag(block: int | Hash | str) -> object:
    if isinstance(block, bytes):
        return {"blockHash": format_hex(block)}
    return hex(block) if isinstance(block, int) else block


def _block_of(answer: object) -> BlockRef:
    if not isinstance(answer, Mapping):
        raise LocalRefusal(Code.CHAIN, "the chain endpoint sent no block where there must be one")
    try:
        return BlockRef(
            number=parse_quantity(answer["number"]),
            hash=parse_hash(answer["hash"]),
            parent_hash=parse_hash(answer["parentHash"]),
            timestamp=parse_quantity(answer["timestamp"]),
        )
    except (KeyError, PeerFault) as error:
        raise LocalRefusal(Code.CHAIN, f"the chain endpoint sent a malformed block: {error}") from error


def _receipt_of(answer: object) -> Receipt:
    if not isinstance(answer, Mapping) or not isinstance(answer.get("logs"), list):
        raise LocalRefusal(Code.CHAIN, "the chain endpoint sent a malformed receipt")
    try:
        created = answer.get("contractAddress")
        return Receipt(
            tx_hash=parse_hash(answer["transactionHash"]),
            block_number=parse_quantity(answer["blockNumber"]),
            block_hash=parse_hash(answer["blockHash"]),
            gas_used=parse_quantity(answer["gasUsed"]),
            gas_price_wei=parse_quantity(answer["effectiveGasPrice"]),
            status=parse_quantity(answer["status"]),
            logs=tuple(parse_log(log) for log in answer["logs"]),
            created=None if created is None else parse_address(created),
        )
    except (KeyError, PeerFault) as error:
        raise LocalRefusal(Code.CHAIN, f"the chain endpoint sent a malformed receipt: {error}") from error


class ChainClient:
    """One endpoint. Made by `connect`; `close` it, or use it as an async context manager."""

    def __init__(self, url: str, session: aiohttp.ClientSession, chain_id: int) -> None:
        self.url = url
        self.chain_id = chain_id
        self._session = session
        self._ids = itertools.count(1)
        self._in_flight = asyncio.Semaphore(IN_FLIGHT_MAX)
        self._fees: tuple[float, Fees] | None = None

    @classmethod
    async def connect(cls, url: str, expect_chain_id: int | None = None) -> "ChainClient":
        """Raises LocalRefusal CHAIN (not reachable) or CONFIG (another chain than expected, or not a URL)."""
        if not url.startswith(("http://", "https://")):
            raise LocalRefusal(Code.CONFIG, f"the chain endpoint must be an http:// or https:// URL, not {url!r}")
        connector = aiohttp.TCPConnector(limit=CONNECTIONS_MAX)
        session = aiohttp.ClientSession(connector=connector, headers={"Content-Type": "application/json"})
        client = cls(url, session, 0)
        try:
            client.chain_id = client._quantity(await client.request("eth_chainId"))
            if expect_chain_id is not None and client.chain_id != expect_chain_id:
                raise LocalRefusal(
                    Code.CONFIG, f"{url} serves chain {client.chain_id}, but chain {expect_chain_id} is configured"
                )
        except BaseException:
            await client.close()
            raise
        return client

    async def close(self) -> None:
        await self._session.close()

    async def __aenter__(self) -> "ChainClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # requests

    async def _post(self, payload: object, deadline_s: float) -> object:
        try:
            async with (
                asyncio.timeout(deadline_s),
                self._in_flight,
                self._session.post(self.url, data=orjson.dumps(payload)) as response,
            ):
                status = response.status
                body = await _read_bounded(response)
        except TimeoutError as error:
            raise LocalRefusal(Code.CHAIN, f"{self.url} did not answer within {deadline_s:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise LocalRefusal(Code.CHAIN, f"{self.url} cannot be reached: {error}") from error
        try:
            return orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise LocalRefusal(Code.CHAIN, f"{self.url} answered HTTP {status} and no JSON") from error

    async def _request(self, method: str, params: Sequence[object], deadline_s: float) -> object:
        answer = await self._post(self._payload(method, params), deadline_s)
        return self._result(method, answer)

    def _payload(self, method: str, params: Sequence[object]) -> dict[str, object]:
        return {"jsonrpc": "2.0", "id": next(self._ids), "method": method, "params": list(params)}

    def _result(self, method: str, answer: object) -> object:
        """Raises _RpcFailure for an error object."""
        if not isinstance(answer, Mapping) or ("result" not in answer and "error" not in answer):
            raise LocalRefusal(Code.CHAIN, f"{self.url} answered {method} with something that is not JSON-RPC")
        error = answer.get("error")
        if error is None:
            return answer.get("result")
        if not isinstance(error, Mapping):
            raise LocalRefusal(Code.CHAIN, f"{self.url} answered {method} with a malformed error")
        code = error.get("code")
        raise _RpcFailure(method, code if isinstance(code, int) else 0, str(error.get("message")), error.get("data"))

    async def request(self, method: str, *params: object, deadline_s: float = DEADLINE_S) -> object:
        """One JSON-RPC call, the result as it came. Raises LocalRefusal CHAIN."""
        try:
            return await self._request(method, params, deadline_s)
        except _RpcFailure as failure:
            raise failure.refusal() from failure

    async def batch(
        self, requests: Sequence[tuple[str, Sequence[object]]], *, deadline_s: float = DEADLINE_S
    ) -> list[object]:
        """Several calls in one HTTP request, results in their order. Raises LocalRefusal CHAIN if any of them fails."""
        if not requests:
            return []
        payloads = [self._payload(method, params) for method, params in requests]
        answers = await self._post(payloads, deadline_s)
        if not isinstance(answers, list):
            answers = [answers]  # an endpoint that refuses the whole batch answers with one error
        by_id = {a.get("id"): a for a in answers if isinstance(a, Mapping)}
        try:
            return [
                self._result(method, by_id.get(payload["id"], answers[0]))
                for (method, _), payload in zip(requests, payloads, strict=True)
            ]
        except _RpcFailure as failure:
            raise failure.refusal() from failure

    def _quantity(self, answer: object) -> int:
        try:
            return parse_quantity(answer)
        except PeerFault as error:
            raise LocalRefusal(Code.CHAIN, f"{self.url} sent a malformed number: {error.message}") from error

    # reading

    async def head(self) -> BlockRef:
        return _block_of(await self.request("eth_getBlockByNumber", "latest", False))

    async def block(self, number: int) -> BlockRef | None:
        """The canonical block at a height; None when the endpoint has none there."""
        answer = await self.request("eth_getBlockByNumber", hex(number), False)
        return None if answer is None else _block_of(answer)

    async def blocks(self, first: int, last: int) -> tuple[BlockRef, ...]:
        """Canonical blocks first to last, in one batch; shorter where the endpoint's chain ends before."""
        calls = [("eth_getBlockByNumber", (hex(number), False)) for number in range(first, last + 1)]
        answers = itertools.takewhile(lambda answer: answer is not None, await self.batch(calls))
        return tuple(_block_of(answer) for answer in answers)

    async def logs_of_blocks(self, hashes: Sequence[Hash], addresses: Sequence[Address]) -> tuple[RawLog, ...]:
        """Logs of exactly these blocks, in one batch. An endpoint that lacks one of them answers with an error."""
        texts = [format_address(a) for a in addresses]
        calls = [("eth_getLogs", ({"blockHash": format_hex(h), "address": texts},)) for h in hashes]
        return tuple(log for answer in await self.batch(calls) for log in self._logs(answer))

    async def logs_in_range(self, first: int, last: int, addresses: Sequence[Address]) -> tuple[RawLog, ...]:
        texts = [format_address(a) for a in addresses]
        criteria = {"fromBlock": hex(first), "toBlock": hex(last), "address": texts}
        return self._logs(await self.request("eth_getLogs", criteria))

    def _logs(self, answer: object) -> tuple[RawLog, ...]:
        if not isinstance(answer, list):
            raise LocalRefusal(Code.CHAIN, f"{self.url} answered eth_getLogs with something that is no array")
        return tuple(parse_log(item) for item in answer)

    async def balance(self, token: Address, holder: Address, block: int | Hash | str = "latest") -> int:
        """Base units of `token` that `holder` has on chain; the zero address is the native token, in wei."""
        if token == ZERO_ADDRESS:
            answer = await self.request("eth_getBalance", format_address(holder), _block_tag(block))
            return self._quantity(answer)
        (amount,) = await self.call(interface("TestToken").call(token, "balanceOf", holder), block=block)
        return int(amount)

    async def call(
        self, call: Call, *, sender: Address = ZERO_ADDRESS, block: int | Hash | str = "latest"
    ) -> tuple[Any, ...]:
        """Executes a call without sending it. Raises LocalRefusal CHAIN_REVERTED or CHAIN."""
        try:
            answer = await self._request("eth_call", (_call_object(call, sender), _block_tag(block)), DEADLINE_S)
        except _RpcFailure as failure:
            raise _refusal_of(call, failure) from failure
        try:
            raw = parse_hex(answer)
        except PeerFault as error:
            raise LocalRefusal(Code.CHAIN, f"{self.url} answered eth_call with {error.message}") from error
        return call.decode(raw)

    async def estimate_gas(self, call: Call, sender: Address) -> int:
        """Raises LocalRefusal CHAIN_REVERTED when the call would fail now, or CHAIN."""
        try:
            answer = await self._request("eth_estimateGas", (_call_object(call, sender), "latest"), DEADLINE_S)
        except _RpcFailure as failure:
            raise _refusal_of(call, failure) from failure
        return self._quantity(answer)

    async def fees(self) -> Fees:
        """Enough for the base fee to double; remembered for a second."""
        now = asyncio.get_running_loop().time()
        if self._fees is not None and now - self._fees[0] < FEE_CACHE_S:
            return self._fees[1]
        block, tip = await self.batch([("eth_getBlockByNumber", ("latest", False)), ("eth_maxPriorityFeePerGas", ())])
        base = self._quantity(block.get("baseFeePerGas") if isinstance(block, Mapping) else None)
        priority = self._quantity(tip)
        fees = Fees(max_fee_wei=2 * base + priority, priority_fee_wei=priority)
        self._fees = (now, fees)
        return fees

    async def transaction_count(self, address: Address, block: str = "pending") -> int:
        return self._quantity(await self.request("eth_getTransactionCount", format_address(address), block))

    async def send_raw(self, raw: bytes) -> bool:
        """True when the endpoint has this transaction, False when its nonce is another one's.

        An answer that is lost leaves the transaction's fate open: the same bytes are sent again. Raises LocalRefusal
        CHAIN.
        """
        for attempt in range(1, SEND_ATTEMPTS + 1):
            try:
                await self._request("eth_sendRawTransaction", (format_hex(raw),), DEADLINE_S)
                return True
            except _RpcFailure as failure:
                message = failure.message.lower()
                # The same bytes are the same transaction, whoever sent them first: an earlier attempt, or a gateway
                # that spreads what it gets. To sign the call anew could execute it twice.
                if "already known" in message or "already imported" in message:
                    return True
                if "nonce too low" in message:
                    return await self.receipt(Hash(keccak(raw))) is not None
                if "underpriced" in message and "replacement" in message:
                    return False
                raise failure.refusal() from failure
            except LocalRefusal:
                if attempt == SEND_ATTEMPTS:
                    raise
        raise AssertionError("unreachable")

    async def receipt(self, tx_hash: Hash) -> Receipt | None:
        answer = await self.request("eth_getTransactionReceipt", format_hex(tx_hash))
        return None if answer is None else _receipt_of(answer)

    async def wait_receipt(self, tx_hash: Hash, deadline_s: float = RECEIPT_DEADLINE_S) -> Receipt:
        """Raises LocalRefusal TIMEOUT when it is not mined in time; it may be mined later all the same."""
        pause_s = RECEIPT_POLL_S
        try:
            async with asyncio.timeout(deadline_s):
                while True:
                    receipt = await self.receipt(tx_hash)
                    if receipt is not None:
                        return receipt
                    await asyncio.sleep(pause_s)
                    pause_s = min(pause_s * 1.5, RECEIPT_POLL_MAX_S)
        except TimeoutError as error:
            raise LocalRefusal(
                Code.TIMEOUT, f"transaction {format_hex(tx_hash)} is not mined after {deadline_s:g} s", tx_hash=tx_hash
            ) from error


async def _read_bounded(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_chunked(64 * 1024):
        body += chunk
        if len(body) > ANSWER_MAX_BYTES:
            raise LocalRefusal(Code.CHAIN, "the chain endpoint's answer is too large")
    return bytes(body)


def _call_object(call: Call, sender: Address) -> dict[str, str]:
    fields = {"from": format_address(sender), "data": format_hex(call.data), "value": hex(call.value_wei)}
    if call.to is not None:
        fields["to"] = format_address(call.to)
    if call.gas is not None:
        fields["gas"] = hex(call.gas)
    return fields


def _refusal_of(call: Call, failure: _RpcFailure) -> LocalRefusal:
    data = failure.revert_data()
    return failure.refusal() if data is None else reverted(call, data)


def reverted(call: Call, data: bytes, **more: object) -> LocalRefusal:
    """CHAIN_REVERTED with the name of the custom error and its arguments as data."""
    revert = decode_revert(data)
    return LocalRefusal(
        Code.CHAIN_REVERTED,
        f"{call.label} reverted: {revert}",
        error=revert.name,
        arguments=revert.arguments,
        **more,
    )


def _minimal(value: int) -> bytes:
    return value.to_bytes((value.bit_length() + 7) // 8, "big")


def sign_transaction(signer: Signer, *, chain_id: int, nonce: int, call: Call, gas: int, fees: Fees) -> bytes:
    """The raw bytes of an EIP-1559 transaction."""
    fields: list[object] = [
        _minimal(chain_id),
        _minimal(nonce),
        _minimal(fees.priority_fee_wei),
        _minimal(fees.max_fee_wei),
        _minimal(gas),
        b"" if call.to is None else bytes(call.to),
        _minimal(call.value_wei),
        call.data,
        [],
    ]
    signature = signer.sign(keccak(b"\x02" + rlp.encode(fields)))
    r, s = signature[:32].lstrip(b"\0"), signature[32:64].lstrip(b"\0")
    encoded: bytes = rlp.encode([*fields, _minimal(signature[64] - 27), r, s])
    return b"\x02" + encoded


_T = TypeVar("_T")


async def _all(work: Sequence[Coroutine[Any, Any, _T]]) -> list[_T]:
    """Waits for everything, then raises the first failure: nothing goes on behind the caller's back."""
    results = await asyncio.gather(*work, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return [result for result in results if not isinstance(result, BaseException)]


class Sender:
    """Transactions of one key, in the order of its nonces. Any number of `send` may run at the same time."""

    def __init__(self, client: ChainClient, signer: Signer) -> None:
        self.client = client
        self.address = signer.address
        self._signer = signer
        self._lock = asyncio.Lock()
        self._next_nonce: int | None = None  # None: ask the chain

    async def send(self, call: Call, *, deadline_s: float = RECEIPT_DEADLINE_S) -> Receipt:
        """Sends a call and waits until it is mined.

        Raises LocalRefusal CHAIN_REVERTED (before sending, or after it failed in a block: then `data` has `receipt`),
        CHAIN (the endpoint), TIMEOUT (not mined in time).
        """
        tx_hash = await self.submit(call)
        receipt = await self.client.wait_receipt(tx_hash, deadline_s)
        if receipt.status != 1:
            raise await self._why_failed(call, receipt)
        return receipt

    async def send_many(self, calls: Sequence[Call], *, deadline_s: float = RECEIPT_DEADLINE_S) -> tuple[Receipt, ...]:
        """Sends calls that do not depend on each other, nonces in their order, and waits for all of them."""
        gas = await _all([self._gas(call) for call in calls])
        hashes = [await self._submit(call, limit) for call, limit in zip(calls, gas, strict=True)]
        receipts = await _all([self.client.wait_receipt(h, deadline_s) for h in hashes])
        for call, receipt in zip(calls, receipts, strict=True):
            if receipt.status != 1:
                raise await self._why_failed(call, receipt)
        return tuple(receipts)

    async def submit(self, call: Call) -> Hash:
        """Sends a call and returns the transaction's hash without waiting for a block."""
        return await self._submit(call, await self._gas(call))

    async def _gas(self, call: Call) -> int:
        if call.gas is not None:
            return call.gas
        return await self.client.estimate_gas(call, self.address) * (100 + GAS_MARGIN_PERCENT) // 100

    async def _submit(self, call: Call, gas: int) -> Hash:
        fees = await self.client.fees()
        async with self._lock:
            for _ in range(SEND_ATTEMPTS):
                if self._next_nonce is None:
                    self._next_nonce = await self.client.transaction_count(self.address)
                nonce = self._next_nonce
                raw = sign_transaction(
                    self._signer, chain_id=self.client.chain_id, nonce=nonce, call=call, gas=gas, fees=fees
                )
                # Until the endpoint has taken it, whatever happens here (a cancellation too) leaves the nonce open.
                self._next_nonce = None
                if await self.client.send_raw(raw):
                    self._next_nonce = nonce + 1
                    return Hash(keccak(raw))
        raise LocalRefusal(Code.CHAIN, f"{call.label}: the nonce of {format_address(self.address)} is used elsewhere")

    async def _why_failed(self, call: Call, receipt: Receipt) -> LocalRefusal:
        """A receipt has no reason in it: the call is repeated on top of the block that it failed in."""
        try:
            await self.client.call(call, sender=self.address, block=receipt.block_number)
        except LocalRefusal as error:
            if error.code is Code.CHAIN_REVERTED:
                return LocalRefusal(Code.CHAIN_REVERTED, error.message, **(error.data | {"receipt": receipt}))
        return LocalRefusal(
            Code.CHAIN_REVERTED,
            f"{call.label} failed in block {receipt.block_number}, transaction {format_hex(receipt.tx_hash)}",
            error="",
            arguments=(),
            receipt=receipt,
        )
