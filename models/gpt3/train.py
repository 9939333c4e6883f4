"""Trains GPT-3 under `xshard.auto_shard`: `python -m models.gpt3.train --help`."""

import sys

from models.gpt3 import cli, launch


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code, 2 for bad input, told in one sentence."""
    try:
        args = cli.parse(argv)
        config = cli.config(args)
        launch.set_up_devices(args)
        _train(args, config)
    except cli.InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _train(args: cli.Arguments, config: cli.GPT3Config) -> None:
    # Not before the devices are set up: these import JAX.
    import xshard
    from models.gpt3.loop import train

    try:
        train(args, config)
    except xshard.XshardError as error:
        raise cli.InputError(str(error)) from error


if __name__ == "__main__":
    sys.exit(main())
