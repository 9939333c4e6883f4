"""GPT-3 as a plain JAX program: the model that xshard is shown and measured on.

Nothing here knows about devices but `train.py` and its helpers, which hand the train step to
`xshard.auto_shard`.
"""
