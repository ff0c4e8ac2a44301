"""Collateral locks as XLN signs them, and as XlnCollateral registers them. DESIGN sections 4 and 7."""

from dataclasses import dataclass
from typing import Any

from channel.errors import Code, PeerFault
from channel.signing import require_signer
from channel.typed import LOCK, RELEASE, Domain
from channel.units import (
    UINT64_MAX,
    Address,
    ChannelId,
    Hash,
    format_address,
    format_hex,
    parse_address,
    parse_hash,
    parse_hex,
    parse_uint,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lock:
    """`amount` base units of `token`, of `owner`'s collateral, behind one channel and its terms.

    `expiry_s` and `open_by_s` are block times (Unix seconds): after `open_by_s` a lock whose channel was not opened is
    void; after `expiry_s` it can be released without XLN.
    """

    channel_id: ChannelId
    terms_hash: Hash
    owner: Address
    token: Address
    amount: int
    expiry_s: int
    open_by_s: int

    def digest(self, domain: Domain) -> Hash:
        return domain.digest(
            LOCK.hash(
                self.channel_id,
                self.terms_hash,
                self.owner,
                self.token,
                self.amount,
                self.expiry_s,
                self.open_by_s,
            )
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedLock:
    lock: Lock
    signature: bytes


def release_digest(channel_id: ChannelId, owner: Address, domain: Domain) -> Hash:
    return domain.digest(RELEASE.hash(channel_id, owner))


def verify_lock(signed: SignedLock, domain: Domain, xln: Address) -> None:
    """Raises PeerFault unless the XLN service `xln` signed it."""
    require_signer(signed.lock.digest(domain), signed.signature, xln, "the lock")


def lock_to_json(signed: SignedLock) -> dict[str, Any]:
    lock = signed.lock
    return {
        "ch": format_hex(lock.channel_id),
        "terms": format_hex(lock.terms_hash),
        "owner": format_address(lock.owner),
        "token": format_address(lock.token),
        "amount": str(lock.amount),
        "expiry": lock.expiry_s,
        "openBy": lock.open_by_s,
        "sig": format_hex(signed.signature),
    }


_KEYS = {"ch", "terms", "owner", "token", "amount", "expiry", "openBy", "sig"}


def lock_from_json(raw: object) -> SignedLock:
    """Parses strictly; `verify_lock` checks who signed. Raises PeerFault."""
    if not isinstance(raw, dict) or set(raw) != _KEYS:
        raise PeerFault(Code.PARAMS, f"a lock is an object with exactly {', '.join(sorted(_KEYS))}")
    expiry, open_by = raw["expiry"], raw["openBy"]
    if type(expiry) is not int or type(open_by) is not int or not 0 < open_by < expiry <= UINT64_MAX:
        raise PeerFault(Code.PARAMS, "openBy and expiry are Unix seconds, openBy before expiry")
    lock = Lock(
        channel_id=ChannelId(parse_hash(raw["ch"], "ch")),
        terms_hash=parse_hash(raw["terms"], "terms"),
        owner=parse_address(raw["owner"], "owner"),
        token=parse_address(raw["token"], "token"),
        amount=parse_uint(raw["amount"], what="amount"),
        expiry_s=expiry,
        open_by_s=open_by,
    )
    return SignedLock(lock=lock, signature=parse_hex(raw["sig"], size=65, what="sig"))
