"""A step in microbatches, cut into programs for the stages of a pipeline."""
