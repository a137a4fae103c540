"""7,000 pictures of Fashion-MNIST that ship inside the package; `make.py` made them, `LICENSE` is theirs."""
