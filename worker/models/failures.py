"""Failed loads: why, and whether trying again could end otherwise."""

import errno
import logging
from collections.abc import Iterator
from dataclasses import dataclass

from worker.models.errors import BrokenModel, ModelError, ModelUnavailable, TemporaryLoadError
from worker.networks.memory_errors import out_of_memory
from worker.store.errors import LoraNotFound, ModelNotFound, StoreError, StoreNotFound, VersionNotFound
from worker.store.inspection import Fingerprint

log = logging.getLogger(__name__)

TEMPORARY_ERRNOS = frozenset(
    {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.EINTR}
)
"""What a network mount or a full machine answers today and not tomorrow."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a version could not be loaded, and when.

    Attributes:
        version: None when `current` could not be read.
        files: the version's fingerprint before the load; None if there was no such version.
        at: monotonic seconds.
        attempts: loads that failed in a row while a request waited.
    """

    error: ModelError
    version: str | None
    files: Fingerprint | None
    at: float
    attempts: int = 0

    @property
    def depends_on_files(self) -> bool:
        """Whether only another content, or other rights, can change the outcome."""
        return self.files is not None and not self.error.retryable


def lacks_memory(error: BaseException) -> bool:
    """Whether the load failed because an allocation did."""
    return any(out_of_memory(cause) for cause in _causes(error))


def reason_of(error: Exception, model: str, version: str | None) -> ModelError:
    """The error as users see it. The store's own texts on missing folders name the folder, which is not for them."""
    where = f"{model}/{version}"
    if lacks_memory(error) or any(_is_temporary(cause) for cause in _causes(error)):
        return TemporaryLoadError(f"{where}: can't be loaded now: {_one_line(error)}")
    match error:
        case ModelError():
            return error.copy()
        case ModelNotFound() | StoreNotFound():
            return ModelUnavailable(f"there is no model {model}")
        case VersionNotFound() | LoraNotFound():
            return ModelUnavailable(str(error))
        case StoreError():
            return BrokenModel(str(error))
        case _:
            log.error("loading %s", where, exc_info=error)
            return BrokenModel(f"{where}: {_one_line(error)}")


def _is_temporary(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in TEMPORARY_ERRNOS


def _one_line(error: Exception) -> str:
    if isinstance(error, ModelError | StoreError):
        return str(error)
    return " ".join(f"{type(error).__name__}: {error}".split())


def _causes(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__
