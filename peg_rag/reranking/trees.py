"""Gradient-boosted trees, read from a file and evaluated with NumPy.

LightGBM grows them (`train/reranker.py`); a user of the package needs neither it nor a compiler. All trees are walked
at once, one level a step: about half a millisecond for fifty rows and 200 trees.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np

from peg_rag.errors import DamagedModel
from peg_rag.reranking.units import Array


@dataclass(frozen=True, slots=True)
class Trees:
    """Binary trees whose values are added. A leaf is a node that leads to itself.

    Attributes:
        roots: (trees,) int32 nodes.
        features: (nodes,) int16 column that a node looks at.
        thresholds: (nodes,) float64; a value at or below it goes left.
        left, right: (nodes,) int32 nodes.
        values: (nodes,) float64 of leaves, 0 elsewhere.
    """

    roots: Array
    features: Array
    thresholds: Array
    left: Array
    right: Array
    values: Array

    @classmethod
    def from_lightgbm(cls, dump: Mapping[str, Any]) -> Self:
        """Trees out of `Booster.dump_model()`.

        Raises:
            DamagedModel: a split is not of the form `value <= threshold`, or treats missing values in its own way.
        """
        nodes: list[tuple[int, float, int, int, float]] = []
        roots = [_add_node(nodes, tree["tree_structure"]) for tree in dump["tree_info"]]
        columns = list(zip(*nodes, strict=True))
        types = (np.int16, np.float64, np.int32, np.int32, np.float64)
        arrays = [np.array(column, dtype=kind) for column, kind in zip(columns, types, strict=True)]
        return cls(np.array(roots, dtype=np.int32), *arrays)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Array], columns: int) -> Self:
        """Trees as `tensors` gave them, for rows of so many columns.

        Raises:
            DamagedModel: arrays are missing or do not fit each other.
        """
        missing = {field.name for field in fields(cls)} - set(tensors)
        if missing:
            raise DamagedModel(f"trees without {', '.join(sorted(missing))}; install the package again")
        trees = cls(**{field.name: tensors[field.name] for field in fields(cls)})
        trees._check_arrays(columns)
        return trees

    def tensors(self) -> dict[str, Array]:
        """The arrays by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def predict(self, rows: Array) -> Array:
        """(n,) sums of the trees' values for (n, columns) finite numbers."""
        cells = np.ascontiguousarray(rows).ravel()
        first_cells = np.arange(len(rows))[:, None] * rows.shape[1]
        children = np.stack([self.left, self.right], axis=1).ravel()  # of node n: 2n and 2n + 1
        nodes = np.broadcast_to(self.roots.astype(np.int64), (len(rows), len(self.roots)))
        while True:
            goes_left = cells.take(first_cells + self.features.take(nodes)) <= self.thresholds.take(nodes)
            following = children.take(2 * nodes + ~goes_left)
            if np.array_equal(following, nodes):
                return np.asarray(self.values.take(nodes).sum(axis=1))
            nodes = following

    def _check_arrays(self, columns: int) -> None:
        nodes = len(self.features)
        if {len(self.thresholds), len(self.left), len(self.right), len(self.values)} != {nodes}:
            raise DamagedModel("the arrays of the trees differ in length; install the package again")
        numbers = np.arange(nodes)
        is_leaf = (self.left == numbers) & (self.right == numbers)
        # Children come after their parents, so that a walk ends.
        goes_on = (self.left > numbers) & (self.right > numbers)
        inside = (self.left < nodes) & (self.right < nodes) & (self.features >= 0) & (self.features < columns)
        if not np.all((is_leaf | goes_on) & inside) or not np.all((self.roots >= 0) & (self.roots < nodes)):
            raise DamagedModel(f"the trees do not fit rows of {columns} columns; install the package again")


def _add_node(nodes: list[tuple[int, float, int, int, float]], node: Mapping[str, Any]) -> int:
    """Append a node and all below it; returns its number."""
    number = len(nodes)
    if "split_feature" not in node:
        nodes.append((0, np.inf, number, number, float(node["leaf_value"])))
        return number
    if node["decision_type"] != "<=" or node["missing_type"] != "None":
        raise DamagedModel(
            f"a split by {node['decision_type']!r} with missing values {node['missing_type']!r} cannot be read; "
            "train with numeric columns and use_missing=False"
        )
    nodes.append((0, 0.0, 0, 0, 0.0))
    left = _add_node(nodes, node["left_child"])
    right = _add_node(nodes, node["right_child"])
    nodes[number] = (int(node["split_feature"]), float(node["threshold"]), left, right, 0.0)
    return number
