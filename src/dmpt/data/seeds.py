"""Where chance begins: seeds that depend on what is drawn and on nothing else."""

import hashlib


def seed_for(*parts: object) -> int:
    """A 64-bit seed that depends on all ``parts``, the same in every process and on every machine."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big")
