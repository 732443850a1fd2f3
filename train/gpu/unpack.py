"""Model folders out of what `small.py` leaves: an encoder and a cross-encoder in BERT's own form.

`PEGEncoder`, `SentenceTransformer` and `AutoModel` open the encoder, `CrossEncoder` and
`AutoModelForSequenceClassification` the other; both in half precision, with the tokenizer that `pack.py` made.

    python train/gpu/unpack.py --run runs/gpu/full --tokenizer runs/gpu/tokenizer.json --out runs/gpu/models
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer, processors
from torch import Tensor

LAYER_NAMES = {
    "attended": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "output_norm": "output.LayerNorm",
}
EMBEDDING_NAMES = {
    "words": "embeddings.word_embeddings",
    "positions": "embeddings.position_embeddings",
    "types": "embeddings.token_type_embeddings",
    "norm": "embeddings.LayerNorm",
}


def rename_weights(weights: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """BERT's names for the weights of the encoder; the fused projection is cut in three."""
    renamed = {}
    for name, hf_name in EMBEDDING_NAMES.items():
        for part in ("weight", "bias"):
            if f"{name}.{part}" in weights:
                renamed[f"{hf_name}.{part}"] = weights[f"{name}.{part}"]
    for layer in range(layers):
        target = f"encoder.layer.{layer}"
        for part in ("weight", "bias"):
            projections = weights[f"layers.{layer}.qkv.{part}"].chunk(3)
            for name, projection in zip(("query", "key", "value"), projections, strict=True):
                renamed[f"{target}.attention.self.{name}.{part}"] = projection.clone()
            for name, hf_name in LAYER_NAMES.items():
                renamed[f"{target}.{hf_name}.{part}"] = weights[f"layers.{layer}.{name}.{part}"]
    return renamed


def bert_config(shape: dict[str, int]) -> dict[str, Any]:
    return {
        "model_type": "bert",
        "vocab_size": shape["vocabulary"],
        "hidden_size": shape["width"],
        "num_hidden_layers": shape["layers"],
        "num_attention_heads": shape["heads"],
        "intermediate_size": shape["inner"],
        "hidden_act": "gelu",
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "dtype": "float16",
    }


def write_json(file: Path, content: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_tokenizer(folder: Path, tokenizer_file: Path) -> None:
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    special = [("[CLS]", tokenizer.token_to_id("[CLS]")), ("[SEP]", tokenizer.token_to_id("[SEP]"))]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=special
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]"}
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": 512,
            "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
            "mask_token": "[MASK]",
            **names,
        },
    )


def read_weights(file: Path) -> tuple[dict[str, Tensor], dict[str, int]]:
    with safe_open(file, "pt") as weights:
        shape = json.loads(weights.metadata()["shape"])
        return {name: weights.get_tensor(name) for name in weights.keys()}, shape  # noqa: SIM118


def write_encoder(folder: Path, run: Path, tokenizer_file: Path) -> None:
    weights, shape = read_weights(run / "encoder.safetensors")
    folder.mkdir(parents=True, exist_ok=True)
    save_file(rename_weights(weights, shape["layers"]), folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", {"architectures": ["BertModel"], **bert_config(shape)})
    write_tokenizer(folder, tokenizer_file)
    kinds = {"0": ("", "Transformer"), "1": ("1_Pooling", "Pooling"), "2": ("2_Normalize", "Normalize")}
    write_json(
        folder / "modules.json",
        [
            {"idx": int(number), "name": number, "path": path, "type": f"sentence_transformers.models.{kind}"}
            for number, (path, kind) in kinds.items()
        ],
    )
    write_json(
        folder / "1_Pooling" / "config.json",
        {"word_embedding_dimension": shape["width"], "pooling_mode_mean_tokens": True},
    )
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 512, "do_lower_case": False})
    write_json(folder / "config_sentence_transformers.json", {"similarity_fn_name": "cosine", "prompts": {}})


def write_cross_encoder(folder: Path, run: Path, tokenizer_file: Path) -> None:
    weights, shape = read_weights(run / "cross.safetensors")
    folder.mkdir(parents=True, exist_ok=True)
    renamed = {f"bert.{name}": value for name, value in rename_weights(weights, shape["layers"]).items()}
    for part in ("weight", "bias"):
        renamed[f"bert.pooler.dense.{part}"] = weights[f"pooler.{part}"]
        renamed[f"classifier.{part}"] = weights[f"relevance.{part}"]
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    labels = {"id2label": {"0": "relevance"}, "label2id": {"relevance": 0}}
    activation = {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity", "version": "5.2.0"}}
    write_json(
        folder / "config.json",
        {"architectures": ["BertForSequenceClassification"], **bert_config(shape), **labels, **activation},
    )
    write_tokenizer(folder, tokenizer_file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_grad_enabled(False)
    write_encoder(arguments.out / "encoder", arguments.run, arguments.tokenizer)
    write_cross_encoder(arguments.out / "cross-encoder", arguments.run, arguments.tokenizer)


if __name__ == "__main__":
    main()
