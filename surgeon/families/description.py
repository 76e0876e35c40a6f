"""A family of merged checkpoints as its `family.json` describes it.

    {"name", "methods", "dtype", "choices": {"tokenizer", "template", "generation"}, "seed",
     "endpoints": [{"name", "spec", "path", "digest"}, ...], "others": {spec: digest},
     "candidates": [{"name", "ratio", "merge", "written", "path", "digest"}, ...]}

`merge` is a mergekit config in which the endpoints are called `a` and `b`; `others` are further
models it names. A candidate that is not `written` is virtual: it is made from the endpoints when it
is needed. The endpoints are candidates too, with an empty `merge` and their own digest. Paths are
relative to the family.
"""

import difflib
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from surgeon import lineage
from surgeon.checkpoint import FLOAT_NAMES, Checkpoint, hub_id, read_json, resolve
from surgeon.errors import BadInput
from surgeon.families.mixing import METHODS, Mix

FILE = "family.json"
COSINES = "cosines.json"
MODEL_KEYS = ("model", "base_model", "tokenizer_source", "source")
"""Keys of a mergekit config whose value names a model."""
Side = Literal["first", "second"]


class Choices(NamedTuple):
    """Which endpoint a candidate takes each of these from."""

    tokenizer: Side = "first"
    template: Side = "first"
    generation: Side = "first"


OF_THE_FIRST = Choices()


@dataclass(frozen=True)
class Candidate:
    """One member of a family."""

    name: str
    """Short and safe as a file name: `slerp-0.45`, or an endpoint's own name."""
    ratio: float | None
    """Position between the endpoints, 0 to 1; None where a config sweeps something else."""
    merge: dict[str, Any]
    """The mergekit config, models named `a` and `b`; empty for an endpoint as it is."""
    path: Path | None
    """Its directory; None when it is virtual."""
    digest: str
    """An endpoint's own digest, or that of recipe and endpoints: known before it is written."""

    @property
    def mix(self) -> Mix | None:
        """The recipe of the fast path; None for endpoints and for configs it doesn't cover."""
        return plain_mix(self.merge)

    @property
    def endpoint(self) -> int | None:
        """Index of the endpoint this candidate is, or None for a merge."""
        return None if self.merge else int(self.ratio or 0)


@dataclass(frozen=True)
class Family:
    """Two endpoints and the candidates between them."""

    path: Path
    name: str
    endpoints: tuple[Checkpoint, ...]
    endpoint_digests: tuple[str, ...]
    methods: tuple[str, ...]
    dtype: str | None
    """Dtype of the candidates; None keeps that of the endpoints."""
    candidates: tuple[Candidate, ...]
    """First endpoint, candidates in the order of the sweep, last endpoint."""
    choices: Choices = OF_THE_FIRST
    seed: int = 0
    """Seed of mergekit's methods that draw at random."""
    others: dict[str, str] = field(default_factory=dict)
    """Further models that the merge configs name: what the config calls them -> digest."""
    cosines: dict[str, float] = field(default_factory=dict, repr=False)
    """Unit key -> cosine between the endpoints; filled for families with SLERP candidates."""

    @classmethod
    def open(cls, path: str | Path) -> "Family":
        """Read a family from its directory or `family.json`; raises `BadInput`."""
        given = Path(path)
        root = given.parent if given.name == FILE else given
        file = root / FILE
        if not file.is_file():
            raise BadInput(_why_no_family(root))
        text = read_json(file)
        try:
            endpoints = tuple(_open_endpoint(root, e) for e in text["endpoints"])
            digests = tuple(e["digest"] for e in text["endpoints"])
            return cls(
                path=root,
                name=text["name"],
                endpoints=endpoints,
                endpoint_digests=digests,
                methods=tuple(text["methods"]),
                dtype=text["dtype"],
                candidates=tuple(_open_candidate(root, endpoints, c) for c in text["candidates"]),
                choices=Choices(**text["choices"]),
                seed=text["seed"],
                others=text["others"],
                cosines=read_cosines(root / COSINES, digests),
            )
        except (KeyError, TypeError) as error:
            raise BadInput(
                f"{file} is not a family description ({error!r}). Make it with: surgeon merge-sweep"
            ) from error

    @property
    def method(self) -> str:
        """The methods' names in one string."""
        return "+".join(self.methods)

    @property
    def virtual(self) -> bool:
        """True when at least one candidate has to be made in memory."""
        return any(candidate.path is None for candidate in self.candidates)

    def candidate(self, name: str) -> Candidate:
        """The candidate of that name; raises `BadInput` that lists near or all names."""
        for candidate in self.candidates:
            if candidate.name == name:
                return candidate
        names = [candidate.name for candidate in self.candidates]
        near = difflib.get_close_matches(name, names, 3) or names
        raise BadInput(f"{self.path} has no candidate {name!r}. It has: {', '.join(near)}.")

    def require_endpoints_unchanged(self) -> None:
        """Raise `BadInput` when an endpoint's files are not those the family was described with."""
        for endpoint, digest in zip(self.endpoints, self.endpoint_digests, strict=True):
            if endpoint.digest != digest:
                raise BadInput(
                    f"{endpoint.path} changed since {self.path / FILE} was written (digest "
                    f"{endpoint.digest[:19]}, then {digest[:19]}). Run merge-sweep again."
                )

    def source(self, part: str) -> Checkpoint:
        """The endpoint that gives its "tokenizer", "template" or "generation" to candidates."""
        return self.endpoints[0 if getattr(self.choices, part) == "first" else -1]


def candidate_digest(merge: dict[str, Any], family: Family) -> str:
    """What identifies a merged candidate of a family, written or not."""
    by_content = with_models(merge, family.others)
    recipe: dict[str, Any] = {
        "method": merge["merge_method"],
        "parameters": {k: v for k, v in by_content.items() if k not in ("merge_method", "dtype")},
        "dtype": merge.get("dtype"),
        "endpoints": list(family.endpoint_digests),
        "choices": family.choices._asdict(),
    }
    if plain_mix(merge) is None:  # slerp and linear draw nothing
        recipe["seed"] = family.seed
    return lineage.digest_of(recipe)


def plain_merge(mix: Mix, dtype: str | None) -> dict[str, Any]:
    """The mergekit config of a SLERP or linear candidate."""
    if mix.method == "slerp":
        merge: dict[str, Any] = {
            "merge_method": "slerp",
            "base_model": "a",
            "models": [{"model": "a"}, {"model": "b"}],
            "parameters": {"t": mix.t},
        }
    else:
        merge = {
            "merge_method": "linear",
            "models": [
                {"model": "a", "parameters": {"weight": 1 - mix.t}},
                {"model": "b", "parameters": {"weight": mix.t}},
            ],
        }
    return merge if dtype is None else {**merge, "dtype": dtype}


def plain_mix(merge: dict[str, Any]) -> Mix | None:
    """The mix a mergekit config amounts to, or None when the fast path doesn't cover it.

    Covered: SLERP with one number for `t`, and linear with weights that sum to 1, over the whole
    models `a` and `b`.
    """
    method, dtype = merge.get("merge_method"), merge.get("dtype")
    t: Any = None
    if method == "slerp":
        t = (merge.get("parameters") or {}).get("t")
    elif method == "linear":
        models = merge.get("models") or []
        t = ((models[-1].get("parameters") or {}) if models else {}).get("weight")
    if method not in METHODS or isinstance(t, bool) or not isinstance(t, int | float):
        return None
    mix = Mix(method, float(t))
    fast = plain_merge(mix, dtype)
    same = merge == fast or (method == "slerp" and merge == {**fast, "models": [{"model": "b"}]})
    return mix if same and 0 <= mix.t <= 1 and (dtype is None or dtype in FLOAT_NAMES) else None


def write_family(family: Family) -> None:
    """Write `family.json` into the family's directory, atomically."""
    lineage.write_json(
        family.path / FILE,
        {
            "name": family.name,
            "methods": family.methods,
            "dtype": family.dtype,
            "choices": family.choices._asdict(),
            "seed": family.seed,
            "others": family.others,
            "endpoints": [
                {
                    "name": label(endpoint),
                    "spec": endpoint.spec,
                    "path": _portable(endpoint, family.path),
                    "digest": digest,
                }
                for endpoint, digest in zip(family.endpoints, family.endpoint_digests, strict=True)
            ],
            "candidates": [
                {
                    "name": candidate.name,
                    "ratio": candidate.ratio,
                    "merge": candidate.merge,
                    "path": candidate.name if candidate.merge and candidate.path else None,
                    "written": candidate.path is not None,
                    "digest": candidate.digest,
                }
                for candidate in family.candidates
            ],
        },
    )


def label(checkpoint: Checkpoint) -> str:
    """A short name for a checkpoint that is safe as a file name."""
    if Path(checkpoint.spec).expanduser().is_dir():
        name = checkpoint.path.resolve().name
    else:
        name = checkpoint.name.removeprefix("builtin:").partition("@")[0]
    parts = [part.rstrip("/").rpartition("/")[2] for part in name.split("+")]
    return re.sub(r"[^\w.+-]+", "-", "+".join(parts)).strip(".-") or "checkpoint"


def read_cosines(file: Path, digests: tuple[str, ...]) -> dict[str, float]:
    """The cosines stored for endpoints of these digests; empty where there are none."""
    stored = read_json(file)
    return stored["cosines"] if stored.get("endpoints") == list(digests) else {}


def write_cosines(family: Family, threads: int) -> None:
    """Store a family's cosines beside it, with the thread count they were summed with."""
    stored = {"endpoints": family.endpoint_digests, "torch_threads": threads}
    lineage.write_json(family.path / COSINES, {**stored, "cosines": family.cosines})


def from_adapter(endpoint: Checkpoint) -> bool:
    """True for a checkpoint that was merged from `base+adapter` and lies in a work directory."""
    return "+" in endpoint.spec and not Path(endpoint.spec).expanduser().exists()


def _why_no_family(root: Path) -> str:
    """The sentence for a place that holds no `family.json`."""
    if root.with_name(root.name + ".partial").is_dir():
        return f"{root} is not finished: run the same merge-sweep again, it continues."
    if not root.is_dir():
        return (
            f"{root} is not a directory. Make a family with: surgeon merge-sweep A B --out {root}"
        )
    return f"{root} has no {FILE}. Make one with: surgeon merge-sweep A B --out DIR"


def _portable(endpoint: Checkpoint, root: Path) -> str | None:
    """The endpoint's directory relative to the family; None for what comes with the package."""
    if endpoint.spec.startswith("builtin:"):
        return None
    return os.path.relpath(endpoint.path.resolve(), root.resolve())


def _open_endpoint(root: Path, entry: dict[str, Any]) -> Checkpoint:
    if entry["path"] is None:
        return resolve(entry["spec"])
    path = Path(os.path.normpath(root.resolve() / entry["path"]))
    on_hub = hub_id(entry["spec"]) is not None
    if not path.is_dir() and on_hub:
        return resolve(entry["spec"])
    if not path.is_dir():
        raise BadInput(
            f"{root / FILE} needs the endpoint {entry['name']} at {path}, which is gone. "
            "Put it back, or run merge-sweep again."
        )
    # What the user typed is kept where it says more than the directory does.
    keep = on_hub or "+" in entry["spec"]
    return Checkpoint.open(path, entry["spec"] if keep else str(path))


def _open_candidate(
    root: Path, endpoints: tuple[Checkpoint, ...], entry: dict[str, Any]
) -> Candidate:
    if not entry["merge"]:
        path: Path | None = endpoints[int(entry["ratio"])].path
    else:
        path = root / entry["path"] if entry["written"] else None
    if path is not None and not path.is_dir():
        raise BadInput(f"{root / FILE} lists {entry['name']}, and {path} is gone.")
    return Candidate(entry["name"], entry["ratio"], entry["merge"], path, entry["digest"])


def with_models(merge: Any, called: dict[str, str]) -> Any:
    """A mergekit config with its models (`a`, `b`, others) replaced by what `called` says."""
    if isinstance(merge, dict):
        return {
            key: called.get(value, value)
            if key in MODEL_KEYS and isinstance(value, str)
            else with_models(value, called)
            for key, value in merge.items()
        }
    return [with_models(value, called) for value in merge] if isinstance(merge, list) else merge


def models_in(merge: Any) -> list[str]:
    """The models a mergekit config names, each once, in order."""
    found: dict[str, None] = {}
    if isinstance(merge, dict):
        for key, value in merge.items():
            if key in MODEL_KEYS and isinstance(value, str):
                if value not in ("base", "union"):  # words of `tokenizer_source`
                    found[value] = None
            else:
                found |= dict.fromkeys(models_in(value))
    elif isinstance(merge, list):
        for value in merge:
            found |= dict.fromkeys(models_in(value))
    return list(found)


def mergekit_yaml(family: Family, candidate: Candidate) -> str:
    """A candidate's mergekit config as text, its models named and digested, never by path."""
    import yaml

    a, b = model_names(family)
    head = f"# {a}: {family.endpoint_digests[0]}\n# {b}: {family.endpoint_digests[-1]}\n"
    called = {"a": a, "b": b}
    for spec, digest in family.others.items():
        called[spec] = Path(spec).name
        head += f"# {Path(spec).name}: {digest}\n"
    return head + yaml.safe_dump(with_models(candidate.merge, called), sort_keys=False)


def model_names(family: Family) -> tuple[str, str]:
    """The endpoints' names as the family's candidates carry them."""
    first, second = label(family.endpoints[0]), label(family.endpoints[-1])
    return (first, second) if first != second else (f"{first}-a", f"{second}-b")
