# Made from ../_async/_admin.py by `make sdk`. Edit that one.

"""What operators do: see the queues, drain pools and workers. Needs a key with the scope `admin`."""

from collections.abc import Mapping
from typing import Any

from vitascope_client._sync._http import Http


class Admin:
    """`client.admin`. Answers are the server's JSON; seconds are GPU-seconds.

    Raises:
        PermissionDeniedError: the key has not got the scope `admin`.
    """

    def __init__(self, http: Http) -> None:
        self._http = http

    def queue(self, pool: str | None = None) -> tuple[Mapping[str, Any], ...]:
        """Return every pool, or one: classes with their flows, workers, leases, what waits.

        Raises:
            NotFoundError: there is no such pool.
        """
        query = {"pool": pool}
        pools, _ = self._http.json("GET", "/admin/v1/queue", lambda data: tuple(data["pools"]), query=query)
        return pools

    def drain(self, pool: str, worker_id: str | None = None, *, is_draining: bool = True) -> int:
        """Give a pool, or one worker of it, no more work and let it yield what runs; or end that.

        Returns how many registered workers it concerns now. Repeating it is harmless.
        """
        body = {"pool": pool, "worker_id": worker_id, "is_draining": is_draining}
        path = "/admin/v1/queue/drain"
        num_workers, _ = self._http.json("POST", path, lambda data: int(data["num_workers"]), body=body)
        return num_workers
