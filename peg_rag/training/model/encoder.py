"""The encoder while it is trained: token ids in, pooled vectors with a graph out; and the folder it becomes.

What is trained must be what is served. The pooling, the tokenizer and its truncation are those that `PEGEncoder` uses,
and the folder written at the end (and at every checkpoint) says so in all three dialects: `peg_rag.json` for us,
`modules.json` and `1_Pooling` for sentence-transformers, `config.json` and weights for `AutoModel`. Weights are trained
and checkpointed in float32; bfloat16 is a matter of autocast, float16 of the last folder only.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from peg_rag.backends.torch_backend import load_model, pool
from peg_rag.encoder import load_tokenizer
from peg_rag.errors import DamagedModel, RecipeError
from peg_rag.files import write_atomically
from peg_rag.models import CONFIG_FILE, CONFIG_FORMAT, ModelSpec, Pooling, resolve, weight_files
from peg_rag.training.data.files import file_digest
from peg_rag.training.data.tokens import digest
from peg_rag.training.model.unpadded import can_train_unpadded, compute_unpadded_states
from peg_rag.training.model.vocabulary import character_tokenizer, vocabulary_files, vocabulary_texts, word_tokenizer
from peg_rag.training.recipe import (
    ModelOptions,
    SourceOptions,
    StaticOptions,
    TransformerOptions,
    VocabularyOptions,
    expand_path,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer

STATIC_LENGTH = 2_048  # tokens of a text that a new static model reads
TRANSFORMER_LENGTH = 512
STATIC_SPREAD = 0.1  # standard deviation of a new static model's vectors, before a word's rarity scales its own


class TrainableEncoder(nn.Module):
    """A transformer with its pooling, or a static matrix with its mean, and all that its folder must say.

    Attributes:
        kind: `transformer` or `static`.
        pooling, max_length, query_prompt, document_prompt, dimension: as in `ModelSpec`.
        tokenizer: truncates at max_length, never pads.
        pad_id: the token that fills short rows.
        unpadded: whether a transformer is computed without padding where that works.
    """

    def __init__(
        self,
        body: nn.Module,
        tokenizer: "Tokenizer",
        *,
        pooling: Pooling,
        max_length: int,
        dimension: int,
        query_prompt: str = "",
        document_prompt: str = "",
        tokenizer_files: Callable[[Path], None] | None = None,
    ) -> None:
        super().__init__()
        self.body = body
        self.kind = "static" if isinstance(body, nn.EmbeddingBag) else "transformer"
        self.tokenizer = tokenizer
        self.pooling = pooling
        self.max_length = max_length
        self.dimension = dimension
        self.query_prompt = query_prompt
        self.document_prompt = document_prompt
        self.unpadded = False
        self.pad_id = int(getattr(getattr(body, "config", None), "pad_token_id", None) or 0)
        self._tokenizer_files = tokenizer_files
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_length)

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        """`input_ids` and `attention_mask` (rows, tokens), padded on the right → (rows, dimension), not normalised."""
        input_ids, attention_mask = features["input_ids"], features["attention_mask"]
        if isinstance(self.body, nn.EmbeddingBag):
            lengths = attention_mask.sum(dim=1)  # (rows,)
            starts = lengths.cumsum(0) - lengths
            pooled: Tensor = self.body(input_ids[attention_mask.bool()], starts)
            return pooled
        return pool(self.states(features), attention_mask, self.pooling)

    def states(self, features: dict[str, Tensor]) -> Tensor:
        """Of a transformer: `input_ids` and `attention_mask` (rows, tokens) → (rows, tokens, dimension).

        What stands on padding is no one's: zero where the batch is computed without padding, anything where it is not.
        """
        input_ids, attention_mask = features["input_ids"], features["attention_mask"]
        if self.unpadded and can_train_unpadded(self.body, input_ids.device):
            return compute_unpadded_states(self.body, input_ids, attention_mask)
        output = self.body(input_ids=input_ids, attention_mask=attention_mask)
        states: Tensor = output.last_hidden_state
        return states

    @property
    def prompts(self) -> dict[str, str]:
        return {"query": self.query_prompt, "document": self.document_prompt}

    def token_ids(self, texts: list[str]) -> list[list[int]]:
        """Token ids as at inference, special tokens included for a transformer."""
        special = self.kind == "transformer"
        return [e.ids or [0] for e in self.tokenizer.encode_batch_fast(texts, add_special_tokens=special)]

    def save(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        """Write a folder that `PEGEncoder`, `SentenceTransformer` and (a transformer) `AutoModel` open alike."""
        folder.mkdir(parents=True, exist_ok=True)
        modules = [_describe_module(1, "1_Normalize", "Normalize")]
        weights = {
            key: value.detach().to("cpu", dtype if value.is_floating_point() else value.dtype)
            for key, value in self.body.state_dict().items()
        }
        if isinstance(self.body, nn.EmbeddingBag):
            from safetensors.torch import save_file

            save_file({"embedding.weight": weights["weight"]}, folder / "model.safetensors")
            (folder / "model.safetensors").chmod(0o644)  # written for its owner alone
            self.tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
            modules = [_describe_module(0, "", "StaticEmbedding"), *modules]
        else:
            # transformers 5.0 would give the tensors the names of BERT's first release (LayerNorm.gamma).
            self.body.save_pretrained(folder, state_dict=weights, save_original_format=False)  # type: ignore[operator]
            if self._tokenizer_files is not None:
                self._tokenizer_files(folder)
            mode = {"pooling_mode": self.pooling, "embedding_dimension": self.dimension, "include_prompt": True}
            _write_json(folder / "1_Pooling" / "config.json", mode)
            _write_json(
                folder / "sentence_bert_config.json", {"max_seq_length": self.max_length, "do_lower_case": False}
            )
            modules = [
                _describe_module(0, "", "Transformer"),
                _describe_module(1, "1_Pooling", "Pooling"),
                _describe_module(2, "2_Normalize", "Normalize"),
            ]
        (folder / modules[-1]["path"]).mkdir(exist_ok=True)
        _write_json(folder / "modules.json", modules)
        _write_json(
            folder / "config_sentence_transformers.json", {"prompts": self.prompts, "similarity_fn_name": "cosine"}
        )
        config = {"format": CONFIG_FORMAT, "pooling": self.pooling, "max_length": self.max_length}
        prompts = {f"{role}_prompt": text for role, text in self.prompts.items()}
        _write_json(folder / CONFIG_FILE, {**config, **prompts})

    def load_weights(self, folder: Path) -> None:
        """Take the weights of a folder that `save` wrote, exactly.

        Raises:
            DamagedModel: the weights are missing or of other shapes.
        """
        from safetensors.torch import load_file

        tensors = {key: value for file in weight_files(folder) for key, value in load_file(file).items()}
        tensors = (
            {key.removeprefix("embedding."): value for key, value in tensors.items()}
            if self.kind == "static"
            else tensors
        )
        try:
            self.body.load_state_dict(tensors)
        except RuntimeError as error:
            raise DamagedModel(f"the weights in {folder} do not fit this model: {error}") from error


def build_encoder(options: ModelOptions, sources: Sequence[SourceOptions], cache: Path) -> TrainableEncoder:
    """The encoder a recipe asks for: loaded, or new with random weights (torch's global seed decides).

    Args:
        sources: what a vocabulary is learned from, where one has to be.
        cache: where a learned vocabulary is kept, by the content of its files.

    Raises:
        ModelNotAvailable, DamagedModel: the model to start from.
        RecipeError: an option does not fit the model.
    """
    if options.static is not None:
        return _new_static(options, options.static, sources, cache)
    if options.transformer is None:
        return load_encoder(options)
    encoder = _new_transformer(options, options.transformer, sources, cache)
    _set_attention_dropout(encoder.body, options.attention_dropout)
    encoder.unpadded = options.unpadded
    return encoder


def load_encoder(options: ModelOptions) -> TrainableEncoder:
    """An existing model, with what the recipe overrides."""
    path = str(options.path)
    folder = expand_path(path)
    spec = resolve(
        folder if folder.is_dir() else path,
        pooling=options.pooling,
        max_length=options.max_length,
        query_prompt=options.query_prompt,
        document_prompt=options.document_prompt,
    )
    body = _load_static(spec) if spec.kind == "static" else load_model(spec, torch.float32)
    _set_attention_dropout(body, options.attention_dropout)
    encoder = TrainableEncoder(
        body,
        load_tokenizer(spec),
        pooling=spec.pooling,
        max_length=spec.max_length,
        dimension=spec.dimension,
        query_prompt=spec.query_prompt,
        document_prompt=spec.document_prompt,
        tokenizer_files=None if spec.kind == "static" else _copy_tokenizer(spec.path, spec.max_length),
    )
    encoder.unpadded = options.unpadded
    return encoder


def _set_attention_dropout(body: nn.Module, rate: float | None) -> None:
    """The model's own where the rate is None."""
    if rate is None:
        return
    modules = [module for name, module in body.named_modules() if name.endswith("attention.self.dropout")]
    config: Any = getattr(body, "config", None)
    if not modules or not hasattr(config, "attention_probs_dropout_prob"):
        raise RecipeError(
            f"model.attention_dropout: {type(body).__name__} is not built as BERT is; remove attention_dropout"
        )
    config.attention_probs_dropout_prob = rate
    for module in modules:
        module.p = rate


def parameter_count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _load_static(spec: ModelSpec) -> nn.EmbeddingBag:
    from safetensors.torch import load_file

    table = load_file(weight_files(spec.path)[0])["embedding.weight"].float()
    return nn.EmbeddingBag.from_pretrained(table, freeze=False, mode="mean")


def _new_static(
    options: ModelOptions, shape: StaticOptions, sources: Sequence[SourceOptions], cache: Path
) -> TrainableEncoder:
    if shape.tokenizer is None:
        tokenizer = _learn_tokenizer(word_tokenizer, shape.vocabulary, sources, cache)
    else:
        tokenizer = _static_tokenizer(shape.tokenizer)
    body = nn.EmbeddingBag(tokenizer.get_vocab_size(), shape.dimension, mode="mean")
    with torch.no_grad():
        body.weight.normal_(std=STATIC_SPREAD).mul_(_word_rarity(tokenizer)[:, None])
    return TrainableEncoder(
        body,
        tokenizer,
        pooling="mean",
        max_length=options.max_length or STATIC_LENGTH,
        dimension=shape.dimension,
        query_prompt=options.query_prompt or "",
        document_prompt=options.document_prompt or "",
    )


def _resolve_model(name: str) -> ModelSpec:
    """A folder, whose name may hold variables, or a bundled name or hub id."""
    folder = expand_path(name)
    return resolve(folder if folder.is_dir() else name)


def _static_tokenizer(model: str) -> "Tokenizer":
    """The vocabulary of a static model, of the kind that `word_tokenizer` learns."""
    spec = _resolve_model(model)
    if spec.kind != "static":
        raise RecipeError(f"model.static.tokenizer: {model} is a transformer; name a static model")
    return load_tokenizer(spec)


def _word_rarity(tokenizer: "Tokenizer") -> Tensor:
    """−log of each word's frequency over the mean of that, (words,): a rare word begins with a long vector.

    A text is the mean of its words' vectors, so their lengths are term weights, and this is near what idf would be.
    """
    scores = torch.tensor([-score for _, score in json.loads(tokenizer.to_str())["model"]["vocab"]])
    scores[0] = scores[1:].mean()  # the unknown word has no frequency
    return scores / scores.mean()


def _new_transformer(
    options: ModelOptions, shape: TransformerOptions, sources: Sequence[SourceOptions], cache: Path
) -> TrainableEncoder:
    from transformers import BertModel

    length = options.max_length or TRANSFORMER_LENGTH
    if shape.tokenizer is None:
        tokenizer = _learn_tokenizer(character_tokenizer, shape.vocabulary, sources, cache)
        files: Callable[[Path], None] = _save_bert_tokenizer(tokenizer, length)
    else:
        spec = _resolve_model(shape.tokenizer)
        if spec.kind == "static":
            raise RecipeError(f"model.transformer.tokenizer: {shape.tokenizer} is a static model; name a transformer")
        tokenizer = load_tokenizer(spec)
        files = _copy_tokenizer(spec.path, length)
    return TrainableEncoder(
        BertModel(bert_config(shape, tokenizer.get_vocab_size(), length), add_pooling_layer=False),
        tokenizer,
        pooling=options.pooling or "cls",
        max_length=length,
        dimension=shape.hidden_size,
        query_prompt=options.query_prompt or "",
        document_prompt=options.document_prompt or "",
        tokenizer_files=files,
    )


def _learn_tokenizer(
    learn: Callable[[Iterable[str], int], "Tokenizer"],
    options: VocabularyOptions,
    sources: Sequence[SourceOptions],
    cache: Path,
) -> "Tokenizer":
    """A vocabulary from the cache, or learned now."""
    from tokenizers import Tokenizer

    files = [file_digest(file) for file in vocabulary_files(sources, options)]
    file = cache / f"{learn.__name__}-{digest(options.model_dump_json(), *files)}.json"
    if not file.is_file():
        tokenizer = learn(vocabulary_texts(sources, options), options.size)
        write_atomically(file, tokenizer.to_str().encode())
    return Tokenizer.from_file(str(file))


def bert_config(shape: TransformerOptions, vocabulary: int, length: int) -> Any:
    """The transformers configuration of a new BERT."""
    from transformers import BertConfig

    return BertConfig(
        vocab_size=vocabulary,
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.intermediate_size or 4 * shape.hidden_size,
        hidden_dropout_prob=shape.dropout,
        attention_probs_dropout_prob=shape.dropout,
        max_position_embeddings=max(length, TRANSFORMER_LENGTH),
    )


def _save_bert_tokenizer(tokenizer: "Tokenizer", length: int) -> Callable[[Path], None]:
    def save(folder: Path) -> None:
        from transformers import BertTokenizerFast  # type: ignore[attr-defined]

        BertTokenizerFast(tokenizer_object=tokenizer, model_max_length=length).save_pretrained(folder)

    return save


def _copy_tokenizer(source: Path, length: int) -> Callable[[Path], None]:
    """Read now, for the source may be a checkpoint that is removed while training goes on."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, local_files_only=True)
    tokenizer.model_max_length = length

    def save(folder: Path) -> None:
        tokenizer.save_pretrained(folder)

    return save


def _describe_module(place: int, path: str, name: str) -> dict[str, Any]:
    return {"idx": place, "name": str(place), "path": path, "type": f"sentence_transformers.models.{name}"}


def _write_json(file: Path, content: Any) -> None:
    write_atomically(file, json.dumps(content, ensure_ascii=False, indent=2).encode())
