"""What postproc reads from the environment."""

from pathlib import Path
from typing import ClassVar

from vitascope_common.errors import ConfigurationError
from vitascope_common.settings import UsesBroker, UsesObjectStore, UsesRedis, UsesScheduler


class PostprocSettings(UsesRedis, UsesBroker, UsesObjectStore, UsesScheduler):
    """Settings of one postproc worker; it serves `/metrics` only, so `port` stays unused."""

    service: ClassVar[str] = "postproc"

    pool: str = "postproc"
    """Pool and Celery queue that it works for."""
    certificate_dir: Path | None = None
    """Holds chain.pem, key.pem and root.pem; made on the first start when empty. None: DATA_DIR/certificates."""

    def certificates(self) -> Path:
        """Return the folder of the signing certificate. Raises ConfigurationError when no setting names one."""
        if self.certificate_dir is not None:
            return self.certificate_dir
        if self.data_dir is not None:
            return self.data_dir / "certificates"
        raise ConfigurationError(
            f"postproc cannot start: set {self.env_name('certificate_dir')} or {self.env_name('data_dir')}, "
            "so that the signing certificate outlives this process."
        )
