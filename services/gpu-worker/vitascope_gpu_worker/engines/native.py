"""The native engine: our own diffusion transformer, VAE and flow-matching samplers from `vitascope_models`."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from vitascope_common.errors import CorruptObjectError, InvalidModelError, InvalidRequestError
from vitascope_common.jobs import GenerateParams
from vitascope_common.references import ReferenceRole
from vitascope_common.registry import ModelCard
from vitascope_gpu_worker.device import device_errors
from vitascope_gpu_worker.engine import REFERENCE, Run
from vitascope_models import conditioning as guides
from vitascope_models.conditioning import Guide
from vitascope_models.dit import DiT
from vitascope_models.load import load_dit, load_vae
from vitascope_models.sampling import (
    FlowSampler,
    Guidance,
    VelocityFn,
    clean_estimate,
    guided,
    initial_noise,
    noised,
)
from vitascope_models.text import Conditioning
from vitascope_models.vae import VAE


def load(card: ModelCard, folder: Path, device: torch.device, mesh: DeviceMesh | None = None) -> "NativeEngine":
    """Load a model of ours; with a mesh, this rank's share of the transformer.

    Raises:
        InvalidModelError: the files do not fit the card, or the transformer cannot be divided among so many ranks.
        GroupError: no memory, or the device failed.
    """
    described = card.model_dump(mode="python")
    with device_errors():
        dit = load_dit(folder, described)
        if mesh is not None:
            from vitascope_models.parallel import shard_dit  # two seconds of imports that one rank does not need

            try:
                shard_dit(dit, mesh)
            except ValueError as error:
                raise InvalidModelError(f"Model {card.id} cannot be divided: {error}.") from error
        return NativeEngine(card, dit.to(device), load_vae(folder, described).to(device), device)


_FIRST, _LAST = ReferenceRole.FIRST_FRAME.value, ReferenceRole.LAST_FRAME.value
_CONTINUE, _CHANGE = ReferenceRole.CONTINUE.value, ReferenceRole.CHANGE.value


@dataclass
class _Context:
    """What the steps of a run need, and what the last one saw."""

    sampler: FlowSampler
    velocity: VelocityFn
    guide: Guide | None
    seen: tuple[Tensor, Tensor, float] | None = None
    """Latents, their velocity and flow time: of the newest look at the model."""

    def look(self, latents_BCTHW: Tensor, t: float) -> Tensor:
        """Return the velocity, and remember it for a preview."""
        velocity_BCTHW = self.velocity(latents_BCTHW, t)
        self.seen = (latents_BCTHW, velocity_BCTHW, t)
        return velocity_BCTHW

    def pin(self, latents_BCTHW: Tensor) -> Tensor:
        """Return latents that are what is known, exactly, where it is known."""
        return latents_BCTHW if self.guide is None else self.guide.pin(latents_BCTHW)


class NativeEngine:
    """One model in memory; see `Engine`."""

    def __init__(self, card: ModelCard, dit: DiT, vae: VAE, device: torch.device) -> None:
        self._card = card
        self._dit = dit
        self._vae = vae
        self._device = device

    def prepare(self, params: GenerateParams, conditioning: Mapping[str, Tensor]) -> Run:
        """Begin a clip; see `Engine`."""
        self._check_allowed(params)
        try:
            shape = self._vae.latent_shape(params.num_frames, params.height_px, params.width_px)
            guidance = Guidance(
                params.guidance_scale, params.guidance_start, params.guidance_end, params.guidance_rescale
            )
            with device_errors():
                guide, changed = self._given(params, conditioning, shape)
            start = 1.0 if changed is None else changed[1]
            sampler = FlowSampler(params.num_inference_steps, params.shift, params.solver, start)
        except ValueError as error:
            raise InvalidRequestError(f"Model {params.model} cannot generate this: {error}") from error
        with device_errors():
            cond, uncond = (self._conditioning(conditioning, side) for side in ("cond", "uncond"))
            noise_BCTHW, generator = initial_noise((1, *shape), params.seed)
            latents_BCTHW = noise_BCTHW.to(self._device)
            if changed is not None:
                latents_BCTHW = noised(changed[0], latents_BCTHW, start)
            temporal = params.temporal_attention or self._card.attention.temporal
            context = _Context(sampler, guided(self._dit, cond, uncond, guidance, guide, temporal), guide)
            return Run(params, context.pin(latents_BCTHW), sampler, generator, context)

    def step(self, run: Run) -> None:
        """Take the next step; see `Engine`."""
        context: _Context = run.context
        with device_errors(), torch.inference_mode():
            run.latents_BCTHW = context.pin(context.sampler.step(context.look, run.latents_BCTHW, run.step))
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)  # a step that is reported has been taken
        run.step += 1

    def preview(self, run: Run) -> Tensor | None:
        """Return what the steps are heading for; see `Engine`."""
        context: _Context = run.context
        if context.seen is None:
            return None
        with device_errors(), torch.inference_mode():
            return self._vae.preview(clean_estimate(*context.seen)).cpu()

    def decode(self, run: Run) -> Iterator[Tensor]:
        """Yield the frames; see `Engine`."""
        frames = (part_THWC.cpu() for part_THWC in self._vae.decode_stream(run.latents_BCTHW))
        while True:
            with device_errors():
                frames_THWC = next(frames, None)
            if frames_THWC is None:
                return
            yield frames_THWC

    def _check_allowed(self, params: GenerateParams) -> None:
        """Refuse what the card does not allow. Raises: InvalidRequestError."""
        card, mode = self._card, params.temporal_attention
        if params.solver not in card.solvers:
            raise InvalidRequestError(
                f"Model {card.id} has no solver {params.solver[:40]}; it has {', '.join(card.solvers)}."
            )
        if mode and not card.attention.allows(mode):
            raise InvalidRequestError(
                f"Model {card.id} allows no temporal attention {mode[:40]}; it allows "
                f"{', '.join(card.attention.allowed or (card.attention.temporal,))}."
            )

    def _given(
        self, params: GenerateParams, tensors: Mapping[str, Tensor], shape: tuple[int, int, int, int]
    ) -> tuple[Guide | None, tuple[Tensor, float] | None]:
        """Return what of the clip is known, or the latents to change and the flow time at which that begins.

        Raises:
            ValueError: frames of a wrong size or number, or references that do not go together.
        """
        roles = {one.role: one for one in params.references}
        if missing := [role for role in roles if REFERENCE + role not in tensors]:
            raise CorruptObjectError(f"The frames of the reference {missing[0]} are missing.")
        frames = {role: tensors[REFERENCE + role] for role in roles}
        if not roles:
            return None, None
        if roles.keys() == {_FIRST}:
            return guides.first_frame(self._vae, frames[_FIRST], shape), None
        if roles.keys() == {_FIRST, _LAST}:
            return guides.keyframes(self._vae, frames[_FIRST], frames[_LAST], shape), None
        if roles.keys() == {_CONTINUE}:
            return guides.extension(self._vae, frames[_CONTINUE], shape), None
        if roles.keys() == {_CHANGE}:
            return None, guides.change(self._vae, frames[_CHANGE], roles[_CHANGE].strength)
        raise ValueError(f"these do not go together: {', '.join(sorted(roles))}")

    def _conditioning(self, tensors: Mapping[str, Tensor], side: str) -> Conditioning:
        try:
            tokens, mask, pooled = (tensors[f"{side}_{name}"] for name in ("tokens_LD", "mask_L", "pooled_D"))
        except KeyError as error:
            raise CorruptObjectError(f"The conditioning lacks the tensor {error.args[0]}.") from error
        return Conditioning(
            tokens.to(self._device, torch.float32),
            mask.to(self._device, torch.bool),
            pooled.to(self._device, torch.float32),
        )
