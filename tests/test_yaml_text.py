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
    "!!python/name:os.system x",
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
