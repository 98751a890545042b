"""Our Hydra plugins. Every Hydra application of the environment imports this package: it stays light."""
