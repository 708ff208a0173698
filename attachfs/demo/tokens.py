"""Bearer tokens of the demo ledger: issue, accept, expire. Nothing here is secure."""

import secrets
import time
from collections.abc import Callable, Iterable


class Tokens:
    """The tokens that are valid now.

    Args:
        lifetime: seconds until an issued token expires.
        static: tokens that never expire.
        clock: seconds from any origin, for tests.
    """

    def __init__(
        self, lifetime: float, static: Iterable[str] = (), clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.lifetime = lifetime
        self._clock = clock
        self._static = set(static)
        self._expiry: dict[str, float] = {}

    def issue(self) -> str:
        """Return a new token."""
        now = self._clock()
        self._expiry = {token: expiry for token, expiry in self._expiry.items() if expiry > now}
        token = f"demo.{secrets.token_urlsafe(32)}"
        self._expiry[token] = now + self.lifetime
        return token

    def revoke_issued(self) -> None:
        """Make every issued token invalid at once; static ones stay."""
        self._expiry.clear()

    def accepts(self, authorization: str) -> bool:
        """Whether an `Authorization` header's value is good."""
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer":
            return False
        return token in self._static or self._expiry.get(token, 0.0) > self._clock()
