"""`make demo`: plans GPT-3 tiny on eight virtual CPU devices, trains it, compares with the plan."""

import os
import sys

from models.gpt3.train import main

COMMAND = ["--config", "tiny", "--devices", "8", "--mesh", "2x4", "--steps", "200"]

if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    sys.exit(main([*COMMAND, "--eval-every", "50", *sys.argv[1:]]))
