"""Randomness as a function of (seed, purpose, step), never of what was drawn before, as in EDM2's training loop."""

import hashlib

import torch


def generator(seed: int, purpose: str, step: int = 0) -> torch.Generator:
    """A fresh CPU generator that is the same for the same arguments, and unlike any other."""
    digest = hashlib.sha256(f"{purpose}/{seed}/{step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
