"""Mixing is bit-equal to mergekit's; a virtual candidate is the written one."""

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from surgeon import artifact, lineage
from surgeon.checkpoint import Checkpoint
from surgeon.errors import BadInput
from surgeon.families import (
    Candidate,
    Choices,
    Family,
    candidate_files,
    cosines,
    description,
    merge_methods,
    mixing,
    open_checkpoint,
    subjects,
    write_out,
)
from surgeon.families.candidate_files import write_side_files, write_weights
from surgeon.families.cosines import cosine, cosines_between, merge_groups
from surgeon.families.description import candidate_digest
from surgeon.families.merge_config import plain_merge, plain_mix
from surgeon.families.merge_methods import Mix, recipe
from surgeon.live.families import Materialiser, live, smoke_test
from surgeon.merge import mergekit

ARCHITECTURES = ["qwen3", "qwen3_moe", "mixtral", "phi3", "gemma2", "gemma3_text", "olmo2", "glm4"]
MIXES = [Mix("slerp", 0.3), Mix("slerp", 0.5), Mix("linear", 0.3), Mix("linear", 0.7)]
ENDS = [Mix("slerp", 0.0), Mix("slerp", 1.0), Mix("linear", 0.0), Mix("linear", 1.0)]


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> list[str]:
    """Names whose dtype, shape or bits differ."""
    assert one.keys() == two.keys()
    return [k for k in one if one[k].dtype != two[k].dtype or bits(one[k]) != bits(two[k])]


def stored(path: Path) -> dict[str, torch.Tensor]:
    checkpoint = Checkpoint.open(path)
    return checkpoint.read_many(list(checkpoint.tensors))


def loaded(path: Path) -> dict[str, torch.Tensor]:
    model: Any = Checkpoint.open(path).model()
    return model.state_dict()


def describe(root: Path, a: Path, b: Path, mixes: list[Mix], dtype: str | None = None) -> Family:
    """A virtual family with exactly these mixes between its endpoints."""
    root.mkdir(exist_ok=True)
    ends = (Checkpoint.open(a), Checkpoint.open(b))
    digests = (ends[0].digest, ends[1].digest)
    shell = Family(root, root.name, ends, digests, ("slerp", "linear"), dtype, ())
    merges = [(mix, plain_merge(mix, dtype)) for mix in mixes]
    candidates = [
        Candidate(
            name=f"{m.method}-{m.t:g}",
            ratio=m.t,
            merge=merge,
            digest=candidate_digest(merge, shell),
        )
        for m, merge in merges
    ]
    first, second = (
        Candidate(name=end.path.name, ratio=i, merge={}, written=True, digest=end.digest)
        for i, end in enumerate(ends)
    )
    angles = cosines_between(*ends, dtype)
    family = Family(
        root, root.name, ends, digests, ("slerp", "linear"), dtype,
        (first, *candidates, second), cosines=angles,
    )  # fmt: skip
    artifact.write(family.path, family.described())
    description.write_cosines(family, torch.get_num_threads())
    return family


def write_all(family: Family, root: Path) -> dict[str, Path]:
    """Every merged candidate of a family on disk, without its smoke test."""
    merged = [c for c in family.candidates if c.merge]
    outs = [root / c.name for c in merged]
    for out in outs:
        out.mkdir(parents=True)
    write_weights(family, merged, outs)
    for candidate, out in zip(merged, outs, strict=True):
        write_side_files(family, candidate, out)
    return {c.name: out for c, out in zip(merged, outs, strict=True)}


def by_mergekit(family: Family, candidate: Candidate, out: Path) -> Path:
    package = mergekit._mergekit()
    package.io.tasks.LoaderCache().loaders.clear()
    config = mergekit._configuration(candidate.merge, family, {})
    options = package.merge.MergeOptions(write_model_card=False, quiet=True)
    package.merge.run_merge(config, str(out), options)
    return out


@contextmanager
def threads(n: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_written_candidates_have_the_bits_mergekit_writes(
    make_checkpoint, tmp_path: Path, dtype: str, tied: bool
) -> None:
    # Matrices above 32768 elements, where the sum over a tensor is split among threads.
    shape = dict(hidden_size=96, intermediate_size=384, vocab_size=500, num_hidden_layers=1)
    a = make_checkpoint(tmp_path / "a", dtype=dtype, tied=tied, shards=2, **shape)
    b = make_checkpoint(
        tmp_path / "b", dtype=dtype, tied=tied, shards=3, seed=1, noise_from=a, **shape
    )
    with threads(2):
        family = describe(tmp_path / "f", a, b, MIXES + ENDS)
        for name, path in write_all(family, tmp_path / "out").items():
            reference = by_mergekit(family, family.candidate(name), tmp_path / "mk" / name)
            assert same(stored(path), stored(reference)) == []


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_virtual_written_and_mergekits_candidates_load_with_the_same_bits(
    make_checkpoint, tmp_path: Path, model_type: str
) -> None:
    tied = model_type.startswith("gemma")
    a = make_checkpoint(tmp_path / "a", model_type, tied=tied)
    b = make_checkpoint(tmp_path / "b", model_type, tied=tied, seed=1, noise_from=a)
    family = describe(tmp_path / "f", a, b, [Mix("slerp", 0.3), Mix("linear", 0.7)])
    paths = write_all(family, tmp_path / "out")
    making = Materialiser(family)
    for name, path in paths.items():
        written = loaded(path)
        model: Any = making.model(family.candidate(name))
        assert same(written, model.state_dict()) == []
        reference = by_mergekit(family, family.candidate(name), tmp_path / "mk" / name)
        assert same(written, loaded(reference)) == []
    for endpoint, path in zip(family.endpoints, (a, b), strict=True):
        model = making.model(family.candidate(endpoint.path.name))
        assert same(loaded(path), model.state_dict()) == []
    making.close()


def test_vision_language_candidates_are_the_same_virtual_and_written(
    make_checkpoint, tmp_path: Path
) -> None:
    a = make_checkpoint(tmp_path / "a", "qwen3_vl")
    b = make_checkpoint(tmp_path / "b", "qwen3_vl", seed=1, noise_from=a)
    family = describe(tmp_path / "f", a, b, [Mix("slerp", 0.3)])
    (path,) = write_all(family, tmp_path / "out").values()
    model: Any = Materialiser(family).model(family.candidate("slerp-0.3"))
    assert same(loaded(path), model.state_dict()) == []
    smoke_test(path)


def test_experts_are_one_unit_with_one_angle_and_keep_the_hubs_names(
    make_checkpoint, tmp_path: Path
) -> None:
    a = make_checkpoint(tmp_path / "a", "qwen3_moe", tied=False)
    found = {group.key: group.names for group in merge_groups(Checkpoint.open(a))}
    key = "model.layers.0.mlp.experts.gate_up_proj"
    assert len(found[key]) == 8
    assert found[key][:2] == (
        "model.layers.0.mlp.experts.0.gate_proj.weight",
        "model.layers.0.mlp.experts.0.up_proj.weight",
    )
    b = make_checkpoint(tmp_path / "b", "qwen3_moe", tied=False, seed=1, noise_from=a)
    family = describe(tmp_path / "f", a, b, [Mix("slerp", 0.5)])
    (path,) = write_all(family, tmp_path / "out").values()
    assert stored(path).keys() == stored(a).keys()


@pytest.mark.parametrize("live_dtype", [torch.float32, torch.bfloat16])
def test_a_new_dtype_is_rounded_to_before_the_live_dtype(
    make_checkpoint, tmp_path: Path, live_dtype: torch.dtype
) -> None:
    a = make_checkpoint(tmp_path / "a", dtype="float32")
    b = make_checkpoint(tmp_path / "b", dtype="float32", seed=1, noise_from=a)
    family = describe(tmp_path / "f", a, b, MIXES, dtype="bfloat16")
    making = Materialiser(family, dtype=live_dtype)
    for name, path in write_all(family, tmp_path / "out").items():
        assert {t.dtype for t in stored(path).values()} == {torch.bfloat16}
        assert lineage.file_digest(path / "config.json") != lineage.file_digest(a / "config.json")
        reference = by_mergekit(family, family.candidate(name), tmp_path / "mk" / name)
        assert same(stored(path), stored(reference)) == []
        written: Any = Checkpoint.open(path).model(dtype=live_dtype)
        model: Any = making.model(family.candidate(name))
        assert same(written.state_dict(), model.state_dict()) == []


def test_the_live_model_is_rewritten_in_place_and_leaves_the_files_alone(
    pico_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    before = [Checkpoint.open(p).digest for p in pico_pair]
    family = describe(tmp_path / "f", *pico_pair, MIXES)
    making = Materialiser(family)
    one, two = (making.model(family.candidate(n)) for n in ("slerp-0.3", "linear-0.7"))
    assert one is two
    assert [Checkpoint.open(p).digest for p in pico_pair] == before


def test_sharding_index_and_side_files_are_those_of_the_first_endpoint(
    pico_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    a, b = pico_pair
    family = describe(tmp_path / "f", a, b, [Mix("slerp", 0.5)])
    (path,) = write_all(family, tmp_path / "out").values()
    source, made = Checkpoint.open(a), Checkpoint.open(path)
    assert len(source.shards) > 1 and made.shards == source.shards
    assert {f.name for f in path.iterdir()} == {f.name for f in a.iterdir()} | {
        "README.md", "mergekit_config.yml",
    }  # fmt: skip
    for name in ("config.json", "tokenizer.json", "chat_template.jinja", "generation_config.json"):
        assert (path / name).read_bytes() == (a / name).read_bytes()


def test_the_model_card_names_parents_and_leaks_no_path(
    pico_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    family = describe(tmp_path / "f", *pico_pair, [Mix("slerp", 0.5)])
    (path,) = write_all(family, tmp_path / "out").values()
    for name in ("README.md", "mergekit_config.yml"):
        text = (path / name).read_text()
        assert family.endpoint_digests[0] in text and family.endpoint_digests[1] in text
        assert str(tmp_path) not in text


def test_a_config_that_notes_where_it_was_loaded_from_is_cleaned(
    pico_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    file = pico_pair[0] / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "_name_or_path": "/home/someone/model"}))
    family = describe(tmp_path / "f", *pico_pair, [Mix("slerp", 0.5)])
    (path,) = write_all(family, tmp_path / "out").values()
    assert Checkpoint.open(path).config == config


@given(
    shape=st.lists(st.integers(0, 5), max_size=3),
    t=st.floats(0, 1),
    dtype=st.sampled_from([torch.bfloat16, torch.float16, torch.float32, torch.float64]),
    seed=st.integers(0, 99),
)
def test_slerp_is_the_textbook_formula_to_rounding(
    shape: list[int], t: float, dtype: torch.dtype, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    measured = cosine(a, b)
    of_t = recipe(Mix("slerp", t), measured, dtype)
    (chunk,) = mixing.mixed(a.reshape(-1), b.reshape(-1), [of_t], dtype, mixing.Scratch())
    x, y = a.double(), b.double()
    dot = (x * y).sum() / (x.norm() * y.norm()).clamp_min(1e-30)
    theta = torch.acos(dot.clamp(-1, 1))
    if abs(measured) > 0.9995 or a.numel() == 0:
        expected = (1 - t) * x + t * y
    else:
        expected = (torch.sin((1 - t) * theta) * x + torch.sin(t * theta) * y) / torch.sin(theta)
    scale = 1 + float(max(expected.abs().max(), 1) if expected.numel() else 1)
    bound = {torch.bfloat16: 2**-7, torch.float16: 2**-9}.get(dtype, 2e-4)
    assert torch.allclose(chunk.double(), expected.reshape(-1), atol=bound * scale)


def test_parallel_and_zero_tensors_fall_back_to_linear() -> None:
    x = torch.arange(1.0, 9.0)
    assert merge_methods.falls_back(cosine(x, 2 * x)) and merge_methods.falls_back(cosine(x, -x))
    assert not merge_methods.falls_back(cosine(torch.zeros(8), x))  # mergekit takes the dot as 0
    assert recipe(Mix("slerp", 0.25), 1.0, torch.float32).coefficients == (0.75, 0.25)


def literal_cosine(v0: torch.Tensor, v1: torch.Tensor, n: int = 1 << 20) -> float:
    """The dot product of mergekit 0.1.5's `slerp`, written out."""
    a, b = v0.reshape(1, -1), v1.reshape(1, -1)

    def norm(v: torch.Tensor) -> torch.Tensor:
        parts = [torch.linalg.vector_norm(c.float(), dim=1, keepdim=True) for c in v.split(n, 1)]
        return torch.linalg.vector_norm(torch.stack(parts), dim=0)

    norm_a, norm_b = norm(a), norm(b)
    pairs = zip(a.split(n, 1), b.split(n, 1), strict=True)
    dots = [
        ((x.float() / norm_a) * (y.float() / norm_b)).sum(dim=1, keepdim=True) for x, y in pairs
    ]
    return torch.stack(dots).sum(dim=0).clamp(-1, 1).item()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("n_threads", [1, 2])
def test_the_cosine_has_every_bit_of_mergekits_whatever_the_thread_count(
    dtype: torch.dtype, n_threads: int
) -> None:
    torch.manual_seed(0)
    a = torch.randn(cosines.ANGLE_CHUNK + 123457).to(dtype)
    b = (a.float() + 0.1 * torch.randn(a.shape)).to(dtype)
    with threads(n_threads):
        assert cosine(a, b) == literal_cosine(a, b)


@pytest.mark.parametrize("mix", MIXES + ENDS)
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_plain_mix_reads_back_plain_merge(mix: Mix, dtype: str | None) -> None:
    assert plain_mix(plain_merge(mix, dtype)) == mix


@pytest.mark.parametrize(
    "change",
    [
        {"parameters": {"t": [0.1, 0.9]}},
        {"parameters": {"t": 0.3, "extra": 1}},
        {"merge_method": "ties"},
        {"dtype": "int8"},
        {"tokenizer_source": "union"},
        {"models": [{"model": "a"}, {"model": "c"}]},
        {"base_model": "b"},
    ],
)
def test_plain_mix_leaves_every_other_config_to_mergekit(change: dict[str, Any]) -> None:
    assert plain_mix({**plain_merge(Mix("slerp", 0.3), None), **change}) is None


def test_integer_buffers_are_copied_and_every_tensor_is_aligned(
    make_checkpoint, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    a = make_checkpoint(tmp_path / "a")
    b = make_checkpoint(tmp_path / "b", seed=1, noise_from=a)
    for path in (a, b):
        tensors = load_file(path / "model.safetensors")
        tensors["odd"] = torch.tensor([1, 2, 3], dtype=torch.int8)
        tensors["wide"] = torch.tensor([7], dtype=torch.int64)
        tensors["scalar"] = torch.tensor(0.5, dtype=torch.float32)
        tensors["empty"] = torch.zeros(0, 4)
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    family = describe(tmp_path / "f", a, b, [Mix("slerp", 0.5)])
    (path,) = write_all(family, tmp_path / "out").values()
    made = stored(path)
    assert made["odd"].tolist() == [1, 2, 3] and made["wide"].item() == 7
    assert made["scalar"].item() == 0.5 and made["empty"].shape == (0, 4)
    plan = candidate_files.layout(family.endpoints[0], "model.safetensors", None)
    for name, offset in plan.offset.items():
        assert offset % made[name].element_size() == 0
    with safe_open(path / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_a_full_disk_is_one_line_and_the_next_run_finishes(
    pico_pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = describe(tmp_path / "f", *pico_pair, MIXES)
    (subject,) = subjects([f"{tmp_path / 'f'}#slerp-0.3"])
    real, calls = os.pwrite, []

    def failing(file: int, data: bytes, at: int) -> int:
        calls.append(at)
        if len(calls) == 12:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(file, data, at)

    monkeypatch.setattr(os, "pwrite", failing)
    with pytest.raises(BadInput, match=r"disk of .* is full.*same command again") as caught:
        write_out(subject, tmp_path / "best")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "best").exists() and (tmp_path / "best.partial").is_dir()
    monkeypatch.undo()
    made = write_out(subject, tmp_path / "best")
    reference = write_all(family, tmp_path / "out")["slerp-0.3"]
    assert same(stored(made), stored(reference)) == []
    assert not list(made.glob(".*"))


def test_no_room_to_reserve_is_the_same_line(
    pico_pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    describe(tmp_path / "f", *pico_pair, MIXES)

    def full(file: int, start: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(BadInput, match=r"disk of .* is full"):
        write_out(subjects([f"{tmp_path / 'f'}#slerp-0.3"])[0], tmp_path / "best")


def test_file_systems_that_cannot_reserve_space_still_work(
    pico_pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    describe(tmp_path / "f", *pico_pair, MIXES)

    def unsupported(file: int, start: int, size: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    smoke_test(write_out(subjects([f"{tmp_path / 'f'}#slerp-0.3"])[0], tmp_path / "best"))


def test_write_out_records_the_candidates_digest_and_returns_finished_ones(
    pico_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    describe(tmp_path / "f", *pico_pair, MIXES)
    (subject,) = subjects([f"{tmp_path / 'f' / 'family.json'}#linear-0.7"])
    made = write_out(subject, tmp_path / "best")
    assert subject.digest in Checkpoint.open(made).digests
    before = (made / "model.safetensors.index.json").stat().st_mtime_ns
    assert write_out(subject, tmp_path / "best") == made
    assert (made / "model.safetensors.index.json").stat().st_mtime_ns == before
    other = subjects([f"{tmp_path / 'f'}#slerp-0.3"])[0]
    with pytest.raises(BadInput, match="another run"):
        write_out(other, tmp_path / "best")
    (endpoint,) = subjects([f"{tmp_path / 'f'}#a"])
    assert write_out(endpoint, tmp_path / "unused").resolve() == pico_pair[0].resolve()


def test_family_json_reads_back_as_it_was_written(
    pico_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    family = describe(tmp_path / "f", *pico_pair, MIXES)
    again = Family.open(tmp_path / "f" / "family.json")
    assert again.candidates == family.candidates
    assert again.cosines == family.cosines and again.endpoint_digests == family.endpoint_digests
    text = json.loads((tmp_path / "f" / "family.json").read_text())
    assert str(tmp_path) not in json.dumps([e["path"] for e in text["endpoints"]])


def test_a_family_can_be_moved_with_its_endpoints(
    pico_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    a, b = (path.rename(home / path.name) for path in pico_pair)
    describe(home / "f", a, b, MIXES)
    home.rename(tmp_path / "elsewhere")
    family = Family.open(tmp_path / "elsewhere" / "f")
    family.require_unchanged()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "family.json").unlink(), "has no family.json. Make one"),
        (lambda f: (f / "family.json").write_text("{"), "can't be read as JSON"),
        (lambda f: (f / "family.json").write_text("{}"), "found name unusable"),
        (lambda f: (f.parent / "a").rename(f.parent / "gone"), "needs the endpoint a at .* gone"),
    ],
)
def test_family_open_says_what_is_wrong(
    pico_pair: tuple[Path, Path], tmp_path: Path, spoil: Any, message: str
) -> None:
    describe(tmp_path / "f", *pico_pair, MIXES)
    spoil(tmp_path / "f")
    with pytest.raises(BadInput, match=message):
        Family.open(tmp_path / "f")


def test_family_open_tells_a_missing_from_an_unfinished_family(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="Make a family with: surgeon merge-sweep"):
        Family.open(tmp_path / "no")
    (tmp_path / "half.partial").mkdir()
    with pytest.raises(BadInput, match="not finished: run the same merge-sweep again"):
        Family.open(tmp_path / "half")


def test_an_endpoint_that_changed_is_refused(pico_pair: tuple[Path, Path], tmp_path: Path) -> None:
    describe(tmp_path / "f", *pico_pair, MIXES)
    (pico_pair[1] / "generation_config.json").write_text("{}")
    with pytest.raises(BadInput, match=r"changed since .*family.json was written"):
        next(iter(live(subjects([f"{tmp_path / 'f'}#slerp-0.3"]))))


def test_subjects_spread_families_and_name_each_once(
    pico_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    a, b = pico_pair
    describe(tmp_path / "f", a, b, MIXES)
    found = subjects([str(tmp_path / "f"), str(a), f"{tmp_path / 'f'}#slerp-0.3"])
    names = [s.name for s in found]
    assert names == ["a", "slerp-0.3", "slerp-0.5", "linear-0.3", "linear-0.7", "b"]
    assert [s.ratio for s in found] == [0.0, 0.3, 0.5, 0.3, 0.7, 1.0]
    assert len({s.digest for s in found}) == 6
    assert found[0].checkpoint is not None and found[0].digest == found[0].checkpoint.digest
    assert found[1].checkpoint is None
    twin = tmp_path / "copy" / "a"
    twin.parent.mkdir()
    os.symlink(a, twin)
    assert [s.name for s in subjects([str(a), str(twin)])] == ["a"]
    describe(tmp_path / "g", b, a, MIXES[:1])
    both = subjects([f"{tmp_path / 'f'}#slerp-0.3", f"{tmp_path / 'g'}#slerp-0.3"])
    assert [s.name for s in both] == ["slerp-0.3", "slerp-0.3-2"]


def test_subjects_refuse_what_they_do_not_find(
    pico_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    describe(tmp_path / "f", *pico_pair, MIXES)
    with pytest.raises(BadInput, match=r"has no candidate 'slerp-0.33'. It has: slerp-0.3"):
        subjects([f"{tmp_path / 'f'}#slerp-0.33"])
    (tmp_path / "plain").mkdir()
    with pytest.raises(BadInput, match=r"neither a checkpoint .* nor a family"):
        subjects([str(tmp_path / "plain")])
    with pytest.raises(BadInput, match="No checkpoint was named"):
        subjects([])


def test_one_checkpoint_is_opened_and_a_whole_family_is_not(
    pico_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    """A virtual candidate is written somewhere that isn't the family's directory."""
    describe(tmp_path / "f", *pico_pair, MIXES)
    before = sorted((tmp_path / "f").rglob("*"))
    spec = f"{tmp_path / 'f'}#slerp-0.3"
    opened = open_checkpoint(spec)
    (subject,) = subjects([spec])
    assert (opened.spec, opened.path.name) == (spec, "slerp-0.3")
    assert subject.digest in opened.digests
    assert sorted((tmp_path / "f").rglob("*")) == before
    assert open_checkpoint(str(pico_pair[0])).path == pico_pair[0]
    with pytest.raises(BadInput, match=r"is a family; name one candidate: .*family.json#a"):
        open_checkpoint(str(tmp_path / "f"))


def test_live_gives_candidates_the_chosen_template_and_endpoints_their_own(
    pico_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    a, b = pico_pair
    (b / "chat_template.jinja").write_text("other {{ messages[0].content }}")
    (b / "generation_config.json").write_text(json.dumps({"eos_token_id": 5}))
    family = describe(tmp_path / "f", a, b, [Mix("slerp", 0.5)])
    chosen = Family(**{**vars(family), "choices": Choices("first", "second", "second")})
    candidates = (
        replace(c, digest=candidate_digest(c.merge, chosen)) if c.merge else c
        for c in family.candidates
    )
    chosen = replace(chosen, candidates=tuple(candidates))
    artifact.write(chosen.path, chosen.described())
    seen = {
        s.name: (tokenizer.chat_template[:5], model.generation_config.eos_token_id)
        for s, model, tokenizer in live(subjects([str(tmp_path / "f")]))
    }
    assert seen["slerp-0.5"] == ("other", 5) and seen["b"] == ("other", 5)
    assert seen["a"][0] != "other" and seen["a"][1] == 2
    (out,) = write_all(chosen, tmp_path / "out").values()
    written = Checkpoint.open(out)
    assert written.tokenizer().chat_template == (b / "chat_template.jinja").read_text()
    assert written.generation_config == {"eos_token_id": 5}


def test_a_second_endpoint_of_another_config_is_loaded_by_itself(
    pico_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    a, b = pico_pair
    config = json.loads((b / "config.json").read_text())
    (b / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5}))
    describe(tmp_path / "f", a, b, [Mix("slerp", 0.5)])
    eps = {s.name: m.config.rms_norm_eps for s, m, _ in live(subjects([str(tmp_path / "f")]))}
    assert eps["b"] == 0.5 and eps["slerp-0.5"] == eps["a"] != 0.5


def test_a_smoke_test_fails_on_weights_that_are_not_finite(
    pico_pair: tuple[Path, Path],
) -> None:
    from safetensors.torch import load_file, save_file

    smoke_test(pico_pair[0])
    shard = pico_pair[0] / "model-00001-of-00004.safetensors"
    tensors = load_file(shard)
    for tensor in tensors.values():
        tensor.fill_(float("nan"))
    save_file(tensors, shard, metadata={"format": "pt"})
    with pytest.raises(BadInput, match="not finite"):
        smoke_test(pico_pair[0])


# --- training runs --------------------------------------------------------------------------------


def test_checkpoints_of_a_run_come_by_their_step_however_they_are_named(
    pico_source, tmp_path: Path, monkeypatch
):
    a, b = pico_source
    run = tmp_path / "run"
    for name in ("checkpoint-1000", "checkpoint-200", "checkpoint-30"):
        shutil.copytree(b, run / name)
    # A run that was resumed says its own step.
    (run / "checkpoint-30" / "trainer_state.json").write_text('{"global_step": 530}')
    (run / "logs").mkdir()
    expected = [("checkpoint-200", 200), ("checkpoint-30", 530), ("checkpoint-1000", 1000)]
    shell = [str(a), *sorted(map(str, run.glob("checkpoint-*")))]
    for specs in (shell, [str(a), f"{run}/checkpoint-*"], [str(a), str(run)]):
        first, *found = subjects(specs)
        assert (first.name, first.run, first.step) == ("a", "", None)
        assert [(s.name, s.step) for s in found] == expected
        assert {s.run for s in found} == {str(run)}
    # What the run left at its end is its last step; another run keeps its place.
    shutil.copytree(b, tmp_path / "other" / "step_5")
    for file in b.iterdir():
        shutil.copy(file, run / file.name)
    (run / "trainer_state.json").write_text('{"global_step": 1200}')
    *found, last = subjects([str(run), f"{run}/checkpoint-*", str(tmp_path / "other" / "step_5")])
    assert [s.step for s in found] == [200, 530, 1000, 1200] and last.name == "step_5"
    monkeypatch.chdir(run)
    assert subjects(["checkpoint-200"])[0].run == str(run)
    # One that only finished a run of its own is on no axis.
    (tmp_path / "alone").mkdir()
    for file in b.iterdir():
        shutil.copy(file, tmp_path / "alone" / file.name)
    (tmp_path / "alone" / "trainer_state.json").write_text('{"global_step": 9}')
    assert subjects([str(tmp_path / "alone")])[0].step is None
    with pytest.raises(BadInput, match=r"nothing-\* matches no directory"):
        subjects([f"{run}/nothing-*"])


def test_adapters_of_a_run_are_merged_into_the_base_that_they_name(pico_source, tmp_path: Path):
    from peft import LoraConfig, get_peft_model

    a, run = pico_source[0], tmp_path / "run"
    for step in (20, 3):
        torch.manual_seed(step)
        tuned: Any = get_peft_model(
            Checkpoint.open(a).model(),  # pyright: ignore[reportArgumentType]
            LoraConfig(
                r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False
            ),
        )
        tuned.save_pretrained(str(run / f"checkpoint-{step}"))
    found = subjects([f"{run}/checkpoint-*"])
    assert [(s.name, s.step) for s in found] == [("a+checkpoint-3", 3), ("a+checkpoint-20", 20)]
    assert len({Checkpoint.open(a).digest, *(s.digest for s in found)}) == 3
    # An adapter outside a run, or of a base that isn't there, is asked for its base.
    config = run / "checkpoint-3" / "adapter_config.json"
    config.write_text(config.read_text().replace(json.dumps(str(a)), '"/nowhere/base"'))
    with pytest.raises(BadInput, match=r"Name its base too .its config says /nowhere/base"):
        subjects([f"{run}/checkpoint-*"])
