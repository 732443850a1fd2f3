"""`python -m peg_rag.cli`, for where the `peg-rag` script is not on the path."""

from peg_rag.cli import main

main()
