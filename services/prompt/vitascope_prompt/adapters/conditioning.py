"""Conditioning files: safetensors in the object store.

Tensors, for X in cond (the prompt) and uncond (the negative prompt): X_tokens_LD fp32, X_mask_L bool, X_pooled_D fp32.
L tokens, D width of the text features. The header holds one entry, since safetensors writes several in any order:
`vitascope` = JSON with the format and the hash of the tensors, so that damage shows wherever the file is.
"""

import hashlib
import json
from collections.abc import Mapping

import structlog
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from vitascope_common.errors import ConflictError, CorruptObjectError, ObjectNotFoundError, UnavailableError
from vitascope_common.jobs import Artifact
from vitascope_common.objectstore import ObjectStore
from vitascope_models.text import Conditioning
from vitascope_prompt.metrics import DAMAGED
from vitascope_prompt.service import CONDITIONING_FORMAT

MEDIA_TYPE = "application/vnd.safetensors"
_HEADER = "vitascope"
_DTYPES = {"tokens_LD": torch.float32, "mask_L": torch.bool, "pooled_D": torch.float32}
_NAMES = frozenset(f"{half}_{name}" for half in ("cond", "uncond") for name in _DTYPES)

_log = structlog.stdlib.get_logger("vitascope.prompt")


def pack(cond: Conditioning, uncond: Conditioning) -> bytes:
    """Return the file of a prompt and its negative prompt; the same tensors give the same bytes."""
    tensors = {
        f"{half}_{name}": getattr(conditioning, name).to("cpu", dtype).contiguous()
        for half, conditioning in (("cond", cond), ("uncond", uncond))
        for name, dtype in _DTYPES.items()
    }
    header = json.dumps({"format": CONDITIONING_FORMAT, "tensors_sha256": _hash(tensors)}, sort_keys=True)
    return save(tensors, metadata={_HEADER: header})


def check(data: bytes) -> None:
    """Make sure that a file is whole. Raises: CorruptObjectError."""
    try:
        tensors = load(data)
        header = json.loads(json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"][_HEADER])
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise CorruptObjectError("This is no conditioning file.") from error
    found = {name: tensor.dtype for name, tensor in tensors.items()}
    expected = {name: _DTYPES[name.partition("_")[2]] for name in _NAMES}
    if found != expected or header != {"format": CONDITIONING_FORMAT, "tensors_sha256": _hash(tensors)}:
        raise CorruptObjectError("The conditioning file is damaged.")


def _hash(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {list(tensors[name].shape)}\n".encode())
        digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()


class StoredConditioning:
    """Conditioning files under their keys in the object store."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def find(self, key: str) -> Artifact | None:
        """Return the sound object under a key, read and verified; a damaged one is removed."""
        try:
            data = self._store.get_bytes(key)
            check(data)
        except ObjectNotFoundError:
            return None
        except ConflictError as error:
            raise UnavailableError("The object store cannot be used at the moment.") from error
        except CorruptObjectError:
            _log.warning("conditioning.damaged", key=key)
            DAMAGED.inc()
            self._store.delete(key)
            return None
        return _artifact(key, data)

    def keep(self, key: str, data: bytes) -> Artifact:
        """Store a file. Where other bytes are (encoded on other hardware), those stay and are returned."""
        try:
            self._store.put_bytes(key, data, MEDIA_TYPE)
        except ConflictError as error:
            other = self.find(key)
            if other is None:
                raise UnavailableError("The conditioning could not be stored; try again.") from error
            return other
        return _artifact(key, data)


def _artifact(key: str, data: bytes) -> Artifact:
    return Artifact("conditioning", "conditioning", MEDIA_TYPE, key, hashlib.sha256(data).hexdigest(), len(data))
