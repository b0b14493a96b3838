"""Methods that take the fields of `POST /generate` as keyword arguments, typed as the request itself is."""

from collections.abc import Callable, Mapping
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from service.schemas import GenerateRequest

P = ParamSpec("P")
R = TypeVar("R")


class _Fields(Generic[P]):
    """Decorators that change nothing: for type checkers and editors a method of `**fields` has the parameters of the
    request, so that a field which the request gains is one of the clients too."""

    def __init__(self, request: Callable[P, GenerateRequest]) -> None: ...

    def alone(self, method: Callable[..., R]) -> Callable[Concatenate[Any, P], R]:
        return method

    def after_text(self, method: Callable[..., R]) -> Callable[Concatenate[Any, str, P], R]:
        """For a method that takes a string before them."""
        return method


request_fields = _Fields(GenerateRequest)


def body_of(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The body of POST /generate. Its rules are the gateway's: nothing is checked here."""
    return {name: value for name, value in fields.items() if value is not None}
