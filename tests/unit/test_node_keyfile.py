"""Keyfiles: what is written is what is read, nothing is overwritten, and every refusal says what to do."""

import io
import json
from pathlib import Path

import pytest
from eth_account import Account

from channel.errors import Code, LocalRefusal, PeerFault
from node import keyfile
from node.keyfile import SCRYPT_LIGHT_N

SECRET = bytes(range(1, 33))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys" / "node.json"


def test_a_key_round_trips_and_wallets_read_it(path: Path) -> None:
    address = keyfile.create(path, "correct horse", SECRET, scrypt_n=SCRYPT_LIGHT_N)
    signer = keyfile.load(path, "correct horse")
    assert signer.address == address == keyfile.address_in(path)
    assert bytes(Account.decrypt(json.loads(path.read_text()), "correct horse")) == SECRET
    assert SECRET.hex() not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_fresh_keys_differ(tmp_path: Path) -> None:
    made = {keyfile.create(tmp_path / str(n), "x", scrypt_n=SCRYPT_LIGHT_N) for n in range(3)}
    assert len(made) == 3


def test_a_keyfile_is_never_overwritten(path: Path) -> None:
    keyfile.create(path, "x", SECRET, scrypt_n=SCRYPT_LIGHT_N)
    before = path.read_bytes()
    with pytest.raises(LocalRefusal, match="not overwritten") as caught:
        keyfile.create(path, "x", scrypt_n=SCRYPT_LIGHT_N)
    assert caught.value.code is Code.KEYFILE
    assert path.read_bytes() == before


def test_a_wrong_password_is_said_to_be_wrong(path: Path) -> None:
    keyfile.create(path, "right", SECRET, scrypt_n=SCRYPT_LIGHT_N)
    with pytest.raises(PeerFault, match="wrong password") as caught:
        keyfile.load(path, "left")
    assert caught.value.code is Code.KEYFILE


def test_a_keyfile_that_names_another_address_is_refused(path: Path) -> None:
    keyfile.create(path, "x", SECRET, scrypt_n=SCRYPT_LIGHT_N)
    content = json.loads(path.read_text())
    content["address"] = "00" * 20
    path.write_text(json.dumps(content))
    with pytest.raises(PeerFault, match="but holds the key of 0x"):
        keyfile.load(path, "x")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        "not json",
        '{"version": 4}',
        '{"version": 3, "crypto": {"kdf": "scrypt", "kdfparams": {"n": 4096, "r": 8, "p": 1}}}',
        '{"version": 3, "crypto": {"kdf": "scrypt", "kdfparams": {"n": "4096"}}}',
        "[" * 60_000,
    ],
)
def test_what_is_no_keyfile_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "node.json"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(PeerFault, match="not a keyfile") as caught:
        keyfile.load(path, "x")
    assert caught.value.code is Code.KEYFILE


def test_a_keyfile_cannot_ask_for_all_memory(path: Path) -> None:
    keyfile.create(path, "x", SECRET, scrypt_n=SCRYPT_LIGHT_N)
    content = json.loads(path.read_text())
    content["crypto"]["kdfparams"]["n"] = 2**30
    path.write_text(json.dumps(content))
    with pytest.raises(PeerFault, match="more work"):
        keyfile.load(path, "x")


@pytest.mark.parametrize("secret", [bytes(32), b"\xff" * 32])
def test_a_secret_outside_the_curve_is_refused(path: Path, secret: bytes) -> None:
    with pytest.raises(PeerFault):
        keyfile.create(path, "x", secret, scrypt_n=SCRYPT_LIGHT_N)
    assert not path.exists()


def test_a_password_file_must_be_private(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text("pass word\n")
    path.chmod(0o640)
    with pytest.raises(PeerFault, match=f"chmod 600 {path}"):
        keyfile.read_password(path)
    path.chmod(0o600)
    assert keyfile.read_password(path) == "pass word"


def test_an_empty_or_missing_password_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "password"
    with pytest.raises(PeerFault, match="there is no password file"):
        keyfile.read_password(path)
    path.touch(mode=0o600)
    with pytest.raises(PeerFault, match="is empty"):
        keyfile.read_password(path)


def test_without_a_terminal_there_is_no_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("typed"))
    with pytest.raises(PeerFault, match="--password-file"):
        keyfile.read_password(None)


def test_a_drawn_password_opens_what_it_closed(tmp_path: Path) -> None:
    password = keyfile.create_password_file(tmp_path / "password")
    keyfile.create(tmp_path / "key", password, SECRET, scrypt_n=SCRYPT_LIGHT_N)
    assert keyfile.load(tmp_path / "key", keyfile.read_password(tmp_path / "password"))
    with pytest.raises(LocalRefusal):
        keyfile.create_password_file(tmp_path / "password")
