"""Settings: names find their fields, values are held to their kinds, defaults stand once."""

import dataclasses
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from surgeon.errors import BadInput
from surgeon.settings import bind, leaves, record, settings, verb
from surgeon.settings.sampling import Machine, Sampling
from surgeon.settings.schema import (
    POSITIONAL,
    SHARED,
    SHORTHAND,
    Amount,
    Count,
    Many,
    Metavar,
    Out,
    Positive,
    Share,
    Switches,
)
from surgeon.settings.verbs import VERBS


@settings
class Tuning:
    """Which weights change."""

    weights: Annotated[
        Literal["lora", "full"],
        SHORTHAND,
        Switches({"lora": ("lora", "Train an adapter."), "full": ("full", "Train all.")}),
    ] = "lora"
    rank: Count = 16
    """Inner size."""


@settings
class Rollout:
    """The student's answers."""

    temperature: Amount = 1.0
    seed: int = 0


@settings
class Work:
    """Do the work."""

    checkpoints: Annotated[Many[str], POSITIONAL]
    """What to
    work on."""
    out: Out
    seed: Annotated[int, SHARED] = 0
    band: tuple[Share, Share] = (0.4, 0.6)
    lr: Positive | None = None
    sampling: Sampling = Sampling(samples=8)
    rollout: Rollout = Rollout()
    tuning: Tuning = Tuning()
    machine: Machine = Machine()

    def __post_init__(self) -> None:
        if self.band[0] > self.band[1]:
            raise BadInput(f"found band = {self.band}, expected the smaller share first.")


GIVEN: dict[str, Any] = dict(checkpoints="a", out="x")


def test_flat_dotted_and_nested_names_find_the_same_field():
    flat = bind(Work, GIVEN | dict(temperature=0, rollout_temperature=0.5, tuning="full"))
    dotted = bind(
        Work,
        GIVEN | {"sampling.temperature": 0, "rollout.temperature": 0.5, "tuning.weights": "full"},
    )
    nested = bind(
        Work,
        GIVEN
        | dict(
            sampling={"temperature": 0}, rollout={"temperature": 0.5}, tuning={"weights": "full"}
        ),
    )
    assert flat == dotted == nested
    assert flat.sampling == Sampling(samples=8, temperature=0) and flat.tuning.rank == 16


def test_one_item_stands_for_a_list_of_one():
    assert bind(Work, GIVEN).checkpoints == ("a",)
    assert bind(Work, GIVEN | dict(checkpoints=["a", "b"])).checkpoints == ("a", "b")


def test_a_shared_field_fills_the_groups_and_is_named_once():
    work = bind(Work, GIVEN | dict(seed=7))
    assert work.sampling.seed == work.rollout.seed == 7
    assert Work(checkpoints=("a",), out=Path("x"), seed=5).sampling.seed == 5
    assert [leaf.path for leaf in leaves(Work) if leaf.path[-1] == "seed"] == [("seed",)]


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (dict(samples=0), "work: found samples = 0, expected a whole number of at least 1."),
        (dict(samples=True), "found samples = True, expected a whole number of at least 1."),
        (dict(samples="three"), "found samples = three, expected a whole number of at least 1."),
        (dict(samples=2.5), "found samples = 2.5, expected a whole number of at least 1."),
        (dict(top_p=1.5), "found top_p = 1.5, expected a number above 0 and at most 1."),
        (dict(temperature=float("nan")), "found temperature = nan, expected a number"),
        (dict(tuning="half"), "found weights = half, expected one of: lora, full."),
        (dict(lr=0), "found lr = 0, expected a number above 0."),
        (dict(band=[0.1]), "expected a list of 2: a number of at least 0 and at most 1; a number"),
        (dict(band=[0.9, 0.1]), "expected the smaller share first."),
        (dict(out=None), "found out = None, expected a path."),
        (dict(sampels=3), "work has no parameter 'sampels'. Did you mean 'samples'?"),
        ({"tuning.size": 3}, "work has no parameter 'tuning.size'."),
    ],
)
def test_what_does_not_fit_is_said_in_one_idiom(values: dict[str, Any], text: str):
    with pytest.raises(BadInput) as caught:
        bind(Work, GIVEN | values, "work")
    assert text in str(caught.value)


def test_what_is_lacking_is_named():
    with pytest.raises(BadInput, match=r"^work lacks checkpoints, out\.$"):
        bind(Work, {}, "work")


def test_a_constructor_refuses_as_binding_does():
    with pytest.raises(BadInput, match="found top_p = 2, expected a number above 0 and at most 1"):
        Sampling(top_p=2)
    with pytest.raises(BadInput, match="Sampling has no setting 'samplse'"):
        Sampling(samplse=2)  # pyright: ignore[reportCallIssue]


def test_settings_are_values():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Sampling().samples = 2  # pyright: ignore[reportAttributeAccessIssue]
    assert hash(Sampling()) == hash(Sampling())
    with pytest.raises(BadInput):
        dataclasses.replace(Sampling(), samples=0)


def test_the_record_is_flat_and_leaves_out_what_changes_nothing():
    kept = record(bind(Work, GIVEN | dict(batch=4)))
    assert kept["samples"] == 8 and kept["rollout_temperature"] == 1.0 and kept["tuning"] == "lora"
    assert not {"out", "batch"} & set(kept)


def test_help_is_the_field_docstring_on_one_line():
    by_name = {leaf.name: leaf for leaf in leaves(Work)}
    assert by_name["checkpoints"].help == "What to work on."
    assert by_name["rank"].help == "Inner size."


def test_a_verb_takes_its_settings_or_their_names():
    @verb(Work)
    def work(settings: Work) -> tuple[str, ...]:
        """Works."""
        return settings.checkpoints

    assert work(bind(Work, GIVEN)) == work("a", out="x") == work(**GIVEN) == ("a",)
    assert work.__doc__ == "Works." and work.__name__ == "work"
    assert inspect.signature(work).parameters["samples"].default == 8
    with pytest.raises(BadInput, match="work: found samples"):
        work("a", out="x", samples=0)


values = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.text())


@given(st.dictionaries(st.sampled_from([leaf.name for leaf in leaves(Work)]), values))
def test_any_values_are_bound_or_refused(found: dict[str, Any]):
    try:
        work = bind(Work, GIVEN | found)
    except BadInput as error:
        assert "\n" not in str(error).strip() or any("\n" in str(v) for v in found.values())
        return
    assert record(bind(Work, {**record(work), "out": work.out})) == record(work)


@pytest.mark.parametrize("name", sorted(VERBS))
def test_every_verb_has_settings_that_explain_themselves(name: str):
    found = leaves(VERBS[name].load_settings())
    assert VERBS[name].load_settings().__doc__
    names = [leaf.name for leaf in found]
    assert len(names) == len(set(names))
    for leaf in found:
        explained = leaf.help or leaf.marker(Switches)
        assert explained, f"{leaf.group.__name__}.{leaf.path[-1]} has no docstring"


def test_settings_import_nothing_heavy():
    code = (
        "import sys; from surgeon.settings.verbs import VERBS\n"
        "for row in VERBS.values(): row.load_settings()\n"
        "heavy = {'torch', 'transformers', 'numpy', 'scipy', 'peft'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_field_that_may_be_left_out_keeps_its_markers():
    @settings
    class Optionals:
        """Fields that may be left out."""

        out: Out | None = None
        file: Annotated[str | object | None, Metavar("FILE")] = None
        many: Many[str] | None = None

    by_name = {leaf.name: leaf for leaf in leaves(Optionals)}
    assert not by_name["out"].recorded and by_name["out"].marker(Metavar) == Metavar("DIR")
    assert by_name["file"].recorded and by_name["file"].marker(Metavar) == Metavar("FILE")
    assert set(record(Optionals(out=Path("x")))) == {"file", "many"}
