"""Makes the receipts of a request's images: one for the job, and one in each picture."""

from collections.abc import Sequence

from worker.contract.receipts import Provenance, ReceiptImage, canonical, receipt_of, receipt_of_image
from worker.contract.signing import Signer
from worker.outputs.picture_text import PictureText


class ReceiptWriter:
    """
    Args:
        signer: None: receipts are not signed.
    """

    def __init__(self, signer: Signer | None = None) -> None:
        self._signer = signer

    def of_job(self, provenance: Provenance, images: Sequence[ReceiptImage]) -> str:
        """In canonical form."""
        document = receipt_of(provenance, images)
        return canonical(self._signer.sign(document) if self._signer else document).decode()

    def of_picture(self, provenance: Provenance, image: ReceiptImage) -> PictureText:
        document = receipt_of_image(provenance, image)
        return PictureText(self._signer.sign(document) if self._signer else document)
