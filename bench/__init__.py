"""`make bench`: what this machine can do, and what share of it the node reaches.

Four parts, each a list of `Figure`s that stand beside a peer (another library doing the same) or a limit (what the
machine or the protocol allows at most): `limits`, `book`, `core`, `network`. Nothing here is a test: figures are
printed, never asserted on, because they are the machine's. Source: issue of the first version, "what it must show".
"""
