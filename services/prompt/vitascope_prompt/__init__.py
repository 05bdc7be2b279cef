"""The prompt service: judges a prompt before anything is promised, encodes it once it is."""
