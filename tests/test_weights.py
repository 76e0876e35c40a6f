"""Comparing neuron weights: how alike, and who can score whom."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from surgeon import artifact, weights
from surgeon.errors import BadInput
from surgeon.weights import WeightsComparison, show

W = {
    "a": [[0.5, -0.5, 0.0], [1.0, 0.0, 0.0]],
    "b": [[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]],
    "c": [[-0.5, 0.5, 0.0], [-1.0, 0.0, 0.0]],
}


def write(path: Path, weight: list[list[float]], name: str, mass: float = 1.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.array(weight, np.float32)
    tensors = {"weight_LF": array, "mass_LF": np.full_like(array, mass)}
    save_file(tensors, path, {"candidate": name, "digest": f"sha256:{name}", "checkpoint": name})
    return path


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    return [
        str(write(tmp_path / f"candidates/{name}/weights.safetensors", weight, name))
        for name, weight in W.items()
    ]


def test_likeness_by_hand(files):
    """a and b: neurons 0, 1, 3 have evidence in both; 1 differs in sign: 2/3 of one sign. Effective
    are {0, 3} and {0, 1, 3}: 2/3; redundant {1} and none: 0. Layer 1 has one neuron: no r."""
    result = weights.weights(weights=files[:2])
    whole = result.pairs[0].whole
    expected = np.corrcoef([0.5, -0.5, 1], [0.5, 0.5, 1])[0, 1]
    assert whole.correlation == pytest.approx(expected)
    assert (whole.neurons, whole.redundant_overlap) == (3, 0)
    assert (whole.same_sign, whole.effective_overlap) == (
        pytest.approx(2 / 3),
        pytest.approx(2 / 3),
    )
    layer = result.pairs[0].layers[1]
    assert (layer.neurons, layer.correlation, layer.same_sign) == (1, None, 1)
    a = result.weights[0]
    assert (a.effective, a.redundant, a.digest) == (2, 1, "sha256:a")
    assert (a.mass_effective, a.mass_redundant) == (pytest.approx(2 / 6), pytest.approx(1 / 6))


def test_who_scores_whom_by_hand(files, tmp_path, capsys):
    """All masses are 1, so by a everybody has 1.5 / 2, by b 1, by c .5 / 2: nobody told apart."""
    result = weights.weights(weights=[str(tmp_path)], out=tmp_path / "out")
    assert result.scores_from == "mean mass"
    by = {row.weights: row.score for row in result.scores}
    assert by["a"] == {"a": 0.75, "b": 0.75, "c": 0.75}
    assert by["b"] == {"a": 1, "b": 1, "c": 1}
    assert by["c"] == {"a": 0.25, "b": 0.25, "c": 0.25}
    assert {row.order for row in result.scores} == {None}
    assert artifact.read(WeightsComparison, tmp_path / "out").pairs == result.pairs
    assert weights.weights(weights=[str(tmp_path)], out=tmp_path / "out").already
    show(result)
    shown = capsys.readouterr().out
    assert "Who scores whom" in shown and "0.750" in shown


def test_models_of_another_shape_score_nobody(files, tmp_path):
    other = write(tmp_path / "d.safetensors", [[0.5, 0.1]], "d")
    result = weights.weights(weights=[*files[:2], str(other)])
    assert [(p.a, p.b) for p in result.pairs] == [("a", "b")]
    assert {row.weights: row.score["d"] for row in result.scores} == {"a": None, "b": None, "d": 1}
    assert "differ in shape" in result.warnings[0]


def test_bad_weights_are_refused(files, tmp_path):
    with pytest.raises(BadInput, match="found 1 set of neuron weights, expected two or more"):
        weights.weights(weights=files[:1])
    with pytest.raises(BadInput, match="has no neuron weights"):
        weights.weights(weights=[files[0], str(tmp_path / "nowhere")])
    broken = write(tmp_path / "e.safetensors", [[2.0]], "e")
    with pytest.raises(BadInput, match="outside"):
        weights.weights(weights=[files[0], str(broken)])
