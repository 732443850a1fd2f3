"""A `PEGEncoder` as a model of `mteb`, so that `mteb.evaluate` runs C-MTEB and every other text benchmark unchanged.

    import mteb
    from peg_rag.evaluation.mteb import MTEBModel

    model = MTEBModel("TownsWu/PEG")  # or a folder, "peg-mini", or a PEGEncoder you have at hand
    result = mteb.evaluate(model, mteb.get_benchmark("MTEB(cmn, v1)").tasks)

Why this exists: mteb opens a hub id through sentence-transformers, which takes the mean of PEG's token vectors instead
of CLS; and it hands over 32 texts at a time, while `PEGEncoder` sorts thousands by length. Here the vectors are those
that are served: same pooling, prompts, truncation and precision. Costs nothing beyond the encoding; mteb fetches its
tasks from the hub.

PEG's published scores, which `benchmarks/c_mteb.py` reproduces where the hub can be reached: nDCG@10 of T2 87.00,
MMarco 82.63, Du 87.67, Covid 82.56, Cmedqa 44.42, Ecom 67.32, Medical 60.99 and Video 77.64 (73.78 on average); MAP of
T2Reranking 69.43, MMarcoReranking 33.55, CMedQAv1 84.09 and CMedQAv2 86.56.
"""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from peg_rag.encoder import PEGEncoder
from peg_rag.errors import InvalidInput
from peg_rag.extras import require
from peg_rag.models import safetensors_shapes, weight_files


class MTEBModel:
    """What `mteb.evaluate` takes (mteb's `EncoderProtocol`).

    Args:
        model_name: a hub id, a folder, a bundled name, or an encoder, which is then used as it is.
        revision, device, options: of `PEGEncoder`. Results with options are kept by mteb apart from those without.

    Raises:
        InvalidInput: options beside an encoder, which has its own.
        ModelNotAvailable, DamagedModel: see `peg_rag.models.resolve`.
        MissingExtra: mteb is not installed.
    """

    def __init__(
        self,
        model_name: str | Path | PEGEncoder,
        revision: str | None = None,
        *,
        device: str | None = None,
        **options: Any,
    ) -> None:
        require("mteb", "mteb")
        if not isinstance(model_name, PEGEncoder):
            self.encoder = PEGEncoder(model_name, revision=revision, device=device, **options)
        elif revision is not None or device is not None or options:
            raise InvalidInput("an encoder has its own revision, device and options; give them to PEGEncoder, not here")
        else:
            self.encoder = model_name
            options = {"vectors": model_name.fingerprint[:12]}  # nobody knows with which options it was made
        self.mteb_model_meta = model_meta(self.encoder, options)

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        **kwargs: Any,
    ) -> NDArray[np.float32]:
        """Vectors (n, dimension) of the texts in a loader's batches.

        In retrieval and reranking mteb says what is a query and what a document, and each gets the model's prompt for
        it. In all other tasks texts are alike and get the same: no prompt where the model has none for one of the two
        sides, else that of a query (so the authors of E5 have it).
        """
        texts = [text for batch in inputs for text in batch["text"]]
        show = bool(kwargs.get("show_progress_bar", False))
        if self._as_query(getattr(prompt_type, "value", prompt_type)):
            return self.encoder.encode_queries(texts, show_progress=show)
        return self.encoder.encode_documents(texts, show_progress=show)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosines (n, m), as a tensor."""
        return require("mteb.similarity_functions", "mteb").cos_sim(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosines (n,) of the rows, as a tensor."""
        return require("mteb.similarity_functions", "mteb").pairwise_cos_sim(embeddings1, embeddings2)

    def _as_query(self, side: str | None) -> bool:
        return side == "query" if side is not None else bool(self.encoder.spec.document_prompt)


def model_meta(encoder: PEGEncoder, options: Mapping[str, Any] | None = None) -> Any:
    """mteb's `ModelMeta` of an encoder: what its files say; what they do not (license, training data) stays unknown.

    Args:
        options: that the vectors depend on, besides the model; part of the name under which mteb keeps results.
    """
    spec = encoder.spec
    return require("mteb.models.model_meta", "mteb").ModelMeta(
        loader=None,  # mteb is given the model itself
        name=spec.name if "/" in spec.name else f"peg-rag/{spec.name}",
        revision=spec.revision or spec.fingerprint,
        release_date=None,
        languages=None,
        n_parameters=_parameter_count(encoder),
        memory_usage_mb=sum(file.stat().st_size for file in weight_files(spec.path)) / 2**20,
        max_tokens=spec.max_length,
        embed_dim=encoder.dimension,
        license=None,
        open_weights=True,
        public_training_code=None,
        public_training_data=None,
        framework=["PyTorch" if spec.kind == "transformer" else "NumPy"],
        similarity_fn_name="cosine",
        use_instructions=bool(spec.query_prompt or spec.document_prompt),
        training_datasets=None,
        experiment_kwargs=dict(options) if options else None,
    )


def _parameter_count(encoder: PEGEncoder) -> int | None:
    """Of the weights on disk; None where they are no safetensors, whose shapes would take loading them."""
    files = weight_files(encoder.spec.path)
    if any(file.suffix != ".safetensors" for file in files):
        return None
    return sum(math.prod(shape) for file in files for shape in safetensors_shapes(file).values())
