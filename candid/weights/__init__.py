"""Weights from elsewhere: files, the names in them, and what of them fits a network of the zoo."""
