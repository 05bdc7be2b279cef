"""The native engine: our own diffusion transformer, VAE and flow-matching samplers from `vitascope_models`."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from vitascope_common.errors import CorruptObjectError, InvalidModelError, InvalidRequestError
from vitascope_common.jobs import GenerateParams
from vitascope_common.registry import ModelCard
from vitascope_gpu_worker.device import device_errors
from vitascope_gpu_worker.engine import Run
from vitascope_models.dit import DiT
from vitascope_models.load import load_dit, load_vae
from vitascope_models.sampling import FlowSampler, VelocityFn, guided, initial_noise
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
        return NativeEngine(dit.to(device), load_vae(folder, described).to(device), device)


class NativeEngine:
    """One model in memory; see `Engine`."""

    def __init__(self, dit: DiT, vae: VAE, device: torch.device) -> None:
        self._dit = dit
        self._vae = vae
        self._device = device

    def prepare(self, params: GenerateParams, conditioning: Mapping[str, Tensor]) -> Run:
        """Begin a clip; see `Engine`."""
        try:
            shape = self._vae.latent_shape(params.num_frames, params.height_px, params.width_px)
            sampler = FlowSampler(params.num_inference_steps, params.shift, params.solver)
        except ValueError as error:
            raise InvalidRequestError(f"Model {params.model} cannot generate this: {error}") from error
        with device_errors():
            cond, uncond = (self._conditioning(conditioning, side) for side in ("cond", "uncond"))
            noise_BCTHW, generator = initial_noise((1, *shape), params.seed)
            velocity = guided(self._dit, cond, uncond, params.guidance_scale)
            return Run(params, noise_BCTHW.to(self._device), sampler, generator, (sampler, velocity))

    def step(self, run: Run) -> None:
        """Take the next step; see `Engine`."""
        context: tuple[FlowSampler, VelocityFn] = run.context
        sampler, velocity = context
        with device_errors(), torch.inference_mode():
            run.latents_BCTHW = sampler.step(velocity, run.latents_BCTHW, run.step)
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)  # a step that is reported has been taken
        run.step += 1

    def decode(self, run: Run) -> Iterator[Tensor]:
        """Yield the frames; see `Engine`."""
        frames = (part_THWC.cpu() for part_THWC in self._vae.decode_stream(run.latents_BCTHW))
        while True:
            with device_errors():
                frames_THWC = next(frames, None)
            if frames_THWC is None:
                return
            yield frames_THWC

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
