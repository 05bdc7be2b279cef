"""What all tenants share a few of: none of them holds so many that the others find none left."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from vitascope_common.errors import QuotaExceededError, UnavailableError


class Places:
    """Counts what is under way of one kind: `most` of all tenants, `most_of_tenant` of each. For any thread."""

    def __init__(self, what: str, most: int, most_of_tenant: int) -> None:
        self._what = what  # as in "Too many pictures are being fetched"
        self._most = most
        self._most_of_tenant = most_of_tenant
        self._taken: Counter[str] = Counter()
        self._lock = threading.Lock()

    def take(self, tenant_id: str, number: int = 1) -> None:
        """Take places until they are left.

        Raises:
            QuotaExceededError: the tenant holds as many as it may; UnavailableError: all are taken.
        """
        with self._lock:
            of_tenant = self._taken[tenant_id] + number
            if of_tenant > self._most_of_tenant:
                raise QuotaExceededError(
                    f"Too many of your {self._what} at the moment, at most {self._most_of_tenant} at once; repeat your "
                    "request when one is done."
                )
            if self._taken.total() + number > self._most:
                raise UnavailableError(f"Too many {self._what} at the moment; repeat your request in a second.")
            self._taken[tenant_id] = of_tenant

    def leave(self, tenant_id: str, number: int = 1) -> None:
        """Give places back."""
        with self._lock:
            self._taken[tenant_id] -= number
            self._taken += Counter()  # forgets who holds none

    @contextmanager
    def held(self, tenant_id: str, number: int = 1) -> Iterator[None]:
        """Hold places for as long as the block lasts. Raises: as `take`."""
        self.take(tenant_id, number)
        try:
            yield
        finally:
            self.leave(tenant_id, number)
