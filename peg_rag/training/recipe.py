"""A recipe: everything that decides what a training run does, as one small YAML file.

A run must be repeatable from what lies beside its weights, and a mistyped key must not cost a night. So unknown keys,
wrong types and contradictions are refused before anything is loaded, with the path of the key and the cure; any key can
be set from the command line (`--set stages.0.steps=100`). These classes are the only options there are: the loss, the
sampler and the loop take them as they stand. No torch is imported.
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import Discriminator, Field, ValidationError, field_validator, model_validator

from peg_rag.errors import RecipeError
from peg_rag.training.data.guide import GuideOptions
from peg_rag.training.data.neighbours import ClusterOptions, NeighbourOptions
from peg_rag.training.data.shared_documents import SharedDocumentOptions
from peg_rag.training.data.soft_augmentation import SoftAugmentationOptions
from peg_rag.training.extension import Options
from peg_rag.training.loss.mixing import MixingOptions
from peg_rag.training.loss.momentum import MomentumOptions
from peg_rag.training.loss.queue import QueueOptions
from peg_rag.training.loss.trust import TrustOptions
from peg_rag.training.recipe_file import apply_override, check_depth, explain_faults, parse_yaml

ObjectiveName = Literal["contrastive", "cosent", "retromae"]
CandidateSourceOptions = Annotated[QueueOptions | MomentumOptions | MixingOptions, Discriminator("kind")]
CandidateMaskOptions = GuideOptions
BatchTransformOptions = Annotated[SharedDocumentOptions | SoftAugmentationOptions, Discriminator("kind")]
RowOrderOptions = Annotated[NeighbourOptions | ClusterOptions, Discriminator("kind")]
Strategy = Literal["none", "static", "linear", "cosine", "curricular"]


def _drop_removed(values: Any, removed: Mapping[str, Any]) -> Any:
    """Options that are gone, where they were switched off; runs of older versions wrote every default down."""
    if not isinstance(values, Mapping):
        return values
    for name, off in removed.items():
        if name in values and values[name] != off:
            raise ValueError(f"{name} was removed: trials found no use for it; delete it from the recipe")
    return {key: value for key, value in values.items() if key not in removed}


class Columns(Options):
    """Which column of a file holds what."""

    query: str = "query"
    positive: str = "positive"
    negatives: str | None = "negatives"
    """A list of strings (in CSV: as JSON). The column may be missing; None leaves it unread."""
    label: str | None = "label"
    weight: str | None = None
    """A number of 0 or more by which a pair counts in the contrastive loss, such as the trust of `peg-rag clean`."""
    anchor: str | None = None
    """The title, section or entity that a positive belongs to: `shared_documents` can put it before the text."""
    group: str | None = None
    """The document, place or category of a row: `neighbours` can put rows of one group together."""
    label_is_grade: bool = False
    """Pairs graded by similarity: every row must have a number as its label, and both texts may be the same."""


class SourceOptions(Options):
    """One file of pairs, or several by a pattern; of objective retromae also plain texts."""

    path: str
    """.jsonl, .csv, .tsv (also .gz, .zst) or .parquet; `$VARIABLES` are expanded, `*` matches in the file name.
    Objective retromae takes the column `positive` of these, and .txt (also .gz, .zst) with one text a line."""
    exclude: tuple[str, ...] = ()
    """Patterns of file names that `path` matches and that are left out."""
    columns: Columns = Columns()
    weight: float = Field(default=1.0, ge=0)
    """Factor on the source's share, besides n ** alpha."""
    minimum_label: float | None = None
    """Rows with a smaller numeric label are left out; rows without one stay."""


class MiningRoundOptions(Options):
    """Hard negatives mined by the model itself before each round; see `peg_rag.training.mining`."""

    negatives: int = Field(default=5, ge=1, le=64)
    first_rank: int = Field(default=1, ge=1)
    last_rank: int = Field(default=100, ge=1)
    margin: float | None = None
    relative_margin: float | None = 0.95
    random: bool = False
    """Draw among the ranks instead of taking the best."""
    bm25: bool = False
    keep: bool = False
    """Keep the negatives of the file before mined ones."""

    @model_validator(mode="after")
    def _check_ranks(self) -> "MiningRoundOptions":
        if self.first_rank > self.last_rank:
            raise ValueError(f"first_rank={self.first_rank} exceeds last_rank={self.last_rank}; lower it")
        return self


class DataOptions(Options):
    """The data mix of a stage."""

    sources: list[SourceOptions] = Field(min_length=1)
    alpha: float = Field(default=0.7, ge=0, le=1)
    """A source of n rows is drawn ∝ n ** alpha: 1 by size, 0 all alike."""
    mixing: Literal["one_source", "mixed"] = "one_source"
    """Batches of one file at a time (harder negatives), or every row by itself."""
    maximum_bad_share: float = Field(default=0.01, ge=0, le=1)
    """A file with a larger share of unusable rows stops the run."""
    mining: MiningRoundOptions | None = None
    """Negatives that the model mines before each round of the stage; None takes those of the files."""
    order: RowOrderOptions | None = None
    """How rows are put into batches, by the model before each round; None draws them at random."""
    transforms: tuple[BatchTransformOptions, ...] = ()
    """What is changed in each batch, in this order; the `kind` of each says how."""

    @model_validator(mode="after")
    def _check_order(self) -> "DataOptions":
        if isinstance(self.order, NeighbourOptions) and self.order.group_epochs:
            self._require_column("group", "order neighbours with group_epochs")
        if any(isinstance(part, SharedDocumentOptions) and part.anchor for part in self.transforms):
            self._require_column("anchor", "shared_documents with anchor: true")
        if self.order is not None and self.mixing != "one_source":
            raise ValueError(f"order {self.order.kind} arranges the rows of one source; set mixing: one_source")
        return self

    def _require_column(self, column: str, user: str) -> None:
        if all(getattr(source.columns, column) is None for source in self.sources):
            raise ValueError(f"{user} needs a column that no source names; set sources[0].columns.{column}")


class ProgressiveOptions(Options):
    """How negatives are weighted by difficulty as the stage goes on; see `peg_rag.training.loss.progressive`."""

    removed: ClassVar[Mapping[str, Any]] = {"query_focus": 0}
    users: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "strength": ("static", "linear", "cosine"),
        "half_life": ("curricular",),
    }

    strategy: Strategy = "none"
    strength: float = Field(default=5.0, ge=0)
    """Of static, linear and cosine: added to a negative's logit per unit of its cosine (at the end, where it grows)."""
    margin: float = 0.0
    """A negative is hard when its cosine exceeds the positive's less this."""
    half_life: float = Field(default=0.3, gt=0)
    """Of curricular: half-life of the moving average t, as a share of the stage."""

    @model_validator(mode="before")
    @classmethod
    def _accept_older_recipes(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("half_life") == 0.02 and values.get("strategy") != "curricular":
            values = {key: value for key, value in values.items() if key != "half_life"}  # once the default
        return _drop_removed(values, cls.removed)

    @model_validator(mode="after")
    def _refuse_unused_options(self) -> "ProgressiveOptions":
        for option, users in self.users.items():
            default = type(self).model_fields[option].default
            if getattr(self, option) != default and self.strategy not in users:
                raise ValueError(
                    f"{option} belongs to strategy {' or '.join(users)}, and strategy is {self.strategy}; "
                    f"remove {option} or set strategy"
                )
        return self


class LossOptions(Options):
    """The contrastive loss; see `peg_rag.training.loss.contrastive`."""

    removed: ClassVar[Mapping[str, Any]] = {"learn_temperature": False, "label_smoothing": 0}

    temperature: float = Field(default=0.05, gt=0)
    """Cosines are divided by it."""
    hard_negatives: Literal["shared", "own"] = "shared"
    """Whether a query meets the hard negatives of the whole batch, or its own only."""
    symmetric: bool = False
    """Also rank the queries for each positive; the loss is the mean of both directions."""
    mask_same_text: bool = True
    """A candidate whose text is a known answer to the query's text, or that text itself, is no negative."""
    false_negative_margin: float | None = None
    """A candidate with a cosine above the positive's less this is taken for an answer and masked."""
    false_negative_ratio: float | None = None
    """A candidate with a cosine above this share of the positive's is taken for an answer and masked."""
    matryoshka_dims: tuple[int, ...] = ()
    """The loss is summed over these prefixes of the vectors; name the full length too. Empty: the whole vectors."""
    progressive: ProgressiveOptions = ProgressiveOptions()
    trust: TrustOptions | None = None
    """Pairs with an improbable positive count less: for data with wrong labels."""
    masks: tuple[CandidateMaskOptions, ...] = ()
    """What tells likely answers among the candidates, which are then no negatives."""
    candidates: tuple[CandidateSourceOptions, ...] = ()
    """Candidates besides the documents of the batch; the `kind` of each says where they come from."""

    @model_validator(mode="before")
    @classmethod
    def _accept_older_recipes(cls, values: Any) -> Any:
        return _drop_removed(values, cls.removed)

    @field_validator("matryoshka_dims")
    @classmethod
    def _check_dims(cls, dims: tuple[int, ...]) -> tuple[int, ...]:
        if any(dim < 1 for dim in dims) or len(set(dims)) < len(dims):
            raise ValueError(f"matryoshka_dims={list(dims)} must be distinct and 1 or more")
        return dims

    @model_validator(mode="after")
    def _check_candidates(self) -> "LossOptions":
        parts = [*self.candidates, *self.masks]
        if parts and not self.mask_same_text:
            raise ValueError(
                f"{parts[0].kind} needs to know which texts answer a query; set mask_same_text: true or remove "
                f"{parts[0].kind}"
            )
        if not self.symmetric and any(isinstance(part, MomentumOptions) and part.queries for part in self.candidates):
            raise ValueError(
                "momentum remembers queries as negatives of documents, which only the symmetric loss has; set "
                "symmetric: true, or queries: 0"
            )
        return self


class RetroMAEOptions(Options):
    """Pre-training on plain texts: hidden tokens are told from the others and from the text's vector.

    See `peg_rag.training.model.retromae`.
    """

    encoder_masked: float = Field(default=0.3, gt=0, lt=1)
    """Share of a text's tokens that the encoder does not see, and must tell."""
    decoder_masked: float = Field(default=0.5, ge=0, le=1)
    """Share of the other tokens that the decoder does not see where it tells one; 1 leaves it the vector alone."""


class BatchOptions(Options):
    """What one optimiser step sees, over all ranks."""

    queries: int = Field(ge=2)
    """Of objective retromae: texts."""
    negatives: int = Field(default=0, ge=0, le=64)
    """Hard negatives for each query; a row with more gives this many at random, one with fewer gives what it has."""

    @property
    def documents(self) -> int:
        """Documents encoded in one step, where every row has enough negatives."""
        return self.queries * (1 + self.negatives)


class OptimizerOptions(Options):
    """AdamW and its learning rate."""

    learning_rate: float = Field(gt=0)
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_steps: int = Field(default=0, ge=0)
    weight_decay: float = Field(default=0.0, ge=0)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.999, ge=0, lt=1)
    epsilon: float = Field(default=1e-8, gt=0)
    max_grad_norm: float | None = Field(default=1.0, gt=0)
    """Gradients are scaled down to this norm; null leaves them."""


class MemoryOptions(Options):
    """Sizes that bound memory and change no result; null chooses them from free memory."""

    chunk_tokens: int | None = Field(default=None, ge=1)
    """Tokens (padding counted) that the encoder takes at once."""
    graphs: Literal["auto", "keep", "replay"] = "auto"
    """Keep the activations of the whole batch, or encode it twice; auto keeps them where they fit."""
    loss_tile: int | None = Field(default=None, ge=16)
    """Rows of the score matrix that exist at once, with four times as many columns."""


class StageOptions(Options):
    """One stage of training: data, batch, loss, steps."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    objective: ObjectiveName = "contrastive"
    steps: int = Field(ge=1)
    rounds: int = Field(default=1, ge=1)
    """Equal parts of the stage; before each, negatives are mined and rows are ordered by the model as it then is."""
    batch: BatchOptions
    data: DataOptions
    loss: LossOptions = LossOptions()
    retromae: RetroMAEOptions = RetroMAEOptions()
    optimizer: OptimizerOptions
    memory: MemoryOptions = MemoryOptions()

    @model_validator(mode="after")
    def _check_stage(self) -> "StageOptions":
        if self.optimizer.warmup_steps >= self.steps:
            raise ValueError(
                f"optimizer.warmup_steps={self.optimizer.warmup_steps} is not below steps={self.steps}: the learning "
                "rate would never reach its height; lower warmup_steps"
            )
        if self.objective == "cosent":
            self._check_cosent()
        if self.objective == "retromae":
            self._check_retromae()
        elif self.retromae != RetroMAEOptions():
            raise ValueError(f"retromae belongs to objective retromae, and objective is {self.objective}; remove it")
        if self.rounds > self.steps:
            raise ValueError(f"rounds={self.rounds} exceed steps={self.steps}; a round has a step at least")
        if self.rounds > 1 and self.data.mining is None and self.data.order is None:
            raise ValueError(f"rounds={self.rounds}, but nothing is made anew; set data.mining or data.order")
        if self.data.mining is not None and not self.batch.negatives:
            raise ValueError("data.mining mines negatives that batch.negatives=0 leaves out; raise batch.negatives")
        if (
            self.batch.negatives
            and self.data.mining is None
            and all(source.columns.negatives is None for source in self.data.sources)
        ):
            raise ValueError(
                f"batch.negatives={self.batch.negatives}, but no source reads any (columns.negatives is null); "
                "set batch.negatives to 0 or name the column"
            )
        return self

    def _check_cosent(self) -> None:
        if self.batch.negatives:
            raise ValueError(
                "objective cosent compares graded pairs and takes no hard negatives; set batch.negatives to 0"
            )
        changed = self.loss.model_dump(exclude_defaults=True, exclude={"temperature"})
        if changed:
            raise ValueError(f"objective cosent uses loss.temperature only; remove loss.{min(changed)}")
        component = next((name for name in ("mining", "order", "transforms") if getattr(self.data, name)), None)
        if component is not None:
            raise ValueError(f"objective cosent takes graded pairs as they are; remove data.{component}")
        for i, source in enumerate(self.data.sources):
            if source.columns.weight is not None:
                raise ValueError(f"objective cosent does not weigh pairs; remove data.sources[{i}].columns.weight")
            if not source.columns.label_is_grade:
                raise ValueError(
                    f"objective cosent needs a grade in every row; set data.sources[{i}].columns.label_is_grade: true"
                )

    def _check_retromae(self) -> None:
        if self.batch.negatives:
            raise ValueError("objective retromae takes single texts and no hard negatives; set batch.negatives to 0")
        unused = {
            "loss": self.loss.model_dump(exclude_defaults=True),
            "memory": self.memory.model_dump(exclude_defaults=True, exclude={"chunk_tokens"}),
            "data": self.data.model_dump(include={"mining", "order", "transforms"}, exclude_defaults=True),
        }
        for part, options in unused.items():
            if options:
                raise ValueError(f"objective retromae makes no use of {part}.{min(options)}; remove it")
        for i, source in enumerate(self.data.sources):
            if source.minimum_label is not None or source.columns != Columns(positive=source.columns.positive):
                raise ValueError(
                    f"objective retromae reads the texts of one column; of data.sources[{i}], keep path, exclude, "
                    "weight and columns.positive only"
                )

    @property
    def candidates_per_query(self) -> int:
        """Documents that each query is ranked against in one step, its positive included; 0 for single texts.

        With hard negatives of its own only, a query meets the batch's positives and its own negatives. Candidates from
        outside the batch count as when their source is full.
        """
        if self.objective == "retromae":
            return 0
        further = sum(source.max_candidates for source in self.loss.candidates)
        if self.loss.hard_negatives == "own":
            return self.batch.queries + self.batch.negatives + further
        return self.batch.documents + further


class VocabularyOptions(Options):
    """A vocabulary learned from the first stage's texts; see `peg_rag.training.model.vocabulary`."""

    size: int = Field(default=40_000, ge=100)
    texts_per_file: int = Field(default=50_000, ge=1)
    """At most this many texts of each file are counted."""
    texts: tuple[str, ...] = ()
    """Further text files, one text a line (.txt, also .gz, .zst)."""


class StaticOptions(Options):
    """A new static model: one vector for each word, averaged."""

    dimension: int = Field(default=256, ge=1)
    tokenizer: str | None = None
    """Folder or bundled name of a static model whose words are used; None learns them from the first stage's texts."""
    vocabulary: VocabularyOptions = VocabularyOptions()


class TransformerOptions(Options):
    """A new BERT with random weights, of any shape."""

    hidden_size: int = Field(ge=8)
    layers: int = Field(ge=1)
    heads: int = Field(ge=1)
    intermediate_size: int | None = None
    """None: four times the hidden size."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    tokenizer: str | None = None
    """Folder or hub id whose tokenizer is used; None learns a vocabulary of characters from the first stage's texts."""
    vocabulary: VocabularyOptions = VocabularyOptions(size=21_128)

    @model_validator(mode="after")
    def _check_heads(self) -> "TransformerOptions":
        if self.hidden_size % self.heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} is not a multiple of heads={self.heads}; change one of them"
            )
        return self


class ModelOptions(Options):
    """What is trained: exactly one of `path`, `static`, `transformer`."""

    path: str | None = None
    """Hub id, folder or bundled name to start from."""
    static: StaticOptions | None = None
    transformer: TransformerOptions | None = None
    pooling: Literal["cls", "mean", "max", "lasttoken"] | None = None
    """None: what the model says of itself; CLS for a new transformer."""
    max_length: int | None = Field(default=None, ge=3)
    query_prompt: str | None = None
    document_prompt: str | None = None
    attention_dropout: float | None = Field(default=None, ge=0, lt=1)
    """Dropout of attention scores in a transformer; None: what the model says."""
    unpadded: bool = False
    """Compute real tokens only, where that works: BERT's shape on CUDA, in bf16, not compiled, and without dropout of
    attention scores (or in validation)."""

    @model_validator(mode="after")
    def _check_origin(self) -> "ModelOptions":
        origins = [name for name in ("path", "static", "transformer") if getattr(self, name) is not None]
        if len(origins) != 1:
            raise ValueError(
                f"{' and '.join(origins) or 'none'} of path, static, transformer given; exactly one is "
                "expected: where to start from, or the shape of a new model"
            )
        if self.static and self.pooling not in (None, "mean"):
            raise ValueError(f"pooling is {self.pooling}, but a static model always takes the mean; remove pooling")
        if self.static and self.attention_dropout is not None:
            raise ValueError("a static model has no attention; remove attention_dropout")
        if self.static and self.unpadded:
            raise ValueError("a static model has no padding; remove unpadded")
        return self

    @property
    def new_dimension(self) -> int | None:
        """Dimensions of a new model's vectors; None for a model that is loaded."""
        if self.static is not None:
            return self.static.dimension
        if self.transformer is not None:
            return self.transformer.hidden_size
        return None


class ValidationOptions(Options):
    """The split that everything is chosen on: cut from the pairs by the query's text, never trained on."""

    share: float = Field(default=0.01, ge=0, lt=0.5)
    queries_per_source: int = Field(default=200, ge=1)
    """At most this many queries of each file are scored (the others stay out of training all the same)."""
    distractors: int = Field(default=5_000, ge=0)
    """Training positives, over all files, that stand in the corpus besides the split's own documents."""


class EvaluationOptions(Options):
    """When the model is scored while it trains."""

    every_steps: int | None = Field(default=None, ge=1)
    """None: at the end of each stage only."""
    at_start: bool = False
    beir: tuple[str, ...] = ()
    """BEIR folders that are scored too; to report, not to choose on."""


class CheckpointOptions(Options):
    every_steps: int | None = Field(default=None, ge=1)
    """None: at the end of each stage, and when interrupted."""
    keep: int = Field(default=2, ge=1)


class LoggingOptions(Options):
    every_steps: int = Field(default=10, ge=1)
    report_to: tuple[Literal["tensorboard", "wandb"], ...] = ()
    push_to_hub: str | None = None
    """Hub id that each checkpoint is pushed to."""


class Recipe(Options):
    """A whole training run. See train/README.md for a walk through one."""

    output_dir: str
    seed: int = Field(default=0, ge=0, lt=2**32)
    model: ModelOptions
    stages: list[StageOptions] = Field(min_length=1)
    precision: Literal["fp32", "bf16"] = "fp32"
    stored_as: Literal["fp32", "fp16"] = "fp32"
    """Of the weights in `output_dir`; checkpoints and the stages' models are fp32 always."""
    compile: bool = False
    """torch.compile the transformer."""
    device: str | None = None
    """None: the best there is; `cpu` keeps off the accelerator."""
    data_workers: int = Field(default=0, ge=0)
    """Processes that prepare batches ahead."""
    cache_dir: str = "~/.cache/peg_rag/training"
    validation: ValidationOptions = ValidationOptions()
    evaluation: EvaluationOptions = EvaluationOptions()
    checkpoints: CheckpointOptions = CheckpointOptions()
    logging: LoggingOptions = LoggingOptions()

    @model_validator(mode="after")
    def _check_stages(self) -> "Recipe":
        names = [stage.name for stage in self.stages]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"two stages are called {repeated[0]!r}; their checkpoints would mix: rename one")
        dimension = self.model.new_dimension
        for i, stage in enumerate(self.stages):
            too_large = [dim for dim in stage.loss.matryoshka_dims if dimension and dim > dimension]
            if too_large:
                raise ValueError(
                    f"stages[{i}].loss.matryoshka_dims has {too_large[0]}; the vectors have {dimension} dimensions"
                )
            if stage.objective == "retromae" and self.model.static is not None:
                raise ValueError(
                    f"stages[{i}].objective is retromae, which needs a vector for each token in its text, and "
                    "model.static has none; set model.transformer, or remove the stage"
                )
        return self

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = ()) -> "Recipe":
        """Read a YAML file and apply `dotted.key=value` overrides; a stage goes by its number or its name.

        Raises:
            RecipeError: the file is missing or no YAML; a key is unknown, of the wrong type, or contradicts another.
        """
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise RecipeError(f"{path} does not exist; give the path of a recipe (see train/recipes)") from None
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"{path} cannot be read: {error}") from error
        return cls.parse(parse_yaml(text, str(path)), overrides, name=str(path))

    @classmethod
    def parse(cls, tree: Any, overrides: Sequence[str] = (), *, name: str = "recipe") -> "Recipe":
        """The same from a mapping that is already in memory."""
        if not isinstance(tree, Mapping):
            raise RecipeError(
                f"{name} holds {type(tree).__name__}; a mapping with output_dir, model, stages is expected"
            )
        check_depth(tree, name)
        for override in overrides:
            tree = apply_override(tree, override)
        try:
            return cls.model_validate(tree)
        except ValidationError as error:
            raise RecipeError(f"{name}: " + "; ".join(explain_faults(error, cls))) from error

    def dump(self) -> str:
        """The recipe as YAML, defaults included."""
        return yaml.safe_dump(self.model_dump(mode="json"), allow_unicode=True, sort_keys=False)


def expand_path(path: str) -> Path:
    """`$VARIABLES` and `~` expanded.

    Raises:
        RecipeError: a variable is not set.
    """
    expanded = os.path.expandvars(path)
    if missing := re.search(r"\$\{?\w+", expanded):
        raise RecipeError(f"{path}: the variable {missing[0]} is not set; set it, or give the path itself")
    return Path(expanded).expanduser()
