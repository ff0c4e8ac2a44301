// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {MessageHashUtils} from "@openzeppelin/contracts/utils/cryptography/MessageHashUtils.sol";

import {ChannelHashes, FixedPart, Signature} from "./ChannelHashes.sol";
import {IAdjudicator} from "./IAdjudicator.sol";

/// @title Decides which outcome of a channel holds
/// @notice This version knows one way: `conclude`, with one final state that both brokers have signed. Custodies ask
/// `outcomeOf` before they pay. Holds no funds and has no owner.
contract Adjudicator is IAdjudicator {
    /// @notice Above what 64 rows of every kind take; keeps the cost of a conclude bounded for everybody.
    uint256 public constant MAX_APP_DATA_BYTES = 64 * 1024;

    /// @inheritdoc IAdjudicator
    mapping(bytes32 channelId => bytes32 outcomeHash) public outcomeOf;

    /// @notice A channel has ended: both brokers signed a final state with this outcome.
    event Concluded(bytes32 indexed channelId, uint48 turnNum, bytes32 outcomeHash);

    error AdjudicatorWrongChain(uint256 chainId);
    error AdjudicatorWrongAppDefinition(address appDefinition);
    error AdjudicatorInvalidParticipants();
    error AdjudicatorAppDataTooLong(uint256 length);
    error AdjudicatorZeroOutcome();
    error AdjudicatorAlreadyConcluded(bytes32 channelId);
    error AdjudicatorHighS(uint256 index);
    error AdjudicatorInvalidSignature(uint256 index);
    error AdjudicatorWrongSigner(uint256 index, address signer);

    /// @notice Record the outcome of a final state that both brokers have signed. Anyone may send it: the signatures
    /// say everything, and a broker that is offline must not be able to hold up the other.
    /// @dev chainId and appDefinition are part of what is signed, and must be this chain and this contract: that is what
    /// binds a signature to one deployment. Who signed one final state signs none with another outcome, so the first
    /// conclude is the last.
    /// @param signatures in the order of the participants
    function conclude(
        FixedPart calldata fixedPart,
        uint48 turnNum,
        bytes calldata appData,
        bytes32 outcomeHash,
        Signature[2] calldata signatures
    ) external {
        if (fixedPart.chainId != block.chainid) revert AdjudicatorWrongChain(fixedPart.chainId);
        if (fixedPart.appDefinition != address(this)) revert AdjudicatorWrongAppDefinition(fixedPart.appDefinition);
        address[] calldata participants = fixedPart.participants;
        // Ascending makes them distinct, and gives a pair of brokers one channelId per nonce.
        if (participants.length != 2 || participants[0] == address(0) || participants[0] >= participants[1]) {
            revert AdjudicatorInvalidParticipants();
        }
        if (appData.length > MAX_APP_DATA_BYTES) revert AdjudicatorAppDataTooLong(appData.length);
        if (outcomeHash == bytes32(0)) revert AdjudicatorZeroOutcome(); // zero means "not concluded"

        bytes32 channelId = ChannelHashes.channelId(fixedPart);
        if (outcomeOf[channelId] != bytes32(0)) revert AdjudicatorAlreadyConcluded(channelId);

        bytes32 digest = MessageHashUtils.toEthSignedMessageHash(
            ChannelHashes.stateHash(
                turnNum, true, channelId, ChannelHashes.appPartHash(fixedPart, appData), outcomeHash
            )
        );
        for (uint256 i = 0; i < 2; ++i) {
            _requireSigner(digest, signatures[i], participants[i], i);
        }

        outcomeOf[channelId] = outcomeHash;
        emit Concluded(channelId, turnNum, outcomeHash);
    }

    function _requireSigner(bytes32 digest, Signature calldata signature, address expected, uint256 index)
        private
        pure
    {
        (address signer, ECDSA.RecoverError problem,) = ECDSA.tryRecover(digest, signature.v, signature.r, signature.s);
        if (problem == ECDSA.RecoverError.InvalidSignatureS) revert AdjudicatorHighS(index);
        if (problem != ECDSA.RecoverError.NoError) revert AdjudicatorInvalidSignature(index);
        if (signer != expected) revert AdjudicatorWrongSigner(index, signer);
    }
}
