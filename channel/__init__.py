"""The channel between two brokers: a functional core.

Types, codecs, hashes, signatures, terms, journal, the transition and its invariants, exposure and replay. Nothing in
this package does I/O or sees a clock, randomness, the environment or a logger: time, nonces and keys are arguments.
"""
