"""The embedded chain without its process: pool, blocks, lookups and the JSON-RPC edge."""

import json
import time
from typing import Any

import pytest
from eth_account import Account

from channel.signing import Signer
from channel.units import Address
from contracts.abi import Call as ContractCall
from contracts.client import Fees, sign_transaction
from devnet.chain import BATCH_MAX, Methods
from devnet.evm import BLOCK_GAS_LIMIT, LOG_BLOCKS_MAX, POOL_MAX, Call, Evm
from devnet.wire import RpcError, parse_int, to_hex

CHAIN_ID = 31_337
ETHER = 10**18
FEES = Fees(max_fee_wei=10 * 10**9, priority_fee_wei=10**9)
# Logs its calldata's first word as the only topic: PUSH0 CALLDATALOAD PUSH0 PUSH0 LOG1.
LOGGER_INIT = bytes.fromhex("645f355f5fa15f526005601bf3")
# Reverts with the calldata that it was given.
REVERTER_INIT = bytes.fromhex("67365f5f37365ffd005f526008" + "6018f3")


def _signer(seed: int) -> Signer:
    return Signer(seed.to_bytes(32, "big"))


def _sign(signer: Signer, nonce: int, to: bytes | None, *, data: bytes = b"", value: int = 0, **more: Any) -> bytes:
    call = ContractCall(label="test", to=None if to is None else Address(to), data=data, value_wei=value)
    fields = {"chain_id": CHAIN_ID, "gas": 100_000, "fees": FEES} | more
    return sign_transaction(signer, nonce=nonce, call=call, **fields)


@pytest.fixture
def evm() -> Evm:
    return Evm(CHAIN_ID)


@pytest.fixture
def methods(evm: Evm) -> Methods:
    return Methods(evm)


def _fund(evm: Evm, *signers: Signer) -> None:
    for signer in signers:
        evm.fund(signer.address, 100 * ETHER)
    evm.mine()


def _rpc(methods: Methods, method: str, *params: object) -> dict[str, Any]:
    body = json.dumps({"jsonrpc": "2.0", "id": 7, "method": method, "params": params}).encode()
    answer: dict[str, Any] = json.loads(methods.answer_body(body))
    assert answer["id"] == 7
    return answer


def _create(evm: Evm, signer: Signer, nonce: int, init: bytes) -> bytes:
    tx_hash = evm.send_raw(_sign(signer, nonce, None, data=init))
    evm.mine()
    receipt = evm.receipt_json(tx_hash)
    assert receipt is not None
    assert receipt["status"] == "0x1"
    return bytes.fromhex(receipt["contractAddress"][2:])


def test_our_transactions_are_those_of_eth_account() -> None:
    signer = _signer(9)
    raw = _sign(signer, 3, b"\x11" * 20, data=b"\x01\x02", value=5)
    oracle = Account.sign_transaction(
        {
            "type": 2,
            "chainId": CHAIN_ID,
            "nonce": 3,
            "to": "0x" + "11" * 20,
            "value": 5,
            "data": b"\x01\x02",
            "gas": 100_000,
            "maxFeePerGas": FEES.max_fee_wei,
            "maxPriorityFeePerGas": FEES.priority_fee_wei,
        },
        (9).to_bytes(32, "big"),
    )
    assert raw == bytes(oracle.raw_transaction)


def test_a_sender_may_send_out_of_order_and_is_mined_in_order(evm: Evm) -> None:
    one, two = _signer(1), _signer(2)
    _fund(evm, one, two)
    late = [evm.send_raw(_sign(one, nonce, two.address, value=1)) for nonce in (2, 0)]
    evm.send_raw(_sign(two, 0, one.address, value=1))
    assert evm.nonce(one.address, pending=True) == 1
    evm.mine()
    assert evm.receipt_json(late[0]) is None  # waits for nonce 1
    assert evm.nonce(one.address) == 1
    evm.send_raw(_sign(one, 1, two.address, value=1))
    assert evm.nonce(one.address, pending=True) == 3
    evm.mine()
    receipt = evm.receipt_json(late[0])
    assert receipt is not None
    assert receipt["transactionIndex"] == "0x1"
    assert evm.nonce(one.address) == 3


def test_many_senders_fit_one_block(evm: Evm) -> None:
    signers = [_signer(100 + i) for i in range(40)]
    _fund(evm, *signers)
    hashes = [evm.send_raw(_sign(s, n, b"\x42" * 20, value=1)) for n in range(3) for s in signers]
    number = evm.mine()
    receipts = [evm.receipt_json(h) for h in hashes]
    assert all(r is not None and r["status"] == "0x1" and r["blockNumber"] == hex(number) for r in receipts)
    assert evm.state().get_balance(b"\x42" * 20) == 120


def test_what_can_no_longer_be_paid_is_dropped_and_what_follows_waits(evm: Evm) -> None:
    signer = _signer(3)
    evm.fund(signer.address, ETHER)
    evm.mine()
    evm.send_raw(_sign(signer, 0, b"\x01" * 20, value=ETHER * 6 // 10))
    evm.send_raw(_sign(signer, 1, b"\x02" * 20, value=ETHER * 6 // 10))
    evm.send_raw(_sign(signer, 2, b"\x03" * 20, value=1))
    evm.mine()
    assert evm.nonce(signer.address) == 1
    evm.send_raw(_sign(signer, 1, b"\x02" * 20, value=1))
    evm.mine()
    assert evm.nonce(signer.address) == 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"nonce": 0, "value": 1}, "nonce too low"),
        ({"gas": 20_000}, "intrinsic gas too low"),
        ({"gas": BLOCK_GAS_LIMIT + 1}, "exceeds block gas limit"),
        ({"value": 1_000 * ETHER}, "insufficient funds"),
        ({"chain_id": 1}, "invalid chain id"),
    ],
)
def test_a_transaction_that_cannot_work_is_refused(evm: Evm, change: dict[str, Any], words: str) -> None:
    signer = _signer(4)
    _fund(evm, signer)
    evm.send_raw(_sign(signer, 0, b"\x01" * 20))
    evm.mine()
    with pytest.raises(RpcError, match=words):
        evm.send_raw(_sign(signer, **({"nonce": 1, "to": b"\x01" * 20} | change)))


def test_the_same_transaction_twice_a_cheap_replacement_and_rubbish_are_refused(evm: Evm) -> None:
    signer = _signer(4)
    _fund(evm, signer)
    raw = _sign(signer, 0, b"\x01" * 20)
    evm.send_raw(raw)
    for other, words in ((raw, "already known"), (_sign(signer, 0, b"\x02" * 20), "underpriced")):
        with pytest.raises(RpcError, match=words):
            evm.send_raw(other)
    for rubbish in (b"", b"\x02", b"\x02\xc0", raw[:-1], raw + b"\0", b"\xff" * 100):
        with pytest.raises(RpcError, match="not a valid signed transaction"):
            evm.send_raw(rubbish)
    dearer = Fees(max_fee_wei=20 * 10**9, priority_fee_wei=10**9)
    replacement = evm.send_raw(_sign(signer, 0, b"\x02" * 20, fees=dearer))
    evm.mine()
    assert evm.receipt_json(replacement) is not None
    assert POOL_MAX >= 1_000


def test_block_time_follows_the_clock_and_can_be_moved(evm: Evm) -> None:
    evm.mine_many(20)
    assert abs(evm.header(20).timestamp - time.time()) < 3  # auto-mining nodes would be 20 s ahead
    evm.offset_s = 86_400
    evm.mine()
    assert abs(evm.header(21).timestamp - time.time() - 86_400) < 3
    parents = [evm.header(n).parent_hash for n in range(1, 22)]
    assert parents == [evm.header(n).hash for n in range(21)]


def test_logs_by_range_address_and_topic(evm: Evm, methods: Methods) -> None:
    signer = _signer(5)
    _fund(evm, signer)
    logger = _create(evm, signer, 0, LOGGER_INIT)
    topics = [n.to_bytes(32, "big") for n in (7, 8, 7)]
    for nonce, topic in enumerate(topics, 1):
        evm.send_raw(_sign(signer, nonce, logger, data=topic))
        evm.mine()
    first = evm.height - 2
    address = to_hex(logger)
    everything = evm.logs({"fromBlock": "0x0", "toBlock": "latest"})
    assert [log["topics"] for log in everything] == [[to_hex(t)] for t in topics]
    assert [log["blockNumber"] for log in everything] == [hex(first + i) for i in range(3)]
    for criteria, count in (
        ({"fromBlock": hex(first + 1), "toBlock": hex(first + 1)}, 1),
        ({"fromBlock": "0x0", "toBlock": "0xffffff", "address": [address.upper().replace("X", "x")]}, 3),
        ({"fromBlock": "0x0", "address": "0x" + "00" * 20}, 0),
        ({"fromBlock": "0x0", "topics": [to_hex(topics[0])]}, 2),
        ({"fromBlock": "0x0", "topics": [[to_hex(topics[0]), to_hex(topics[1])]]}, 3),
        ({"fromBlock": "0x0", "topics": [None, None]}, 0),
        ({"blockHash": everything[1]["blockHash"]}, 1),
        ({}, 1),
    ):
        assert len(evm.logs(criteria)) == count, criteria
    block = _rpc(methods, "eth_getBlockByNumber", "latest", False)["result"]
    assert len(block["logsBloom"]) == 2 + 512
    assert int(block["logsBloom"], 16) != 0
    assert _rpc(methods, "eth_getLogs", {"blockHash": "0x" + "12" * 32})["error"]["message"] == "header not found"
    assert LOG_BLOCKS_MAX >= 1_000


def test_a_revert_carries_its_data(evm: Evm, methods: Methods) -> None:
    signer = _signer(6)
    _fund(evm, signer)
    reverter = _create(evm, signer, 0, REVERTER_INIT)
    text = "08c379a0" + f"{32:064x}{2:064x}" + b"no".hex().ljust(64, "0")
    for data, message in (
        ("0x" + text, "execution reverted: no"),
        ("0x4e487b71" + f"{0x11:064x}", "execution reverted: panic 0x11"),
        ("0xdeadbeef", "execution reverted"),
        ("0x", "execution reverted"),
    ):
        for method in ("eth_call", "eth_estimateGas"):
            error = _rpc(methods, method, {"to": to_hex(reverter), "data": data})["error"]
            assert error == {"code": 3, "message": message, "data": data}
    tx_hash = evm.send_raw(_sign(signer, 1, reverter, data=b"\x01"))
    evm.mine()
    receipt = evm.receipt_json(tx_hash)
    assert receipt is not None
    assert receipt["status"] == "0x0"


def test_calls_read_old_blocks_and_change_nothing(evm: Evm) -> None:
    evm.fund(b"\x77" * 20, 5)
    evm.mine()
    evm.fund(b"\x77" * 20, 5)
    evm.mine()
    assert [evm.state(hex(n)).get_balance(b"\x77" * 20) for n in range(3)] == [0, 5, 10]
    evm.call(Call(sender=b"\x77" * 20, to=b"\x78" * 20, value=10), "latest")
    assert evm.state().get_balance(b"\x77" * 20) == 10
    with pytest.raises(RpcError, match="balance"):
        evm.call(Call(sender=b"\x77" * 20, to=b"\x78" * 20, value=11), "latest")


def test_a_reorg_replaces_blocks_and_keeps_or_forgets_transactions(evm: Evm) -> None:
    signer = _signer(8)
    _fund(evm, signer)
    tx_hash = evm.send_raw(_sign(signer, 0, b"\x01" * 20, value=1))
    evm.mine_many(2)
    old = evm.header(evm.height)
    evm.reorg(2, keep=True)
    assert evm.height == old.block_number + 1
    assert evm.header(old.block_number).hash != old.hash
    assert evm.number_of(old.hash) is None
    assert evm.receipt_json(tx_hash) is not None
    evm.reorg(3, keep=False)
    assert evm.receipt_json(tx_hash) is None
    assert evm.nonce(signer.address) == 0
    with pytest.raises(RpcError, match="depth"):
        evm.reorg(evm.height + 1, keep=True)


def test_two_devnets_differ_in_every_place_where_a_chain_id_shows(methods: Methods) -> None:
    other = Methods(Evm(5))
    assert _rpc(other, "eth_chainId")["result"] == "0x5"
    assert _rpc(other, "net_version")["result"] == "5"
    # CHAINID PUSH0 MSTORE MSIZE PUSH0 RETURN, run as creation code
    assert _rpc(other, "eth_call", {"data": "0x465f52595ff3"})["result"] == "0x" + f"{5:064x}"
    assert _rpc(methods, "eth_call", {"data": "0x465f52595ff3"})["result"] == "0x" + f"{CHAIN_ID:064x}"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"x", -32700),
        (b"[]", -32600),
        (b"7", -32600),
        (b"{}", -32600),
        (b'{"id":1,"method":"eth_nope"}', -32601),
        (b'{"id":1,"method":"eth_call","params":{}}', -32602),
        (b'{"id":1,"method":"eth_call"}', -32602),
        (b'{"id":1,"method":"eth_getBalance","params":["0x12"]}', -32602),
        (b'{"id":1,"method":"eth_getBalance","params":["0x' + b"12" * 20 + b'","0xffff"]}', -32000),
        (b'{"id":1,"method":"eth_getBalance","params":["0x' + b"12" * 20 + b'",{"blockHash":1}]}', -32602),
        (b'{"id":1,"method":"eth_getLogs","params":[{"topics":"x"}]}', -32602),
        (b'{"id":1,"method":"evm_mine","params":[100000]}', -32602),
        (b'{"id":1,"method":"evm_increaseTime","params":[-1]}', -32602),
        (b'{"id":1,"method":"devnet_fund","params":["0x' + b"12" * 20 + b'",0]}', -32602),
        (b"[" + b",".join([b"{}"] * (BATCH_MAX + 1)) + b"]", -32600),
    ],
)
def test_bad_requests_get_a_clear_error(methods: Methods, body: bytes, code: int) -> None:
    answer = json.loads(methods.answer_body(body))
    assert answer["error"]["code"] == code
    assert "Traceback" not in answer["error"]["message"]
    assert "internal error" not in answer["error"]["message"]


def test_a_batch_is_answered_in_order_and_notifications_are_not(methods: Methods) -> None:
    batch = [{"id": 1, "method": "eth_chainId"}, {"method": "evm_mine"}, {"id": 2, "method": "eth_blockNumber"}]
    answers = json.loads(methods.answer_body(json.dumps(batch).encode()))
    assert [(a["id"], a["result"]) for a in answers] == [(1, hex(CHAIN_ID)), (2, "0x1")]
    assert methods.answer_body(b'{"method":"evm_mine"}') == b""


def test_what_is_not_there_is_null(methods: Methods) -> None:
    nothing = "0x" + "34" * 32
    for method in ("eth_getBlockByHash", "eth_getTransactionByHash", "eth_getTransactionReceipt"):
        assert _rpc(methods, method, nothing)["result"] is None
    assert _rpc(methods, "eth_getBlockByNumber", "0x99", False)["result"] is None


def test_numbers_are_quantities() -> None:
    assert parse_int("0x0a") == 10
    for text in ("", "0x", "10", 10, None, "0xzz", "0x" + "1" * 65, "0x 1"):
        with pytest.raises(RpcError):
            parse_int(text)
