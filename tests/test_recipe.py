"""Recipes: what is refused, with which path and cure, and that what is written is read back."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from peg_rag.errors import RecipeError
from peg_rag.training.recipe import ProgressiveOptions, Recipe, expand_path
from peg_rag.training.recipe_file import parse_yaml

REPO = Path(__file__).resolve().parent.parent


def tree(**stage: Any) -> dict[str, Any]:
    return {
        "output_dir": "out",
        "model": {"static": {"dimension": 64}},
        "stages": [
            {
                "name": "main",
                "steps": 10,
                "batch": {"queries": 8},
                "data": {"sources": [{"path": "pairs.jsonl"}]},
                "optimizer": {"learning_rate": 0.01},
                **stage,
            }
        ],
    }


@pytest.mark.parametrize("file", sorted((REPO / "train" / "recipes").glob("*.yaml")), ids=lambda f: f.stem)
def test_recipes_in_the_repository_are_valid_and_survive_a_round_trip(file: Path) -> None:
    recipe = Recipe.load(file)
    assert Recipe.parse(yaml.safe_load(recipe.dump())) == recipe


def test_candidates_per_query_are_stated() -> None:
    stage = Recipe.parse(tree(batch={"queries": 13_334, "negatives": 5})).stages[0]
    assert stage.candidates_per_query == 80_004 == 13_334 * (1 + 5)
    own = Recipe.parse(tree(batch={"queries": 100, "negatives": 5}, loss={"hard_negatives": "own"})).stages[0]
    assert own.candidates_per_query == 105


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sed": 1}, "sed is not a known key; did you mean seed"),
        ({"model": {"static": {"dimesion": 3}}}, "model.static.dimesion is not a known key; did you mean dimension"),
        ({"model": {}}, "none of path, static, transformer"),
        ({"model": {"path": "peg-mini", "static": {}}}, "path and static of path, static, transformer"),
        ({"model": {"static": {}, "pooling": "cls"}}, "always takes the mean"),
        ({"model": {"transformer": {"hidden_size": 30, "layers": 1, "heads": 4}}}, "not a multiple of heads"),
        ({"stages": []}, "stages"),
        ({"output_dir": None}, "output_dir"),
        ({"seed": "many"}, "seed is 'many'"),
    ],
)
def test_wrong_recipes_are_refused_with_the_path(change: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said.replace("[", r"\[")):
        Recipe.parse({**tree(), **change})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"optimizer": {"learning_rate": 0.1, "warmup_steps": 10}}, "warmup_steps=10 is not below steps=10"),
        (
            {"loss": {"progressive": {"strategy": "linear", "half_life": 0.5}}},
            "half_life belongs to strategy curricular",
        ),
        ({"loss": {"temprature": 1}}, r"stages\[0\].loss.temprature is not a known key; did you mean temperature"),
        ({"loss": {"matryoshka_dims": [32, 128]}}, "matryoshka_dims has 128"),
        ({"objective": "cosent"}, "label_is_grade"),
        ({"objective": "cosent", "batch": {"queries": 8, "negatives": 1}}, "set batch.negatives to 0"),
        ({"objective": "cosent", "loss": {"symmetric": True}}, "remove loss.symmetric"),
        (
            {
                "batch": {"queries": 8, "negatives": 2},
                "data": {"sources": [{"path": "x", "columns": {"negatives": None}}]},
            },
            "no source reads any",
        ),
        (
            {
                "objective": "cosent",
                "data": {"sources": [{"path": "x", "columns": {"weight": "weight", "label_is_grade": True}}]},
            },
            r"remove data\.sources\[0\]\.columns\.weight",
        ),
        ({"steps": 0}, r"stages\[0\].steps"),
        ({"batch": {"queries": 1}}, r"stages\[0\].batch.queries"),
    ],
)
def test_contradictions_in_a_stage_are_refused_with_the_cure(change: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        Recipe.parse(tree(**change))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.transforms={kind: soft_augmentation}", r"stages\[0\].data.transforms is .*: a list is expected"),
        ("data.transforms=[soft_augmentation]", r"transforms\[0\] is 'soft_augmentation': a mapping .* {kind: …}"),
        ("data.transforms=[{share: 0.1}]", r"transforms\[0\].kind is missing; it is one of shared_documents, soft_"),
        ("data.order={}", "data.order.kind is missing; it is one of clusters, neighbours"),
        ("data.order={kind: neighbors}", "data.order.kind is 'neighbors'; it is one of clusters, neighbours"),
        ("data.order={kind: clusters, size: 4}", "data.order.size is not a known key; did you mean sizes"),
        ("data.order={kind: clusters, xyz: 4}", "data.order.xyz is not a known key; known here: kind, sizes"),
        ("loss.candidates=[{kind: queue}]", r"loss.candidates\[0\].size is missing; add it"),
        ("loss.candidates=[{kind: queue, size: 0}]", r"loss.candidates\[0\].size is 0: .* greater than or equal to 1"),
        ("loss.masks=[{kind: guide, modell: x}]", r"loss.masks\[0\].modell is not a known key; did you mean model"),
        ("loss.masks=[{kind: guide, model: ''}]", r"loss.masks\[0\].model is '': .* at least 1 character"),
        ("loss.trust=true", "loss.trust is True: a mapping of keys and values is expected; {} takes the defaults"),
    ],
)
def test_faults_of_components_have_the_path_of_the_recipe(override: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        Recipe.parse(tree(), [f"stages.0.{override}"])


def test_two_stages_of_one_name_are_refused() -> None:
    twice = tree()
    twice["stages"] *= 2
    with pytest.raises(RecipeError, match="two stages are called 'main'"):
        Recipe.parse(twice)


def test_any_key_can_be_set_by_number_or_name() -> None:
    given_ = ["seed=7", "stages.0.steps=3", "stages.main.batch.queries=16", "stages.0.loss.progressive.strategy=linear"]
    recipe = Recipe.parse(tree(), [*given_, "evaluation.beir=[a, b]", "model.max_length=null"])
    stage = recipe.stages[0]
    assert (recipe.seed, stage.steps, stage.batch.queries) == (7, 3, 16)
    assert (stage.loss.progressive.strategy, recipe.evaluation.beir) == ("linear", ("a", "b"))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seed", "key=value is expected"),
        ("stages.1.steps=3", "0 to 0 or main is expected"),
        ("stages.other.steps=3", "'other' names no item"),
        ("output_dir.more=3", "there is no 'more'"),
        ("sed=3", "did you mean seed"),
        ("seed=[1", "not valid YAML"),
        ("seed={a: 1, a: 2}", "given twice"),
    ],
)
def test_bad_overrides_say_what_is_expected(override: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        Recipe.parse(tree(), [override])


def test_files_that_are_missing_or_no_yaml_are_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"nothing\.yaml does not exist"):
        Recipe.load(tmp_path / "nothing.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"broken\.yaml is not valid YAML"):
        Recipe.load(broken)
    broken.write_text("- 1", encoding="utf-8")
    with pytest.raises(RecipeError, match="holds list"):
        Recipe.load(broken)


def test_variables_in_paths_are_expanded_or_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_DATA", "/data")
    assert expand_path("$SOME_DATA/x") == Path("/data/x")
    with pytest.raises(RecipeError, match="OTHER_DATA is not set"):
        expand_path("$OTHER_DATA/x")


@pytest.mark.parametrize(
    ("loss", "name"),
    [
        ({"label_smoothing": 0.1}, "label_smoothing"),
        ({"learn_temperature": True}, "learn_temperature"),
        ({"progressive": {"query_focus": 1.0}}, "query_focus"),
    ],
)
def test_removed_options_are_refused_by_name(loss: dict[str, Any], name: str) -> None:
    with pytest.raises(RecipeError, match=f"stages.0..loss.*{name} was removed.*delete it"):
        Recipe.parse(tree(loss=loss))


def test_a_recipe_that_an_older_version_wrote_is_read() -> None:
    """With every default written out, those of options that are gone among them."""
    progressive = {"strategy": "none", "strength": 5.0, "margin": 0.0, "half_life": 0.02, "query_focus": 0.0}
    old = {"learn_temperature": False, "label_smoothing": 0.0, "progressive": progressive}
    assert Recipe.parse(tree(loss=old)) == Recipe.parse(tree())
    curricular = Recipe.parse(tree(loss={"progressive": {**progressive, "strategy": "curricular"}}))
    assert curricular.stages[0].loss.progressive.half_life == 0.02


def test_curricular_takes_more_than_a_tenth_of_the_run_to_half_its_effect() -> None:
    assert ProgressiveOptions(strategy="curricular").half_life > 0.1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed: 1\noutput_dir: x\nseed: 2", r"line 3: the key 'seed' is given twice"),
        ("stages:\n- {name: a, steps: 1, steps: 2}", r"line 2: the key 'steps' is given twice"),
        ("[" * 5_000 + "]" * 5_000, "nested more than 50 levels deep"),
        ("a: " + "[" * 60 + "]" * 60, "nested more than 50 levels deep"),
        ("a: &a [*a]", "nested more than 50 levels deep"),
        ("a: 2026-99-99", "not valid YAML"),
        ("a: " + "1" * 5_000, "not valid YAML"),
        ("a: {[1]: 2}", "not valid YAML"),
        ("&x a: !!python/object:os.system {}", "not valid YAML"),
    ],
)
def test_yaml_that_cannot_be_a_recipe_is_refused(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "odd.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError, match=rf"odd\.yaml.*{said}"):
        Recipe.load(file)


def test_aliases_that_multiply_cost_nothing(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 45))]
    (tmp_path / "many.yaml").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(RecipeError, match="a0 is not a known key"):
        Recipe.load(tmp_path / "many.yaml")


def test_merged_keys_may_be_overridden() -> None:
    text = "base: &base {steps: 1, name: a}\nstage: {<<: *base, steps: 2}"
    assert parse_yaml(text, "x")["stage"] == {"steps": 2, "name": "a"}


@pytest.mark.parametrize("key", ["stages.0.loss.temperature", "stages.0.optimizer.learning_rate"])
@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan"])
def test_numbers_must_be_finite(key: str, value: str) -> None:
    with pytest.raises(RecipeError, match=r"stages\[0\].*finite"):
        Recipe.parse(tree(), [f"{key}={value}"])


@given(
    seed=st.integers(0, 2**32 - 1),
    queries=st.integers(2, 100_000),
    negatives=st.integers(0, 64),
    alpha=st.floats(0, 1),
    rate=st.floats(1e-8, 1.0),
)
def test_dump_and_parse_are_inverse(seed: int, queries: int, negatives: int, alpha: float, rate: float) -> None:
    made = tree(
        batch={"queries": queries, "negatives": negatives},
        data={"sources": [{"path": "x"}], "alpha": alpha},
        optimizer={"learning_rate": rate},
    )
    recipe = Recipe.parse({**made, "seed": seed})
    assert Recipe.parse(yaml.safe_load(recipe.dump())) == recipe
    assert recipe.stages[0].candidates_per_query == queries * (1 + negatives)
