"""What the prompt service reads from the environment."""

from pathlib import Path
from typing import ClassVar

from vitascope_common.settings import UsesModels, UsesObjectStore

PACKAGED_POLICY = Path(__file__).with_name("policy.yaml")


class PromptSettings(UsesModels, UsesObjectStore):
    """Settings of one prompt service process."""

    service: ClassVar[str] = "prompt"

    port: int = 50051
    policy_path: Path = PACKAGED_POLICY
    """The safety policy; read at start and again whenever the file changes."""
