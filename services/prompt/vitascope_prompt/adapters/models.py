"""Model cards and text encoders, from the models folder."""

from dataclasses import dataclass

import structlog
import torch

from vitascope_common.errors import (
    ConfigurationError,
    CorruptObjectError,
    InvalidModelError,
    NotFoundError,
    UnavailableError,
)
from vitascope_common.registry import ModelCard, Registry
from vitascope_models.load import load_text_encoder
from vitascope_models.text import PromptEncoder
from vitascope_prompt.adapters.conditioning import pack

_log = structlog.stdlib.get_logger("vitascope.prompt")


class FolderCatalogue:
    """The cards of a models folder."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def card(self, model_id: str) -> ModelCard:
        """Return a card. Raises: InvalidModelError: names the models there are; UnavailableError: a card is broken."""
        try:
            return self._registry.card(model_id)
        except NotFoundError as error:
            raise InvalidModelError(error.message, param="model", detail=error.detail) from error
        except (ConfigurationError, OSError) as error:
            _log.error("models.unusable", problem=str(error))
            raise UnavailableError("The models are not available at the moment; try again later.") from error


@dataclass(frozen=True)
class _Loaded:
    identity: str
    encoder: PromptEncoder


class TorchEncoder:
    """Text encoders of the native family, loaded when first needed and again when their files change.

    One torch thread: the same prompt gives the same bytes on the same hardware.
    """

    def __init__(self, registry: Registry) -> None:
        torch.set_num_threads(1)
        self._registry = registry
        self._loaded: dict[str, _Loaded] = {}

    def encode(self, card: ModelCard, prompt: str, negative_prompt: str) -> bytes:
        """Return the conditioning file of two prompts. Raises: UnavailableError: the encoder cannot be loaded."""
        encoder = self._encoder(card)
        return pack(encoder.encode(prompt), encoder.encode(negative_prompt))

    def _encoder(self, card: ModelCard) -> PromptEncoder:
        loaded = self._loaded.get(card.id)
        if loaded is None or loaded.identity != card.sha256:
            try:
                folder = self._registry.fetch(card)
                loaded = _Loaded(card.sha256, load_text_encoder(folder, card.model_dump(mode="json")))
            except (CorruptObjectError, NotFoundError, InvalidModelError, OSError) as error:
                _log.error("encoder.unusable", model=card.id, problem=str(error))
                raise UnavailableError(f"The text encoder of model {card.id} cannot be used at the moment.") from error
            self._loaded[card.id] = loaded
            _log.info("encoder.loaded", model=card.id)
        return loaded.encoder
