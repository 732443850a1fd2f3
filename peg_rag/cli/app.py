"""The `peg-rag` command: its subcommands, each a plain function in its own module, and how errors are printed.

The subcommands import torch, the index and the frameworks inside their functions, so `peg-rag --help` takes a fraction
of a second. Exit codes: 0 success, 1 error, 2 wrong usage, 3 success but something was skipped or not found, 130
interrupted.
"""

import importlib
import importlib.util
import logging
from typing import Annotated

import typer

from peg_rag import __version__
from peg_rag.cli import console
from peg_rag.cli.messages import describe_error, translate_help
from peg_rag.errors import InvalidInput, PegRagError

# In the order in which a new user needs them. A verb without a module in this installation is left out.
VERBS = (
    "demo",
    "index",
    "search",
    "ask",
    "serve",
    "mcp",
    "embed",
    "load",
    "copy",
    "info",
    "evaluate",
    "feedback",
    "adapt",
    "clean",
    "mine",
    "train",
    "export",
)

app = typer.Typer(
    name="peg-rag",
    help="PEG text embeddings for Chinese retrieval: embed, index, search, ask.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(requested: bool) -> None:
    if requested:
        print(f"peg-rag {__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and the library's log.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    from rich.logging import RichHandler

    handler = RichHandler(console=console.stderr, show_time=False, show_path=debug, markup=False)
    # Other libraries' info messages and warnings are of no use to the users of this command.
    logging.basicConfig(level=logging.INFO if debug else logging.ERROR, format="%(message)s", handlers=[handler])
    logging.getLogger("peg_rag").setLevel(logging.DEBUG if debug else logging.WARNING)


for _verb in VERBS:
    if importlib.util.find_spec(f"peg_rag.cli.{_verb}") is not None:
        _command = getattr(importlib.import_module(f"peg_rag.cli.{_verb}"), _verb)
        if isinstance(_command, typer.Typer):  # a verb with verbs of its own
            app.add_typer(_command, name=_verb)
        else:
            app.command(_verb)(_command)


def run(arguments: list[str] | None = None) -> int:
    """Run the command line (default: `sys.argv`) and return its exit code.

    A `PegRagError` or `OSError` is printed as one short message on stderr; with `--debug`, as a traceback.
    """
    console.make_streams_lenient()
    command = typer.main.get_command(app)
    translate_help(command)
    try:
        command(arguments, prog_name="peg-rag")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except (PegRagError, OSError) as error:
        if logging.getLogger("peg_rag").isEnabledFor(logging.DEBUG):
            raise
        console.error(_format_error(error))
        if description := describe_error(error):
            kind, cure = description
            console.note(f"{kind}。{cure}")
        return 2 if isinstance(error, InvalidInput) else 1
    return 0


def _format_error(error: Exception) -> str:
    """The error's message, without the errno of a system error."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error)
