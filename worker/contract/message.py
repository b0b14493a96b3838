"""What every message between the processes has in common."""

from pydantic import BaseModel, ConfigDict


class Message(BaseModel):
    """What every message shares: it is immutable, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
