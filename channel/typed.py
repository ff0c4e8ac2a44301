"""EIP-712 typed structs, hashed by hand: 20 times faster than the general library, which also coerces values.

Each signed struct of the project has its own type, and every domain has a chain id and a verifying contract (DESIGN
section 3). `TypedStruct("Lock(bytes32 channelId,…)")` derives the encoder from the type string; eth_account is the
oracle in the tests.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from channel.hashing import keccak
from channel.units import Address, Hash

_DOMAIN_TYPE_HASH = keccak(b"EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)")


def encode_uint(value: int) -> bytes:
    return value.to_bytes(32, "big")


def _encode_address(value: bytes) -> bytes:
    if len(value) != 20:
        raise ValueError("an address has 20 bytes")
    return bytes(12) + value


def _encode_bytes32(value: bytes) -> bytes:
    if len(value) != 32:
        raise ValueError("bytes32 has 32 bytes")
    return value


def _encode_string(value: str) -> bytes:
    return keccak(value.encode())


def _encode_array(item: Callable[..., bytes]) -> Callable[..., bytes]:
    return lambda values: keccak(b"".join(item(value) for value in values))


def _uint_encoder(bits: int) -> Callable[[int], bytes]:
    def encode(value: int) -> bytes:
        if value >> bits:  # negative values shift to -1
            raise ValueError(f"{value} does not fit uint{bits}")
        return value.to_bytes(32, "big")

    return encode


def _encoder(abi_type: str) -> Callable[..., bytes]:
    if abi_type.endswith("[]"):
        return _encode_array(_encoder(abi_type[:-2]))
    if abi_type.startswith("uint"):
        return _uint_encoder(int(abi_type[4:]))
    match abi_type:
        case "address":
            return _encode_address
        case "bytes32":
            return _encode_bytes32
        case "bytes":
            return keccak
        case "string":
            return _encode_string
        case "bool":
            return _uint_encoder(1)
    raise ValueError(f"no EIP-712 encoder for {abi_type}")


class TypedStruct:
    """One signed type. Members are given by name, in the order of the type string."""

    __slots__ = ("_encoders", "members", "name", "type_hash", "type_string")

    def __init__(self, type_string: str) -> None:
        self.type_string = type_string
        self.name, _, rest = type_string.partition("(")
        self.members = tuple((m.split(" ")[1], m.split(" ")[0]) for m in rest.rstrip(")").split(","))
        self._encoders = tuple(_encoder(abi_type) for _, abi_type in self.members)
        self.type_hash = keccak(type_string.encode())

    def hash(self, *values: object) -> Hash:
        """hashStruct of the member values. Raises ValueError when one does not fit its type."""
        parts = [self.type_hash]
        parts += [encode(value) for encode, value in zip(self._encoders, values, strict=True)]
        return Hash(keccak(b"".join(parts)))


@dataclass(frozen=True, slots=True)
class Domain:
    """An EIP-712 domain; `separator` is computed once."""

    name: str
    chain_id: int
    verifying_contract: Address
    separator: bytes

    @classmethod
    def of(cls, name: str, chain_id: int, verifying_contract: Address, version: str = "1") -> "Domain":
        separator = keccak(
            _DOMAIN_TYPE_HASH
            + _encode_string(name)
            + _encode_string(version)
            + encode_uint(chain_id)
            + _encode_address(verifying_contract)
        )
        return cls(name, chain_id, verifying_contract, separator)

    def digest(self, struct_hash: bytes) -> Hash:
        return Hash(keccak(b"\x19\x01" + self.separator + struct_hash))


@lru_cache(maxsize=64)
def node_domain(chain_id: int, adjudicator: Address) -> Domain:
    """Messages between nodes: Hello, Entry, Refusal, Sync."""
    return Domain.of("XLN", chain_id, adjudicator)


@lru_cache(maxsize=64)
def collateral_domain(chain_id: int, collateral: Address) -> Domain:
    """What the XLN service signs for XlnCollateral: Lock, Release."""
    return Domain.of("XLN Collateral", chain_id, collateral)


@lru_cache(maxsize=1024)
def custody_domain(chain_id: int, custody: Address) -> Domain:
    """What users, their broker and the attestors sign for one BrokerCustody."""
    return Domain.of("XLN Custody", chain_id, custody)


ENTRY = TypedStruct("Entry(address to,bytes32 ch,uint64 seq,bytes32 prev,uint64 ts,string body)")
REFUSAL = TypedStruct("Refusal(bytes32 channelId,uint48 turnNum,bytes32 stateHash,string code)")
SYNC = TypedStruct("Sync(bytes32 channelId,uint48 turnNum,bytes32 stateHash,uint64 sent,uint64 received,uint64 ts)")
LOCK = TypedStruct(
    "Lock(bytes32 channelId,bytes32 termsHash,address owner,address token,uint256 amount,uint64 expiry,uint64 openBy)"
)
RELEASE = TypedStruct("Release(bytes32 channelId,address owner)")
WITHDRAWAL = TypedStruct("Withdrawal(address user,address token,uint256 amount,address to,bytes32 id,uint64 deadline)")
WITHDRAWAL_APPROVAL = TypedStruct(
    "WithdrawalApproval(address user,address token,uint256 amount,address to,bytes32 id,uint64 deadline)"
)
ATTESTATION = TypedStruct("Attestation(bytes32 channelId,bytes32 outcomeHash,address[] tokens,uint256[] amounts)")
ORDER = TypedStruct(
    "Order(address owner,bytes32 marketId,uint8 side,uint8 orderType,uint8 timeInForce,uint256 priceTicks,"
    "uint256 amountLots,uint64 validUntilMs,uint64 nonce,bytes32 replaces)"
)
CANCEL = TypedStruct("Cancel(address owner,bytes32 orderId)")
LOGIN = TypedStruct("Login(address owner,uint64 expiryMs)")
HELLO = TypedStruct(
    "Hello(address from,address to,uint8 role,uint16 minVersion,uint16 maxVersion,bytes32 nonce,bytes32 peerNonce,"
    "bytes32 key)"
)
