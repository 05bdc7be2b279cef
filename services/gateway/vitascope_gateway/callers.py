"""Whose request it is, by the API key that it brings: one way for every edge."""

from vitascope_common import tokens
from vitascope_common.errors import UnauthenticatedError
from vitascope_gateway.service import Caller, Store

MAX_KEY_CHARS = 512


async def caller_of(store: Store, authorization: str) -> Caller:
    """Return who brings this `Bearer KEY`, and what they may. Raises: UnauthenticatedError, UnavailableError."""
    scheme, _, key = authorization.partition(" ")
    key = key.strip()
    known = None
    if scheme.lower() == "bearer" and 0 < len(key) <= MAX_KEY_CHARS:
        known = await store.caller(tokens.api_key_hash(key))
    if known is None:
        raise UnauthenticatedError("The API key is missing or not valid; send `Authorization: Bearer KEY`.")
    return known
