"""The collateral service as a process, on the real chain, with two small brokers that speak its RPC.

The road: locks signed and registered, opening shown, trades, both journals uploaded, attestation, conclude, payouts,
release; with what must be refused on the way, and kill -9 in the middle of it.
"""

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest

from channel.errors import Code, LocalRefusal, PeerFault
from channel.hashing import keccak
from channel.journal import fixed_to_json
from channel.locks import SignedLock, lock_from_json, verify_lock
from channel.outcome import decode_outcome
from channel.signing import Signer
from channel.state import FixedPart
from channel.terms import Terms, terms_to_json
from channel.typed import collateral_domain
from channel.units import ZERO_ADDRESS, Address, Hash, format_address, format_hex, parse_address
from contracts.client import ChainClient, Sender
from contracts.network import (
    Adjudicator,
    Collateral,
    Custody,
    Factory,
    LockStatus,
    NetworkAddresses,
    Token,
    deploy_network,
    deploy_test_token,
)
from node.http import AdminClient
from node.process import Child, Children
from rpc.jsonrpc import RemoteError
from rpc.transport import Connection, Identity, connect
from tests.support.journals import LOT_WEI, Brokers, eth_usd_terms

CHAIN_ID = 31_337
ETHER = 10**18
DEPOSIT_USD = 10**12  # a million
RPC_S = 15.0
T = TypeVar("T")


def signer_of(name: str) -> Signer:
    return Signer(keccak(b"xln service test " + name.encode()))


async def until(found: Callable[[], Awaitable[T | None]], attempts: int = 300) -> T:
    for _ in range(attempts):
        result = await found()
        if result is not None:
            return result
        await asyncio.sleep(0.05)
    raise AssertionError("it did not happen in time")


@dataclass
class World:
    """A chain, a deployment, XLN, and two registered brokers with collateral, in the order of their addresses."""

    folder: Path
    children: Children
    client: ChainClient
    network: NetworkAddresses
    usd: Address
    xln: Child
    xln_address: Address
    signers: tuple[Signer, Signer]
    users: tuple[Signer, Signer]
    senders: tuple[Sender, Sender]
    custodies: tuple[Custody, Custody]
    nonce: int = 1_700_000_000_000

    @property
    def collateral(self) -> Collateral:
        return Collateral(self.client, self.network.collateral)

    async def start_xln(self) -> None:
        self.xln = await self.children.start("xln", "xln.cli", ["run", "--dir", str(self.folder)], folder=self.folder)

    async def kill_xln(self) -> None:
        """As a crash would, and started again."""
        await self.xln.kill9()
        await self.start_xln()

    @contextlib.asynccontextmanager
    async def session(self, signer: Signer) -> AsyncIterator[Connection]:
        identity = Identity(signer, CHAIN_ID, self.network.adjudicator)
        connection = await connect(str(self.xln.ready["rpcUrl"]), identity, self.xln_address)
        try:
            yield connection
        finally:
            await connection.close()

    async def ask(self, broker: int, method: str, params: dict[str, Any]) -> Any:
        async with self.session(self.signers[broker]) as connection:
            return await connection.request(method, params, RPC_S)

    async def refused(self, broker: int, method: str, params: dict[str, Any]) -> RemoteError:
        with pytest.raises(RemoteError) as caught:
            await self.ask(broker, method, params)
        return caught.value

    async def status(self) -> dict[str, Any]:
        async with AdminClient(self.folder) as admin:
            answer = await admin.get("/status")
        assert isinstance(answer, dict)
        return answer

    def channel(self) -> tuple[FixedPart, Terms]:
        """A new one."""
        self.nonce += 1
        fixed = FixedPart(
            chain_id=CHAIN_ID,
            participants=(self.signers[0].address, self.signers[1].address),
            channel_nonce=self.nonce,
            app_definition=self.network.adjudicator,
            challenge_duration_s=60,
        )
        custodies = (self.custodies[0].address, self.custodies[1].address)
        return fixed, eth_usd_terms(fixed, custodies, self.network.collateral, self.usd)

    def lock_params(self, fixed: FixedPart, terms: Terms, amount: int, **changes: Any) -> dict[str, Any]:
        params = {
            "fixedPart": fixed_to_json(fixed),
            "terms": terms_to_json(terms),
            "token": format_address(self.usd),
            "amount": str(amount),
        }
        return {**params, **changes}

    async def lock(self, broker: int, fixed: FixedPart, terms: Terms, amount: int) -> SignedLock:
        answer = await self.ask(broker, "xln.lock", self.lock_params(fixed, terms, amount))
        signed = lock_from_json(answer["lock"])
        verify_lock(signed, collateral_domain(CHAIN_ID, self.network.collateral), self.xln_address)
        assert (signed.lock.channel_id, signed.lock.owner) == (fixed.channel_id, self.signers[broker].address)
        assert (signed.lock.terms_hash, signed.lock.amount) == (terms.terms_hash, amount)
        return signed

    async def register(self, broker: int, signed: SignedLock) -> None:
        lock = signed.lock
        await self.collateral.register_lock(
            self.senders[broker],
            channel_id=lock.channel_id,
            terms_hash=lock.terms_hash,
            owner=lock.owner,
            token=lock.token,
            amount=lock.amount,
            expiry_unix_s=lock.expiry_s,
            open_by_unix_s=lock.open_by_s,
            signature=signed.signature,
        )

    async def stage(self, fixed: FixedPart, *stages: str) -> None:
        """Waits until XLN sees both locks in these stages."""

        async def found() -> bool | None:
            channels = {c["channel"]: c for c in (await self.status())["channels"]}
            seen = [lock["stage"] for lock in channels[format_hex(fixed.channel_id)]["locks"]]
            return True if seen == list(stages) else None

        await until(found)

    async def upload(self, broker: int, brokers: Brokers, end: int | None = None, *, piece: int = 3) -> int:
        """What XLN does not have of one journal, in small pieces over one session."""
        ch = format_hex(brokers.fixed.channel_id)
        texts = brokers.journals[broker][:end]
        async with self.session(self.signers[broker]) as connection:
            answer: Any = await connection.request("xln.journal", {"ch": ch, "at": None}, RPC_S)
            at = answer["at"]
            while at < len(texts):
                params = {"ch": ch, "at": at, "records": texts[at : at + piece]}
                answer = await connection.request("xln.journal", params, RPC_S)
                assert answer["at"] == min(at + piece, len(texts))
                at = answer["at"]
        return int(at)

    def brokers(self, fixed: FixedPart, terms: Terms) -> Brokers:
        return Brokers(fixed, terms, self.signers, self.users, now_ms=self.nonce)


async def cli(folder: Path, *arguments: str) -> str:
    """`xln-service`, as a person would."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "xln.cli", *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 0, err.decode()
    return out.decode()


@contextlib.asynccontextmanager
async def world(tmp_path: Path) -> AsyncIterator[World]:
    ready = tmp_path / "devnet.json"
    folder, password = tmp_path / "xln", tmp_path / "password"
    password.write_text("correct horse\n")
    password.chmod(0o600)
    arguments = ["--chain-id", str(CHAIN_ID), "--block-time", "0.1", "--ready-file", str(ready)]
    async with Children() as children:
        await children.start("devnet", "devnet.chain", arguments, folder=tmp_path / "devnet", ready_file=ready)
        url = json.loads(ready.read_text())["url"]
        made = await cli(folder, "init", "--dir", str(folder), "--password-file", str(password), "--light-key")
        xln_address = parse_address(made.strip())
        async with await ChainClient.connect(url, CHAIN_ID) as client:
            deployer = signer_of("deployer")
            one, other = sorted((signer_of("a"), signer_of("b")), key=lambda s: s.address)
            for address in (deployer.address, one.address, other.address, xln_address):
                tx_hash = await client.request("devnet_fund", format_address(address), hex(1_000 * ETHER))
                await client.wait_receipt(Hash(bytes.fromhex(str(tx_hash)[2:])))
            sender = Sender(client, deployer)
            network = await deploy_network(sender, xln_address, 1)
            usd = (await deploy_test_token(sender, "US Dollar", "USD", 6)).address
            network_file = tmp_path / "network.json"
            network_file.write_text(json.dumps(network.to_json()))
            await cli(
                folder, "init", "--dir", str(folder), "--chain-url", url, "--network", str(network_file),
                "--confirmations", "2", "--password-file", str(password),
            )  # fmt: skip
            config = folder / "xln.toml"
            config.write_text(config.read_text().replace("poll_ms = 500", "poll_ms = 50"))
            senders = (Sender(client, one), Sender(client, other))
            made_world = World(
                folder=folder,
                children=children,
                client=client,
                network=network,
                usd=usd,
                xln=None,  # type: ignore[arg-type]
                xln_address=xln_address,
                signers=(one, other),
                users=(signer_of("user of a"), signer_of("user of b")),
                senders=senders,
                custodies=await asyncio.gather(*(_custody(client, network, usd, s, xln_address) for s in senders)),  # type: ignore[arg-type]
            )
            await made_world.start_xln()
            yield made_world


async def _custody(
    client: ChainClient, network: NetworkAddresses, usd: Address, sender: Sender, xln: Address
) -> Custody:
    """A broker as XLN wants it: custody with users' funds, registered, with collateral."""
    custody = await Factory(client, network.factory).create(sender, [xln], 1)
    await sender.send_many(
        [Token(client, usd).mint_call(sender.address, 3 * DEPOSIT_USD), custody.deposit_call(ZERO_ADDRESS, 100 * ETHER)]
    )
    await custody.deposit(sender, usd, DEPOSIT_USD)
    collateral = Collateral(client, network.collateral)
    await collateral.register(sender, custody.address, "ws://127.0.0.1:1")
    await collateral.deposit(sender, usd, DEPOSIT_USD)
    return custody


async def known(w: World) -> None:
    """Waits until XLN has seen both deposits."""

    async def found() -> bool | None:
        deposits = [[t["deposited"] for t in b["tokens"]] for b in (await w.status())["brokers"]]
        return True if deposits == [[str(DEPOSIT_USD)]] * 2 else None

    await until(found)


async def test_the_road_from_locks_to_releases_with_two_kills(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await known(w)
        fixed, terms = w.channel()
        ch = format_hex(fixed.channel_id)

        # Locks: what is refused, and the same bytes again after a crash.
        assert (await w.refused(0, "xln.lock", w.lock_params(fixed, terms, DEPOSIT_USD + 1))).code is Code.LOCK_AMOUNT
        wrong = fixed_to_json(fixed) | {"appDefinition": format_address(w.usd)}
        refusal = await w.refused(0, "xln.lock", w.lock_params(fixed, terms, 1, fixedPart=wrong))
        assert refusal.code is Code.LOCK_CHANNEL
        assert (await w.refused(0, "xln.attest", {"ch": ch})).code is Code.CHANNEL_UNKNOWN
        first = await w.lock(0, fixed, terms, DEPOSIT_USD // 2)
        await w.kill_xln()
        assert await w.lock(0, fixed, terms, DEPOSIT_USD // 2) == first
        assert (await w.refused(0, "xln.lock", w.lock_params(fixed, terms, 7))).code is Code.LOCK_EXISTS
        others = eth_usd_terms(fixed, terms.custodies, terms.collateral, w.usd, grace_s=9)
        assert (await w.refused(1, "xln.lock", w.lock_params(fixed, others, 7))).code is Code.LOCK_TERMS
        second_fixed, second_terms = w.channel()
        more = w.lock_params(second_fixed, second_terms, DEPOSIT_USD // 2 + 1)
        assert (await w.refused(0, "xln.lock", more)).code is Code.LOCK_AMOUNT
        second = await w.lock(1, fixed, terms, DEPOSIT_USD // 2)
        await asyncio.gather(w.register(0, first), w.register(1, second))
        with pytest.raises(LocalRefusal, match="CollateralLockExists"):
            await w.register(0, first)
        await w.stage(fixed, "registered", "registered")

        # The channel, shown as opened by one of the two.
        brokers = w.brokers(fixed, terms)
        brokers.open((first, second))
        assert (await w.ask(0, "xln.journal", {"ch": ch, "at": 0, "records": brokers.journals[0][:2]}))["at"] == 2
        assert (await w.status())["channels"][0]["phase"] == "opening"
        await w.upload(0, brokers)
        assert (await w.status())["channels"][0]["phase"] == "opened"
        assert (await w.refused(0, "xln.attest", {"ch": ch})).code is Code.ATTEST_INCOMPLETE

        # Trades both ways, the final state, and both journals; a crash between the pieces.
        for n in range(6):
            brokers.trade(n % 2, 0, 200_000 + n, 100 - n)
        brokers.trade(0, 1, 199_000, 30)
        final = brokers.close().state
        await w.upload(0, brokers, 12)
        await w.kill_xln()
        assert await w.upload(0, brokers) == len(brokers.journals[0])
        await refuse_other_bytes(w, brokers)
        missing = await w.refused(1, "xln.attest", {"ch": ch})
        assert missing.code is Code.ATTEST_INCOMPLETE
        assert missing.data["journals"][format_address(fixed.participants[1])] == "0 records, without a final state"
        await w.upload(1, brokers)

        # The attestation, again after a crash, and the chain's end of it.
        attested = await w.ask(0, "xln.attest", {"ch": ch})
        await w.kill_xln()
        assert await w.ask(1, "xln.attest", {"ch": ch}) == attested
        assert attested["outcomeHash"] == format_hex(final.outcome_hash)
        assert bytes.fromhex(attested["outcome"][2:]) == final.variable.outcome
        assert (await w.ask(0, "xln.release", {"ch": ch})) == {"status": "locked"}
        await conclude_and_pay(w, brokers, attested)

        # The releases, which nobody asked for.
        await w.stage(fixed, "released", "released")
        for broker in (0, 1):
            record = await w.collateral.lock_of(fixed.channel_id, w.signers[broker].address)
            assert record is not None
            assert record.status is LockStatus.RELEASED
            answer = await w.ask(broker, "xln.release", {"ch": ch})
            assert answer["status"] == "released"
            assert await w.client.receipt(Hash(bytes.fromhex(answer["tx"][2:]))) is not None
        table = await cli(w.folder, "status", "--dir", str(w.folder))
        assert format_address(w.custodies[0].address) in table
        assert await w.xln.terminate() == 0


async def refuse_other_bytes(w: World, brokers: Brokers) -> None:
    """The same records again are fine; other bytes at a used index, a gap, and too many records are not."""
    ch, texts = format_hex(brokers.fixed.channel_id), brokers.journals[0]
    assert (await w.ask(0, "xln.journal", {"ch": ch, "at": 3, "records": texts[3:6]}))["at"] == len(texts)
    for at, records in ((3, [texts[4]]), (len(texts) + 1, texts[:1]), (len(texts), ["nothing"])):
        refusal = await w.refused(0, "xln.journal", {"ch": ch, "at": at, "records": records})
        assert refusal.code is Code.ATTEST_JOURNAL
    refusal = await w.refused(0, "xln.journal", {"ch": ch, "at": 0, "records": ["{}"] * 513})
    assert refusal.code is Code.PARAMS


async def conclude_and_pay(w: World, brokers: Brokers, attested: dict[str, Any]) -> None:
    assert brokers.last is not None
    proposal, signatures = brokers.last
    state, channel_id = proposal.state, brokers.fixed.channel_id
    await Adjudicator(w.client, w.network.adjudicator).conclude(
        w.senders[0],
        fixed=brokers.fixed,
        turn=state.turn,
        app_data=state.variable.app_data,
        outcome_hash=state.outcome_hash,
        signatures=signatures,
    )
    payouts = {parse_address(item["custody"]): item for item in attested["attestations"]}
    assert set(payouts) == {custody.address for custody in w.custodies}, "both custodies have rows to pay"
    before = [[await w.client.balance(token, c.address) for token in (w.usd, ZERO_ADDRESS)] for c in w.custodies]
    for custody, sender in zip(w.custodies, w.senders, strict=True):
        item = payouts[custody.address]
        arguments: dict[str, Any] = {
            "channel_id": channel_id,
            "outcome": state.variable.outcome,
            "tokens": [parse_address(token) for token in item["tokens"]],
            "amounts": [int(amount) for amount in item["amounts"]],
        }
        own = sender._signer.sign(keccak(b"not an attestation"))
        for attestations in ([], [own]):
            with pytest.raises(LocalRefusal, match="CustodyUnattested"):
                await custody.payout(sender, **arguments, attestations=attestations)
        greedy = arguments | {"amounts": [amount + 1 for amount in arguments["amounts"]]}
        with pytest.raises(LocalRefusal, match="CustodyUnattested"):
            await custody.payout(sender, **greedy, attestations=[bytes.fromhex(item["sig"][2:])])
        await custody.payout(sender, **arguments, attestations=[bytes.fromhex(item["sig"][2:])])
    after = [[await w.client.balance(token, c.address) for token in (w.usd, ZERO_ADDRESS)] for c in w.custodies]
    paid = {(row.asset_holder, row.asset): row.allocations[0].amount for row in decode_outcome(state.variable.outcome)}
    index = {custody.address: number for number, custody in enumerate(w.custodies)}
    for (holder, asset), amount in paid.items():
        column = (w.usd, ZERO_ADDRESS).index(asset)
        assert after[index[holder]][column] == before[index[holder]][column] - amount
        assert after[1 - index[holder]][column] == before[1 - index[holder]][column] + amount
    assert sum(amount for (_, asset), amount in paid.items() if asset == ZERO_ADDRESS) % LOT_WEI == 0


async def test_what_is_not_attested_and_a_channel_that_is_not_opened_in_time(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        with pytest.raises((RemoteError, PeerFault, LocalRefusal), match=Code.SESSION_UNKNOWN_PEER.label):
            async with w.session(signer_of("stranger")):
                pass
        await known(w)

        # A fill that no user of the venue signed: both brokers agree, XLN does not.
        fixed, terms = w.channel()
        locks = (await w.lock(0, fixed, terms, 10**11), await w.lock(1, fixed, terms, 10**11))
        brokers = w.brokers(fixed, terms)
        brokers.open(locks)
        ref = brokers.create(0, brokers.order(0, 0, 200_000, 10))
        brokers.fill(1, ref, 200_000, 10, brokers.order(1, 1, 200_001, 10))
        brokers.turn()
        brokers.close()
        await asyncio.gather(w.upload(0, brokers), w.upload(1, brokers))
        for _ in range(2):
            assert (await w.refused(0, "xln.attest", {"ch": format_hex(fixed.channel_id)})).code is Code.ATTEST_ORDER

        # A channel that nobody trades in is attested without rows, and released when it is concluded.
        empty, empty_terms = w.channel()
        locks = (await w.lock(0, empty, empty_terms, 10**11), await w.lock(1, empty, empty_terms, 10**11))
        await asyncio.gather(w.register(0, locks[0]), w.register(1, locks[1]))
        idle = w.brokers(empty, empty_terms)
        idle.open(locks)
        state = idle.close().state
        await asyncio.gather(w.upload(0, idle), w.upload(1, idle))
        assert (await w.ask(1, "xln.attest", {"ch": format_hex(empty.channel_id)}))["attestations"] == []
        assert idle.last is not None
        await Adjudicator(w.client, w.network.adjudicator).conclude(
            w.senders[1],
            fixed=empty,
            turn=state.turn,
            app_data=state.variable.app_data,
            outcome_hash=state.outcome_hash,
            signatures=idle.last[1],
        )
        await w.stage(empty, "released", "released")

        # Not shown by openBy: void. XLN releases what is registered and signs nothing more for it.
        late, late_terms = w.channel()
        registered = await w.lock(0, late, late_terms, 10**11)
        unregistered = await w.lock(1, late, late_terms, 10**11)
        await w.register(0, registered)
        await w.stage(late, "registered", "signed")
        await w.client.request("evm_increaseTime", 700)
        await w.stage(late, "released", "lapsed")
        tardy = w.brokers(late, late_terms)
        tardy.open((registered, unregistered))
        params = {"ch": format_hex(late.channel_id), "at": 0, "records": tardy.journals[0]}
        assert (await w.refused(0, "xln.journal", params)).code is Code.CHANNEL_PHASE
        refusal = await w.refused(0, "xln.attest", {"ch": format_hex(late.channel_id)})
        assert refusal.code is Code.CHANNEL_PHASE
        free = {b["address"]: b["tokens"][0]["free"] for b in (await w.status())["brokers"]}
        assert free[format_address(w.signers[1].address)] == str(DEPOSIT_USD)
        assert (await w.refused(0, "xln.nothing", {})).code is Code.METHOD
        assert await w.ask(0, "ping", {}) == {}
