"""Models that xshard is shown on; each is ordinary JAX, with no sharding annotation."""
