"""Post-processing: a lossless mezzanine becomes a signed MP4, two pictures of it and a manifest."""
