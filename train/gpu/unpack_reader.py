"""Make the folder that `peg_rag.answering.reading` loads from the weights that `reader.py` trained.

It holds what reading needs alone, not the head over the vocabulary.

    python train/gpu/unpack_reader.py --weights run/reader.safetensors --tokenizer runs/gpu/tokenizer.json
"""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

REPO = Path(__file__).resolve().parents[2]
KEPT = ("neighbours.", "layers.", "last_norm.", "pooler.", "score.")
RENAMED = {
    "words.weight": "embed.words",
    "positions.weight": "embed.positions",
    "types.weight": "embed.types",
    "norm.weight": "embed.norm.weight",
    "norm.bias": "embed.norm.bias",
}


def read_weights(file: Path) -> tuple[dict[str, NDArray[np.float16]], dict[str, int]]:
    """The weights that reading needs, by the names it knows them by, and the network's shape."""
    with safe_open(file, "numpy") as content:
        shape = json.loads(content.metadata()["shape"])
        names = [name for name in content.keys() if name in RENAMED or name.startswith(KEPT)]  # noqa: SIM118
        weights = {RENAMED.get(name, name): content.get_tensor(name) for name in names}
    return weights, shape


def write_folder(weights_file: Path, tokenizer: Path, folder: Path) -> None:
    """Writes `model.safetensors`, `config.json` and a copy of the tokenizer."""
    weights, shape = read_weights(weights_file)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors", metadata={"format": "np"})
    config = {"format": 1, **shape}
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    shutil.copyfile(tokenizer, folder / "tokenizer.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=REPO / "peg_rag" / "assets" / "reader-mini")
    arguments = parser.parse_args()
    write_folder(arguments.weights, arguments.tokenizer, arguments.out)
    size = sum(file.stat().st_size for file in arguments.out.iterdir())
    print(f"{arguments.out}: {size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
