"""Jobs are JSON. RQ's default is pickle, which runs code that it reads."""

from typing import Never

from rq.exceptions import DeserializationError
from rq.serializers import DefaultSerializer


def _refuse_pickle(*_: object, **__: object) -> Never:
    raise DeserializationError("pickle is disabled in this process: jobs are JSON")


def disable_pickle() -> None:
    """Make RQ's default serializer refuse in this process, whichever path of RQ forgets to name ours."""
    DefaultSerializer.loads = staticmethod(_refuse_pickle)
    DefaultSerializer.dumps = staticmethod(_refuse_pickle)
