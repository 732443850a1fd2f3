"""Every error a user can meet, so that one `except PegRagError` catches the library and nothing else.

Each message says what was given, what was expected and the cure. The built-in parents (`ValueError`, `ImportError`, …)
keep code that already guards against those working unchanged.
"""

_POSITIONS_SHOWN = 5  # of texts, in a message


class PegRagError(Exception):
    """The parent of all errors raised on purpose by peg_rag."""


class InvalidInput(PegRagError, ValueError):
    """A value handed in by the caller cannot be used: wrong type, wrong range, wrong shape."""


class MissingExtra(PegRagError, ImportError):
    """An optional dependency is not installed; the message holds the install command."""


class ModelNotAvailable(PegRagError, OSError):
    """The model cannot be found or reached; the message names the ways out."""


class DamagedModel(PegRagError, ValueError):
    """A model folder is there but unusable: a file is missing, truncated or of an unknown form."""


class IndexMismatch(PegRagError, ValueError):
    """The index on disk was made with another model, dimension, metric or tokenizer."""


class DamagedIndex(PegRagError, OSError):
    """The index's SQLite file cannot be read; the message names it."""


class IndexBusy(PegRagError, TimeoutError):
    """Another process holds the index for writing."""


class ForkedIndex(PegRagError, RuntimeError):
    """The index was opened before a fork; the child has to open its own."""


class StoreError(PegRagError, OSError):
    """The database behind a store cannot be reached or refused a request; the message holds its answer."""


class UnsupportedSearch(PegRagError, NotImplementedError):
    """The store behind a retriever cannot do the kind of search that was asked for."""


class RecipeError(PegRagError, ValueError):
    """A training recipe is contradictory or has an unknown key; the message gives the path of the key."""


class DataError(PegRagError, ValueError):
    """A data file cannot be used; the message names the file, the line and what was expected."""


class TrainingError(PegRagError, RuntimeError):
    """Training cannot go on (NaN or infinite loss, a full disk); what was done is saved first."""


class WorkerDied(PegRagError, RuntimeError):
    """A worker process of `PEGEncoder(devices=…)` died while it loaded the model, or workers died over the same texts.

    Attributes:
        texts: what could not be embedded.
        positions: the places of these texts in the list that was passed.
        reason: how the workers died.
    """

    def __init__(
        self, reason: str, *, what: str = "texts", texts: list[str] | None = None, positions: list[int] | None = None
    ) -> None:
        message = reason
        if positions:
            places = ", ".join(f"{what}[{position}]" for position in positions[:_POSITIONS_SHOWN])
            more = f" and {len(positions) - _POSITIONS_SHOWN} more" if len(positions) > _POSITIONS_SHOWN else ""
            message = f"{places}{more} could not be embedded: {reason}; leave these out, or set batch_tokens lower"
        super().__init__(message)
        self.texts = texts or []
        self.positions = positions or []
        self.reason = reason
