"""Checkpoints: safetensors files that are replaced whole or not at all, with a JSON account of how they came about."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from vitascope_common.errors import ConfigurationError, UnavailableError
from vitascope_common.files import TEMP_PREFIX, atomic_writer

_ACCOUNT = "account"


def write_state(path: Path, tensors: Mapping[str, Tensor], account: Mapping[str, Any] | None = None) -> None:
    """Write tensors, on whatever device, and an account to `path`.

    Raises:
        UnavailableError: the disk is full; what lay at `path` is still there.
    """
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = None if account is None else {_ACCOUNT: json.dumps(account)}
    try:
        with atomic_writer(path) as file:
            file.write(save(kept, metadata))
    except OSError as error:
        raise disk_error(path, error) from error


def read_state(path: Path) -> dict[str, Tensor]:
    """Read the tensors that `write_state` wrote.

    Raises:
        ConfigurationError: the file is not there or cannot be read.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}") from error


def read_account(path: Path) -> dict[str, Any]:
    """Read the account that `write_state` wrote; empty if there is none.

    Raises:
        ConfigurationError: the file is not there or cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            account: dict[str, Any] = json.loads((file.metadata() or {}).get(_ACCOUNT, "{}"))
    except (OSError, SafetensorError, ValueError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}") from error
    return account


def remove_unfinished(folder: Path) -> None:
    """Remove what processes that were killed while they wrote have left in a folder."""
    for path in folder.glob(f"{TEMP_PREFIX}*"):
        path.unlink(missing_ok=True)


def state_sha256(path: Path, prefixes: tuple[str, ...]) -> str:
    """Hash the tensors that `write_state` wrote whose names begin with one of `prefixes`, whatever the account says."""
    tensors = {name: tensor for name, tensor in read_state(path).items() if name.startswith(prefixes)}
    return hashlib.sha256(save(tensors)).hexdigest()


def disk_error(path: Path, error: OSError) -> UnavailableError:
    """Say what kept a file from being written."""
    reason = "the disk is full" if is_disk_full(error) else error.strerror
    return UnavailableError(f"{path} could not be written: {reason}.")


def is_disk_full(error: OSError) -> bool:
    """Say whether there was no room, or no more room for this user."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)
