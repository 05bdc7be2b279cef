"""The certificate that signs videos: read, checked, and made when there is none.

The folder holds chain.pem (leaf first), key.pem (mode 0600) and root.pem (what verifiers may trust). A locally made
root is on no trust list: verifiers show its videos as signed by an unknown party until they are given root.pem. Its
private key is thrown away, so it can vouch for nothing else.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import structlog
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from vitascope_common.errors import ConfigurationError
from vitascope_common.files import make_folder, sync_folder

log = structlog.stdlib.get_logger("vitascope.postproc")

LOCAL_ROOT_NAME = "Vitascope local root"
LEAF_YEARS = 10
ROOT_YEARS = 20
WARN_BEFORE = timedelta(days=30)

_CHAIN, _KEY, _ROOT = "chain.pem", "key.pem", "root.pem"
_NAMES = (_CHAIN, _KEY, _ROOT)
_UNFINISHED = ".unfinished"
_LOCK = ".lock"


@dataclass(frozen=True)
class Credentials:
    """What signing needs, in PEM. Only ES256 is used: the key lies on the curve P-256."""

    chain_pem: bytes
    key_pem: bytes = field(repr=False)
    root_pem: bytes


def ensure(folder: Path) -> Credentials:
    """Return the credentials in a folder, made first when it holds none. Safe when several processes start at once.

    Raises:
        ConfigurationError: some of the files are missing, they do not fit together, or they are out of date.
    """
    try:
        if not _is_complete(folder):
            with _locked(folder):
                _make_if_empty(folder)
        found = Credentials(*((folder / name).read_bytes() for name in _NAMES))
    except OSError as error:
        raise ConfigurationError(f"Cannot use the certificate folder {folder}: {error.strerror}.") from error
    leaf, root = _check(folder, found, datetime.now(UTC))
    if _common_name(root) == LOCAL_ROOT_NAME:
        log.warning(
            "certificate.local",
            folder=str(folder),
            hint="videos are signed by a locally made certificate that is on no trust list; verifiers need root.pem",
        )
    if leaf.not_valid_after_utc - datetime.now(UTC) < WARN_BEFORE:
        log.warning("certificate.expires_soon", folder=str(folder), expires_at=leaf.not_valid_after_utc.isoformat())
    return found


def make(now: datetime) -> Credentials:
    """Make a root and a leaf certificate that C2PA accepts; the root's private key is forgotten."""
    root_key, leaf_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    root_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, LOCAL_ROOT_NAME)])
    leaf_name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Vitascope"),
            x509.NameAttribute(NameOID.COMMON_NAME, "Vitascope local signer"),
        ]
    )
    root_id = x509.SubjectKeyIdentifier.from_public_key(root_key.public_key())
    since = now - timedelta(hours=1)  # clocks differ
    root = (
        x509.CertificateBuilder(root_name, root_name, root_key.public_key(), x509.random_serial_number())
        .not_valid_before(since)
        .not_valid_after(now + timedelta(days=365 * ROOT_YEARS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(root_id, critical=False)
        .sign(root_key, hashes.SHA256())
    )
    leaf = (
        x509.CertificateBuilder(root_name, leaf_name, leaf_key.public_key(), x509.random_serial_number())
        .not_valid_before(since)
        .not_valid_after(now + timedelta(days=365 * LEAF_YEARS))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(root_id), critical=False)
        .sign(root_key, hashes.SHA256())
    )
    root_pem = root.public_bytes(Encoding.PEM)
    return Credentials(
        chain_pem=leaf.public_bytes(Encoding.PEM) + root_pem,
        key_pem=leaf_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        root_pem=root_pem,
    )


def _key_usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _is_complete(folder: Path) -> bool:
    """Tell whether all files are there and no maker is at work; the marker goes last, so the order matters."""
    return all((folder / name).exists() for name in _NAMES) and not (folder / _UNFINISHED).exists()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    make_folder(folder)
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _make_if_empty(folder: Path) -> None:
    """Fill an empty folder. Whoever is killed half-way leaves the marker, and the next one starts again."""
    marker = folder / _UNFINISHED
    if marker.exists():
        for name in _NAMES:
            (folder / name).unlink(missing_ok=True)
    present = [name for name in _NAMES if (folder / name).exists()]
    if len(present) == len(_NAMES):
        return
    if present:
        missing = ", ".join(name for name in _NAMES if name not in present)
        raise ConfigurationError(
            f"The certificate folder {folder} has {' and '.join(present)}, but no {missing}. Put the missing there, "
            "or empty the folder to have a local certificate made."
        )
    new = make(datetime.now(UTC))
    _write(marker, b"", 0o600)
    sync_folder(folder)
    _write(folder / _ROOT, new.root_pem, 0o644)
    _write(folder / _CHAIN, new.chain_pem, 0o644)
    _write(folder / _KEY, new.key_pem, 0o600)
    sync_folder(folder)
    marker.unlink()
    sync_folder(folder)
    log.info("certificate.made", folder=str(folder))


def _write(path: Path, data: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(descriptor)


def _check(folder: Path, found: Credentials, now: datetime) -> tuple[x509.Certificate, x509.Certificate]:
    """Return leaf and root if leaf, key and root belong together and are valid now."""

    def refuse(why: str) -> ConfigurationError:
        return ConfigurationError(
            f"The signing certificate in {folder} cannot be used: {why}. Replace the files, or empty the folder to "
            "have a local certificate made."
        )

    try:
        chain = x509.load_pem_x509_certificates(found.chain_pem)
        root = x509.load_pem_x509_certificate(found.root_pem)
        key = load_pem_private_key(found.key_pem, password=None)
    except (ValueError, TypeError) as error:
        raise refuse(f"a file is damaged or encrypted ({error})") from error
    leaf = chain[0]
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise refuse("key.pem must be an EC key on the curve P-256 (ES256)")
    if _public(key.public_key()) != _public(leaf.public_key()):
        raise refuse("key.pem does not belong to the first certificate of chain.pem")
    for certificate, issuer in zip(chain, [*chain[1:], root], strict=True):
        try:
            if certificate != root:
                certificate.verify_directly_issued_by(issuer)
        except (InvalidSignature, ValueError, TypeError) as error:
            raise refuse("chain.pem does not lead from its first certificate to root.pem") from error
    for name, certificate in [(_ROOT, root), *((_CHAIN, one) for one in chain)]:
        if now > certificate.not_valid_after_utc:
            raise refuse(f"{name} expired on {certificate.not_valid_after_utc:%Y-%m-%d}")
        if now < certificate.not_valid_before_utc:
            raise refuse(f"{name} is not valid before {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC")
    return leaf, root


def _public(key: object) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined, no-any-return]


def _common_name(certificate: x509.Certificate) -> str:
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else ""
