"""Logs: fields, formats, and nothing secret whatever is passed."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channel.errors import PeerFault
from channel.signing import Signer
from node import keyfile, logs

SIGNATURE = bytes(range(100, 165))


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "node.log"
    logs.configure("debug", path=path)
    yield path
    logs.configure("warning")


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_has_its_fields(path: Path) -> None:
    log = logs.get("broker.peer").bind(channel=b"\x01" * 32)
    log.info("countersigned", turn=7, big=2**60, entries=[b"\x02", "x"])
    (line,) = lines(path)
    assert line["level"] == "info"
    assert line["log"] == "xln.broker.peer"
    assert line["event"] == "countersigned"
    assert line["channel"] == "0x" + "01" * 32
    assert line["turn"] == 7
    assert line["big"] == str(2**60)
    assert line["entries"] == ["0x02", "x"]
    assert path.stat().st_mode & 0o777 == 0o600


def test_signatures_and_named_secrets_do_not_get_in(path: Path) -> None:
    log = logs.get("test")
    log.info(f"got 0x{SIGNATURE.hex()}", sig=SIGNATURE, password="hunter2", key=b"k" * 32, nested={"secret": "s3cret"})
    text = path.read_text()
    assert SIGNATURE.hex() not in text
    assert "hunter2" not in text
    assert "s3cret" not in text
    assert (b"k" * 32).hex() not in text
    assert "0x64656667…(65 bytes)" in text


@pytest.mark.parametrize("form", ["plain", "field", "bytes", "upper", "inside", "trace", "repr"])
def test_a_loaded_key_does_not_get_in(path: Path, tmp_path: Path, form: str) -> None:
    secret = b"\xab" + bytes(range(31))
    keyfile.create(tmp_path / "key", "x", secret, scrypt_n=keyfile.SCRYPT_LIGHT_N)
    signer = keyfile.load(tmp_path / "key", "x")
    log = logs.get("test")
    match form:
        case "plain":
            log.info(f"the key is {secret.hex()}")
        case "field":
            log.info("x", value="0x" + secret.hex())
        case "bytes":
            log.info("x", value=[secret])
        case "upper":
            log.info("x", value=secret.hex().upper())
        case "inside":
            log.info("x", value="00" + secret.hex() + "ff")
        case "trace":
            try:
                raise ValueError(secret.hex())
            except ValueError:
                log.exception("failed")
        case "repr":
            log.info("x", value=signer)
    assert secret.hex() not in path.read_text().lower()
    assert lines(path)


def test_other_hashes_are_kept(path: Path) -> None:
    logs.get("test").info("x", state=b"\x07" * 32)
    assert lines(path)[0]["state"] == "0x" + "07" * 32


def test_other_libraries_speak_at_warning_only(path: Path) -> None:
    logging.getLogger("aiohttp.server").info("quiet")
    logging.getLogger("aiohttp.server").warning("loud")
    assert [line["event"] for line in lines(path)] == ["loud"]


def test_text_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info")
    logs.get("xln").info("a channel opened", channel=b"\x01" * 32, turn=1, who="a b")
    assert 'INFO    xln: a channel opened channel=0x01010101… turn=1 who="a b"' in capsys.readouterr().err


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(PeerFault, match="one of debug, info"):
        logs.configure("loud")


@given(st.binary(min_size=64, max_size=200), st.text(max_size=5))
def test_no_run_of_a_signature_survives(raw: bytes, around: str) -> None:
    assert raw.hex() not in logs.redact(f"{around}{raw.hex()}{around}")


def test_a_signers_repr_has_its_address_only() -> None:
    assert "01" * 32 not in repr(Signer(b"\x01" * 32))
