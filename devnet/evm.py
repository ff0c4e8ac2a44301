"""An Ethereum chain in memory: py-evm with a transaction pool, blocks on demand, and lookups as JSON-RPC wants them.

Purpose: the chain of a local network and of the integration tests, without anything but Python packages. One thread
owns an `Evm`; `devnet.chain` serves it.

Invariants:
- a block's time is max(parent, wall clock + offset): the chain never runs ahead of the clock by mining, so expiries
  taken from block time mean what they say. Two blocks may share a second, which py-evm would refuse (see `_DevnetVM`);
- transactions of a sender enter blocks in nonce order; nothing is mined before `mine` is called;
- logs and receipts are indexed when a block is mined: a range of blocks costs what it contains (eth-tester's own
  lookups walk the whole chain: 10 s for 400 blocks);
- memory grows with transactions, and with less than 1 kB per empty block; pool, ranges and answers are bounded.

Source: py-evm (the machine under eth-tester), the execution-apis specification of JSON-RPC for names and shapes.
"""

import heapq
import itertools
import os
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import rlp  # type: ignore[import-untyped]
from eth.chains.base import MiningChain
from eth.consensus.context import ConsensusContext
from eth.constants import BLANK_ROOT_HASH, POST_MERGE_DIFFICULTY, POST_MERGE_MIX_HASH, POST_MERGE_NONCE
from eth.db import get_db_backend
from eth.exceptions import Revert
from eth.vm.chain_context import ChainContext
from eth.vm.forks.prague import PragueVM
from eth.vm.spoof import SpoofTransaction
from eth_abi.abi import decode as abi_decode
from eth_abi.exceptions import DecodingError
from eth_keys.datatypes import PrivateKey
from eth_utils.exceptions import ValidationError

from channel.hashing import keccak
from devnet.wire import REVERTED, SERVER_ERROR, RpcError, invalid, parse_bytes, parse_int, quantity, to_hex

BLOCK_GAS_LIMIT = 60_000_000
POOL_MAX = 8_192  # transactions
LOG_BLOCKS_MAX = 10_000  # blocks in one eth_getLogs
LOGS_MAX = 10_000  # logs in one answer
MINE_MAX = 1_024  # blocks in one evm_mine
REORG_MAX = 64  # blocks
TIP_WEI = 1_000_000_000
FAUCET_SECRET = keccak(b"xln devnet faucet")  # public on purpose: it is worth nothing outside this process
FAUCET_WEI = 10**30
_ERROR_SELECTOR = bytes.fromhex("08c379a0")  # Error(string)
_PANIC_SELECTOR = bytes.fromhex("4e487b71")  # Panic(uint256)


class _DevnetVM(PragueVM):
    """Prague, except that a block may have its parent's time: the devnet can mine faster than once a second."""

    @classmethod
    def validate_header(cls, header: Any, parent_header: Any) -> None:
        if header.timestamp == parent_header.timestamp:
            header = header.copy(timestamp=header.timestamp + 1)
        super().validate_header(header, parent_header)


@dataclass(slots=True, kw_only=True)
class Mined:
    """One block as looked up: its transactions, receipts and logs are JSON already."""

    number: int
    hash: bytes
    timestamp: int
    transactions: tuple[bytes, ...] = ()
    logs: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A parsed call object. Addresses are 20 bytes, `to` is empty for a creation, amounts are wei."""

    sender: bytes = bytes(20)
    to: bytes = b""
    data: bytes = b""
    value: int = 0
    gas: int = BLOCK_GAS_LIMIT


@dataclass(slots=True)
class _Pool:
    """Transactions that wait: per sender by nonce, each with its order of arrival."""

    arrivals: Iterable[int] = field(default_factory=itertools.count)
    by_sender: dict[bytes, dict[int, tuple[int, Any]]] = field(default_factory=dict)
    by_hash: dict[bytes, Any] = field(default_factory=dict)

    def put(self, transaction: Any) -> None:
        queue = self.by_sender.setdefault(transaction.sender, {})
        old = queue.get(transaction.nonce)
        if old is not None:
            del self.by_hash[old[1].hash]
        queue[transaction.nonce] = (next(iter(self.arrivals)), transaction)
        self.by_hash[transaction.hash] = transaction

    def drop(self, transaction: Any) -> None:
        del self.by_hash[transaction.hash]
        queue = self.by_sender[transaction.sender]
        del queue[transaction.nonce]
        if not queue:
            del self.by_sender[transaction.sender]


class Evm:
    """The chain. Not thread-safe: one thread owns it. Every method may raise RpcError."""

    def __init__(self, chain_id: int) -> None:
        self.chain_id = chain_id
        self.offset_s = 0  # what evm_increaseTime has added to the wall clock
        chain_class: Any = type(
            "_Chain", (MiningChain,), {"chain_id": chain_id, "vm_configuration": ((0, _DevnetVM),)}
        )  # chain_id reaches the CHAINID opcode and the validation of signatures
        self._faucet = PrivateKey(FAUCET_SECRET)
        genesis_params = {
            "coinbase": bytes(20),
            "difficulty": POST_MERGE_DIFFICULTY,
            "extra_data": b"",
            "gas_limit": BLOCK_GAS_LIMIT,
            "mix_hash": POST_MERGE_MIX_HASH,
            "nonce": POST_MERGE_NONCE,
            "receipt_root": BLANK_ROOT_HASH,
            "timestamp": int(time.time()),
            "transaction_root": BLANK_ROOT_HASH,
        }
        faucet_account = {"balance": FAUCET_WEI, "nonce": 0, "code": b"", "storage": {}}
        chain = chain_class.from_genesis(
            get_db_backend(), genesis_params, {self._faucet.public_key.to_canonical_address(): faucet_account}
        )
        self._chaindb = chain.chaindb
        self._context = ChainContext(chain_id)
        self._consensus = ConsensusContext(self._chaindb.db)
        self._builder: Any = _DevnetVM.get_transaction_builder()
        self._head = chain.get_canonical_head()
        self._state = self._state_at(self._head)
        self._pool = _Pool()
        self._blocks = [Mined(number=0, hash=self._head.hash, timestamp=self._head.timestamp)]
        self._number_of = {self._head.hash: 0}
        self._receipts: dict[bytes, dict[str, Any]] = {}  # by transaction hash, canonical chain only
        self._mined_transactions: dict[bytes, Any] = {}

    # blocks

    @property
    def height(self) -> int:
        return len(self._blocks) - 1

    @property
    def base_fee_wei(self) -> int:
        """Of the next block."""
        return int(self._next_header().base_fee_per_gas)

    def now_s(self) -> int:
        return int(time.time()) + self.offset_s

    def _next_header(self) -> Any:
        return _DevnetVM.create_header_from_parent(
            self._head,
            timestamp=max(self._head.timestamp, self.now_s()),
            gas_limit=self._head.gas_limit,
            coinbase=bytes(20),
        )

    def _vm(self, header: Any) -> Any:
        return _DevnetVM(
            header=header,
            chaindb=self._chaindb,
            chain_context=self._context,
            consensus_context=self._consensus,
        )

    def _state_at(self, header: Any) -> Any:
        """A state to read and to execute calls in: gas is free, nothing is ever written to the database."""
        hashes = (header.parent_hash,) if header.block_number else ()
        return _DevnetVM.build_state(self._chaindb.db, header.copy(base_fee_per_gas=0), self._context, hashes)

    def header(self, number: int) -> Any:
        if number == self._head.block_number:
            return self._head
        return self._chaindb.get_block_header_by_hash(self._blocks[number].hash)

    def mine(self) -> int:
        """Mines one block with what waits in the pool, up to the gas limit. Returns its number."""
        header = self._next_header().copy(mix_hash=os.urandom(32))
        vm = self._vm(header)
        vm.block_preprocessing(vm.get_block())
        transactions: list[Any] = []
        receipts: list[Any] = []
        # A heap of senders whose next nonce is there, by arrival; a sender that does not fit now waits for later.
        ready: list[tuple[int, bytes, int]] = []
        for sender, queue in list(self._pool.by_sender.items()):
            nonce = vm.state.get_nonce(sender)
            for stale in [entry[1] for n, entry in queue.items() if n < nonce]:
                self._pool.drop(stale)
            if nonce in queue:
                ready.append((queue[nonce][0], sender, nonce))
        heapq.heapify(ready)
        while ready:
            _, sender, nonce = heapq.heappop(ready)
            queue = self._pool.by_sender[sender]
            transaction = queue[nonce][1]
            if (
                header.gas_used + transaction.gas > header.gas_limit
                or transaction.max_fee_per_gas < header.base_fee_per_gas
            ):
                continue
            try:
                receipt, _ = vm.apply_transaction(header, transaction)
            except ValidationError:
                # It was valid when it came in and is not any more, such as a balance spent by an earlier one. The
                # machine validates before it changes anything.
                self._pool.drop(transaction)
                continue
            header = vm.increment_blob_gas_used(vm.add_receipt_to_header(header, receipt), transaction)
            transactions.append(transaction)
            receipts.append(receipt)
            self._pool.drop(transaction)
            if nonce + 1 in queue:
                heapq.heappush(ready, (queue[nonce + 1][0], sender, nonce + 1))
        block = vm.set_block_transactions_and_withdrawals(vm.get_block(), header, transactions, receipts)
        block = vm.mine_block(vm.block_postprocessing(block)).block
        self._chaindb.db.set(block.header.hash, rlp.encode(block.header))
        self._append(block.header, transactions, receipts)
        return self.height

    def _append(self, header: Any, transactions: list[Any], receipts: list[Any]) -> None:
        logs: list[dict[str, Any]] = []
        gas_before = 0
        for index, (transaction, receipt) in enumerate(zip(transactions, receipts, strict=True)):
            place = {
                "blockHash": to_hex(header.hash),
                "blockNumber": quantity(header.block_number),
                "transactionHash": to_hex(transaction.hash),
                "transactionIndex": quantity(index),
            }
            own = [
                place
                | {
                    "address": to_hex(log.address),
                    "data": to_hex(log.data),
                    "logIndex": quantity(len(logs) + position),
                    "topics": [to_hex(topic.to_bytes(32, "big")) for topic in log.topics],
                    "removed": False,
                }
                for position, log in enumerate(receipt.logs)
            ]
            price = min(transaction.max_fee_per_gas, transaction.max_priority_fee_per_gas + header.base_fee_per_gas)
            created = (
                None if transaction.to else keccak(rlp.encode([transaction.sender, int_bytes(transaction.nonce)]))[12:]
            )
            self._receipts[transaction.hash] = place | {
                "type": quantity(transaction.type_id or 0),
                "from": to_hex(transaction.sender),
                "to": to_hex(transaction.to) if transaction.to else None,
                "contractAddress": None if created is None else to_hex(created),
                "cumulativeGasUsed": quantity(receipt.gas_used),
                "effectiveGasPrice": quantity(price),
                "gasUsed": quantity(receipt.gas_used - gas_before),
                "logs": own,
                "logsBloom": f"0x{receipt.bloom:0512x}",
                "status": "0x1" if receipt.state_root == b"\x01" else "0x0",
            }
            self._mined_transactions[transaction.hash] = transaction
            gas_before = receipt.gas_used
            logs += own
        self._blocks.append(
            Mined(
                number=header.block_number,
                hash=header.hash,
                timestamp=header.timestamp,
                transactions=tuple(t.hash for t in transactions),
                logs=tuple(logs),
            )
        )
        self._number_of[header.hash] = header.block_number
        self._set_head(header)

    def _set_head(self, header: Any) -> None:
        self._head = header
        self._state = self._state_at(header)

    def mine_many(self, count: int) -> None:
        if not 1 <= count <= MINE_MAX:
            raise invalid(f"evm_mine mines between 1 and {MINE_MAX} blocks")
        for _ in range(count):
            self.mine()

    def reorg(self, depth: int, keep: bool) -> None:
        """Drops the last `depth` blocks and mines `depth + 1` others.

        With `keep`, the dropped transactions go back into the pool and are mined again; without, they are forgotten.
        """
        if not 1 <= depth <= min(REORG_MAX, self.height):
            raise invalid(f"the depth of a reorg is between 1 and {min(REORG_MAX, self.height)}")
        dropped = self._blocks[-depth:]
        del self._blocks[-depth:]
        forgotten: list[Any] = []
        for block in dropped:
            del self._number_of[block.hash]
            for tx_hash in block.transactions:
                del self._receipts[tx_hash]
                forgotten.append(self._mined_transactions.pop(tx_hash))
        self._set_head(self._chaindb.get_block_header_by_hash(self._blocks[-1].hash))
        if keep:
            for transaction in forgotten:
                self._pool.put(transaction)
        self.mine_many(depth + 1)

    # transactions

    def send_raw(self, raw: bytes) -> bytes:
        """Takes a signed transaction into the pool and returns its hash."""
        try:
            transaction = self._builder.decode(raw)
            transaction.validate()
            sender = transaction.sender
        except (ValidationError, rlp.exceptions.RLPException, ValueError, TypeError, IndexError) as error:
            raise invalid(f"not a valid signed transaction: {error}") from error
        if transaction.chain_id != self.chain_id:
            raise invalid(f"invalid chain id for signer: have {transaction.chain_id}, this chain is {self.chain_id}")
        if transaction.type_id == 3:
            raise invalid("blob transactions are not taken here")
        if transaction.hash in self._pool.by_hash or transaction.hash in self._receipts:
            raise RpcError(SERVER_ERROR, "already known")
        nonce = self._state.get_nonce(sender)
        if transaction.nonce < nonce:
            raise RpcError(SERVER_ERROR, f"nonce too low: next nonce {nonce}, tx nonce {transaction.nonce}")
        if transaction.gas > BLOCK_GAS_LIMIT:
            raise RpcError(SERVER_ERROR, f"exceeds block gas limit of {BLOCK_GAS_LIMIT}")
        if transaction.gas < transaction.intrinsic_gas:
            raise RpcError(SERVER_ERROR, f"intrinsic gas too low: needs {transaction.intrinsic_gas}")
        cost = transaction.gas * transaction.max_fee_per_gas + transaction.value
        balance = self._state.get_balance(sender)
        if balance < cost:
            raise RpcError(
                SERVER_ERROR, f"insufficient funds for gas * price + value: balance {balance}, tx cost {cost}"
            )
        waiting = self._pool.by_sender.get(sender, {}).get(transaction.nonce)
        if waiting is not None:
            if transaction.max_fee_per_gas * 10 < waiting[1].max_fee_per_gas * 11:
                raise RpcError(SERVER_ERROR, "replacement transaction underpriced")
        elif len(self._pool.by_hash) >= POOL_MAX:
            raise RpcError(SERVER_ERROR, f"txpool is full: {POOL_MAX} transactions wait")
        self._pool.put(transaction)
        return bytes(transaction.hash)

    def fund(self, address: bytes, wei: int) -> bytes:
        """Sends `wei` from the faucet with the next block; returns the transaction's hash."""
        if not 0 < wei <= FAUCET_WEI // 10**6:
            raise invalid(f"devnet_fund gives between 1 and {FAUCET_WEI // 10**6} wei at a time")
        fee = 2 * self.base_fee_wei + TIP_WEI
        unsigned = self._builder.new_unsigned_dynamic_fee_transaction(
            chain_id=self.chain_id,
            nonce=self.nonce(self._faucet.public_key.to_canonical_address(), pending=True),
            max_priority_fee_per_gas=TIP_WEI,
            max_fee_per_gas=fee,
            gas=100_000,
            to=address,
            value=wei,
            data=b"",
            access_list=(),
        )
        return self.send_raw(unsigned.as_signed_transaction(self._faucet).encode())

    # reading

    def resolve(self, block: object) -> int:
        """A block number from a tag, a quantity or {"blockHash": …}. The pending block reads as the latest."""
        match block:
            case None | "latest" | "pending" | "safe" | "finalized":
                return self.height
            case "earliest":
                return 0
            case {"blockHash": str(text)}:
                number = self._number_of.get(parse_bytes(text, 32))
                if number is None:
                    raise RpcError(SERVER_ERROR, "header not found")
                return number
            case {"blockNumber": str(text)}:
                number = parse_int(text)
            case str():
                number = parse_int(block)
            case _:
                raise invalid("a block is a tag, a 0x quantity or an object with blockHash or blockNumber")
        if number > self.height:
            raise RpcError(SERVER_ERROR, f"header not found: block {number} is above the head {self.height}")
        return number

    def state(self, block: object = "latest") -> Any:
        number = self.resolve(block)
        return self._state if number == self.height else self._state_at(self.header(number))

    def nonce(self, address: bytes, block: object = "latest", *, pending: bool = False) -> int:
        nonce = int(self.state(block).get_nonce(address))
        if pending:
            queue = self._pool.by_sender.get(address, {})
            while nonce in queue:
                nonce += 1
        return nonce

    def _execute(self, call: Call, block: object) -> Any:
        state = self.state(block)
        if call.gas > BLOCK_GAS_LIMIT:
            raise RpcError(SERVER_ERROR, f"gas is above the block gas limit of {BLOCK_GAS_LIMIT}")
        unsigned = self._builder.create_unsigned_transaction(
            nonce=state.get_nonce(call.sender),
            gas_price=0,
            gas=call.gas,
            to=call.to,
            value=call.value,
            data=call.data,
        )
        snapshot = state.snapshot()
        try:
            return state.apply_transaction(SpoofTransaction(unsigned, from_=call.sender))
        except ValidationError as error:
            raise RpcError(SERVER_ERROR, str(error)) from error
        finally:
            state.revert(snapshot)

    def call(self, call: Call, block: object) -> bytes:
        computation = self._execute(call, block)
        _raise_if_failed(computation)
        return bytes(computation.output)

    def estimate_gas(self, call: Call, block: object) -> int:
        """What the call used with all the gas of a block, refunds not subtracted, and a quarter more; doubled while it
        fails with that.

        Not the least gas that does not revert: with that, a contract that catches a failing inner call could succeed
        here because its inner call ran out of gas.
        """
        computation = self._execute(call, block)
        _raise_if_failed(computation)
        tokens = 4 * len(call.data) - 3 * call.data.count(0)
        floor = 21_000 + 10 * tokens  # EIP-7623: what a transaction costs at least for its data
        used: int = max(call.gas - computation.get_gas_remaining(), floor)
        estimate = used * 5 // 4 + 5_000
        while estimate < call.gas and self._execute(replace(call, gas=estimate), block).is_error:
            estimate *= 2
        return min(call.gas, estimate)

    def block_json(self, number: int, *, full: bool) -> dict[str, Any]:
        header = self.header(number)
        hashes = self._blocks[number].transactions
        return {
            "number": quantity(header.block_number),
            "hash": to_hex(header.hash),
            "parentHash": to_hex(header.parent_hash),
            "nonce": to_hex(header.nonce),
            "sha3Uncles": to_hex(header.uncles_hash),
            "logsBloom": f"0x{header.bloom:0512x}",  # 256 bytes: clients refuse a shorter one
            "transactionsRoot": to_hex(header.transaction_root),
            "receiptsRoot": to_hex(header.receipt_root),
            "stateRoot": to_hex(header.state_root),
            "miner": to_hex(header.coinbase),
            "difficulty": quantity(header.difficulty),
            "totalDifficulty": "0x0",
            "mixHash": to_hex(header.mix_hash),
            "extraData": to_hex(header.extra_data),
            "size": quantity(len(rlp.encode(header))),
            "gasLimit": quantity(header.gas_limit),
            "gasUsed": quantity(header.gas_used),
            "timestamp": quantity(header.timestamp),
            "baseFeePerGas": quantity(header.base_fee_per_gas),
            "withdrawals": [],
            "withdrawalsRoot": to_hex(header.withdrawals_root),
            "blobGasUsed": quantity(header.blob_gas_used),
            "excessBlobGas": quantity(header.excess_blob_gas),
            "parentBeaconBlockRoot": to_hex(header.parent_beacon_block_root),
            "requestsHash": to_hex(header.requests_hash),
            "uncles": [],
            "transactions": [self.transaction_json(h) if full else to_hex(h) for h in hashes],
        }

    def number_of(self, block_hash: bytes) -> int | None:
        return self._number_of.get(block_hash)

    def receipt_json(self, tx_hash: bytes) -> dict[str, Any] | None:
        return self._receipts.get(tx_hash)

    def transaction_json(self, tx_hash: bytes) -> dict[str, Any] | None:
        waiting = self._pool.by_hash.get(tx_hash)
        transaction = waiting if waiting is not None else self._mined_transactions.get(tx_hash)
        if transaction is None:
            return None
        receipt = self._receipts.get(tx_hash, {})
        y_parity = transaction.y_parity
        answer = {
            "type": quantity(transaction.type_id or 0),
            "hash": to_hex(tx_hash),
            "chainId": quantity(self.chain_id),
            "nonce": quantity(transaction.nonce),
            "blockHash": receipt.get("blockHash"),
            "blockNumber": receipt.get("blockNumber"),
            "transactionIndex": receipt.get("transactionIndex"),
            "from": to_hex(transaction.sender),
            "to": to_hex(transaction.to) if transaction.to else None,
            "value": quantity(transaction.value),
            "gas": quantity(transaction.gas),
            "gasPrice": receipt.get("effectiveGasPrice", quantity(transaction.max_fee_per_gas)),
            "input": to_hex(transaction.data),
            "v": quantity(y_parity if transaction.type_id else transaction.v),
            "r": quantity(transaction.r),
            "s": quantity(transaction.s),
        }
        if transaction.type_id:
            answer |= {"yParity": quantity(y_parity), "accessList": []}
        if transaction.type_id == 2:
            answer |= {
                "maxFeePerGas": quantity(transaction.max_fee_per_gas),
                "maxPriorityFeePerGas": quantity(transaction.max_priority_fee_per_gas),
            }
        return answer

    def logs(self, criteria: Mapping[str, object]) -> list[dict[str, Any]]:
        """eth_getLogs over an inclusive range of blocks, by address and topics."""
        if "blockHash" in criteria:
            first = last = self.resolve({"blockHash": criteria["blockHash"]})
        else:
            first, last = self.resolve(criteria.get("fromBlock")), self._upper(criteria.get("toBlock"))
        if last - first >= LOG_BLOCKS_MAX:
            raise RpcError(SERVER_ERROR, f"query exceeds {LOG_BLOCKS_MAX} blocks")
        addresses = _lower_set(criteria.get("address"), "address")
        topics = criteria.get("topics") or []
        if not isinstance(topics, list) or len(topics) > 4:
            raise invalid("topics is an array of at most four")
        wanted = [_lower_set(topic, "topic") for topic in topics]
        found: list[dict[str, Any]] = []
        for number in range(first, last + 1):
            for log in self._blocks[number].logs:
                if (addresses is None or log["address"] in addresses) and _topics_match(wanted, log["topics"]):
                    found.append(log)
        if len(found) > LOGS_MAX:
            raise RpcError(SERVER_ERROR, f"query returned more than {LOGS_MAX} results")
        return found

    def _upper(self, block: object) -> int:
        """The upper end of a range may be above the head: it is taken as the head."""
        if isinstance(block, str) and block.startswith("0x"):
            return min(parse_int(block), self.height)
        return self.resolve(block)


def _topics_match(wanted: list[set[str] | None], topics: list[str]) -> bool:
    if len(wanted) > len(topics):
        return False
    return all(options is None or topic in options for options, topic in zip(wanted, topics, strict=False))


def _lower_set(value: object, what: str) -> set[str] | None:
    match value:
        case None | []:
            return None
        case str():
            return {value.lower()}
        case list() if all(isinstance(item, str) for item in value):
            return {item.lower() for item in value}
    raise invalid(f"{what} is 0x text or an array of it")


def _raise_if_failed(computation: Any) -> None:
    """Turns a failed computation into the error that geth would answer, with the revert data as 0x text."""
    if not computation.is_error:
        return
    error = computation.error
    if not isinstance(error, Revert):
        raise RpcError(SERVER_ERROR, f"execution failed: {type(error).__name__}: {error}")
    data = bytes(computation.output)
    message = "execution reverted"
    if data[:4] == _ERROR_SELECTOR:
        with suppress(DecodingError, UnicodeDecodeError):
            message = f"execution reverted: {abi_decode(['string'], data[4:])[0]}"
    elif data[:4] == _PANIC_SELECTOR:
        message = f"execution reverted: panic 0x{data[4:].hex().lstrip('0') or '0'}"
    raise RpcError(REVERTED, message, to_hex(data))


def int_bytes(value: int) -> bytes:
    return value.to_bytes((value.bit_length() + 7) // 8, "big")
