"""`merge-sweep`: two endpoints in, a family of merged checkpoints out.

SLERP and linear are mixed here, each endpoint tensor read once for all ratios, bit-equal to what
mergekit writes with the same number of torch threads. Every other method is written by mergekit.
"""

import logging
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from surgeon import lineage
from surgeon.checkpoint import Checkpoint, link_or_copy, resolve
from surgeon.errors import BadInput
from surgeon.families import (
    COSINES,
    Candidate,
    Choices,
    Family,
    begin_candidate,
    candidate_bytes,
    candidate_digest,
    family_cosines,
    label,
    plain_merge,
    plain_mix,
    smoke_test,
    write_cosines,
    write_family,
    write_side_files,
    write_weights,
)
from surgeon.families.description import from_adapter, model_names, models_in, read_cosines
from surgeon.families.mixing import METHODS, Mix
from surgeon.families.writing import inputs
from surgeon.merge import engine as mergekit_engine
from surgeon.merge import preflight
from surgeon.merge.plan import Member, Plan, from_config, from_methods
from surgeon.progress import track

VERB = "merge-sweep"
SIDE_BY_SIDE = 64
"""Candidates written at once: each holds an open file."""
Side = Literal["first", "second"]
log = logging.getLogger(__name__)


class SweepReport(NamedTuple):
    """What a sweep found and made."""

    family: Family | None
    """None after a dry run."""
    plan: tuple[str, ...]
    """Endpoints, candidates, bytes and the SLERP fallback, a line each."""
    notices: tuple[str, ...]
    """Differences between the endpoints and what was decided about them."""
    written: tuple[str, ...]
    """Candidates written by this run."""
    kept: tuple[str, ...]
    """Candidates that were there already."""
    fallback: preflight.Fallback | None

    def lines(self) -> list[str]:
        """The report for a terminal."""
        lines = [*self.plan, *(f"Notice: {text}" for text in self.notices)]
        if self.family is None:
            return [*lines, "Dry run: nothing was written."]
        if self.family.virtual:
            done = f"{counted(len(self.family.candidates), 'candidate')} described, none written"
        else:
            done = f"{counted(len(self.written), 'candidate')} written, {len(self.kept)} kept"
        return [*lines, f"{self.family.path}: {done}."]


def sweep(
    a: str | None = None,
    b: str | None = None,
    *,
    out: str | Path,
    method: str | Iterable[str] = ("slerp",),
    ratios: str = "0.05:0.95:0.05",
    config: str | Path | None = None,
    virtual: bool = False,
    dry_run: bool = False,
    dtype: str | None = None,
    tokenizer: Side | None = None,
    template: Side = "first",
    generation: Side = "first",
    engine: Literal["fast", "mergekit"] = "fast",
    smoke: bool = True,
    seed: int = 0,
) -> SweepReport:
    """Merge two checkpoints at many ratios into the new directory `out`, and describe the family.

    `a` and `b` are directories, hub ids (`owner/name@revision`), `base+adapter` or `builtin:NAME`.
    `config` (a file as in `surgeon.merge.plan`) replaces `method` and `ratios`. `virtual` writes
    the description only. `dtype` None keeps the endpoints' dtype, and the endpoints belong to the
    family as they are; with another dtype, ratios 0 and 1 are merged like the rest. `tokenizer`,
    `template` and `generation` say whose files the candidates get; `tokenizer` None means the
    first's, and refuses endpoints whose vocabularies differ. `engine="mergekit"` writes everything
    with mergekit. `seed` is for mergekit's random methods.

    Continues after a kill; a finished family of the same arguments is returned as it is. Raises
    `BadInput` before anything is written when the endpoints don't fit, the disk is too small, or
    `out` holds something else.
    """
    out = Path(out)
    methods = (method,) if isinstance(method, str) else tuple(method)
    if engine not in ("fast", "mergekit"):
        raise BadInput(f"engine {engine!r} is none of fast, mergekit")
    plan = (
        from_methods(methods, ratios, dtype) if config is None else from_config(Path(config), dtype)
    )
    choices = Choices(tokenizer or "first", template, generation)
    first, second = _endpoints(a, b, plan)
    models = [m for member in plan.members for m in models_in(member.merge)]
    others = {model: resolve(model) for model in models if model not in ("a", "b")}
    dtype = _one_dtype(plan, dtype)
    for other in (second, *others.values()):
        preflight.require_mergeable(first, other, dtype)
    notices = _notices(first, second, choices, asked=tokenizer)
    plan = _with_endpoints(plan, first, dtype)
    family = Family(
        path=out,
        name=out.absolute().name,
        endpoints=(first, second),
        endpoint_digests=tuple(endpoint.digest for endpoint in (first, second)),
        methods=tuple(dict.fromkeys(str(m.merge["merge_method"]) for m in plan.members)),
        dtype=dtype,
        candidates=(),
        choices=choices,
        seed=seed,
        others={spec: checkpoint.digest for spec, checkpoint in others.items()},
    )
    by_mergekit = _by_mergekit(plan, family, others, engine, virtual)
    family = replace(family, candidates=_candidates(family, plan))
    run: dict[str, Any] = {
        "verb": VERB,
        "arguments": {
            **plan.request,
            "virtual": virtual,
            "engine": engine,
            "choices": choices._asdict(),
        },
        "inputs": inputs(family),
        "seed": seed if by_mergekit else None,
    }
    partial = out.with_name(out.name + ".partial")
    lineage.refuse_foreign(out)
    for place in (out, partial):
        if (found := lineage.read(place)) is not None:
            lineage.refuse_other_run(place, found, lineage.plain(run))
    n_bytes = 0 if out.exists() else _bytes_to_write(family, partial, virtual, by_mergekit)
    if not dry_run:
        lineage.require_room(out, n_bytes, f"The family of {len(plan.members)} candidates")
    shares = None
    if "slerp" in family.methods:
        family = replace(family, cosines=_cosines(family, (out, partial)))
        shares = preflight.fallback(first, family.cosines)
    lines = _plan_lines(family, shares, n_bytes, virtual, by_mergekit)
    report = SweepReport(None, tuple(lines), tuple(notices), (), (), shares)
    if dry_run:
        return report
    for line in (*lines, *notices):
        log.info(line)
    work = lineage.begin(out, **run)
    if work is None:
        done = Family.open(out)
        return report._replace(
            family=done, kept=tuple(c.name for c in done.candidates if c.merge and c.path)
        )
    family = _at_home(replace(family, path=work))
    if family.cosines and not (work / COSINES).exists():
        write_cosines(family, torch.get_num_threads())
    if not virtual:
        family, report = _write_all(family, report, others, by_mergekit, smoke)
    write_family(family)
    lineage.finish(work, out)
    return report._replace(family=Family.open(out))


def _endpoints(a: str | None, b: str | None, plan: Plan) -> tuple[Checkpoint, Checkpoint]:
    if a is None and b is None and plan.endpoints is not None:
        a, b = plan.endpoints
    if a is None or b is None:
        raise BadInput("merge-sweep needs two endpoints: surgeon merge-sweep A B --out DIR")
    return resolve(a), resolve(b)


def _one_dtype(plan: Plan, dtype: str | None) -> str | None:
    """The dtype of all candidates: the argument's, or the one the configs agree on."""
    named = {m.merge.get("out_dtype") or m.merge.get("dtype") for m in plan.members}
    if len(named) > 1:
        raise BadInput(
            f"the merges ask for several dtypes ({', '.join(map(str, named))}): one is one"
        )
    return dtype or (named.pop() if named else None)


def _notices(
    first: Checkpoint, second: Checkpoint, choices: Choices, asked: Side | None
) -> list[str]:
    """What differs, each with whose files the candidates take; refuses unequal vocabularies."""
    for part, side in choices._asdict().items():
        if side not in ("first", "second"):
            raise BadInput(f"{part} {side!r} is none of first, second")
    names = {"first": label(first), "second": label(second)}
    found = []
    vocabulary = preflight.vocabulary_difference(first, second)
    if vocabulary is not None and asked is None:
        raise BadInput(
            f"{vocabulary}. If the ids still mean the same, say whose tokenizer the candidates "
            "get: --tokenizer first or --tokenizer second"
        )
    if vocabulary is not None:
        found.append(f"{vocabulary}; candidates take the tokenizer of {names[choices.tokenizer]}.")
    for part, text in preflight.notices(first, second):
        if part == "config":
            found.append(f"{text}; candidates take the config of {names['first']}.")
        else:
            taken = names[getattr(choices, part)]
            found.append(f"{text}; candidates take the {part} of {taken} (--{part}).")
    return found


def _with_endpoints(plan: Plan, first: Checkpoint, dtype: str | None) -> Plan:
    """With a new dtype, ratios 0 and 1 are members to be made; otherwise they are the endpoints."""
    if not preflight.changes_dtype(first, dtype):
        return plan
    method = next((m for x in plan.members if (m := x.merge["merge_method"]) in METHODS), "linear")
    ends = [
        Member(f"{method}-{t}", float(t), plain_merge(Mix(method, float(t)), dtype)) for t in (0, 1)
    ]
    return plan._replace(members=[ends[0], *plan.members, ends[1]])


def _by_mergekit(
    plan: Plan, family: Family, others: dict[str, Checkpoint], engine: str, virtual: bool
) -> set[str]:
    """Names of the members that mergekit writes; raises `BadInput` for what can't be made."""
    slow = [m for m in plan.members if engine == "mergekit" or plain_mix(m.merge) is None]
    if slow and virtual:
        raise BadInput(
            f"{slow[0].name} can't be virtual: only slerp with one t and linear are made in "
            "memory. Leave --virtual away (and --engine mergekit)."
        )
    for member in slow:
        mergekit_engine.require_valid(member.merge, family, others)
    return {member.name for member in slow}


def _candidates(family: Family, plan: Plan) -> tuple[Candidate, ...]:
    """The plan's members with digests, between the two endpoints."""
    digests = family.endpoint_digests
    found = [
        Candidate(m.name, m.ratio, m.merge, None, candidate_digest(m.merge, family))
        for m in plan.members
    ]
    if not any(c.mix and c.mix.t in (0.0, 1.0) for c in found):
        ends = [
            Candidate(name, float(i), {}, endpoint.path, digest)
            for i, (name, endpoint, digest) in enumerate(
                zip(model_names(family), family.endpoints, digests, strict=True)
            )
        ]
        found = [ends[0], *found, ends[1]]
    names = [candidate.name for candidate in found]
    if len(set(names)) != len(names):
        raise BadInput(f"two candidates would be called {max(names, key=names.count)!r}")
    return tuple(found)


def _cosines(family: Family, places: tuple[Path, ...]) -> dict[str, float]:
    """The cosines between the endpoints, from an earlier run where there was one."""
    for place in places:
        if found := read_cosines(place / COSINES, family.endpoint_digests):
            return found
    return family_cosines(family.endpoints[0], family.endpoints[-1], family.dtype)


def _bytes_to_write(family: Family, partial: Path, virtual: bool, by_mergekit: set[str]) -> int:
    """Bytes this run adds to the disk of `out`, less what an earlier run left there."""
    endpoints = [e for e in family.endpoints if from_adapter(e)]
    total = (1 << 20) + sum(e.size for e in endpoints)
    if not virtual:
        one = candidate_bytes(family.endpoints[0], family.dtype)
        # mergekit's own output lies beside the candidate that is made of it for a moment.
        total += one * (sum(c.path is None for c in family.candidates) + bool(by_mergekit))
    there = sum(f.stat().st_blocks * 512 for f in partial.rglob("*") if f.is_file())
    return max(0, total - there)


def _plan_lines(
    family: Family,
    shares: preflight.Fallback | None,
    n_bytes: int,
    virtual: bool,
    by_mergekit: set[str],
) -> list[str]:
    lines = []
    for rank, endpoint in zip(("first", "second"), family.endpoints, strict=True):
        dtypes = "/".join(sorted({info.dtype for info in endpoint.tensors.values()}))
        lines.append(
            f"{rank}: {label(endpoint)} ({endpoint.model_type}, {size_text(endpoint.size)} "
            f"{dtypes} in {counted(len(endpoint.shards), 'shard')})"
        )
    names = [c.name for c in family.candidates if c.merge]
    span = ", ".join(names) if len(names) <= 4 else f"{names[0]}, {names[1]} ... {names[-1]}"
    ends = " and the two endpoints" if len(names) < len(family.candidates) else ""
    how = "virtual" if virtual else "written by mergekit" if by_mergekit else "written in one pass"
    lines.append(f"{counted(len(names), 'candidate')} ({how}){ends}: {span or 'none'}")
    free = lineage.free_bytes(family.path)
    lines.append(f"to write: {size_text(n_bytes)}, free on that disk: {size_text(free)}")
    if shares is not None:
        lines.append(shares.line())
    return lines


def _at_home(family: Family) -> Family:
    """The family with endpoints that were merged from an adapter kept under its own roof."""
    endpoints = []
    for name, endpoint in zip(model_names(family), family.endpoints, strict=True):
        if not from_adapter(endpoint):
            endpoints.append(endpoint)
            continue
        home = family.path / "endpoints" / name
        if not home.is_dir():
            moving = home.with_name(name + ".partial")
            shutil.rmtree(moving, ignore_errors=True)
            moving.mkdir(parents=True)
            for file in endpoint.path.iterdir():
                link_or_copy(file, moving / file.name)
            moving.rename(home)
        endpoints.append(Checkpoint.open(home, endpoint.spec))
    return replace(family, endpoints=tuple(endpoints))


def _write_all(
    family: Family,
    report: SweepReport,
    others: dict[str, Checkpoint],
    by_mergekit: set[str],
    smoke: bool,
) -> tuple[Family, SweepReport]:
    """Write every merged candidate, each published when it is whole and passes its smoke test."""
    todo: list[tuple[Candidate, Path]] = []
    kept = []
    for candidate in family.candidates:
        if candidate.endpoint is not None:
            continue
        work = begin_candidate(family, candidate, family.path / candidate.name)
        if work is None:
            kept.append(candidate.name)
        else:
            todo.append((candidate, work))
    fast = [pair for pair in todo if pair[0].name not in by_mergekit]
    for batch in _batches(fast, SIDE_BY_SIDE):
        write_weights(family, [c for c, _ in batch], [work for _, work in batch])
        for candidate, work in track(batch, what="smoke tests" if smoke else "publishing"):
            write_side_files(family, candidate, work)
            _publish(candidate, work, smoke)
    slow = [pair for pair in todo if pair[0].name in by_mergekit]
    for candidate, work in track(slow, what="mergekit") if slow else ():
        mergekit_engine.write(family, candidate, work, others)
        _publish(candidate, work, smoke)
    candidates = tuple(
        c if c.endpoint is not None else replace(c, path=family.path / c.name)
        for c in family.candidates
    )
    written = tuple(c.name for c, _ in todo)
    return replace(family, candidates=candidates), report._replace(
        written=written, kept=tuple(kept)
    )


def _publish(candidate: Candidate, work: Path, smoke: bool) -> None:
    """Smoke-test a candidate's partial directory and give it its name."""
    if smoke:
        try:
            smoke_test(work)
        except (OSError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise BadInput(
                f"{candidate.name} failed its smoke test and stays unpublished in {work}: {reason}"
            ) from error
    lineage.finish(work, work.with_name(candidate.name))


def counted(n: int, noun: str) -> str:
    """`1 shard`, `2 shards`."""
    return f"{n} {noun}{'s' * (n != 1)}"


def size_text(n_bytes: int) -> str:
    """Bytes in the decimal unit that reads best."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
        if n_bytes >= size:
            return f"{n_bytes / size:.3g} {unit}"
    return f"{n_bytes} bytes"


def _batches(
    pairs: list[tuple[Candidate, Path]], size: int
) -> Iterator[list[tuple[Candidate, Path]]]:
    for start in range(0, len(pairs), size):
        yield pairs[start : start + size]


def show(report: SweepReport) -> None:
    """Print what a sweep found and wrote."""
    from rich.console import Console

    console = Console(highlight=False)
    for line in report.lines():
        console.print(line, markup=False, soft_wrap=True)
