"""API keys, signed media links, and signatures for other purposes.

A link is `PATH?expires=…&filename=…&signature=…`. The signature is HMAC-SHA256 over the path and every other
parameter, so a link opens exactly what it was made for, until it expires. Keys rotate: the first of a list signs, all
verify.
"""

import hashlib
import hmac
import secrets
from base64 import urlsafe_b64encode
from collections.abc import Mapping, Sequence
from urllib.parse import parse_qsl, urlencode

from pydantic import SecretStr

from vitascope_common.errors import LinkExpiredError, PermissionDeniedError

API_KEY_PREFIX = "vs_"
SIGNED_PARAMS = frozenset({"expires", "filename"})
MAX_QUERY_CHARS = 4096


def new_api_key() -> str:
    """Return a new API key with 256 random bits; show it once, keep only its hash."""
    return API_KEY_PREFIX + secrets.token_urlsafe(32)


def api_key_hash(key: str) -> str:
    """Return the hex hash under which an API key is stored and looked up.

    Plain SHA-256: slow hashes protect guessable passwords, and 256 random bits cannot be guessed. A KDF would only
    cost time on every request, and a salt would make the lookup by hash impossible.
    """
    return hashlib.sha256(key.encode()).hexdigest()


def signing_keys(key: SecretStr | Sequence[SecretStr]) -> list[bytes]:
    """Return the keys in order; one secret may hold several, newest first, separated by commas."""
    secrets_ = [key] if isinstance(key, SecretStr) else key
    keys = [part.strip().encode() for secret in secrets_ for part in secret.get_secret_value().split(",")]
    if not keys or not all(keys):
        raise ValueError("a signing key is empty")
    return keys


def sign_path(
    path: str,
    expires_at_s: int,
    key: SecretStr | Sequence[SecretStr],
    *,
    filename: str | None = None,
) -> str:
    """Return the query string that makes a path a link until `expires_at_s` (Unix time); deterministic.

    `path` is the decoded path, as the server sees it.
    """
    params = {"expires": str(int(expires_at_s)), "filename": filename}
    given = {name: value for name, value in params.items() if value is not None}
    return urlencode({**given, "signature": _signature(path, given, signing_keys(key)[0])})


def verify_path(path: str, query: str, now_s: float, key: SecretStr | Sequence[SecretStr]) -> dict[str, str]:
    """Return the parameters of a genuine link (`filename` if it has one).

    Every key is tried, in constant time. A parameter that is repeated or not ours makes the link invalid, so that
    nothing unsigned is ever obeyed.

    Raises:
        LinkExpiredError: genuine, but too late.
        PermissionDeniedError: not signed by us, or changed since.
    """
    refused = PermissionDeniedError("This link is not valid.")
    try:
        pairs = parse_qsl(
            query[: MAX_QUERY_CHARS + 1], keep_blank_values=True, strict_parsing=True, max_num_fields=8, errors="strict"
        )
    except ValueError:
        raise refused from None
    params = dict(pairs)
    given = params.pop("signature", "")
    expires = params.get("expires", "")
    is_well_formed = (
        len(query) <= MAX_QUERY_CHARS
        and len(pairs) == len(params) + 1
        and params.keys() <= SIGNED_PARAMS
        and given.isascii()
        and expires.isascii()
        and expires.isdecimal()
        and len(expires) <= 15
    )
    if not is_well_formed:
        raise refused
    matches = [hmac.compare_digest(given, _signature(path, params, one)) for one in signing_keys(key)]
    if not any(matches):
        raise refused
    if now_s >= int(expires):
        raise LinkExpiredError()
    return {name: value for name, value in params.items() if name != "expires"}


def sign(purpose: str, fields: Sequence[str], key: SecretStr | Sequence[SecretStr]) -> str:
    """Return a signature of these fields for one purpose; what is signed for another is never genuine for it."""
    return _hmac([purpose, *fields], signing_keys(key)[0])


def is_genuine(purpose: str, fields: Sequence[str], given: str, key: SecretStr | Sequence[SecretStr]) -> bool:
    """Whether `given` is our signature of these fields; every key is tried, in constant time."""
    matches = [
        hmac.compare_digest(given.encode(), _hmac([purpose, *fields], one).encode()) for one in signing_keys(key)
    ]
    return any(matches)


def _signature(path: str, params: Mapping[str, str], key: bytes) -> str:
    return _hmac(["vitascope-link-1", path, *(text for name in sorted(params) for text in (name, params[name]))], key)


def _hmac(fields: Sequence[str], key: bytes) -> str:
    """Sign each field with its length before it: no two different lists have the same text."""
    message = b"".join(b"%d:%s" % (len(data), data) for data in (field.encode() for field in fields))
    return urlsafe_b64encode(hmac.digest(key, message, "sha256")).rstrip(b"=").decode()
