"""What a C2PA verifier says about a video file."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import c2pa

GENERATION_LABEL = "org.vitascope.generation"


@dataclass(frozen=True)
class Provenance:
    """The signed statement inside a video. `state`: Trusted, Valid (signer unknown), Invalid (changed), or Missing."""

    state: str
    actions: tuple[str, ...] = ()
    source_type: str = ""
    generator: str = ""
    model: str = ""
    job_id: str = ""


def check(video: Path, root_pem: Path | None = None) -> Provenance:
    """Verify a video's signature; `root_pem` is the certificate to trust, None trusts nobody in particular."""
    roots = root_pem.read_text() if root_pem is not None and root_pem.is_file() else ""
    settings = {"trust": {"user_anchors": roots}} if roots else {}
    try:
        with (
            c2pa.Context(settings=c2pa.Settings.from_dict(settings)) as context,
            c2pa.Reader(str(video), context=context) as reader,
        ):
            return _read(str(reader.get_validation_state()), json.loads(reader.json()))
    except c2pa.C2paError.ManifestNotFound:
        return Provenance("Missing")
    except c2pa.C2paError:
        return Provenance("Invalid")


def _read(state: str, store: Mapping[str, Any]) -> Provenance:
    manifest = store.get("manifests", {}).get(store.get("active_manifest", ""), {})
    actions = [action for data in _assertions(manifest, "c2pa.actions") for action in data.get("actions", [])]
    generation = next(_assertions(manifest, GENERATION_LABEL), {})
    generators = manifest.get("claim_generator_info") or [{}]
    return Provenance(
        state=state,
        actions=tuple(str(action.get("action", "")) for action in actions),
        source_type=next((str(one["digitalSourceType"]) for one in actions if one.get("digitalSourceType")), ""),
        generator=" ".join(str(generators[0].get(key, "")) for key in ("name", "version")).strip(),
        model=str(generation.get("model", "")),
        job_id=str(generation.get("job_id", "")),
    )


def _assertions(manifest: Mapping[str, Any], label: str) -> Iterator[Mapping[str, Any]]:
    for assertion in manifest.get("assertions", []):
        if str(assertion.get("label", "")).startswith(label):
            yield assertion.get("data", {})
