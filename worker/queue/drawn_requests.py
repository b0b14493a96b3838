"""What a worker knows of the pixels that it drew, for the exact cache; see `worker.contract.drawn`."""

from worker.contract import SamplingRequest
from worker.contract.drawn import Drawing, device_kind, drawn_digest
from worker.engine.messages import Succeeded
from worker.queue.status import Catalogue


class DrawnRequests:
    def __init__(self, catalogue: Catalogue, device: str, arithmetic: str) -> None:
        self._catalogue = catalogue
        self._device = device_kind(device)
        self._arithmetic = arithmetic

    def digest(self, request: SamplingRequest, event: Succeeded) -> str | None:
        """What the images can be found by; None where they depend on more than the request."""
        if not event.exact:
            return None
        form = next((model.form for model in self._catalogue.describe() if model.name == event.model), None)
        drawing = Drawing(
            version=event.version,
            weights_sha256=event.weights_sha256,
            device=self._device,
            arithmetic=self._arithmetic,
            dtype=event.dtype,
            form=form,
        )
        return drawn_digest(request, drawing)
