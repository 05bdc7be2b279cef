"""Vitascope's model family: a diffusion transformer for video, its causal 3D VAE, its text encoder and its samplers."""
