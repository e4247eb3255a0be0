"""Names and formats of official checkpoints: what lies on disk, and how it becomes a model."""
