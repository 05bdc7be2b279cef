"""Post-processing: a lossless mezzanine becomes a signed MP4, a thumbnail and a manifest."""
