"""The session core: the good handshake, and each way in which it must fail, by its code."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from eth_account import Account
from eth_account.messages import encode_typed_data
from hypothesis import given
from hypothesis import strategies as st

from channel.errors import Code, LocalRefusal, PeerFault, XlnError
from channel.signing import HALF_ORDER, Signer
from channel.typed import HELLO, node_domain
from channel.units import Address
from rpc.jsonrpc import RemoteError
from rpc.session import Established, Failed, Network, Payload, Role, Session, State

ALICE, BOB, MALLORY = Signer(b"\x01" * 32), Signer(b"\x02" * 32), Signer(b"\x03" * 32)
NETWORK = Network(0x7A69, Address(b"\xad" * 20))


def dialer(signer: Signer = ALICE, *, expected: Address = BOB.address, tag: int = 1, **options: Any) -> Session:
    options = {"network": NETWORK, **options}
    return Session(
        role=Role.DIALER,
        signer=signer,
        expected=expected,
        nonce=bytes([tag]) * 32,
        ephemeral_secret=bytes([tag, 1]) * 16,
        **options,
    )


def listener(signer: Signer = BOB, *, tag: int = 2, **options: Any) -> Session:
    options = {"network": NETWORK, **options}
    return Session(
        role=Role.LISTENER, signer=signer, nonce=bytes([tag]) * 32, ephemeral_secret=bytes([tag, 2]) * 16, **options
    )


def only(messages: list[str | bytes]) -> str | bytes:
    (message,) = messages
    return message


def deliver(sender: Session, receiver: Session) -> None:
    for message in sender.data_to_send():
        receiver.receive_data(message)


def opened(**options: Any) -> tuple[Session, Session]:
    a, b = dialer(**options), listener(**options)
    deliver(a, b)
    deliver(b, a)
    deliver(a, b)
    assert a.events_received() == [Established(peer=BOB.address, version=1)]
    assert b.events_received() == [Established(peer=ALICE.address, version=1)]
    assert a.state is b.state is State.OPEN
    return a, b


def failure(session: Session) -> XlnError:
    assert session.state is State.FAILED
    event = session.events_received()[-1]
    assert isinstance(event, Failed)
    return event.error


def assert_fails(session: Session, code: Code, *, told: bool = True) -> None:
    """The session failed with `code`, and its last message says so to the other side."""
    error = failure(session)
    assert isinstance(error, PeerFault)
    assert error.code is code, error
    outgoing = session.data_to_send()
    assert bool(outgoing) == told
    if told:
        assert json.loads(outgoing[-1])["error"]["data"]["code"] == code.label
        other = listener()
        other.receive_data(outgoing[-1])
        remote = failure(other)
        assert isinstance(remote, RemoteError)
        assert (remote.code, remote.message) == (code, error.message)
        assert other.data_to_send() == []
    session.receive_data("anything")
    session.receive_data(b"anything")
    assert session.events_received() == []
    assert session.data_to_send() == []


# a good session


def test_handshake_and_frames_both_ways() -> None:
    a, b = opened()
    assert (a.version, b.version) == (1, 1)
    for count in range(3):
        for sender, receiver in ((a, b), (b, a)):
            payload = f"frame {count}".encode()
            sender.send(payload)
            sealed = only(sender.data_to_send())
            assert isinstance(sealed, bytes)
            assert payload not in sealed
            receiver.receive_data(sealed)
            assert receiver.events_received() == [Payload(data=payload)]


@given(st.lists(st.tuples(st.booleans(), st.binary(max_size=100)), max_size=20))
def test_any_interleaving_arrives_in_order(frames: list[tuple[bool, bytes]]) -> None:
    a, b = opened()
    for from_a, payload in frames:
        (a if from_a else b).send(payload)
    deliver(a, b)
    deliver(b, a)
    assert b.events_received() == [Payload(data=payload) for from_a, payload in frames if from_a]
    assert a.events_received() == [Payload(data=payload) for from_a, payload in frames if not from_a]


def test_the_dialer_may_send_at_once_and_the_listener_opens_on_the_proof() -> None:
    a, b = dialer(), listener()
    deliver(a, b)
    assert b.state is State.AWAIT_PROOF
    assert b.events_received() == []
    with pytest.raises(LocalRefusal) as caught:
        b.send(b"too early")
    assert caught.value.code is Code.PEER_UNAVAILABLE
    deliver(b, a)
    a.send(b"at once")
    deliver(a, b)
    assert b.events_received() == [Established(peer=ALICE.address, version=1), Payload(data=b"at once")]


def test_the_highest_common_version_is_spoken() -> None:
    a, b = dialer(versions=(1, 3)), listener(versions=(2, 7))
    deliver(a, b)
    deliver(b, a)
    deliver(a, b)
    assert (a.version, b.version) == (3, 3)


def test_the_signature_is_eip712_as_the_general_library_makes_it() -> None:
    wire = json.loads(only(dialer().data_to_send()))["hello"]
    fields = [{"name": name, "type": kind} for name, kind in HELLO.members]
    message = encode_typed_data(
        domain_data={
            "name": "XLN",
            "version": "1",
            "chainId": NETWORK.chain_id,
            "verifyingContract": "0x" + NETWORK.adjudicator.hex(),
        },
        message_types={"Hello": fields},
        message_data={name: wire[name] for name, _ in HELLO.members},
    )
    assert Account.recover_message(message, signature=wire["sig"]) == wire["from"]


# hellos that are refused


def sign(hello: dict[str, Any], signer: Signer, network: Network = NETWORK) -> None:
    values = [
        bytes.fromhex(hello[name][2:]) if isinstance(hello[name], str) else hello[name] for name, _ in HELLO.members
    ]
    hello["sig"] = "0x" + signer.sign(network.domain.digest(HELLO.hash(*values))).hex()


def high_s(signature: str) -> str:
    raw = bytes.fromhex(signature[2:])
    s = (2 * HALF_ORDER + 1) - int.from_bytes(raw[32:64], "big")
    return "0x" + (raw[:32] + s.to_bytes(32, "big") + bytes((55 - raw[64],))).hex()


Change = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("change", "signed", "code"),
    [
        (lambda h: h.update(chain="0x1"), True, Code.SESSION_HELLO),
        (lambda h: h.update(adjudicator="0x" + "11" * 20), True, Code.SESSION_HELLO),
        (lambda h: h.update(to="0x" + MALLORY.address.hex()), True, Code.SESSION_HELLO),
        (lambda h: h.update({"from": "0x" + BOB.address.hex()}), True, Code.SESSION_HELLO),
        (lambda h: h.update({"from": "0x" + MALLORY.address.hex()}), True, Code.SESSION_HELLO),
        (lambda h: h.update(role=1), True, Code.SESSION_HELLO),
        (lambda h: h.update(role=2), False, Code.SESSION_HELLO),
        (lambda h: h.update(role="0"), False, Code.SESSION_HELLO),
        (lambda h: h.update(peerNonce="0x" + "11" * 32), True, Code.SESSION_HELLO),
        (lambda h: h.update(nonce="0x" + "00" * 32), True, Code.SESSION_HELLO),
        (lambda h: h.update(nonce="0x" + "02" * 32), True, Code.SESSION_HELLO),
        (lambda h: h.update(nonce="0x11"), False, Code.SESSION_HELLO),
        (lambda h: h.update(key="0x" + "00" * 32), True, Code.SESSION_HELLO),
        (lambda h: h.update(key="0x" + "22" * 32), False, Code.SESSION_HELLO),
        (lambda h: h.update(maxVersion=2), False, Code.SESSION_HELLO),
        (lambda h: h.update(maxVersion=2**16), False, Code.SESSION_HELLO),
        (lambda h: h.update(sig="0x" + "00" * 65), False, Code.SESSION_HELLO),
        (lambda h: h.update(sig=high_s(h["sig"])), False, Code.SESSION_HELLO),
        (lambda h: h.pop("sig"), False, Code.SESSION_HELLO),
        (lambda h: h.pop("key"), False, Code.SESSION_HELLO),
        (lambda h: h.update(extra=1), False, Code.SESSION_HELLO),
        (lambda h: h.update(minVersion=2, maxVersion=9), True, Code.SESSION_VERSION),
        (lambda h: h.update(minVersion=0, maxVersion=0), True, Code.SESSION_VERSION),
        (lambda h: h.update(minVersion=9, maxVersion=1), True, Code.SESSION_VERSION),
    ],
)
def test_a_changed_hello(change: Change, signed: bool, code: Code) -> None:
    value = json.loads(only(dialer().data_to_send()))
    change(value["hello"])
    if signed:
        sign(value["hello"], ALICE)
    session = listener()
    session.receive_data(json.dumps(value))
    assert_fails(session, code)


def test_a_wrong_network_is_named() -> None:
    session = listener(network=Network(1, NETWORK.adjudicator))
    deliver(dialer(), session)
    error = failure(session)
    assert "wrong network" in error.message
    assert "0x7a69" in error.message


def test_the_signature_binds_the_network() -> None:
    other = Network(0x7A69, Address(b"\x11" * 20))
    value = json.loads(only(dialer().data_to_send()))
    sign(value["hello"], ALICE, other)
    session = listener()
    session.receive_data(json.dumps(value))
    assert_fails(session, Code.SESSION_HELLO)
    assert node_domain(0x7A69, NETWORK.adjudicator) == NETWORK.domain


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("hello", Code.PARSE),
        ('{"hello":{},"hello":{}}', Code.DUPLICATE_KEY),
        ('{"hello":1.5}', Code.NUMBER),
        (json.dumps({"hello": "x" * 5000}), Code.FRAME_TOO_LARGE),
        ("[]", Code.SESSION_HELLO),
        ("{}", Code.SESSION_HELLO),
        ('{"hello":[]}', Code.SESSION_HELLO),
        ('{"hello":{},"more":1}', Code.SESSION_HELLO),
        ('{"error":1}', Code.SESSION_HELLO),
        ('{"jsonrpc":"2.0","id":1,"method":"ping"}', Code.SESSION_HELLO),
        (b"", Code.SESSION_HELLO),
        (b"\x00" * 40, Code.SESSION_HELLO),
    ],
)
def test_a_first_message_that_is_no_hello(message: str | bytes, code: Code) -> None:
    for session in (listener(), dialer()):
        session.data_to_send()
        session.receive_data(message)
        assert_fails(session, code)


def test_an_unknown_peer_and_he_must_have_proved_himself() -> None:
    asked: list[Address] = []

    def is_known(address: Address) -> bool:
        asked.append(address)
        return address == ALICE.address

    session = listener(is_known=is_known)
    deliver(dialer(MALLORY), session)
    assert_fails(session, Code.SESSION_UNKNOWN_PEER)
    value = json.loads(only(dialer().data_to_send()))
    sign(value["hello"], MALLORY)
    session = listener(is_known=is_known)
    session.receive_data(json.dumps(value))
    assert_fails(session, Code.SESSION_HELLO)
    assert asked == [MALLORY.address]


def test_somebody_else_answers() -> None:
    a = dialer()
    a.data_to_send()
    m = listener(MALLORY)
    deliver(dialer(expected=MALLORY.address), m)
    deliver(m, a)
    assert_fails(a, Code.SESSION_HELLO)


def test_no_common_version_is_seen_by_both_sides() -> None:
    a, b = dialer(versions=(1, 1)), listener(versions=(2, 3))
    deliver(a, b)
    assert b.state is State.FAILED
    deliver(b, a)
    error = failure(a)
    assert isinstance(error, RemoteError)
    assert error.code is Code.SESSION_VERSION
    assert a.data_to_send() == []


# replays and reflections


def test_own_hello_sent_back() -> None:
    a = dialer()
    a.receive_data(only(a.data_to_send()))
    assert_fails(a, Code.SESSION_HELLO)
    b = listener()
    deliver(dialer(), b)
    b.receive_data(only(b.data_to_send()))
    assert_fails(b, Code.SESSION_SEALED)


def test_a_node_that_dials_itself() -> None:
    b = listener()
    deliver(dialer(BOB, expected=BOB.address), b)
    assert_fails(b, Code.SESSION_HELLO)


def test_a_replayed_dialer_hello_gets_nowhere() -> None:
    a, first = dialer(), listener()
    hello = only(a.data_to_send())
    first.receive_data(hello)
    deliver(first, a)
    proof = only(a.data_to_send())
    for again in (proof, b"\x00" * 16, b""):
        b = listener(tag=9)
        b.receive_data(hello)
        assert b.state is State.AWAIT_PROOF
        b.data_to_send()
        b.receive_data(again)
        assert_fails(b, Code.SESSION_SEALED)


def test_a_replayed_listener_hello_is_refused() -> None:
    a, b = dialer(), listener()
    deliver(a, b)
    answer = only(b.data_to_send())
    again = dialer(tag=7)
    again.data_to_send()
    again.receive_data(answer)
    assert_fails(again, Code.SESSION_HELLO)


def test_the_first_sealed_frame_must_be_empty() -> None:
    a, b = dialer(), listener()
    deliver(a, b)
    deliver(b, a)
    a.data_to_send()
    a._sent_count = 0
    a.send(b"payload")
    deliver(a, b)
    assert_fails(b, Code.SESSION_SEALED)


# sealed frames


def three_frames() -> tuple[Session, Session, list[bytes]]:
    a, b = opened()
    for count in range(3):
        a.send(bytes([count]) * 10)
    frames = a.data_to_send()
    return a, b, [frame for frame in frames if isinstance(frame, bytes)]


@pytest.mark.parametrize("order", [(0, 0), (1,), (0, 2), (0, 1, 0), (2, 1, 0)])
def test_repeated_left_out_or_reordered(order: tuple[int, ...]) -> None:
    _, b, frames = three_frames()
    for index in order:
        b.receive_data(frames[index])
    assert_fails(b, Code.SESSION_SEALED)


@given(st.integers(0, 25), st.integers(1, 255))
def test_one_changed_byte(position: int, flip: int) -> None:
    _, b, frames = three_frames()
    altered = bytearray(frames[0])
    altered[position] ^= flip
    b.receive_data(bytes(altered))
    assert_fails(b, Code.SESSION_SEALED)


def test_cut_extended_and_sent_back() -> None:
    for change in (lambda f: f[:-1], lambda f: f + b"\x00", lambda f: b"", lambda f: f[:15]):
        _, b, frames = three_frames()
        b.receive_data(change(frames[0]))
        assert_fails(b, Code.SESSION_SEALED)
    a, b, frames = three_frames()
    b.send(b"so that the next count is the same in both directions")
    deliver(b, a)
    a.events_received()
    a.receive_data(frames[0])
    assert_fails(a, Code.SESSION_SEALED)


def test_frames_of_another_session() -> None:
    _, _, frames = three_frames()
    a, b = dialer(tag=5), listener(tag=6)
    deliver(a, b)
    deliver(b, a)
    deliver(a, b)
    b.receive_data(frames[0])
    assert_fails(b, Code.SESSION_SEALED)


def test_plain_text_inside_a_session() -> None:
    for message in ('{"jsonrpc":"2.0","id":1,"method":"ping"}', only(dialer().data_to_send())):
        _, b = opened()
        b.receive_data(message)
        assert_fails(b, Code.SESSION_SEALED)


def test_frames_of_1_mib_pass_and_2_mib_do_not() -> None:
    a, b = opened()
    a.send(b"x" * 2**20)
    deliver(a, b)
    assert b.events_received() == [Payload(data=b"x" * 2**20)]
    with pytest.raises(LocalRefusal) as caught:
        a.send(b"x" * (2**20 + 1))
    assert caught.value.code is Code.FRAME_TOO_LARGE
    assert a.data_to_send() == []
    assert a.state is State.OPEN
    a._max_payload_bytes = 2**22
    a.send(b"x" * 2**21)
    deliver(a, b)
    assert_fails(b, Code.FRAME_TOO_LARGE)


def test_a_last_word_ends_the_session_without_an_answer() -> None:
    a, b = opened()
    b.fail(LocalRefusal(Code.BUSY, "no"))
    deliver(b, a)
    error = failure(a)
    assert (type(error), error.code, error.message) == (RemoteError, Code.BUSY, "no")
    assert a.data_to_send() == []
    with pytest.raises(LocalRefusal):
        a.send(b"")


@given(st.lists(st.binary(max_size=60) | st.text(max_size=60), max_size=5))
def test_no_input_raises(messages: list[str | bytes]) -> None:
    for session in (dialer(), listener(), *opened()):
        for message in messages:
            session.receive_data(message)
        assert all(isinstance(event, Failed) for event in session.events_received())
