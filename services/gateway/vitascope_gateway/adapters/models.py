"""The model cards of this installation."""

from collections.abc import Sequence

import structlog

from vitascope_common.errors import ConfigurationError, NotFoundError, UnavailableError
from vitascope_common.registry import ModelCard, Registry

_log = structlog.stdlib.get_logger("vitascope.gateway")


class RegistryCatalogue:
    """Implements service.Catalogue; cards are read again when their files change."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def cards(self) -> Sequence[ModelCard]:
        """Return every card that can be used; the registry logs the others.

        Raises:
            UnavailableError: the folder cannot be read.
        """
        try:
            return self._registry.cards()
        except (ConfigurationError, OSError) as error:
            _log.error("models.unreadable", error=str(error))
            raise UnavailableError("The model cards cannot be read at the moment.") from error

    def check(self, model_id: str) -> None:
        """Pass over a model that can be used, or that is not there.

        Raises:
            UnavailableError: it is there, and its card cannot be used.
        """
        try:
            self._registry.card(model_id)
        except NotFoundError:
            return
        except (ConfigurationError, OSError) as error:
            message = f"The model {model_id} cannot be used at the moment: its card is broken; the log says how."
            raise UnavailableError(message, param="model") from error
