"""The command line of ``bench.fuzz``."""

import argparse
import random
import sys
from collections.abc import Sequence
from pathlib import Path

import bench.fuzz
from bench.fuzz.workers import again, fuzz


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.fuzz", description=bench.fuzz.__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--workers", type=int, default=1, help="processes for each target (1)")
    parser.add_argument("--finds", type=Path, help="directory for long inputs (a new one)")
    parser.add_argument("--again", metavar="TARGET:SEED:NUMBER", help="run a single input")
    options = parser.parse_args(arguments)
    if options.again:
        return again(options.again)
    found = fuzz(60 * options.minutes, options.seed, options.workers, options.finds)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
