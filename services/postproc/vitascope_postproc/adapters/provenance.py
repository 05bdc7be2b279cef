"""C2PA: who made a video and how, signed into the MP4 itself (C2PA 2.x, through c2pa-python)."""

import io
from pathlib import Path
from typing import Any

import c2pa
from PIL import Image

from vitascope_common.errors import ConfigurationError, InternalError
from vitascope_postproc.certificates import Credentials
from vitascope_postproc.service import Statement

SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
GENERATION_LABEL = "org.vitascope.generation"
TRUSTED = "Trusted"


class C2paSigner:
    """Signs and verifies with one certificate; our root is the only trust anchor."""

    def __init__(self, credentials: Credentials, version: str) -> None:
        self._version = version
        self._info = c2pa.C2paSignerInfo(b"es256", credentials.chain_pem, credentials.key_pem, None)
        self._settings = {
            "trust": {"user_anchors": credentials.root_pem.decode()},
            "verify": {"verify_trust": True, "remote_manifest_fetch": False},
            "builder": {"thumbnail": {"enabled": False}},
        }

    def check(self) -> None:
        """Sign and verify a tiny picture. Raises ConfigurationError: this certificate signs nothing that we trust."""
        picture, signed = io.BytesIO(), io.BytesIO()
        Image.new("RGB", (8, 8)).save(picture, "PNG")
        picture.seek(0)
        try:
            with self._context() as context, self._signer() as signer:
                statement = Statement("check", "check", "", "check")
                c2pa.Builder(self._manifest(statement), context=context).sign(signer, "image/png", picture, signed)
                signed.seek(0)
                with c2pa.Reader("image/png", signed, context=context) as reader:
                    state = reader.get_validation_state()
        except c2pa.C2paError as error:
            raise ConfigurationError(f"The signing certificate is not fit for C2PA: {error}") from error
        if state != TRUSTED:
            raise ConfigurationError(f"What the signing certificate signs is not {TRUSTED} but {state}.")

    def sign(self, source: Path, target: Path, statement: Statement) -> None:
        """Write a signed copy of an MP4."""
        try:
            with self._context() as context, self._signer() as signer:
                c2pa.Builder(self._manifest(statement), context=context).sign_file(source, target, signer)
        except c2pa.C2paError as error:
            raise InternalError(f"The video could not be signed: {error}") from error

    def validation_state(self, path: Path) -> str:
        """Return what a verifier that trusts our root says: "Trusted", "Valid" or "Invalid"; "" without a manifest."""
        try:
            with self._context() as context, c2pa.Reader(path, context=context) as reader:
                return str(reader.get_validation_state())
        except c2pa.C2paError.ManifestNotFound:
            return ""
        except c2pa.C2paError as error:
            raise InternalError(f"The signature could not be read: {error}") from error

    def _context(self) -> Any:
        return c2pa.Context(settings=c2pa.Settings.from_dict(self._settings))

    def _signer(self) -> Any:
        return c2pa.Signer.from_info(self._info)

    def _manifest(self, statement: Statement) -> dict[str, Any]:
        software = {"name": "Vitascope", "version": self._version}
        action = {"action": "c2pa.created", "digitalSourceType": SOURCE_TYPE, "softwareAgent": software}
        return {
            "claim_generator_info": [software],
            "title": statement.title,
            "assertions": [
                {"label": "c2pa.actions.v2", "data": {"actions": [action]}},
                {
                    "label": GENERATION_LABEL,
                    "data": {
                        "job_id": statement.job_id,
                        "model": statement.model,
                        "prompt_sha256": statement.prompt_sha256,
                    },
                },
            ],
        }
