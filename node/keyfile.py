"""The node's key at rest: an encrypted keyfile, version 3 (scrypt, AES-128-CTR), as wallets of the chain read it.

Invariants: a key is never written in the clear; a keyfile is never overwritten; a password comes from a file that only
its owner can read, or from a prompt, never from a command line or the environment. The cost of scrypt is bounded when
a file is read, so that a keyfile from elsewhere cannot take all memory. Source: Web3 Secret Storage; DESIGN section 3.
"""

import getpass
import json
import secrets
import sys
from pathlib import Path

from eth_account import Account
from eth_keyfile.keyfile import create_keyfile_json

from channel.errors import Code, LocalRefusal, PeerFault
from channel.signing import Signer
from channel.units import Address, format_address
from node import logs
from node.files import read_private, write_private

SCRYPT_STANDARD_N = 2**18  # about 256 MiB and a second: keys that matter
SCRYPT_LIGHT_N = 2**12  # about 4 MiB and 20 ms: tests and throw-away networks
SCRYPT_MEMORY_BYTES_MAX = 512 * 1024 * 1024
PBKDF2_ROUNDS_MAX = 10_000_000
PASSWORD_BYTES_MAX = 1_024


def create(path: Path, password: str, secret: bytes | None = None, *, scrypt_n: int = SCRYPT_STANDARD_N) -> Address:
    """Writes a new keyfile, mode 0600, and returns its address. Draws a fresh key unless `secret` (32 bytes) is given.

    `scrypt_n`: work factor, a power of two. Raises LocalRefusal KEYFILE when the file exists or cannot be written,
    PeerFault KEYFILE for a secret that is not a key or a password that is empty. Blocks for as long as scrypt takes.
    """
    _check_password(password)
    if secret is None:
        secret = _draw_secret()
    signer = _signer(secret)
    if path.exists():  # before the work; the write below is what guarantees it
        raise LocalRefusal(Code.KEYFILE, f"{path} is there already and is not overwritten; move it away first")
    content = create_keyfile_json(secret, password.encode(), kdf="scrypt", iterations=scrypt_n)
    content["address"] = signer.address.hex()  # lower case, as other wallets write it
    write_private(path, json.dumps(content, indent=2).encode() + b"\n", code=Code.KEYFILE)
    return signer.address


def load(path: Path, password: str) -> Signer:
    """The key in a keyfile. Raises PeerFault KEYFILE: not there, not a keyfile, wrong password, open to others."""
    _check_password(password)
    content = _parse(path)
    try:
        secret = bytes(Account.decrypt(content, password))
    except (ValueError, TypeError, KeyError, AttributeError, NotImplementedError) as error:
        if "MAC mismatch" in str(error):
            raise PeerFault(Code.KEYFILE, f"wrong password for the keyfile {path}") from None
        # The library's own words could quote the content: not passed on.
        raise PeerFault(Code.KEYFILE, f"{path} is not a keyfile of version 3") from None
    logs.protect(secret)
    signer = _signer(secret)
    named = content.get("address")
    if isinstance(named, str) and named.lower().removeprefix("0x") != signer.address.hex():
        raise PeerFault(
            Code.KEYFILE, f"the keyfile {path} names {named} but holds the key of {format_address(signer.address)}"
        )
    return signer


def address_in(path: Path) -> Address:
    """The address that a keyfile names, without its password. Raises PeerFault KEYFILE."""
    named = _parse(path).get("address")
    try:
        raw = bytes.fromhex(str(named).removeprefix("0x"))
    except ValueError:
        raw = b""
    if len(raw) != 20:
        raise PeerFault(Code.KEYFILE, f"the keyfile {path} names no address")
    return Address(raw)


def read_password(path: Path | None, *, prompt: str = "Password of the keyfile: ", confirm: bool = False) -> str:
    """A password from a file of mode 0600 (its last line end is not part of it), or from a prompt if `path` is None.

    `confirm` asks twice, for new keys. Raises PeerFault KEYFILE: file open to others, empty, not UTF-8, or no terminal.
    """
    if path is not None:
        try:
            password = read_private(path, what="password file", code=Code.KEYFILE).decode()
        except UnicodeDecodeError:
            raise PeerFault(Code.KEYFILE, f"the password file {path} is not UTF-8 text") from None
        password = password.removesuffix("\n").removesuffix("\r")
        _check_password(password, f"the password file {path}")
        return password
    if not sys.stdin.isatty():
        raise PeerFault(Code.KEYFILE, "there is no terminal to ask for the password; name a file with --password-file")
    password = getpass.getpass(prompt)
    _check_password(password)
    if confirm and getpass.getpass("Again: ") != password:
        raise PeerFault(Code.KEYFILE, "the two passwords differ")
    return password


def create_password_file(path: Path) -> str:
    """Draws a password, writes it to a new file of mode 0600, returns it. Raises LocalRefusal KEYFILE if it exists."""
    password = secrets.token_urlsafe(24)
    write_private(path, password.encode() + b"\n", code=Code.KEYFILE)
    return password


def _parse(path: Path) -> dict[str, object]:
    raw = read_private(path, what="keyfile", code=Code.KEYFILE)
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict) or content.get("version") != 3:
        raise PeerFault(Code.KEYFILE, f"{path} is not a keyfile of version 3")
    content = {key.lower(): value for key, value in content.items()}
    crypto = content.get("crypto")
    params = crypto.get("kdfparams") if isinstance(crypto, dict) else None
    if not isinstance(params, dict):
        raise PeerFault(Code.KEYFILE, f"{path} is not a keyfile of version 3")
    cost = {name: params.get(name, 1) for name in ("n", "r", "p", "c")}
    if any(not isinstance(value, int) or value < 1 for value in cost.values()):
        raise PeerFault(Code.KEYFILE, f"{path} is not a keyfile of version 3")
    if 128 * cost["n"] * cost["r"] > SCRYPT_MEMORY_BYTES_MAX or cost["p"] > 16 or cost["c"] > PBKDF2_ROUNDS_MAX:
        raise PeerFault(Code.KEYFILE, f"the keyfile {path} asks for more work than this program allows")
    return content


def _draw_secret() -> bytes:
    while True:
        secret = secrets.token_bytes(32)
        try:
            Signer(secret)
        except ValueError:  # zero or above the order of the curve: once in 2^128
            continue
        return secret


def _signer(secret: bytes) -> Signer:
    try:
        return Signer(secret)
    except ValueError:
        raise PeerFault(Code.KEYFILE, "a secret is 32 bytes, above zero and below the order of the curve") from None


def _check_password(password: str, what: str = "the password") -> None:
    if not password:
        raise PeerFault(Code.KEYFILE, f"{what} is empty")
    if len(password.encode()) > PASSWORD_BYTES_MAX:
        raise PeerFault(Code.KEYFILE, f"{what} is longer than {PASSWORD_BYTES_MAX} bytes")
