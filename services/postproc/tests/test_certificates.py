"""The signing certificate: made once, by one of many, and refused when it cannot sign."""

import multiprocessing
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import structlog
from cryptography import x509

from vitascope_common.errors import ConfigurationError
from vitascope_postproc import certificates
from vitascope_postproc.adapters.provenance import C2paSigner
from vitascope_postproc.certificates import Credentials, ensure, make


def write(folder: Path, credentials: Credentials) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "chain.pem").write_bytes(credentials.chain_pem)
    (folder / "key.pem").write_bytes(credentials.key_pem)
    (folder / "root.pem").write_bytes(credentials.root_pem)


def test_an_empty_folder_is_filled_once(tmp_path):
    folder = tmp_path / "new" / "certificates"
    first = ensure(folder)
    assert ensure(folder) == first
    assert stat.S_IMODE((folder / "key.pem").stat().st_mode) == 0o600
    C2paSigner(first, "1").check()
    leaf, root = x509.load_pem_x509_certificates(first.chain_pem)
    leaf.verify_directly_issued_by(root)
    assert leaf.not_valid_after_utc > datetime.now(UTC) + timedelta(days=3000)
    assert "PRIVATE" not in repr(first)


def test_the_log_says_that_a_local_certificate_is_on_no_trust_list(tmp_path):
    with structlog.testing.capture_logs() as lines:
        ensure(tmp_path)
        ensure(tmp_path)
    hints = [line["hint"] for line in lines if line["event"] == "certificate.local"]
    assert len(hints) == 2
    assert "no trust list" in hints[0]


def _ensure_chain(folder: Path) -> bytes:
    return ensure(folder).chain_pem


def test_replicas_that_start_at_once_share_one_certificate(tmp_path):
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        chains = pool.map(_ensure_chain, [tmp_path / "shared"] * 6, chunksize=1)
    assert len(set(chains)) == 1


@pytest.mark.parametrize("num_writes", [1, 2, 3])
def test_whoever_dies_half_way_leaves_no_harm(tmp_path, monkeypatch, num_writes):
    class Killed(BaseException):
        pass

    written = []
    real = certificates._write

    def write_then_die(path: Path, data: bytes, mode: int) -> None:
        if len(written) == num_writes:
            raise Killed
        written.append(path)
        real(path, data, mode)

    monkeypatch.setattr(certificates, "_write", write_then_die)
    with pytest.raises(Killed):
        ensure(tmp_path)
    monkeypatch.undo()
    C2paSigner(ensure(tmp_path), "1").check()


def test_whoever_dies_before_the_last_line_leaves_no_harm(tmp_path):
    ensure(tmp_path)
    (tmp_path / ".unfinished").touch()
    C2paSigner(ensure(tmp_path), "1").check()
    assert not (tmp_path / ".unfinished").exists()


@pytest.mark.parametrize("missing", ["chain.pem", "key.pem", "root.pem"])
def test_a_folder_that_is_half_full_is_refused_and_left_alone(tmp_path, missing):
    ensure(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(ConfigurationError, match=missing):
        ensure(tmp_path)
    assert not (tmp_path / missing).exists()


def test_a_key_of_another_certificate_is_refused(tmp_path):
    mine, other = make(datetime.now(UTC)), make(datetime.now(UTC))
    write(tmp_path, Credentials(mine.chain_pem, other.key_pem, mine.root_pem))
    with pytest.raises(ConfigurationError, match="does not belong"):
        ensure(tmp_path)


def test_a_root_of_another_chain_is_refused(tmp_path):
    mine, other = make(datetime.now(UTC)), make(datetime.now(UTC))
    leaf = mine.chain_pem.split(b"-----END CERTIFICATE-----\n")[0] + b"-----END CERTIFICATE-----\n"
    for chain in (mine.chain_pem, leaf):
        write(tmp_path, Credentials(chain, mine.key_pem, other.root_pem))
        with pytest.raises(ConfigurationError, match="does not lead"):
            ensure(tmp_path)


def test_a_chain_without_its_root_is_fine(tmp_path):
    mine = make(datetime.now(UTC))
    leaf = mine.chain_pem.split(b"-----END CERTIFICATE-----\n")[0] + b"-----END CERTIFICATE-----\n"
    write(tmp_path, Credentials(leaf, mine.key_pem, mine.root_pem))
    C2paSigner(ensure(tmp_path), "1").check()


@pytest.mark.parametrize(("age_years", "what"), [(11, "expired on"), (-1, "not valid before")])
def test_a_certificate_out_of_its_time_is_refused(tmp_path, age_years, what):
    write(tmp_path, make(datetime.now(UTC) - timedelta(days=366 * age_years)))
    with pytest.raises(ConfigurationError, match=what):
        ensure(tmp_path)


@pytest.mark.parametrize("name", ["chain.pem", "key.pem", "root.pem"])
@pytest.mark.parametrize("data", [b"", b"junk", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_damaged_files_are_refused(tmp_path, name, data):
    ensure(tmp_path)
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ConfigurationError, match="cannot be used"):
        ensure(tmp_path)


def test_a_folder_that_cannot_be_used_is_said_so(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigurationError, match="Cannot use the certificate folder"):
        ensure(tmp_path / "file")


def test_a_certificate_that_c2pa_rejects_stops_the_start(tmp_path):
    mine = make(datetime.now(UTC))
    with pytest.raises(ConfigurationError):
        C2paSigner(Credentials(mine.root_pem, mine.key_pem, mine.root_pem), "1").check()
