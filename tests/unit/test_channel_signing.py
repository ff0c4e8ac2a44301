"""Signatures as contracts check them; eth_account is the oracle."""

import contextlib

import pytest
from coincurve import PrivateKey
from eth_account import Account
from eth_account.messages import encode_defunct
from hypothesis import assume, given
from hypothesis import strategies as st

from channel.errors import Code, PeerFault
from channel.signing import CURVE_ORDER, HALF_ORDER, Signer, eth_sign_digest, recover, require_signer
from channel.units import format_address

SIGNER = Signer(bytes([7]) * 32)
DIGEST = bytes(range(32))
SECRETS = st.integers(1, CURVE_ORDER - 1).map(lambda n: n.to_bytes(32, "big"))
DIGESTS = st.binary(min_size=32, max_size=32)


def code_of(digest: bytes, signature: bytes) -> Code:
    with pytest.raises(PeerFault) as caught:
        recover(digest, signature)
    return caught.value.code


@given(SECRETS, DIGESTS)
def test_signatures_are_those_of_eth_account(secret: bytes, state_hash: bytes) -> None:
    account = Account.from_key(secret)
    expected = account.sign_message(encode_defunct(primitive=state_hash))
    signer, digest = Signer(secret), eth_sign_digest(state_hash)
    signature = signer.sign(digest)
    assert signature == bytes(expected.signature)
    assert int.from_bytes(signature[32:64], "big") <= HALF_ORDER
    assert signature[64] in (27, 28)
    assert recover(digest, signature) == signer.address
    assert format_address(signer.address) == account.address
    require_signer(digest, signature, signer.address)


@given(SECRETS, DIGESTS)
def test_the_high_s_twin_is_refused(secret: bytes, digest: bytes) -> None:
    signature = Signer(secret).sign(digest)
    s = int.from_bytes(signature[32:64], "big")
    twin = signature[:32] + (CURVE_ORDER - s).to_bytes(32, "big") + bytes((55 - signature[64],))
    assert code_of(digest, twin) is Code.SIGNATURE_HIGH_S


@pytest.mark.parametrize("v", [0, 1, 2, 26, 29, 31, 255])
def test_v_is_27_or_28(v: int) -> None:
    assert code_of(DIGEST, SIGNER.sign(DIGEST)[:64] + bytes((v,))) is Code.SIGNATURE_V


@pytest.mark.parametrize("length", [0, 64, 66, 130])
def test_a_signature_has_65_bytes(length: int) -> None:
    assert code_of(DIGEST, SIGNER.sign(DIGEST).ljust(length, b"\0")[:length]) is Code.SIGNATURE


def test_r_and_s_are_in_range() -> None:
    signature = SIGNER.sign(DIGEST)
    for r in (0, CURVE_ORDER, 2**256 - 1):
        assert code_of(DIGEST, r.to_bytes(32, "big") + signature[32:]) is Code.SIGNATURE
    assert code_of(DIGEST, signature[:32] + bytes(32) + signature[64:]) is Code.SIGNATURE
    high = (HALF_ORDER + 1).to_bytes(32, "big")
    assert code_of(DIGEST, signature[:32] + high + signature[64:]) is Code.SIGNATURE_HIGH_S


def test_an_r_that_is_no_point_is_refused() -> None:
    signature = SIGNER.sign(DIGEST)
    assert code_of(DIGEST, (5).to_bytes(32, "big") + signature[32:]) is Code.SIGNATURE  # x = 5 is not on the curve


@given(st.binary(min_size=65, max_size=65))
def test_anything_is_an_address_or_a_fault(signature: bytes) -> None:
    with contextlib.suppress(PeerFault):
        assert len(recover(DIGEST, signature[:64] + bytes((27 + signature[64] % 2,)))) == 20


@given(DIGESTS)
def test_another_digest_is_another_signer(digest: bytes) -> None:
    assume(digest != DIGEST)
    with pytest.raises(PeerFault) as caught:
        require_signer(digest, SIGNER.sign(DIGEST), SIGNER.address, "the state")
    assert caught.value.code is Code.SIGNATURE_SIGNER
    assert "the state is signed by" in caught.value.message


def test_a_key_never_shows() -> None:
    secret = bytes([9]) * 32
    assert repr(Signer(secret)) == f"Signer({format_address(Signer(secret).address)})"
    assert secret.hex() not in repr(Signer(secret))
    assert not hasattr(Signer(secret), "__dict__")


@pytest.mark.parametrize("secret", [bytes(32), CURVE_ORDER.to_bytes(32, "big"), b"", bytes([1]) * 33])
def test_keys_out_of_range(secret: bytes) -> None:
    with pytest.raises(ValueError):
        Signer(secret)


def test_the_address_is_that_of_the_public_key() -> None:
    key = PrivateKey(bytes([7]) * 32)
    assert format_address(SIGNER.address) == Account.from_key(key.secret).address
