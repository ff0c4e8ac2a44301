"""secp256k1 signatures as the chain checks them: r ++ s ++ v, low s, v in {27, 28}, RFC 6979.

eth_account recovers high-s signatures and v in {0, 1}; contracts reject them, and a state that verifies here but not on
chain is worthless. So recovery is strict. DESIGN section 3.
"""

from coincurve import PrivateKey, PublicKey

from channel.errors import Code, PeerFault
from channel.hashing import keccak
from channel.units import Address, Hash, format_address

SIGNATURE_BYTES = 65
CURVE_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
HALF_ORDER = CURVE_ORDER // 2
_ETH_SIGN_PREFIX = b"\x19Ethereum Signed Message:\n32"


class Signer:
    """A private key that signs digests. Its repr shows the address only."""

    __slots__ = ("_key", "address")

    def __init__(self, secret: bytes) -> None:
        """`secret`: 32 bytes in [1, curve order). Raises ValueError."""
        self._key = PrivateKey(secret)
        self.address = address_of(self._key.public_key)

    def sign(self, digest: bytes) -> bytes:
        """65 bytes over a 32-byte digest."""
        recoverable = self._key.sign_recoverable(digest, hasher=None)
        return recoverable[:64] + bytes((27 + recoverable[64],))

    def __repr__(self) -> str:
        return f"Signer({format_address(self.address)})"


def address_of(key: PublicKey) -> Address:
    return Address(keccak(key.format(compressed=False)[1:])[12:])


def eth_sign_digest(state_hash: bytes) -> Hash:
    """The digest that both brokers sign for a state (EIP-191, version 0x45)."""
    return Hash(keccak(_ETH_SIGN_PREFIX + state_hash))


def recover(digest: bytes, signature: bytes) -> Address:
    """The address that signed `digest`. Raises PeerFault SIGNATURE_V, SIGNATURE_HIGH_S or SIGNATURE."""
    if len(signature) != SIGNATURE_BYTES:
        raise PeerFault(Code.SIGNATURE, f"a signature is 65 bytes (r, s, v), not {len(signature)}")
    v = signature[64]
    if v not in (27, 28):
        raise PeerFault(Code.SIGNATURE_V, f"v must be 27 or 28, not {v}")
    s = int.from_bytes(signature[32:64], "big")
    if s > HALF_ORDER:
        raise PeerFault(Code.SIGNATURE_HIGH_S, "s is in the upper half of the curve order; contracts reject it")
    r = int.from_bytes(signature[:32], "big")
    if not 0 < r < CURVE_ORDER or s == 0:
        raise PeerFault(Code.SIGNATURE, "r and s must be between 1 and the curve order")
    try:
        key = PublicKey.from_signature_and_message(signature[:64] + bytes((v - 27,)), digest, hasher=None)
    except Exception as error:
        raise PeerFault(Code.SIGNATURE, "the signature does not recover to a public key") from error
    return address_of(key)


def require_signer(digest: bytes, signature: bytes, expected: Address, what: str = "message") -> None:
    """Raises PeerFault SIGNATURE_SIGNER when somebody else than `expected` signed, and what `recover` raises."""
    signer = recover(digest, signature)
    if signer != expected:
        raise PeerFault(
            Code.SIGNATURE_SIGNER,
            f"{what} is signed by {format_address(signer)}, not by {format_address(expected)}",
        )
