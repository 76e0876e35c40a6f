"""A family of merged checkpoints as its `family.json` describes it.

    {"name", "methods", "dtype", "choices": {"tokenizer", "template", "generation"}, "seed",
     "endpoints": [{"name", "spec", "path", "digest"}, ...], "others": {spec: digest},
     "candidates": [{"name", "ratio", "merge", "written", "path", "digest"}, ...],
     "notices": [...], "figures": {"tensors", "equal_share", "cosine_ffn", ...}}

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

from surgeon import artifact, lineage, named
from surgeon.checkpoint import Checkpoint, hub_id, read_json, resolve
from surgeon.errors import BadInput
from surgeon.families.merge_config import plain_mix, with_models
from surgeon.families.merge_methods import MergeConfig, Mix

FILE = "family.json"
COSINES = "cosines.json"
Side = Literal["first", "second"]


class Choices(NamedTuple):
    """Which endpoint a candidate takes each of these from."""

    tokenizer: Side = "first"
    template: Side = "first"
    generation: Side = "first"


OF_THE_FIRST = Choices()


# --- the file -------------------------------------------------------------------------------------


@artifact.part
class EndpointEntry:
    """An endpoint in `family.json`."""

    name: str
    spec: str
    path: str | None
    """Relative to the family; None for what comes with the package."""
    digest: str


@artifact.part
class Candidate:
    """One member of a family."""

    name: artifact.FileName
    """Short and safe as a file name: `slerp-0.45`, or an endpoint's own name."""
    ratio: float | None
    """Position between the endpoints, 0 to 1; None where a config sweeps something else."""
    merge: MergeConfig
    """The mergekit config, models named `a` and `b`; empty for an endpoint as it is."""
    path: str | None = None
    """Its directory in the family's; None for endpoints and virtual candidates."""
    written: bool = False
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


@artifact.artifact(FILE)
class Description:
    """The content of `family.json`."""

    out: artifact.Out
    already: artifact.Already = False
    name: str
    methods: tuple[str, ...]
    dtype: str | None
    choices: dict[str, Side]
    seed: int
    others: dict[str, str]
    endpoints: tuple[EndpointEntry, ...]
    candidates: tuple[Candidate, ...]
    notices: tuple[str, ...] = ()
    """What was said of the endpoints when the family was planned."""
    figures: dict[str, float] = field(default_factory=dict)
    """How the endpoints are related, in numbers."""


# --- the value -----------------------------------------------------------------------------------


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
    """Merge group -> cosine between the endpoints; for methods that mix by the angle."""
    notices: tuple[str, ...] = ()
    """Warnings and other sentences about the endpoints."""
    figures: dict[str, float] = field(default_factory=dict)
    """How the endpoints are related: equal tensors, equal weights, cosines."""

    @classmethod
    def open(cls, path: str | Path) -> "Family":
        """Read a family from its directory or `family.json`; raises `BadInput`."""
        path = Path(path)
        root = path.parent if path.name == FILE else path
        if not (root / FILE).is_file():
            raise BadInput(_why_no_family(root))
        return cls.of(artifact.read(Description, root))

    @classmethod
    def of(cls, described: Description) -> "Family":
        """The family that a `family.json` describes; raises `BadInput` for a place that is gone."""
        _require_whole(described)
        root, digests = described.out, tuple(entry.digest for entry in described.endpoints)
        family = cls(
            path=root,
            name=described.name,
            endpoints=tuple(_open_endpoint(root, entry) for entry in described.endpoints),
            endpoint_digests=digests,
            methods=described.methods,
            dtype=described.dtype,
            candidates=described.candidates,
            choices=Choices(**described.choices),
            seed=described.seed,
            others=described.others,
            cosines=read_cosines(root / COSINES, digests),
            notices=described.notices,
            figures=described.figures,
        )
        for candidate in family.candidates:
            directory = family.directory(candidate)
            if directory is not None and not directory.is_dir():
                raise BadInput(f"{root / FILE} lists {candidate.name}, and {directory} is gone.")
        return family

    def described(self) -> Description:
        """The content of the family's `family.json`."""
        names = [label(endpoint) for endpoint in self.endpoints]
        ends = zip(names, self.endpoints, self.endpoint_digests, strict=True)
        return Description(
            out=self.path,
            name=self.name,
            methods=self.methods,
            dtype=self.dtype,
            choices=self.choices._asdict(),
            seed=self.seed,
            others=self.others,
            endpoints=tuple(
                EndpointEntry(name=name, spec=c.spec, path=_portable(c, self.path), digest=digest)
                for name, c, digest in ends
            ),
            candidates=self.candidates,
            notices=self.notices,
            figures=self.figures,
        )

    def directory(self, candidate: Candidate) -> Path | None:
        """Where a candidate lies; None when it is virtual."""
        if candidate.endpoint is not None:
            return self.endpoints[candidate.endpoint].path
        return self.path / candidate.path if candidate.path else None

    @property
    def endpoint_names(self) -> tuple[str, str]:
        """The endpoints' names as the family's candidates carry them."""
        first, last = label(self.endpoints[0]), label(self.endpoints[-1])
        return (first, last) if first != last else (f"{first}-a", f"{last}-b")

    @property
    def inputs(self) -> dict[str, str]:
        """Name -> digest of everything the candidates are made of."""
        ends = dict(zip(self.endpoint_names, self.endpoint_digests, strict=True))
        names = [Path(spec).name for spec in self.others]
        # Two training runs have checkpoints of one name.
        apart = len({*names, *ends}) == len(names) + len(ends)
        return ends | {
            Path(spec).name if apart else spec: digest for spec, digest in self.others.items()
        }

    @property
    def virtual(self) -> bool:
        """True when at least one candidate has to be made in memory."""
        return not all(candidate.written for candidate in self.candidates)

    def candidate(self, name: str) -> Candidate:
        """The candidate of that name; raises `BadInput` that lists near or all names."""
        for candidate in self.candidates:
            if candidate.name == name:
                return candidate
        names = [candidate.name for candidate in self.candidates]
        near = difflib.get_close_matches(name, names, 3) or names
        raise BadInput(f"{self.path} has no candidate {name!r}. It has: {', '.join(near)}.")

    def require_unchanged(self) -> None:
        """Raise `BadInput` when an endpoint's files, or the code of a method from outside, are not
        those the family was described with."""
        for endpoint, digest in zip(self.endpoints, self.endpoint_digests, strict=True):
            if digest not in endpoint.digests:
                raise BadInput(
                    f"{endpoint.path} changed since {self.path / FILE} was written (digest "
                    f"{endpoint.digest[:19]}, then {digest[:19]}). Run merge-sweep again."
                )
        for candidate in self.candidates:
            virtual = candidate.merge and not candidate.written
            if virtual and candidate_digest(candidate.merge, self) != candidate.digest:
                raise BadInput(
                    f"{candidate.name} is no longer what {self.path / FILE} says: its recipe or "
                    f"the code of {candidate.merge['merge_method']} changed. Run merge-sweep again."
                )

    def source(self, part: str) -> Checkpoint:
        """The endpoint that gives its "tokenizer", "template" or "generation" to candidates."""
        return self.endpoints[0 if getattr(self.choices, part) == "first" else -1]


def candidate_digest(merge: MergeConfig, family: Family) -> str:
    """What identifies a merged candidate of a family, written or not."""
    by_content = with_models(merge, family.others)
    recipe: dict[str, Any] = {
        "method": merge["merge_method"],
        "parameters": {k: v for k, v in by_content.items() if k not in ("merge_method", "dtype")},
        "dtype": merge.get("dtype"),
        "endpoints": list(family.endpoint_digests),
        "choices": family.choices._asdict(),
    }
    mix = plain_mix(merge)
    if mix is None:  # the methods that are computed here draw nothing
        recipe["seed"] = family.seed
    elif code := named.digests(method=mix.method):
        recipe["code"] = code
    return lineage.digest_of(recipe)


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


def _require_whole(described: Description) -> None:
    """Raise `BadInput` for what `family.json` can't say."""
    file = described.out / FILE
    if len(described.endpoints) != 2:
        raise BadInput(f"{file}: found {len(described.endpoints)} endpoints, expected two.")
    if unknown := sorted(set(described.choices) - set(Choices._fields)):
        raise BadInput(
            f"{file}: found the choice {unknown[0]!r}, expected {', '.join(Choices._fields)}."
        )
    for candidate in described.candidates:
        ends = (0, 1) if candidate.ratio is not None else (None,)
        if not candidate.merge and candidate.ratio not in ends:
            raise BadInput(
                f"{file}: {candidate.name} has no merge and the ratio {candidate.ratio}, expected "
                "0 or 1: an endpoint."
            )


def _why_no_family(root: Path) -> str:
    """The sentence for a place that holds no `family.json`."""
    if root.with_name(root.name + ".partial").is_dir():
        return f"{root} is not finished: run the same merge-sweep again, it resumes."
    if not root.is_dir():
        return (
            f"{root} is not a directory. Make a family with: surgeon merge-sweep A B --out {root}"
        )
    return f"{root} has no {FILE}. Make one with: surgeon merge-sweep A B --out DIR"


def _portable(endpoint: Checkpoint, root: Path) -> str | None:
    """The endpoint's directory relative to the family; None for what comes with the package."""
    if endpoint.spec.startswith("builtin:") and "+" not in endpoint.spec:
        return None
    return os.path.relpath(endpoint.path.resolve(), root.resolve())


def _open_endpoint(root: Path, entry: EndpointEntry) -> Checkpoint:
    if entry.path is None:
        return resolve(entry.spec)
    path = Path(os.path.normpath(root.resolve() / entry.path))
    on_hub = hub_id(entry.spec) is not None
    if not path.is_dir() and on_hub:
        return resolve(entry.spec)
    if not path.is_dir():
        raise BadInput(
            f"{root / FILE} needs the endpoint {entry.name} at {path}, which is gone. "
            "Put it back, or run merge-sweep again."
        )
    # What the user typed is kept where it says more than the directory does.
    keep = on_hub or "+" in entry.spec
    return Checkpoint.open(path, entry.spec if keep else str(path))


def mergekit_yaml(family: Family, candidate: Candidate) -> str:
    """A candidate's merge config as text, its models named and digested, never by path."""
    import yaml

    first, last = family.endpoint_names
    called = {"a": first, "b": last} | {spec: Path(spec).name for spec in family.others}
    digests = [family.endpoint_digests[0], family.endpoint_digests[-1], *family.others.values()]
    pairs = zip(called.values(), digests, strict=True)
    head = "".join(f"# {name}: {digest}\n" for name, digest in pairs)
    return head + yaml.safe_dump(with_models(candidate.merge, called), sort_keys=False)
