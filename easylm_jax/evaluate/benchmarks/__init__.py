"""One file for each benchmark; see `easylm_jax.evaluate.benchmark`."""
