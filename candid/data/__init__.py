"""Data: from where the pictures lie to batches of tensors."""
