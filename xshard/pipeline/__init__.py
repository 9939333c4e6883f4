"""A step in pipeline stages: boundaries and plans of stages found, and the pipeline that runs."""
