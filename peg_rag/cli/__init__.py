"""The `peg-rag` command. Only the standard library is imported here, so that a missing extra is named with its cure."""

import sys


def main() -> None:
    """Entry point of the `peg-rag` script."""
    try:
        from peg_rag.cli.app import run
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        print(
            f"The peg-rag command needs '{error.name}', which is not installed. "
            "Install it with: pip install 'peg-rag[cli]'",
            file=sys.stderr,
        )
        sys.exit(1)
    sys.exit(run())
