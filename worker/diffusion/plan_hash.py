"""Names a chain's table of numbers by its hash."""

import hashlib
from dataclasses import fields
from functools import lru_cache

from torch import Tensor

from worker.diffusion.samplers import SamplerPlan

HASHES_KEPT = 256


@lru_cache(maxsize=HASHES_KEPT)
def plan_sha256(*plans: SamplerPlan) -> str:
    """SHA-256 over every number of the plans of a request's legs, in order. Plans are compared by identity here."""
    digest = hashlib.sha256()
    for plan in plans:
        for field in fields(plan):
            value = getattr(plan, field.name)
            if value == ():
                continue  # says nothing: plans without it are named as they were before there was such a field
            data = value.contiguous().numpy().tobytes() if isinstance(value, Tensor) else repr(value).encode()
            digest.update(f"{field.name} {len(data)}\n".encode() + data)
    return digest.hexdigest()
