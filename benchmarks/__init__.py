"""Side-by-side measurements against what people use instead; `make bench` runs them all."""
