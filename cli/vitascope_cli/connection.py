"""Which stack a command talks to."""

from vitascope_cli.data_dir import DataDir
from vitascope_client import Vitascope
from vitascope_common.errors import ConfigurationError


def connect(base_url: str | None, api_key: str | None, data_dir: DataDir) -> Vitascope:
    """Return a client of the stack that was named, else of the one that `vitascope up` runs on this data folder.

    Raises:
        ConfigurationError: neither is there.
    """
    state = data_dir.read_state() or {}
    found_url = base_url or state.get("base_url")
    if not found_url:
        raise ConfigurationError(
            f"No stack runs on {data_dir.path}. Start one with `vitascope up`, or name another with --base-url and "
            "--api-key."
        )
    # The local stack's key is for the local stack alone.
    is_local = str(found_url).rstrip("/").removesuffix("/v1") == state.get("base_url")
    found_key = api_key or (state.get("api_key") if is_local else None)
    if not found_key:
        raise ConfigurationError(f"No API key for {found_url}. Give one with --api-key or VITASCOPE_API_KEY.")
    return Vitascope(base_url=str(found_url), api_key=str(found_key))
