"""`make demo`: plans GPT-3 tiny on eight virtual CPU devices, trains it, compares with the plan."""

import os
import sys

from models.gpt3.train import main

COMMAND = "--config tiny --devices 8 --mesh 2x4 --steps 100 --eval-every 25 --brief"

if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    print(f"python -m models.gpt3.train {COMMAND}\n", flush=True)
    sys.exit(main([*COMMAND.split(), *sys.argv[1:]]))
