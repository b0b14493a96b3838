"""The attacks use the same keys as the tests of access."""

from tests.service.access.conftest import keyed, keys

__all__ = ["keyed", "keys"]
