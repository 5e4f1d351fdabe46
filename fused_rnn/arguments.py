"""Types for argparse."""

from __future__ import annotations

import argparse
import math

__all__ = ["duration", "natural", "positive", "seed"]


def natural(text: str) -> int:
    """A whole number, zero or more."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 on")
    return number


def positive(text: str) -> int:
    """A whole number above zero, for sizes."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    if number >= 1 << 31:
        raise argparse.ArgumentTypeError(f"{text} is too large")
    return number


def seed(text: str) -> int:
    """What ``torch.manual_seed`` takes."""
    number = int(text)
    if not -1 << 63 <= number < 1 << 64:
        raise argparse.ArgumentTypeError(f"{text} has more than 64 bits")
    return number


def duration(text: str) -> float:
    """Zero or more, in any unit."""
    number = float(text)
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no duration")
    return number
