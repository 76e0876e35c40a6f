"""YAML that people type: whatever is no value is one kind of error."""

from pathlib import Path

import pytest
import yaml

from surgeon import recipes
from surgeon.errors import BadInput
from surgeon.merge.members import from_config
from surgeon.settings import yaml_text

BROKEN = [
    "2024-99-99", "0b_", "0x_", "!!int x", "!!int ''", "!!float x", "!!timestamp x", "!!bool x",
    "&a [*a]", "&a {b: *a}", "[" * 2000, "- " * 2000 + "1", "9" * 5000, '"\\ud800"',
    "!!python/name:os.system x", "a: 1\nb: 2\na: 1", "a: &a {b: 1, b: 1}\nc: {<<: *a}",
]  # fmt: skip
DOUBLED = "\n".join(
    ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
)
"""A thousand bytes that stand for 9 ** 12 values."""


@pytest.mark.parametrize("text", [*BROKEN, DOUBLED], ids=lambda text: text[:12])
def test_what_is_no_value_is_refused_in_one_line(text: str, tmp_path: Path):
    with pytest.raises(yaml.YAMLError):
        yaml_text.parse(text)
    with pytest.raises(BadInput, match="is not a YAML value"):
        recipes.parse_setting(f"samples={text}")
    file = tmp_path / "r.yaml"
    file.write_text(text, errors="surrogatepass")
    with pytest.raises(BadInput, match="is not valid YAML"):
        recipes.load(file)
    with pytest.raises(BadInput, match="found no valid YAML"):
        from_config(file, None)


def test_aliases_and_several_documents_are_read():
    assert yaml_text.parse("a: &a [1]\nb: *a\nc: *a") == {"a": [1], "b": [1], "c": [1]}
    assert yaml_text.parse_all("a: 1\n---\nb: 2") == [{"a": 1}, {"b": 2}]
    text = "a: &a {x: 1, y: 2}\nb: &b {<<: *a, x: 3}\nc: {<<: [*a, *b], y: 4}"
    assert yaml_text.parse(text) == {
        "a": {"x": 1, "y": 2},
        "b": {"x": 3, "y": 2},
        "c": {"x": 1, "y": 4},
    }


def test_a_step_that_has_a_setting_twice_is_refused_with_its_place(tmp_path: Path):
    file = tmp_path / "r.yaml"
    file.write_text("- rank:\n    samples: 2\n    seed: 1\n    samples: 3\n")
    with pytest.raises(BadInput, match=r"found samples twice in a mapping .* line 4, column 5"):
        recipes.load(file)
    # A recipe of two steps of one verb, written without dashes.
    file.write_text("diff:\n  a: x\ndiff:\n  a: y\n")
    with pytest.raises(BadInput, match="found diff twice"):
        recipes.load(file)
