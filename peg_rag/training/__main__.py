"""`torchrun … -m peg_rag.training RECIPE [--set key=value] [--resume] [--overwrite]`: what every rank runs.

`torchrun` starts modules, and a rank must not print over the others. `peg-rag train` is the same for one process.
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from peg_rag.errors import PegRagError
from peg_rag.training.recipe import Recipe


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a recipe; 0 when done, 130 when interrupted (a checkpoint is there), 1 on an error."""
    parser = argparse.ArgumentParser(prog="python -m peg_rag.training", description="Train a text-embedding model.")
    parser.add_argument("recipe", help="YAML file, see train/recipes")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the recipe")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier run in output_dir")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    try:
        from peg_rag.training.run.train import train

        recipe = Recipe.load(options.recipe, options.set)
        first = os.environ.get("RANK", "0") == "0"
        result = train(recipe, resume=options.resume, overwrite=options.overwrite, show_progress=first)
    except PegRagError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("stopped at once; the last checkpoint is whole, --resume goes on from it\n")
        return 130
    return 130 if result.interrupted else 0


if __name__ == "__main__":
    sys.exit(main())
