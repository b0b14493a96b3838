"""Loads that failed: why, and whether trying again could end otherwise."""

import errno
import logging
from collections.abc import Iterator
from dataclasses import dataclass

from worker.models.errors import BrokenModel, ModelError, ModelUnavailable
from worker.networks.memory_errors import out_of_memory
from worker.store.errors import ModelNotFound, StoreError, StoreNotFound, VersionNotFound
from worker.store.inspection import Fingerprint

log = logging.getLogger(__name__)

PASSING_ERRNOS = frozenset(
    {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.EINTR}
)
"""What a network mount or a full machine answers today and not tomorrow."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a version could not be loaded, and when.

    Attributes:
        version: which one; None when it was not even known which.
        files: the version's fingerprint before it was tried; None: there was no such version.
        at: monotonic seconds.
        may_pass: the reason lies in the machine and not in the files.
    """

    error: ModelError
    version: str | None
    files: Fingerprint | None
    at: float
    may_pass: bool = False

    @property
    def depends_on_files(self) -> bool:
        """Only another content, or other rights, can change the outcome."""
        return self.files is not None and not self.may_pass


def may_pass(error: BaseException) -> bool:
    """Whether the same files could be loaded later: no memory, or a file system that is away."""
    return any(
        out_of_memory(cause) or (isinstance(cause, OSError) and cause.errno in PASSING_ERRNOS)
        for cause in _causes(error)
    )


def reason_of(error: Exception, model: str, version: str | None) -> ModelError:
    """What is told outside. The store's texts on missing folders name the folder, which is nobody's business there."""
    match error:
        case ModelError():
            return error
        case ModelNotFound() | StoreNotFound():
            return ModelUnavailable(f"there is no model {model}")
        case VersionNotFound():
            return ModelUnavailable(str(error))
        case StoreError():
            return BrokenModel(str(error))
        case _:
            log.error("loading %s/%s", model, version, exc_info=error)
            return BrokenModel(f"{model}/{version}: {type(error).__name__}: {error}")


def _causes(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__
