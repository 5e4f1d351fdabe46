"""What a run writes: the results as JSON, also while it goes on, and the plot."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from . import plot
from .header import file_name

SAVE_EVERY_S = 10.0


class Files:
    def __init__(self, options: argparse.Namespace, facts: dict[str, Any]) -> None:
        base = file_name(facts) if options.named else "results"
        self.json: list[Path] = [options.out / f"{base}.json"] if options.out else []
        self.json += [options.json] if options.json else []
        self.plots: list[Path] = [options.out / f"{base}.png"] if options.out else []
        self.plots += [options.plot] if options.plot else []
        self.saved = time.monotonic()

    def save(self, document: dict[str, Any]) -> None:
        """The JSON so far, now and then: a kernel that hangs takes the process with it, but not what was measured."""
        if time.monotonic() - self.saved > SAVE_EVERY_S:
            self.write_json(document)

    def write_json(self, document: dict[str, Any]) -> None:
        for path in self.json:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(document, indent=1) + "\n")
        self.saved = time.monotonic()

    def write(self, document: dict[str, Any]) -> None:
        self.write_json(document)
        written = list(self.json)
        for path in self.plots:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                plot.draw(document, path)
            except ImportError:
                print(f"no {path}: the plot needs matplotlib (pip install matplotlib, or the extra 'bench')")
            else:
                written.append(path)
        for path in written:
            print(f"wrote {path}")


def read_prices(path: Path) -> list[dict[str, Any]]:
    """What benchmarks/exchange.cu printed; lines that are no JSON objects are left out."""
    return [json.loads(text) for text in path.read_text().splitlines() if text.startswith("{")]
