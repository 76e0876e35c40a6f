"""A merge sweep, checked before a byte is written."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from surgeon import lineage, named
from surgeon.checkpoint import DTYPES, FLOATS, Checkpoint, resolve
from surgeon.errors import BadInput
from surgeon.families import (
    Candidate,
    Choices,
    Family,
    candidate_files,
    cosines,
    description,
    label,
    merge_config,
    subjects,
)
from surgeon.families.merge_methods import METHODS, Mix
from surgeon.merge import mergekit, preflight, relation, tensor_names, vocabularies
from surgeon.merge.aligned import Aligned
from surgeon.merge.members import Member, Sweep, averaged, from_config, from_methods
from surgeon.settings.merge_sweep import MergeSweepSettings
from surgeon.workers import Roster, roster

VERB = "merge-sweep"


class SweepPlan(NamedTuple):
    """What a sweep makes, and all it needs to make it."""

    settings: MergeSweepSettings
    family: Family
    """With its candidates, none written yet, and the cosines its methods need."""
    others: dict[str, Checkpoint]
    """Further models that the merge configs name."""
    by_mergekit: frozenset[str]
    """Candidates that mergekit writes."""
    kept: tuple[str, ...]
    """Candidates that an earlier run wrote."""
    run: lineage.Run
    n_bytes: int
    """Bytes to be added to the disk."""
    free_bytes: int
    """Bytes free on it before."""
    notices: tuple[str, ...]
    """Differences between the endpoints and what was decided about them."""
    relation: relation.Relation
    """How much the endpoints have in common."""
    carried: str
    """What candidates have that isn't merged, and where it comes from."""
    fallback: preflight.Fallback | None
    """Where SLERP mixes linearly; None without SLERP."""
    roster: Roster | None
    """The workers; None where this process works alone."""

    def lines(self) -> list[str]:
        """Endpoints, candidates, bytes and the SLERP fallback, a line each."""
        lines = []
        for rank, endpoint in zip(("first", "second"), self.family.endpoints, strict=True):
            dtypes = "/".join(sorted({info.dtype for info in endpoint.tensors.values()}))
            lines.append(
                f"{rank}: {label(endpoint)} ({endpoint.model_type}, {size_text(endpoint.size)} "
                f"{dtypes} in {counted(len(endpoint.shards), 'shard')})"
            )
        for spec, other in self.others.items() if self.settings.uniform else ():
            lines.append(f"another: {label(other)} ({size_text(other.size)}), {spec}")
        names = [c.name for c in self.family.candidates if c.merge]
        span = ", ".join(names) if len(names) <= 4 else f"{names[0]}, {names[1]} ... {names[-1]}"
        ends = " and the two endpoints" if len(names) < len(self.family.candidates) else ""
        written = "written by mergekit" if self.by_mergekit else "written in one pass"
        how = "virtual" if self.settings.virtual else written
        lines.append(f"{counted(len(names), 'candidate')} ({how}){ends}: {span or 'none'}")
        free = size_text(self.free_bytes)
        lines.append(f"to write: {size_text(self.n_bytes)}, free on that disk: {free}")
        lines += [self.carried, self.relation.line()]
        return lines if self.fallback is None else [*lines, self.fallback.line()]


def prepare(settings: MergeSweepSettings) -> SweepPlan:
    """Check everything; raises `BadInput` when the endpoints don't fit, the disk is too small, or
    `out` holds something else."""
    workers = roster(settings.workforce, "cpu" if not settings.workforce.devices else "auto")
    if settings.uniform:
        settings = _all_named(settings)
        given = _endpoints(settings, None)
        wanted = averaged(settings.more, settings.dtype, _disk_dtype(given[0]))
    elif settings.config is None:
        wanted = from_methods(settings.method, settings.ratios, settings.dtype)
        given = _endpoints(settings, wanted)
    else:
        wanted = from_config(Path(settings.config), settings.dtype)
        given = _endpoints(settings, wanted)
    models = [m for member in wanted.members for m in merge_config.models_in(member.merge)]
    others = {model: resolve(model) for model in models if model not in ("a", "b")}
    dtype = _one_dtype(wanted, settings.dtype)
    preflight.require_one_architecture(*given, dtype)
    united = _by_merge_config(wanted, settings)
    first, second, done = _aligned(*given, settings, united)
    rows = vocabularies.rows(first, second) if united else None
    for other in (second, *others.values()):
        preflight.require_one_architecture(first, other, dtype)
        preflight.require_mixable(first, other, dtype, rows.names if rows else ())
    notices = [*done, *_notices(*given, settings, united)]
    members = wanted.members if rows else _with_ends(wanted.members, first, dtype)
    family = Family(
        path=settings.out,
        name=settings.out.absolute().name,
        endpoints=(first, second),
        endpoint_digests=(first.digest, second.digest),
        methods=tuple(dict.fromkeys(str(m.merge["merge_method"]) for m in members)),
        dtype=dtype,
        candidates=(),
        choices=_choices(settings),
        seed=settings.seed,
        others={spec: checkpoint.digest for spec, checkpoint in others.items()},
    )
    by_mergekit = _by_mergekit(members, family, others, settings)
    family = replace(family, candidates=_candidates(family, members))
    run = _run(settings, wanted, family, by_mergekit)
    lineage.check(settings.out, run)
    partial = settings.out.with_name(settings.out.name + ".partial")
    n_bytes = (
        0 if settings.out.exists() else _bytes_to_write(family, partial, by_mergekit, settings)
    )
    if not settings.dry_run:
        lineage.require_room(settings.out, n_bytes, f"The family of {len(members)} candidates")
    # Reading the weights comes last: whatever else can be refused has been.
    related = relation.relation(first, second)
    notices = (*relation.warnings(first, second, related), *notices)
    family = replace(family, notices=notices, figures=related.figures)
    places = (settings.out, partial)
    slerp = "slerp" in family.methods and not rows
    if not rows:  # else mergekit measures them, of rows that it has put in order
        family = cosines.with_cosines(_with_stored_cosines(family, places))
    return SweepPlan(
        settings=settings,
        family=family,
        others=others,
        by_mergekit=by_mergekit,
        kept=_published(family, places),
        run=run,
        n_bytes=n_bytes,
        free_bytes=lineage.free_bytes(settings.out),
        notices=notices,
        relation=related,
        carried=_carried(family),
        fallback=preflight.fallback(first, family.cosines) if slerp else None,
        roster=workers,
    )


def _all_named(settings: MergeSweepSettings) -> MergeSweepSettings:
    """The settings with patterns and training runs spread into their checkpoints."""
    given = [spec for spec in (settings.a, settings.b, *settings.more) if spec is not None]
    found = [subject.spec for subject in subjects(given)]
    if len(found) < 2:
        raise BadInput(
            f"found {counted(len(found), 'checkpoint')}, expected two or more to average."
        )
    return replace(settings, a=found[0], b=found[1], more=tuple(found[2:]))


def _disk_dtype(checkpoint: Checkpoint) -> str | None:
    """torch's name of the only float dtype of a checkpoint's tensors; None for several."""
    found = {info.dtype for info in checkpoint.tensors.values() if info.dtype in FLOATS}
    return DTYPES[found.pop()].torch if len(found) == 1 else None


def _endpoints(settings: MergeSweepSettings, wanted: Sweep | None) -> tuple[Checkpoint, Checkpoint]:
    a, b = settings.a, settings.b
    if a is None and b is None and wanted is not None and wanted.endpoints is not None:
        a, b = wanted.endpoints
    if a is None or b is None:
        raise BadInput("merge-sweep needs two endpoints: surgeon merge-sweep A B --out DIR")
    return resolve(a), resolve(b)


def _choices(settings: MergeSweepSettings) -> Choices:
    return Choices(settings.tokenizer or "first", settings.template, settings.generation)


def _run(
    settings: MergeSweepSettings, wanted: Sweep, family: Family, by_mergekit: frozenset[str]
) -> lineage.Run:
    """What makes the sweep this sweep; the seed only where something draws at random."""
    arguments = {
        **wanted.request,
        "virtual": settings.virtual,
        "engine": settings.engine,
        "choices": family.choices._asdict(),
    }
    if settings.vocabulary is not None:
        arguments["vocabulary"] = settings.vocabulary
    inputs = dict(family.inputs)
    for method in family.methods:
        inputs |= named.digests(method=method)
    return lineage.Run(VERB, arguments, inputs, settings.seed if by_mergekit else None)


def _one_dtype(wanted: Sweep, dtype: str | None) -> str | None:
    """The dtype of all candidates: the setting's, or the one the configs agree on."""
    stated = {m.merge.get("out_dtype") or m.merge.get("dtype") for m in wanted.members}
    if len(stated) > 1:
        raise BadInput(
            f"found merges of several dtypes ({', '.join(map(str, stated))}), expected one for all."
        )
    return dtype or (stated.pop() if stated else None)


def _by_merge_config(wanted: Sweep, settings: MergeSweepSettings) -> bool:
    """Whether mergekit makes the tokenizer of every candidate, as their configs ask.

    Raises `BadInput` where the settings say otherwise, or where only some configs ask for it.
    """
    made = [candidate_files.made_by_config(m.merge, _choices(settings)) for m in wanted.members]
    asked = ["tokenizer" in parts for parts in made]
    if not any(asked):
        return False
    if not all(asked):
        raise BadInput(
            "found `tokenizer` in some merges and not in others, expected one vocabulary for the "
            "whole family. Make two families."
        )
    for name, value in (("tokenizer", settings.tokenizer), ("vocabulary", settings.vocabulary)):
        if value is not None:
            raise BadInput(
                f"found --{name} {value} and a `tokenizer` in {settings.config}, expected one of "
                f"them. Leave --{name} away, or take the key out of the file."
            )
    return True


def _aligned(
    first: Checkpoint, second: Checkpoint, settings: MergeSweepSettings, united: bool
) -> tuple[Checkpoint, Checkpoint, list[str]]:
    """The endpoints with equal names and vocabulary rows, and a sentence for each thing done."""
    first, second, done = tensor_names.alike(first, second)
    if united:
        return first, second, done
    if settings.vocabulary is not None:
        *pair, said = vocabularies.fitted(first, second, settings.vocabulary, settings.tokenizer)
        return pair[0], pair[1], [*done, *said]
    found = vocabularies.rows(first, second)
    if found is not None:
        raise BadInput(
            vocabularies.refusal(first, second, found, lambda how: _again(settings, how))
        )
    return first, second, done


def _again(settings: MergeSweepSettings, how: str) -> str:
    """The command that was typed, with a way to make the vocabularies one."""
    typed = f"surgeon merge-sweep {settings.a or 'A'} {settings.b or 'B'} --out {settings.out}"
    return f"{lineage.COMMAND.get() or typed} --vocabulary {how}"


def _carried(family: Family) -> str:
    """One line: what candidates take whole, and from which endpoint."""
    names = dict(zip(("first", "second"), family.endpoint_names, strict=True))
    merged = [c.merge for c in family.candidates if c.merge]
    parts = []
    for part, side in family.choices._asdict().items():
        made = any(part in candidate_files.made_by_config(m, family.choices) for m in merged)
        parts.append(f"{part} " + ("by the merge config" if made else f"of {names[side]}"))
    stops = family.source("generation").generation_config.get("eos_token_id")
    parts[-1] += "" if stops is None else f" (stops at {stops})"
    return f"not merged: {', '.join(parts)}; config and further files of {names['first']}"


def _notices(
    first: Checkpoint, second: Checkpoint, settings: MergeSweepSettings, united: bool
) -> list[str]:
    """What differs, each with whose files the candidates take; refuses unequal vocabularies."""
    names = {"first": label(first), "second": label(second)}
    choices, notices = _choices(settings), []
    united = united or settings.vocabulary == "union"
    vocabulary = None if united else preflight.vocabulary_difference(first, second)
    if vocabulary is not None and settings.tokenizer is None:
        raise BadInput(
            f"{vocabulary}. If the ids still mean the same, say whose tokenizer the candidates "
            "get: --tokenizer first or --tokenizer second. If they don't: --vocabulary union"
        )
    if vocabulary is not None:
        notices.append(
            f"{vocabulary}; candidates take the tokenizer of {names[choices.tokenizer]}."
        )
    for part, text in preflight.notices(first, second):
        if part == "config":
            notices.append(f"{text}; candidates take the config of {names['first']}.")
        else:
            side = names[getattr(choices, part)]
            notices.append(f"{text}; candidates take the {part} of {side} (--{part}).")
    return notices


def _with_ends(members: list[Member], first: Checkpoint, dtype: str | None) -> list[Member]:
    """With a new dtype, ratios 0 and 1 are members to be made; otherwise they are the endpoints."""
    if not preflight.changes_dtype(first, dtype):
        return members
    method = next((m for x in members if (m := x.merge["merge_method"]) in METHODS), "linear")
    ends = [
        Member(f"{method}-{t}", float(t), merge_config.plain_merge(Mix(method, float(t)), dtype))
        for t in (0, 1)
    ]
    return [ends[0], *members, ends[1]]


def _by_mergekit(
    members: list[Member],
    family: Family,
    others: dict[str, Checkpoint],
    settings: MergeSweepSettings,
) -> frozenset[str]:
    """Names of the members that mergekit writes; raises `BadInput` for what can't be made."""
    slow = [
        m
        for m in members
        if settings.engine == "mergekit" or merge_config.plain_mix(m.merge) is None
    ]
    if slow and settings.virtual:
        raise BadInput(
            f"{slow[0].name} can't be virtual: only {', '.join(METHODS)} and module:function with "
            "one ratio are made in memory. Leave --virtual away (and --engine mergekit)."
        )
    for member in slow:
        mergekit.require_valid(member.merge, family, others)
    return frozenset(member.name for member in slow)


def _candidates(family: Family, members: list[Member]) -> tuple[Candidate, ...]:
    """The members with digests, between the two endpoints."""
    candidates = [
        Candidate(
            name=m.name,
            ratio=m.ratio,
            merge=m.merge,
            digest=description.candidate_digest(m.merge, family),
        )
        for m in members
    ]
    if not any(c.mix and c.mix.t in (0.0, 1.0) for c in candidates):
        ends = zip(family.endpoint_names, (0.0, 1.0), family.endpoint_digests, strict=True)
        first, last = (
            Candidate(name=name, ratio=ratio, merge={}, written=True, digest=digest)
            for name, ratio, digest in ends
        )
        candidates = [first, *candidates, last]
    names = [candidate.name for candidate in candidates]
    if len(set(names)) != len(names):
        raise BadInput(f"two candidates would be called {max(names, key=names.count)!r}")
    return tuple(candidates)


def _with_stored_cosines(family: Family, places: tuple[Path, ...]) -> Family:
    """The family with the cosines of an earlier run, where there was one."""
    for place in places:
        stored = description.read_cosines(place / description.COSINES, family.endpoint_digests)
        if stored and cosines.needs_cosines(family):
            return replace(family, cosines=stored)
    return family


def _published(family: Family, places: tuple[Path, ...]) -> tuple[str, ...]:
    """Candidates whose directories are whole already."""
    merged = [c.name for c in family.candidates if c.merge]
    return tuple(name for name in merged if any((place / name).is_dir() for place in places))


def _bytes_to_write(
    family: Family, partial: Path, by_mergekit: frozenset[str], settings: MergeSweepSettings
) -> int:
    """Bytes this run adds to the disk of `out`, less what an earlier run left there."""
    adapted = [
        endpoint
        for endpoint in family.endpoints
        if isinstance(endpoint, Aligned) or description.from_adapter(endpoint)
    ]
    total = (1 << 20) + sum(endpoint.size for endpoint in adapted)
    if not settings.virtual:
        one = candidate_files.candidate_bytes(family.endpoints[0], family.dtype)
        # mergekit's own output lies beside the candidate that is made of it for a moment.
        total += one * (sum(not c.written for c in family.candidates) + bool(by_mergekit))
    there = sum(f.stat().st_blocks * 512 for f in partial.rglob("*") if f.is_file())
    return max(0, total - there)


def counted(n: int, noun: str) -> str:
    """`1 shard`, `2 shards`."""
    return f"{n} {noun}{'s' * (n != 1)}"


def size_text(n_bytes: int) -> str:
    """Bytes in the decimal unit that reads best."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
        if n_bytes >= size:
            return f"{n_bytes / size:.3g} {unit}"
    return f"{n_bytes} bytes"
