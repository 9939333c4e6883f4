"""Each size's train step and the shapes of its arguments, under names for a command line.

    xshard plan models.gpt3.zoo:gpt3_6_7b.train --args models.gpt3.zoo:gpt3_6_7b.avals \
        --cluster v100-sxm2-32gb:2x8
"""

from typing import Any

from models.gpt3.config import CONFIGS, GPT3Config
from models.gpt3.step import Batch, Metrics, TrainState, batch_avals, make_train_step, state_avals


class Size:
    """One configuration's step, to be planned without allocating anything."""

    def __init__(self, config: GPT3Config) -> None:
        """Traces nothing yet."""
        self.config = config

    def train(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """One training step."""
        return make_train_step(self.config).train(state, batch)

    def avals(self) -> tuple[Any, Any]:
        """Shapes of the state and of a batch."""
        return state_avals(self.config), batch_avals(self.config)


tiny = Size(CONFIGS["tiny"])
gpt3_350m = Size(CONFIGS["350M"])
gpt3_760m = Size(CONFIGS["760M"])
gpt3_1_3b = Size(CONFIGS["1.3B"])
gpt3_2_6b = Size(CONFIGS["2.6B"])
gpt3_6_7b = Size(CONFIGS["6.7B"])
gpt3_15b = Size(CONFIGS["15B"])
gpt3_39b = Size(CONFIGS["39B"])
