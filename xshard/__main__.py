"""`python -m xshard`."""

from xshard.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
