"""The contracts of one deployment, as typed wrappers, and how a deployment comes to be.

Purpose: `NetworkAddresses` says where everything is; `Custody`, `Collateral`, `Adjudicator` and `Token` say what can be
done there. Reads return ints, raw bytes and frozen values; writes take a `Sender` and return its `Receipt`. A wrapper
checks nothing that its contract checks; signatures come in ready-made (`channel.typed` has the structs).

Errors: those of `contracts.client`.

Source: contracts/src; DESIGN section 7.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from channel.errors import Code, LocalRefusal, PeerFault
from channel.state import FixedPart
from channel.units import UINT256_MAX, ZERO_ADDRESS, Address, ChannelId, Hash, format_address, parse_address
from contracts.abi import Call, interface
from contracts.client import ChainClient, Receipt, Sender

TOKENS_MAX = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenAddress:
    """A token of the network. The zero address is the native token."""

    symbol: str
    address: Address
    decimals: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkAddresses:
    """One deployment. `xln` is the service's signing address; there are no events of ours before `from_block`."""

    chain_id: int
    adjudicator: Address
    factory: Address
    collateral: Address
    xln: Address
    from_block: int
    tokens: tuple[TokenAddress, ...] = ()

    def to_json(self) -> dict[str, object]:
        return {
            "chainId": self.chain_id,
            "adjudicator": format_address(self.adjudicator),
            "factory": format_address(self.factory),
            "collateral": format_address(self.collateral),
            "xln": format_address(self.xln),
            "fromBlock": self.from_block,
            "tokens": [
                {"symbol": t.symbol, "address": format_address(t.address), "decimals": t.decimals} for t in self.tokens
            ],
        }

    @classmethod
    def from_json(cls, document: object) -> "NetworkAddresses":
        """Raises LocalRefusal CONFIG."""
        try:
            if not isinstance(document, Mapping):
                raise TypeError("it must be an object")
            names = {"chainId", "adjudicator", "factory", "collateral", "xln", "fromBlock", "tokens"}
            if document.keys() != names:
                raise TypeError(f"its members must be {', '.join(sorted(names))}")
            tokens = document["tokens"]
            if not isinstance(tokens, list) or len(tokens) > TOKENS_MAX:
                raise TypeError(f"tokens must be an array of at most {TOKENS_MAX}")
            return cls(
                chain_id=_whole(document, "chainId", UINT256_MAX),
                adjudicator=parse_address(document["adjudicator"], "adjudicator"),
                factory=parse_address(document["factory"], "factory"),
                collateral=parse_address(document["collateral"], "collateral"),
                xln=parse_address(document["xln"], "xln"),
                from_block=_whole(document, "fromBlock", 2**63),
                tokens=tuple(_token_of(token) for token in tokens),
            )
        except (TypeError, PeerFault) as error:
            raise LocalRefusal(Code.CONFIG, f"the network description is not valid: {error}") from error


def _whole(document: Mapping[Any, Any], name: str, most: int) -> int:
    value = document[name]
    if type(value) is not int or not 0 <= value <= most:
        raise TypeError(f"{name} must be a whole number")
    return value


def _token_of(item: object) -> TokenAddress:
    if not isinstance(item, Mapping) or item.keys() != {"symbol", "address", "decimals"}:
        raise TypeError("a token has symbol, address and decimals")
    symbol = item["symbol"]
    if not isinstance(symbol, str) or not 1 <= len(symbol) <= 32:
        raise TypeError("a token's symbol is text of 1 to 32 characters")
    address = parse_address(item["address"], "token address")
    return TokenAddress(symbol=symbol, address=address, decimals=_whole(item, "decimals", 77))


def _split_signature(signature: bytes) -> tuple[int, bytes, bytes]:
    """(v, r, s), the way ForceMove has it."""
    return signature[64], signature[:32], signature[32:64]


class Adjudicator:
    def __init__(self, client: ChainClient, address: Address) -> None:
        self.client = client
        self.address = address

    async def conclude(
        self,
        sender: Sender,
        *,
        fixed: FixedPart,
        turn: int,
        app_data: bytes,
        outcome_hash: Hash,
        signatures: tuple[bytes, bytes],
    ) -> Receipt:
        """Records a final state. `signatures`: 65 bytes each (r, s, v), in the order of the participants."""
        fixed_part = (
            fixed.chain_id,
            fixed.participants,
            fixed.channel_nonce,
            fixed.app_definition,
            fixed.challenge_duration_s,
        )
        split = tuple(_split_signature(s) for s in signatures)
        return await sender.send(
            interface("Adjudicator").call(self.address, "conclude", fixed_part, turn, app_data, outcome_hash, split)
        )

    async def outcome_of(self, channel_id: ChannelId, block: int | Hash | str = "latest") -> Hash | None:
        """The outcome's hash, or None while the channel is not concluded."""
        call = interface("Adjudicator").call(self.address, "outcomeOf", channel_id)
        (outcome,) = await self.client.call(call, block=block)
        return Hash(outcome) if any(outcome) else None


class Factory:
    def __init__(self, client: ChainClient, address: Address) -> None:
        self.client = client
        self.address = address

    async def create(self, sender: Sender, attestors: Sequence[Address], threshold: int) -> "Custody":
        """Makes the custody of the sender's key, once. The contract wants attestors ascending; they are sorted here."""
        await sender.send(interface("CustodyFactory").call(self.address, "create", sorted(attestors), threshold))
        address = await self.custody_of(sender.address)
        if address is None:
            raise LocalRefusal(Code.CHAIN, "the custody was made, but the factory does not know it: was there a reorg?")
        return Custody(self.client, address)

    async def custody_of(self, broker: Address) -> Address | None:
        (address,) = await self.client.call(interface("CustodyFactory").call(self.address, "custodyOf", broker))
        return None if address == ZERO_ADDRESS else address

    async def is_custody(self, address: Address) -> bool:
        (known,) = await self.client.call(interface("CustodyFactory").call(self.address, "isCustody", address))
        return bool(known)


@dataclass(frozen=True, slots=True, kw_only=True)
class Withdrawal:
    """What user and broker sign. `amount` in base units, `deadline_unix_s` against block time."""

    user: Address
    token: Address
    amount: int
    to: Address
    id: bytes
    deadline_unix_s: int


class Custody:
    """A BrokerCustody."""

    def __init__(self, client: ChainClient, address: Address) -> None:
        self.client = client
        self.address = address

    def _call(self, name: str, *values: object, value_wei: int = 0) -> Call:
        return interface("BrokerCustody").call(self.address, name, *values, value_wei=value_wei)

    def deposit_call(self, token: Address, amount: int) -> Call:
        """The bare call, for `Sender.send_many`. An ERC-20 must be approved before."""
        if token == ZERO_ADDRESS:
            return self._call("depositNative", value_wei=amount)
        return self._call("deposit", token, amount)

    async def deposit_native(self, sender: Sender, amount_wei: int) -> Receipt:
        return await sender.send(self.deposit_call(ZERO_ADDRESS, amount_wei))

    async def deposit(self, sender: Sender, token: Address, amount: int) -> Receipt:
        """Approves exactly `amount` and deposits it."""
        await Token(self.client, token).approve(sender, self.address, amount)
        return await sender.send(self.deposit_call(token, amount))

    def withdraw_call(self, withdrawal: Withdrawal, user_signature: bytes, broker_signature: bytes) -> Call:
        w = withdrawal
        fields = (w.user, w.token, w.amount, w.to, w.id, w.deadline_unix_s)
        return self._call("withdraw", fields, user_signature, broker_signature)

    async def withdraw(
        self, sender: Sender, withdrawal: Withdrawal, user_signature: bytes, broker_signature: bytes
    ) -> Receipt:
        return await sender.send(self.withdraw_call(withdrawal, user_signature, broker_signature))

    async def withdrawal_used(self, withdrawal_id: bytes, block: int | Hash | str = "latest") -> bool:
        (used,) = await self.client.call(self._call("withdrawalUsed", withdrawal_id), block=block)
        return bool(used)

    async def payout(
        self,
        sender: Sender,
        *,
        channel_id: ChannelId,
        outcome: bytes,
        tokens: Sequence[Address],
        amounts: Sequence[int],
        attestations: Sequence[bytes],
    ) -> Receipt:
        """`outcome` in full; `attestations` of (channelId, outcomeHash, tokens, amounts), ascending by signer."""
        call = self._call("payout", channel_id, outcome, tuple(tokens), tuple(amounts), tuple(attestations))
        return await sender.send(call)

    async def paid_out(self, channel_id: ChannelId) -> bool:
        (paid,) = await self.client.call(self._call("paidOut", channel_id))
        return bool(paid)

    async def pay_claim(self, sender: Sender, channel_id: ChannelId, token: Address) -> Receipt:
        return await sender.send(self._call("payClaim", channel_id, token))

    async def claims(self, channel_id: ChannelId, token: Address) -> int:
        """Base units that rows of the channel's outcome still wait for."""
        (unpaid,) = await self.client.call(self._call("claims", channel_id, token))
        return int(unpaid)

    async def broker(self) -> Address:
        (address,) = await self.client.call(self._call("broker"))
        return Address(address)

    async def attestors(self) -> tuple[Address, ...]:
        (addresses,) = await self.client.call(self._call("attestors"))
        return tuple(addresses)

    async def threshold(self) -> int:
        (needed,) = await self.client.call(self._call("threshold"))
        return int(needed)


class LockStatus(IntEnum):
    NONE = 0
    LOCKED = 1
    RELEASED = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class LockRecord:
    """A lock as the chain has it. Times in unix seconds, `amount` in base units."""

    status: LockStatus
    terms_hash: Hash
    token: Address
    amount: int
    expiry_unix_s: int
    open_by_unix_s: int


class Collateral:
    """XlnCollateral."""

    def __init__(self, client: ChainClient, address: Address) -> None:
        self.client = client
        self.address = address

    def _call(self, name: str, *values: object, value_wei: int = 0) -> Call:
        return interface("XlnCollateral").call(self.address, name, *values, value_wei=value_wei)

    async def register(self, sender: Sender, custody: Address, url: str) -> Receipt:
        return await sender.send(self._call("register", custody, url))

    async def broker_of(self, broker: Address, block: int | Hash | str = "latest") -> tuple[Address, str] | None:
        """(custody, URL) of a registered broker, or None."""
        custody, url = await self.client.call(self._call("brokers", broker), block=block)
        return None if custody == ZERO_ADDRESS else (custody, url)

    async def deposit_native(self, sender: Sender, amount_wei: int) -> Receipt:
        return await sender.send(self._call("depositNative", value_wei=amount_wei))

    async def deposit(self, sender: Sender, token: Address, amount: int) -> Receipt:
        """Approves exactly `amount` and deposits it as collateral of the sender's key."""
        await Token(self.client, token).approve(sender, self.address, amount)
        return await sender.send(self._call("deposit", token, amount))

    async def deposited(self, broker: Address, token: Address, block: int | Hash | str = "latest") -> int:
        (amount,) = await self.client.call(self._call("deposited", broker, token), block=block)
        return int(amount)

    async def locked(self, broker: Address, token: Address, block: int | Hash | str = "latest") -> int:
        (amount,) = await self.client.call(self._call("locked", broker, token), block=block)
        return int(amount)

    async def free(self, broker: Address, token: Address, block: int | Hash | str = "latest") -> int:
        """Deposited, less what is locked and what is on its way out."""
        (amount,) = await self.client.call(self._call("free", broker, token), block=block)
        return int(amount)

    async def register_lock(
        self,
        sender: Sender,
        *,
        channel_id: ChannelId,
        terms_hash: Hash,
        owner: Address,
        token: Address,
        amount: int,
        expiry_unix_s: int,
        open_by_unix_s: int,
        signature: bytes,
    ) -> Receipt:
        lock = (channel_id, terms_hash, owner, token, amount, expiry_unix_s, open_by_unix_s)
        return await sender.send(self._call("registerLock", lock, signature))

    async def lock_of(
        self, channel_id: ChannelId, owner: Address, block: int | Hash | str = "latest"
    ) -> LockRecord | None:
        """The lock of a channel and owner, released or not; None when there never was one."""
        values = await self.client.call(self._call("lockOf", channel_id, owner), block=block)
        status, terms_hash, token, amount, expiry, open_by = values
        if status == LockStatus.NONE:
            return None
        return LockRecord(
            status=LockStatus(status),
            terms_hash=Hash(terms_hash),
            token=token,
            amount=amount,
            expiry_unix_s=expiry,
            open_by_unix_s=open_by,
        )

    async def release(self, sender: Sender, channel_id: ChannelId, owner: Address, signature: bytes) -> Receipt:
        return await sender.send(self._call("release", channel_id, owner, signature))

    async def release_expired(self, sender: Sender, channel_id: ChannelId, owner: Address) -> Receipt:
        return await sender.send(self._call("releaseExpired", channel_id, owner))

    async def request_withdrawal(self, sender: Sender, token: Address, amount: int) -> Receipt:
        return await sender.send(self._call("requestWithdrawal", token, amount))

    async def withdraw(self, sender: Sender, token: Address) -> Receipt:
        return await sender.send(self._call("withdraw", token))

    async def xln(self) -> Address:
        (address,) = await self.client.call(self._call("xln"))
        return Address(address)


class Token:
    """An ERC-20. `mint` is there on test tokens only."""

    def __init__(self, client: ChainClient, address: Address) -> None:
        self.client = client
        self.address = address

    def _call(self, name: str, *values: object) -> Call:
        return interface("TestToken").call(self.address, name, *values)

    def mint_call(self, to: Address, amount: int) -> Call:
        return self._call("mint", to, amount)

    def approve_call(self, spender: Address, amount: int) -> Call:
        return self._call("approve", spender, amount)

    async def mint(self, sender: Sender, to: Address, amount: int) -> Receipt:
        return await sender.send(self.mint_call(to, amount))

    async def approve(self, sender: Sender, spender: Address, amount: int) -> Receipt:
        return await sender.send(self.approve_call(spender, amount))

    async def balance_of(self, holder: Address, block: int | Hash | str = "latest") -> int:
        return await self.client.balance(self.address, holder, block)

    async def decimals(self) -> int:
        (decimals,) = await self.client.call(self._call("decimals"))
        return int(decimals)


async def _create(sender: Sender, name: str, *values: object) -> tuple[Address, Receipt]:
    receipt = await sender.send(interface(name).creation(*values))
    if receipt.created is None:
        raise LocalRefusal(Code.CHAIN, f"the chain endpoint does not say where {name} was created")
    return receipt.created, receipt


async def deploy_network(sender: Sender, xln: Address, withdrawal_delay_s: int) -> NetworkAddresses:
    """Adjudicator, factory and collateral. `xln`: the address whose signature makes a lock."""
    adjudicator, receipt = await _create(sender, "Adjudicator")
    factory, _ = await _create(sender, "CustodyFactory", adjudicator)
    collateral, _ = await _create(sender, "XlnCollateral", xln, factory, withdrawal_delay_s)
    return NetworkAddresses(
        chain_id=sender.client.chain_id,
        adjudicator=adjudicator,
        factory=factory,
        collateral=collateral,
        xln=xln,
        from_block=receipt.block_number,
    )


async def deploy_test_token(sender: Sender, name: str, symbol: str, decimals: int) -> TokenAddress:
    """A token that anybody can mint."""
    address, _ = await _create(sender, "TestToken", name, symbol, decimals)
    return TokenAddress(symbol=symbol, address=address, decimals=decimals)
