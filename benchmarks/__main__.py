"""``python -m benchmarks`` in a source checkout: the same as ``fused-rnn bench``, which lives in fused_rnn/bench."""

import sys

from fused_rnn.cli import main

raise SystemExit(main(["bench", *sys.argv[1:]]))
