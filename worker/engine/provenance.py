"""How a request's images came to be: what its receipt says, as far as the engine knows it."""

from functools import cache
from importlib.metadata import version

import torch

from worker.contract.receipts import Computation, Provenance
from worker.diffusion.plan_hash import plan_sha256
from worker.engine.admission import Admission
from worker.networks.device import processor_name

LIBRARIES = ("reverie", "torch", "diffusers", "transformers")


def provenance_of(admission: Admission) -> Provenance:
    model = admission.model
    return Provenance(
        request=model.resolved(admission.request),
        weights_sha256=model.weights_sha256,
        components=dict(model.components),
        plan_sha256=plan_sha256(*admission.plans),
        computation=Computation(
            device=model.device.type,
            processor=processor_name(model.device),
            dtype=model.execution.dtype,
            form=model.execution.form.value,
            exact=model.execution.exact,
            checked=True if model.checker is not None else None,
            tile_px=model.codec.tile_px(admission.last_shape),
            versions=_versions(model.device.type),
        ),
    )


def arithmetic_of(device: torch.device, tile_above_pixels: int | None = None, *, safety_checker: bool = False) -> str:
    """Equal where equal requests of one dtype and form round alike; see `WorkerStatus`."""
    versions = ", ".join(f"{name} {version}" for name, version in _versions(device.type).items())
    checked = ", safety checker" if safety_checker else ""
    tiles = "" if tile_above_pixels is None else f", tiles above {tile_above_pixels} pixels"
    return f"{processor_name(device)}, {versions}{tiles}{checked}"


@cache
def _versions(device_type: str) -> dict[str, str]:
    found = {name: version(name) for name in LIBRARIES}
    if device_type == "cuda" and torch.version.cuda is not None:
        found["cuda"] = torch.version.cuda
    return found
