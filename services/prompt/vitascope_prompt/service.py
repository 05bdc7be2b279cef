"""What the prompt service does: judge a prompt, encode a prompt. Knows neither gRPC nor files nor torch."""

import asyncio
import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

import structlog

from vitascope_common.errors import InvalidRequestError, VitascopeError
from vitascope_common.jobs import Artifact
from vitascope_common.registry import ModelCard
from vitascope_common.telemetry import span
from vitascope_prompt import metrics
from vitascope_prompt.policy import Policy, Verdict
from vitascope_prompt.text import normalise

CONDITIONING_FORMAT = "vitascope.conditioning/1"

_Result = TypeVar("_Result")
_log = structlog.stdlib.get_logger("vitascope.prompt")


class PolicySource(Protocol):
    """Where the policy in force comes from. Blocks briefly."""

    def current(self) -> Policy:
        """Return the policy in force. Raises: UnavailableError: there is none that can be used."""
        ...


class Catalogue(Protocol):
    """The models there are. Blocks briefly."""

    def card(self, model_id: str) -> ModelCard:
        """Return a card. Raises: InvalidModelError: names the models there are; UnavailableError."""
        ...


class Encoder(Protocol):
    """Turns prompts into conditioning. Blocks; called by one thread at a time."""

    def encode(self, card: ModelCard, prompt: str, negative_prompt: str) -> bytes:
        """Return a conditioning file; the same input gives the same bytes. Raises: UnavailableError."""
        ...


class Shelf(Protocol):
    """Conditioning that was encoded before. Blocks."""

    def find(self, key: str) -> Artifact | None:
        """Return the sound object under a key; one that is damaged is removed. Raises: UnavailableError."""
        ...

    def keep(self, key: str, data: bytes) -> Artifact:
        """Store a conditioning file; what is there already stays. Raises: UnavailableError."""
        ...


@dataclass(frozen=True)
class Checked:
    """A judged prompt: the texts as they are kept, and what the policy says."""

    prompt: str
    negative_prompt: str
    verdict: Verdict

    @property
    def param(self) -> str:
        """Name the text that was refused; "" when none was."""
        if self.verdict.is_allowed:
            return ""
        return "negative_prompt" if self.verdict.is_negative_prompt else "prompt"

    @property
    def message(self) -> str:
        """Tell the person who wrote the prompt why it was refused; "" when it was not."""
        if self.verdict.is_allowed:
            return ""
        which = self.param.replace("_", " ")
        return f"The {which} was refused because it asks for {self.verdict.label}. Change it and send it again."


@dataclass(frozen=True)
class Encoded:
    """A conditioning object; `is_cached` when it was there before."""

    artifact: Artifact
    is_cached: bool


class PromptService:
    """The two calls, over whatever stands behind the Protocols above."""

    def __init__(self, policies: PolicySource, catalogue: Catalogue, encoder: Encoder, shelf: Shelf) -> None:
        self._policies = policies
        self._catalogue = catalogue
        self._encoder = encoder
        self._shelf = shelf
        self._encoding = asyncio.Lock()
        self._encode_thread = ThreadPoolExecutor(1, thread_name_prefix="encode")

    def close(self) -> None:
        """Let a running encoding end and start no other."""
        self._encode_thread.shutdown()

    async def check(self, tenant_id: str, model: str, prompt: str, negative_prompt: str) -> Checked:
        """Normalise a prompt and judge it. Never lets a prompt pass unjudged.

        Raises:
            InvalidRequestError: empty or too long; names the field and the limit.
            InvalidModelError: there is no such model.
            UnavailableError: the policy or the model cards cannot be read.
        """
        with span("prompt.check", model=model) as current:
            try:
                checked = await asyncio.to_thread(self._check, model, prompt, negative_prompt)
            except VitascopeError as error:
                metrics.CHECKS.labels(error.kind.value, "").inc()
                raise
            verdict = checked.verdict
            outcome = "allowed" if verdict.is_allowed else "refused"
            metrics.CHECKS.labels(outcome, verdict.category).inc()
            current.set_attributes({"verdict": outcome, "category": verdict.category, "policy": verdict.policy_version})
            _log.info(
                "prompt.checked",
                tenant=tenant_id,
                model=model,
                verdict=outcome,
                category=verdict.category,
                score=verdict.score,
                policy_version=verdict.policy_version,
            )
            return checked

    async def encode(self, model: str, prompt: str, negative_prompt: str) -> Encoded:
        """Store the conditioning of a prompt, or find it. Idempotent; the key depends on the input alone.

        Raises:
            InvalidModelError: there is no such model.
            InvalidRequestError: too long.
            UnavailableError: weights or the object store cannot be used.
        """
        with span("prompt.encode", model=model) as current:
            card = await asyncio.to_thread(self._catalogue.card, model)
            for param, text in (("prompt", prompt), ("negative_prompt", negative_prompt)):
                _check_length(param, len(text), card)
            key = conditioning_key(card, prompt, negative_prompt)
            encoded = await self._find(key)
            if encoded is None:
                async with self._encoding:
                    encoded = await self._find(key) or await self._make(key, card, prompt, negative_prompt)
            metrics.ENCODES.labels("hit" if encoded.is_cached else "miss").inc()
            current.set_attribute("cached", encoded.is_cached)
            return encoded

    async def _find(self, key: str) -> Encoded | None:
        artifact = await asyncio.to_thread(self._shelf.find, key)
        return None if artifact is None else Encoded(artifact, is_cached=True)

    async def _make(self, key: str, card: ModelCard, prompt: str, negative_prompt: str) -> Encoded:
        with metrics.ENCODE_SECONDS.labels(card.id).time():
            data = await self._in_encode_thread(lambda: self._encoder.encode(card, prompt, negative_prompt))
        artifact = await asyncio.to_thread(self._shelf.keep, key, data)
        _log.info("prompt.encoded", model=card.id, key=key, num_bytes=artifact.num_bytes)
        return Encoded(artifact, is_cached=False)

    async def _in_encode_thread(self, work: Callable[[], _Result]) -> _Result:
        """Run in the one thread that encodes: a caller who gave up must not let a second encoding start beside it."""
        return await asyncio.get_running_loop().run_in_executor(self._encode_thread, work)

    def _check(self, model: str, prompt: str, negative_prompt: str) -> Checked:
        policy = self._policies.current()
        card = self._catalogue.card(model)
        kept = _kept("prompt", prompt, card)
        if not kept:
            raise InvalidRequestError("The prompt is empty: say what the video should show.", param="prompt")
        kept_negative = _kept("negative_prompt", negative_prompt, card)
        return Checked(kept, kept_negative, policy.judge(kept, kept_negative))


def conditioning_key(card: ModelCard, prompt: str, negative_prompt: str) -> str:
    """Return the object key of a conditioning: the hash of all that it depends on."""
    parts = [CONDITIONING_FORMAT, card.sha256, card.model_dump(mode="json")["architecture"]["text_encoder"]]
    told = json.dumps([*parts, prompt, negative_prompt], sort_keys=True, ensure_ascii=True)
    return f"conditioning/{hashlib.sha256(told.encode()).hexdigest()}.safetensors"


def _kept(param: str, text: str, card: ModelCard) -> str:
    """Return the normalised text; the length counts before and after, since NFC may take a character apart."""
    _check_length(param, len(text), card)
    kept = normalise(text)
    _check_length(param, len(kept), card)
    return kept


def _check_length(param: str, num_chars: int, card: ModelCard) -> None:
    most = card.limits.prompt_max_chars
    if num_chars > most:
        raise InvalidRequestError(
            f"{param} has {num_chars} characters; model {card.id} takes at most {most}.",
            param=param,
            detail={"num_chars": num_chars, "max_chars": most},
        )
