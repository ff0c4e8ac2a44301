"""Every signed struct against eth_account's general EIP-712 encoder."""

from typing import Any

import pytest
from eth_account.messages import encode_typed_data
from hypothesis import given
from hypothesis import strategies as st

from channel import typed
from channel.hashing import keccak
from channel.typed import Domain, TypedStruct, collateral_domain, custody_domain, node_domain
from channel.units import Address, format_address

STRUCTS = {name: value for name, value in vars(typed).items() if isinstance(value, TypedStruct)}
VERIFYING = Address(bytes([0xAD]) * 20)
DOMAINS = (
    (node_domain(31337, VERIFYING), "XLN"),
    (collateral_domain(31337, VERIFYING), "XLN Collateral"),
    (custody_domain(31337, VERIFYING), "XLN Custody"),
)


def values_of(abi_type: str) -> st.SearchStrategy[Any]:
    if abi_type.endswith("[]"):
        return st.lists(values_of(abi_type[:-2]), max_size=4)
    if abi_type.startswith("uint"):
        return st.integers(0, 2 ** int(abi_type[4:]) - 1)
    return {
        "address": st.binary(min_size=20, max_size=20),
        "bytes32": st.binary(min_size=32, max_size=32),
        "bytes": st.binary(max_size=70),
        "string": st.text(max_size=70),
        "bool": st.booleans(),
    }[abi_type]


def for_library(abi_type: str, value: Any) -> Any:
    if abi_type.endswith("[]"):
        return [for_library(abi_type[:-2], item) for item in value]
    return format_address(value) if abi_type == "address" else value


def oracle(struct: TypedStruct, domain: Domain, values: list[Any]) -> bytes:
    types = {struct.name: [{"name": name, "type": abi_type} for name, abi_type in struct.members]}
    data = {name: for_library(abi_type, value) for (name, abi_type), value in zip(struct.members, values, strict=True)}
    domain_data = {
        "name": domain.name,
        "version": "1",
        "chainId": domain.chain_id,
        "verifyingContract": format_address(domain.verifying_contract),
    }
    message = encode_typed_data(domain_data, types, data)
    return keccak(b"\x19" + message.version + message.header + message.body)


@pytest.mark.parametrize("name", sorted(STRUCTS))
@given(data=st.data())
def test_digests_are_those_of_eth_account(name: str, data: st.DataObject) -> None:
    struct = STRUCTS[name]
    values = [data.draw(values_of(abi_type), label=member) for member, abi_type in struct.members]
    domain = data.draw(st.sampled_from([d for d, _ in DOMAINS]))
    assert domain.digest(struct.hash(*values)) == oracle(struct, domain, values)


def test_every_domain_and_struct_has_its_own_hash() -> None:
    assert [domain.name for domain, _ in DOMAINS] == [name for _, name in DOMAINS]
    assert len({domain.separator for domain, _ in DOMAINS}) == 3
    assert len({struct.type_hash for struct in STRUCTS.values()}) == len(STRUCTS) >= 11
    assert node_domain(1, VERIFYING).separator != node_domain(2, VERIFYING).separator


def test_values_that_do_not_fit_are_errors() -> None:
    struct = TypedStruct("All(uint8 small,address who,bytes32 id,bool flag,bytes raw)")
    good = (255, bytes(20), bytes(32), True, b"x")
    struct.hash(*good)
    for index, wrong in ((0, 256), (0, -1), (1, bytes(19)), (2, bytes(33)), (3, 2)):
        values = list(good)
        values[index] = wrong
        with pytest.raises(ValueError, match=r"fit|bytes|32"):
            struct.hash(*values)
    with pytest.raises(ValueError):
        struct.hash(*good, 1)
    with pytest.raises(ValueError, match="no EIP-712 encoder for int8"):
        TypedStruct("Bad(int8 x)")
