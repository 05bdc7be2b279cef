"""Judge a model: probes that read what a clip shows, unseen prompts with their scenes, scores and a report."""
