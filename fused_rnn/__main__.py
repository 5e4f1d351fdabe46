"""``python -m fused_rnn``: the same as the console script."""

from .cli import main

if __name__ == "__main__":
    raise SystemExit(main())
