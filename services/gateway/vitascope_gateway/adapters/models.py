"""The model cards of this installation."""

from collections.abc import Sequence

import structlog

from vitascope_common.errors import ConfigurationError, UnavailableError
from vitascope_common.registry import ModelCard, Registry

_log = structlog.stdlib.get_logger("vitascope.gateway")


class RegistryCatalogue:
    """Implements service.Catalogue; cards are read again when their files change."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def cards(self) -> Sequence[ModelCard]:
        """Return every card; a broken one makes all unavailable, since a request might mean it."""
        try:
            return self._registry.cards()
        except (ConfigurationError, OSError) as error:
            _log.error("models.unreadable", error=str(error))
            raise UnavailableError("The model cards cannot be read at the moment.") from error
