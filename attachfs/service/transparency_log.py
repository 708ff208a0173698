"""Massifs and seals of transparency logs, from where the service publishes them. Without credentials.

Owns: their addresses. What they hold, proof/ reads.
"""

import httpx

from attachfs import model
from attachfs.errors import NotFound
from attachfs.service.attempt import whole
from attachfs.service.auth import NoAuth
from attachfs.service.messages import Request
from attachfs.service.transport import Transport

PATH = "/verifiabledata/merklelogs"  # below the service's address
_MASSIF_LIMIT = 32 << 20  # bytes; a full one has 1.5 MiB
_SEAL_LIMIT = 1 << 16


class LogClient:
    """The logs at an address.

    Args:
        http: the connections; whoever made them closes them.
        base_url: where logs are, without the part that begins `/v1/mmrs`.
        timeout: seconds that a request may take.
        max_connections: requests in flight at once.
    """

    def __init__(
        self, http: httpx.AsyncClient, base_url: str, *, timeout: float = 60, max_connections: int = 4
    ) -> None:
        self._transport = Transport(
            http, base_url, NoAuth(), timeout=timeout, max_connections=max_connections
        )

    async def massif(self, tenant: str, number: int) -> bytes:
        """Return a massif's file as received."""
        return await self._fetch(tenant, f"massifs/{number:016d}.log", _MASSIF_LIMIT)

    async def seal(self, tenant: str, number: int) -> bytes:
        """Return the seal of a massif as received."""
        return await self._fetch(tenant, f"massifseals/{number:016d}.sth", _SEAL_LIMIT)

    async def _fetch(self, tenant: str, name: str, limit: int) -> bytes:
        if not model.is_uuid(tenant):
            raise NotFound("no such log can be")
        request = Request("log", f"/v1/mmrs/tenant/{tenant}/0/{name}", credentials=False, of_store=True)
        return await self._transport.perform(request, whole(limit))
