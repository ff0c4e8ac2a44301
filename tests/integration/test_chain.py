"""The real chain process, the real contracts, the Python client and the watcher, together."""

import asyncio
import itertools
import json
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
import pytest_asyncio
from web3 import AsyncHTTPProvider, AsyncWeb3
from web3.exceptions import ContractCustomError

from channel.errors import Code, InvariantBroken, LocalRefusal
from channel.hashing import keccak
from channel.outcome import encode_outcome, single_payment
from channel.signing import Signer
from channel.state import FixedPart, State, VariablePart
from channel.typed import ATTESTATION, LOCK, RELEASE, WITHDRAWAL, WITHDRAWAL_APPROVAL, collateral_domain, custody_domain
from channel.units import ZERO_ADDRESS, ZERO_HASH, Address, Hash, format_address, format_hex
from contracts import artifacts
from contracts.abi import canonical_type, interface
from contracts.client import ChainClient, Sender
from contracts.events import (
    DECLARATIONS,
    BrokerRegistered,
    ChainEvent,
    ChannelFundsReceived,
    CollateralDeposited,
    Concluded,
    CustodyCreated,
    Deposited,
    LockRegistered,
    LockReleased,
    PaidOut,
    PayoutExecuted,
    PayoutShort,
    Withdrawn,
    decode_log,
)
from contracts.network import (
    Adjudicator,
    Collateral,
    Custody,
    Factory,
    LockStatus,
    NetworkAddresses,
    Token,
    Withdrawal,
    deploy_network,
    deploy_test_token,
)
from contracts.watcher import Watcher

CHAIN_ID = 31_337
ETHER = 10**18
FAR_UNIX_S = 2**40
T = TypeVar("T")


_counter = itertools.count()


def _signer(name: str) -> Signer:
    return Signer(keccak(b"integration " + name.encode()))


@dataclass
class Devnet:
    url: str
    process: subprocess.Popen[bytes]


def _start(*arguments: str) -> Devnet:
    process = subprocess.Popen(
        [sys.executable, "-m", "devnet.chain", "--chain-id", str(CHAIN_ID), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    document = json.loads(process.stdout.readline())
    assert document["chainId"] == CHAIN_ID
    return Devnet(url=document["url"], process=process)


def _stop(devnet: Devnet, number: int = signal.SIGTERM) -> tuple[int, bytes]:
    """Exit status and what was written to standard error."""
    devnet.process.send_signal(number)
    try:
        _, errors = devnet.process.communicate(timeout=10)
    except subprocess.TimeoutExpired:
        devnet.process.kill()
        raise
    return devnet.process.returncode, errors


@pytest.fixture(scope="module")
def devnet() -> Iterator[Devnet]:
    """One for all tests of this file: each deploys a network of its own, with keys of its own."""
    running = _start("--block-time", "0.1")
    yield running
    assert _stop(running) == (0, b"")


@pytest_asyncio.fixture
async def client(devnet: Devnet) -> AsyncIterator[ChainClient]:
    async with await ChainClient.connect(devnet.url, CHAIN_ID) as connected:
        yield connected


async def _funded(client: ChainClient, *signers: Signer) -> list[Sender]:
    hashes = [await client.request("devnet_fund", format_address(s.address), hex(1_000 * ETHER)) for s in signers]
    for text in hashes:
        await client.wait_receipt(Hash(bytes.fromhex(str(text)[2:])))
    return [Sender(client, signer) for signer in signers]


async def _until(found: Callable[[], Awaitable[T | None]], attempts: int = 400) -> T:
    for _ in range(attempts):
        result = await found()
        if result is not None:
            return result
        await asyncio.sleep(0.05)
    raise AssertionError("it did not happen in time")


@dataclass
class Network:
    client: ChainClient
    addresses: NetworkAddresses
    xln: Signer
    broker_key: Signer
    user_key: Signer
    deployer: Sender
    broker: Sender
    user: Sender
    custody: Custody
    token: Token
    collateral: Collateral

    def watcher(self, confirmations: int, **more: Any) -> Watcher:
        a = self.addresses
        watched = [a.adjudicator, a.factory, a.collateral, self.custody.address]
        return Watcher(self.client, watched, confirmations=confirmations, **more)


@pytest_asyncio.fixture
async def network(client: ChainClient) -> Network:
    return await _network(client)


async def _network(client: ChainClient) -> Network:
    own = next(_counter)
    deployer_key, broker_key, user_key, xln = (_signer(f"{own} {n}") for n in ("deployer", "broker", "user", "xln"))
    deployer, broker, user = await _funded(client, deployer_key, broker_key, user_key)
    addresses, token = await asyncio.gather(
        deploy_network(deployer, xln.address, 60), deploy_test_token(deployer, "US Dollar", "USD", 6)
    )
    custody = await Factory(client, addresses.factory).create(broker, [xln.address], 1)
    return Network(
        client=client,
        addresses=addresses,
        xln=xln,
        broker_key=broker_key,
        user_key=user_key,
        deployer=deployer,
        broker=broker,
        user=user,
        custody=custody,
        token=Token(client, token.address),
        collateral=Collateral(client, addresses.collateral),
    )


def _withdrawal(network: Network, token: Address, amount: int, *, deadline: int = FAR_UNIX_S) -> Withdrawal:
    return Withdrawal(
        user=network.user.address,
        token=token,
        amount=amount,
        to=network.user.address,
        id=keccak(b"withdrawal %d" % amount),
        deadline_unix_s=deadline,
    )


def _signatures(network: Network, w: Withdrawal) -> tuple[bytes, bytes]:
    domain = custody_domain(CHAIN_ID, network.custody.address)
    values = (w.user, w.token, w.amount, w.to, w.id, w.deadline_unix_s)
    user = network.user_key.sign(domain.digest(WITHDRAWAL.hash(*values)))
    return user, network.broker_key.sign(domain.digest(WITHDRAWAL_APPROVAL.hash(*values)))


async def test_deposits_are_seen_then_confirmed_and_a_withdrawal_pays_once(network: Network) -> None:
    client, custody, user, token = network.client, network.custody, network.user, network.token
    watcher = network.watcher(3, from_block=network.addresses.from_block)
    seen: list[ChainEvent] = []
    confirmed: list[ChainEvent] = []

    async def poll_for(kind: type[Any], among: list[ChainEvent], count: int = 1) -> list[Any] | None:
        poll = await watcher.poll()
        assert poll.dropped == ()
        seen.extend(poll.seen)
        confirmed.extend(poll.confirmed)
        found = [event for event in among if isinstance(event, kind)]
        return found if len(found) >= count else None

    assert [e.custody for e in await _until(lambda: poll_for(CustodyCreated, seen))] == [custody.address]
    receipt = await custody.deposit_native(user, 5 * ETHER)
    await token.mint(user, user.address, 1_000)
    await custody.deposit(user, token.address, 700)
    deposits = await _until(lambda: poll_for(Deposited, seen, 2))
    assert [(e.user, e.token, e.amount) for e in deposits] == [
        (user.address, ZERO_ADDRESS, 5 * ETHER),
        (user.address, token.address, 700),
    ]
    assert (deposits[0].ref.tx_hash, deposits[0].ref.block_number) == (receipt.tx_hash, receipt.block_number)
    assert await _until(lambda: poll_for(Deposited, confirmed, 2)) == deposits
    head = await client.head()
    assert head.number >= deposits[1].ref.block_number + 2
    assert await client.balance(ZERO_ADDRESS, custody.address) == 5 * ETHER
    assert await token.balance_of(custody.address) == 700
    assert await token.balance_of(custody.address, deposits[0].ref.block_number) == 0

    withdrawal = _withdrawal(network, token.address, 250)
    signatures = _signatures(network, withdrawal)
    await custody.withdraw(network.broker, withdrawal, *signatures)
    assert await custody.withdrawal_used(withdrawal.id)
    assert (await token.balance_of(user.address), await token.balance_of(custody.address)) == (550, 450)
    (event,) = await _until(lambda: poll_for(Withdrawn, confirmed))
    assert (event.id, event.user, event.token, event.amount, event.to) == (
        withdrawal.id,
        user.address,
        token.address,
        250,
        user.address,
    )
    with pytest.raises(LocalRefusal) as caught:
        await custody.withdraw(network.broker, withdrawal, *signatures)
    assert caught.value.code is Code.CHAIN_REVERTED
    assert caught.value.data["error"] == "CustodyWithdrawalUsed"
    assert caught.value.data["arguments"] == (withdrawal.id,)

    again = network.watcher(3, cursor=watcher.cursor)
    poll = await again.poll()
    assert not set(confirmed) & set(poll.confirmed + poll.seen)


async def test_eighty_deposits_of_many_users_and_of_one_take_a_few_blocks(network: Network) -> None:
    custody, token = network.custody, network.token
    users = await _funded(network.client, *(_signer(f"user {i}") for i in range(20)))
    first = (await network.client.head()).number
    started = time.monotonic()
    one = network.user.send_many([custody.deposit_call(ZERO_ADDRESS, 1_000 + i) for i in range(60)])
    receipts, *others = await asyncio.gather(one, *(custody.deposit_native(u, 2_000) for u in users))
    assert isinstance(receipts, tuple)
    events = [decode_log(log) for r in receipts for log in r.logs]
    assert [e.amount for e in events if isinstance(e, Deposited)] == list(range(1_000, 1_060))
    blocks = {r.block_number for r in receipts} | {r.block_number for r in others if not isinstance(r, tuple)}
    assert max(blocks) - min(blocks) <= 15
    assert time.monotonic() - started < 15
    assert await network.client.balance(ZERO_ADDRESS, custody.address) == sum(range(1_000, 1_060)) + 20 * 2_000
    watcher = network.watcher(1, from_block=first)
    polls = [await watcher.poll()]
    while polls[-1].behind:
        polls.append(await watcher.poll())
    assert sum(isinstance(e, Deposited) for p in polls for e in p.confirmed) == 80
    assert await token.decimals() == 6


async def test_a_failure_in_a_block_is_told_with_its_reason(network: Network) -> None:
    """Two withdrawals with one id in one block: both pass the estimate, the second one fails on chain."""
    await network.custody.deposit_native(network.user, ETHER)
    withdrawal = _withdrawal(network, ZERO_ADDRESS, 1_000)
    call = network.custody.withdraw_call(withdrawal, *_signatures(network, withdrawal))
    results = await asyncio.gather(network.broker.send(call), network.broker.send(call), return_exceptions=True)
    (refusal,) = [r for r in results if isinstance(r, LocalRefusal)]
    assert refusal.code is Code.CHAIN_REVERTED
    assert refusal.data["error"] == "CustodyWithdrawalUsed"
    assert await network.client.balance(ZERO_ADDRESS, network.custody.address) == ETHER - 1_000


async def test_reverts_are_decoded(network: Network) -> None:
    await network.custody.deposit_native(network.user, ETHER)
    for wrong, error in (
        ("user", "CustodyInvalidUserSignature"),
        ("broker", "CustodyInvalidBrokerSignature"),
        ("expired", "CustodyWithdrawalExpired"),
        ("poor", "InsufficientBalance"),
    ):
        amount = 2 * ETHER if wrong == "poor" else ETHER
        deadline = 1 if wrong == "expired" else FAR_UNIX_S
        withdrawal = _withdrawal(network, ZERO_ADDRESS, amount, deadline=deadline)
        user, broker = _signatures(network, withdrawal)
        signatures = {"user": (broker, broker), "broker": (user, user)}.get(wrong, (user, broker))
        with pytest.raises(LocalRefusal) as caught:
            await network.custody.withdraw(network.broker, withdrawal, *signatures)
        assert (caught.value.code, caught.value.data["error"]) == (Code.CHAIN_REVERTED, error)
    assert await network.client.balance(ZERO_ADDRESS, network.custody.address) == ETHER


async def test_locks_are_registered_once_released_and_watched(network: Network) -> None:
    collateral, broker = network.collateral, network.broker
    watcher = network.watcher(1, from_block=network.addresses.from_block)
    assert await collateral.broker_of(broker.address) is None
    await collateral.register(broker, network.custody.address, "wss://broker.example:7001/")
    assert await collateral.broker_of(broker.address) == (network.custody.address, "wss://broker.example:7001/")
    await network.token.mint(broker, broker.address, 500)
    await collateral.deposit(broker, network.token.address, 500)
    lock: dict[str, Any] = {
        "channel_id": keccak(b"channel"),
        "terms_hash": keccak(b"terms"),
        "owner": broker.address,
        "token": network.token.address,
        "amount": 300,
        "expiry_unix_s": FAR_UNIX_S,
        "open_by_unix_s": FAR_UNIX_S - 1,
    }
    domain = collateral_domain(CHAIN_ID, collateral.address)
    assert await collateral.lock_of(lock["channel_id"], broker.address) is None
    signature = network.xln.sign(domain.digest(LOCK.hash(*lock.values())))
    await collateral.register_lock(network.deployer, **lock, signature=signature)
    record = await collateral.lock_of(lock["channel_id"], broker.address)
    assert record is not None
    assert (record.status, record.terms_hash, record.token, record.amount) == (
        LockStatus.LOCKED,
        lock["terms_hash"],
        network.token.address,
        300,
    )
    assert (record.expiry_unix_s, record.open_by_unix_s) == (FAR_UNIX_S, FAR_UNIX_S - 1)
    amounts = [await f(broker.address, network.token.address) for f in (collateral.deposited, collateral.locked)]
    assert amounts == [500, 300]
    with pytest.raises(LocalRefusal) as caught:
        await collateral.register_lock(network.deployer, **lock, signature=signature)
    assert caught.value.data["error"] == "CollateralLockExists"
    release = network.xln.sign(domain.digest(RELEASE.hash(lock["channel_id"], broker.address)))
    await collateral.release(network.deployer, lock["channel_id"], broker.address, release)
    record = await collateral.lock_of(lock["channel_id"], broker.address)
    assert record is not None
    assert record.status is LockStatus.RELEASED
    assert await collateral.free(broker.address, network.token.address) == 500
    poll = await watcher.poll()
    kinds = [type(event) for event in poll.confirmed]
    assert kinds == [CustodyCreated, BrokerRegistered, CollateralDeposited, LockRegistered, LockReleased]
    registered = poll.confirmed[3]
    assert isinstance(registered, LockRegistered)
    assert (registered.channel_id, registered.owner, registered.amount) == (lock["channel_id"], broker.address, 300)


@pytest_asyncio.fixture
async def own_network() -> AsyncIterator[Network]:
    """On a chain of its own, whose time the test may move."""
    devnet = _start("--block-time", "0.1")
    async with await ChainClient.connect(devnet.url, CHAIN_ID) as client:
        yield await _network(client)
    assert _stop(devnet) == (0, b"")


async def test_time_moves_when_asked(own_network: Network) -> None:
    network = own_network
    collateral, broker, token = network.collateral, network.broker, network.token.address
    await collateral.register(broker, network.custody.address, "wss://broker.example/")
    await network.token.mint(broker, broker.address, 500)
    await collateral.deposit(broker, token, 500)
    await collateral.request_withdrawal(broker, token, 500)
    with pytest.raises(LocalRefusal) as caught:
        await collateral.withdraw(broker, token)
    assert caught.value.data["error"] == "CollateralWithdrawalTooEarly"
    before = await network.client.head()
    assert abs(before.timestamp - time.time()) < 3
    await network.client.request("evm_increaseTime", 61)
    await network.client.request("evm_mine")
    after = await network.client.head()
    assert after.timestamp - before.timestamp >= 61
    await collateral.withdraw(broker, token)
    assert await collateral.deposited(broker.address, token) == 0


async def test_a_final_state_is_concluded_and_paid_from_custody_to_custody(network: Network) -> None:
    """One row in the native token, attested in full; one in the test token, attested in part: the rest is a claim."""
    client, token, payer = network.client, network.token.address, network.custody
    peer_key = _signer(f"{next(_counter)} peer")
    (peer,) = await _funded(client, peer_key)
    payee = await Factory(client, network.addresses.factory).create(peer, [network.xln.address], 1)
    await payer.deposit_native(network.user, ETHER)
    await network.token.mint(network.user, network.user.address, 900)
    await payer.deposit(network.user, token, 900)

    signers = sorted((network.broker_key, peer_key), key=lambda s: s.address)
    adjudicator = Adjudicator(client, network.addresses.adjudicator)
    fixed = FixedPart(
        chain_id=CHAIN_ID,
        participants=(signers[0].address, signers[1].address),
        channel_nonce=1_700_000_000_000,
        app_definition=adjudicator.address,
        challenge_duration_s=60,
    )
    rows = [
        single_payment(asset=a, chain_id=CHAIN_ID, payer=payer.address, payee=payee.address, amount=n)
        for a, n in ((ZERO_ADDRESS, 5_000), (token, 700))
    ]
    variable = VariablePart(outcome=encode_outcome(tuple(rows)), app_data=b"data" * 9)
    state = State(fixed=fixed, turn=7, is_final=True, variable=variable)
    assert await adjudicator.outcome_of(fixed.channel_id) is None
    arguments: dict[str, Any] = {
        "fixed": fixed,
        "turn": state.turn,
        "app_data": variable.app_data,
        "outcome_hash": state.outcome_hash,
    }
    signatures = (signers[0].sign(state.digest), signers[1].sign(state.digest))
    with pytest.raises(LocalRefusal) as caught:
        await adjudicator.conclude(network.broker, **arguments, signatures=(signatures[1], signatures[0]))
    assert caught.value.data["error"] == "AdjudicatorWrongSigner"
    receipt = await adjudicator.conclude(network.broker, **arguments, signatures=signatures)
    assert await adjudicator.outcome_of(fixed.channel_id) == state.outcome_hash
    (event,) = [decode_log(log) for log in receipt.logs]
    assert isinstance(event, Concluded)
    assert (event.channel_id, event.turn, event.outcome_hash) == (fixed.channel_id, 7, state.outcome_hash)

    tokens, amounts = (ZERO_ADDRESS, token), (5_000, 600)
    digest = custody_domain(CHAIN_ID, payer.address).digest(
        ATTESTATION.hash(fixed.channel_id, state.outcome_hash, tokens, amounts)
    )
    payout: dict[str, Any] = {
        "channel_id": fixed.channel_id,
        "outcome": variable.outcome,
        "tokens": tokens,
        "amounts": amounts,
    }
    with pytest.raises(LocalRefusal) as caught:
        await payer.payout(peer, **payout, attestations=[network.broker_key.sign(digest)])
    assert caught.value.data["error"] == "CustodyUnattested"
    assert not await payer.paid_out(fixed.channel_id)
    receipt = await payer.payout(peer, **payout, attestations=[network.xln.sign(digest)])
    assert await payer.paid_out(fixed.channel_id)
    assert (await client.balance(ZERO_ADDRESS, payee.address), await client.balance(token, payee.address)) == (
        5_000,
        600,
    )
    assert await payer.claims(fixed.channel_id, token) == 100
    events = [e for log in receipt.logs if (e := decode_log(log)) is not None]
    assert [type(e) for e in events] == [ChannelFundsReceived, PaidOut, PaidOut, PayoutShort, PayoutExecuted]
    received, native, _, short, executed = events
    assert isinstance(received, ChannelFundsReceived)
    assert (received.ref.contract, received.amount, received.sender) == (payee.address, 5_000, payer.address)
    assert isinstance(native, PaidOut)
    assert (native.token, native.to, native.amount) == (ZERO_ADDRESS, payee.address, 5_000)
    assert isinstance(short, PayoutShort)
    assert (short.token, short.to, short.unpaid) == (token, payee.address, 100)
    assert isinstance(executed, PayoutExecuted)
    assert executed.outcome_hash == state.outcome_hash


async def test_a_reorganised_deposit_is_taken_back_and_a_deep_one_stops_the_watcher() -> None:
    devnet = _start("--block-time", "0")
    async with await ChainClient.connect(devnet.url, CHAIN_ID) as client:

        async def mine(count: int = 1) -> None:
            await client.request("evm_mine", count)

        async def settled(work: Awaitable[T]) -> T:
            task = asyncio.ensure_future(work)
            while not task.done():
                await asyncio.sleep(0.05)
                await mine()
            return task.result()

        (user,) = await settled(_funded(client, _signer("user")))
        addresses = await settled(deploy_network(user, user.address, 60))
        custody = await settled(Factory(client, addresses.factory).create(user, [_signer("xln").address], 1))
        await mine(3)
        watcher = Watcher(client, [custody.address], confirmations=4, from_block=addresses.from_block)
        await watcher.poll()
        tx_hash = await user.submit(custody.deposit_call(ZERO_ADDRESS, 77))
        await mine(2)
        (first,) = (await watcher.poll()).seen
        await client.request("devnet_reorg", 2, True)
        poll = await watcher.poll()
        assert poll.dropped == (first,)
        (second,) = poll.seen
        assert second.ref.tx_hash == first.ref.tx_hash == tx_hash
        assert second.ref.block_hash != first.ref.block_hash
        await mine(2)
        assert (await watcher.poll()).confirmed == (second,)
        await client.request("devnet_reorg", 6, False)
        with pytest.raises(InvariantBroken) as caught:
            await watcher.poll()
        assert caught.value.code is Code.CHAIN_REORG
    assert _stop(devnet, signal.SIGINT) == (0, b"")


async def test_the_nonce_recovers_when_the_key_was_used_elsewhere(network: Network) -> None:
    other = Sender(network.client, network.user_key)
    await network.user.send(network.token.mint_call(network.user.address, 1))
    await other.send(network.token.mint_call(network.user.address, 10))
    await network.user.send(network.token.mint_call(network.user.address, 100))
    assert await network.token.balance_of(network.user.address) == 111


async def test_values_that_do_not_fit_and_contracts_that_are_not_there_are_refused(network: Network) -> None:
    with pytest.raises(LocalRefusal) as caught:
        network.custody.deposit_call(network.token.address, -1)
    assert caught.value.code is Code.PARAMS
    with pytest.raises(LocalRefusal) as caught:
        await Token(network.client, Address(b"\x01" * 20)).balance_of(network.user.address)
    assert caught.value.code is Code.CHAIN
    with pytest.raises(LocalRefusal) as caught:
        await Sender(network.client, _signer("poor")).send(network.custody.deposit_call(ZERO_ADDRESS, 1))
    assert caught.value.code is Code.CHAIN


async def test_text_that_is_no_utf8_on_chain_does_not_stop_the_watcher(network: Network) -> None:
    """Anybody can register such a URL with the bare ABI."""
    call = interface("XlnCollateral").call(network.addresses.collateral, "register", network.custody.address, "wss://?")
    data = call.data.replace(b"wss://?", b"wss://\xff")
    receipt = await network.broker.send(type(call)(label=call.label, to=call.to, data=data))
    (event,) = [decode_log(log) for log in receipt.logs]
    assert isinstance(event, BrokerRegistered)
    assert event.url == "wss://�"
    assert await network.collateral.broker_of(network.broker.address) == (network.custody.address, "wss://�")


async def test_other_programs_can_use_the_devnet(network: Network) -> None:
    """web3 is the one that most people have: formatting, checksums, block padding and errors must suit it."""
    w3 = AsyncWeb3(AsyncHTTPProvider(network.client.url))
    try:
        assert await w3.eth.chain_id == CHAIN_ID
        block = await w3.eth.get_block("latest", full_transactions=True)
        assert len(block["logsBloom"]) == 256
        assert await w3.eth.gas_price > 0
        assert await w3.eth.max_priority_fee > 0
        history = await w3.eth.fee_history(4, "latest", [50])
        assert len(history["baseFeePerGas"]) == 5
        artifact = artifacts.load("BrokerCustody")
        contract = w3.eth.contract(w3.to_checksum_address(format_hex(network.custody.address)), abi=artifact.abi)
        with pytest.raises(ContractCustomError):
            await contract.functions.payClaim(ZERO_HASH, format_address(ZERO_ADDRESS)).call()
        logs = await w3.eth.get_logs({"fromBlock": 0, "address": format_address(network.addresses.factory)})
        assert len(logs) == 1
        assert (await w3.eth.get_transaction(logs[0]["transactionHash"]))["type"] == 2
        receipt = await w3.eth.get_transaction_receipt(logs[0]["transactionHash"])
        assert receipt["status"] == 1
    finally:
        await w3.provider.disconnect()


async def test_an_endpoint_that_is_wrong_or_gone_is_said_so(devnet: Devnet) -> None:
    for url, expected, code in (
        (devnet.url, 1, Code.CONFIG),
        ("ws://127.0.0.1:1", None, Code.CONFIG),
        ("http://127.0.0.1:1", None, Code.CHAIN),
    ):
        with pytest.raises(LocalRefusal) as caught:
            await ChainClient.connect(url, expected)
        assert caught.value.code is code
    client = await ChainClient.connect(devnet.url)
    devnet.process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(LocalRefusal, match="did not answer within") as caught:
            await client.request("eth_blockNumber", deadline_s=0.3)
        assert caught.value.code is Code.CHAIN
    finally:
        devnet.process.send_signal(signal.SIGCONT)
        await client.close()


def test_the_process_says_where_it_is_and_refuses_a_taken_port(tmp_path: Path) -> None:
    ready = tmp_path / "ready.json"
    devnet = _start("--ready-file", str(ready), "--block-time", "0")
    assert json.loads(ready.read_text()) == {"url": devnet.url, "chainId": CHAIN_ID}
    assert list(tmp_path.iterdir()) == [ready]
    port = devnet.url.rsplit(":", 1)[1]
    second = subprocess.run([sys.executable, "-m", "devnet.chain", "--port", port], capture_output=True, timeout=30)
    assert (second.returncode, second.stdout) == (1, b"")
    assert second.stderr.startswith(b"devnet.chain: cannot serve")
    assert b"Traceback" not in second.stderr
    assert _stop(devnet) == (0, b"")


def test_event_declarations_are_those_of_the_contracts() -> None:
    declared: dict[str, set[str]] = {}
    for name, declaration, _ in DECLARATIONS:
        declared.setdefault(name, set()).add(declaration)
    for name, ours in declared.items():
        theirs = {
            f"{item['name']}("
            + ", ".join(f"{canonical_type(p)}{' indexed' * p['indexed']} {p['name']}" for p in item["inputs"])
            + ")"
            for item in artifacts.load(name).abi
            if item["type"] == "event" and item["name"] != "EIP712DomainChanged"
        }
        assert theirs == ours


def test_a_network_description_survives_json_and_is_checked() -> None:
    addresses = NetworkAddresses(
        chain_id=CHAIN_ID,
        adjudicator=Address(b"\x01" * 20),
        factory=Address(b"\x02" * 20),
        collateral=Address(b"\x03" * 20),
        xln=Address(b"\x04" * 20),
        from_block=5,
    )
    document = json.loads(json.dumps(addresses.to_json()))
    assert NetworkAddresses.from_json(document) == addresses
    for change in (
        {"chainId": "1"},
        {"chainId": True},
        {"xln": "0x1"},
        {"more": 1},
        {"tokens": [{}]},
        {"fromBlock": -1},
    ):
        with pytest.raises(LocalRefusal) as caught:
            NetworkAddresses.from_json(document | change)
        assert caught.value.code is Code.CONFIG
