"""Options of XLA with which small programs compile in a third of the time, to slower code.

What the partitioner and the scheduler do, and with it all that is tested here of a plan, comes
before. README and notebook are run by the tests with XLA as it is.
"""

from importlib.metadata import version

FLAGS = "--xla_backend_optimization_level=0"
if version("jaxlib") < "0.11":  # later ones have no such choice
    FLAGS += " --xla_cpu_use_fusion_emitters=false"
