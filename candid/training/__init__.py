"""Training: recipe and data become a run."""
