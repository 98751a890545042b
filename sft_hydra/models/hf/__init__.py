"""Models defined by transformers, trained on packed sequences (`model=hf`)."""
