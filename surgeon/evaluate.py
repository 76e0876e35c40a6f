"""`surgeon evaluate`: the measured quality of checkpoints on a labelled task.

Every candidate answers each problem `samples` times; the answers are read out of the responses and
checked. Reported per candidate, each with a 95% bootstrap interval over problems:

- `avg` Avg@k, the mean accuracy of one sample (`pass1`, Pass@1, is the same number);
- `maj` Maj@k, the accuracy of the most frequent answer, ties at their expected value;
- `ece` expected calibration error of the majority vote, 15 bins, confidence = its vote share;
- `cons` Cons@1 to Cons@k: what voting over fewer samples would have reached, to be compared at
  equal tokens;
- `tokens` mean tokens per response, `truncated` the share that hit the token limit, `missing` the
  share in which no answer was found.

A truncated response has no answer: it is wrong and votes for nothing, as in `agreement`.

On disk: `evaluate.json`, `traces/NAME.jsonl` (every response) and `answers/NAME.jsonl` (what was
read out of it, and whether it is right).
"""

# Shape letters: P problems, M metrics, X bins of the calibration error, B bootstrap resamples.

import json
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from surgeon import lineage, metrics
from surgeon.answers import (
    Verdict,
    canonical,
    check_many,
    choice_letter,
    gold_problem,
    parse_check,
    parse_extractor,
    read_answers,
)
from surgeon.checkpoint import placement
from surgeon.errors import BadInput
from surgeon.families import Subject, subjects
from surgeon.live.families import live
from surgeon.progress import bar
from surgeon.traces import Prompt, Sampling, Trace, append, read_prompts, read_traces, sample

if TYPE_CHECKING:
    from rich.table import Table

FILE = "evaluate.json"
BINS = 15
"""Equal-width bins of the calibration error (Neuron-OPSD, sec. 5)."""
NAME = re.compile(r"[\w.-]+")
WORTH_SAYING = 0.2
"""Share of truncated or unreadable responses above which a warning is given."""


class Plan(NamedTuple):
    """An evaluation whose inputs have been checked; nothing has been computed yet."""

    subjects: list[Subject]
    given: dict[str, list[Trace]]
    """Responses that were made elsewhere, by name."""
    problems: list[Prompt]
    sampling: Sampling
    extract: Callable[[str], str | None]
    settings: dict[str, Any]
    inputs: dict[str, str]


def evaluate(
    checkpoints: Sequence[str],
    *,
    task: str,
    out: str | Path,
    samples: int = 8,
    seed: int = 0,
    temperature: float = 0.7,
    top_p: float = 0.9,
    max_tokens: int = 32768,
    check: str = "exact",
    answer: str = "auto",
    timeout_s: float = 5.0,
    limit: int | None = None,
    baseline: str | None = None,
    groups: dict[str, list[str]] | None = None,
    responses: dict[str, str] | None = None,
    thinking: bool | None = None,
    batch: int = 0,
    device: str = "auto",
    dtype: str = "auto",
) -> dict[str, Any]:
    """Measure checkpoints on a labelled task and write the result to the directory `out`.

    `checkpoints` are directories, hub ids, `base+adapter`, families or `family.json#candidate`;
    `task` is JSONL or Parquet with `prompt` or `messages`, and `answer`. `answer` and `check` say
    how an answer is read out of a response and compared (see `answers`); a check may take
    `timeout_s` seconds. `limit` keeps the first problems only. `baseline` names the candidate that
    the others are compared with, by a paired bootstrap over problems. `groups` maps a name to
    candidates that differ in their seed only: they are reported as one as well, with intervals over
    problems and seeds. `responses` maps a name to a file of traces that were made elsewhere, such
    as by `monitor`: they are judged beside the others, and nothing is sampled for them. Returns the
    content of `evaluate.json` and where it is (`out`), with `already` when it was there before. An
    interrupted run continues with the missing responses. Raises `BadInput` before anything is
    sampled.
    """
    plan = prepare(
        checkpoints, task=task, samples=samples, seed=seed, temperature=temperature, top_p=top_p,
        max_tokens=max_tokens, check=check, answer=answer, timeout_s=timeout_s, limit=limit,
        baseline=baseline, groups=groups, responses=responses, thinking=thinking, batch=batch,
        device=device, dtype=dtype,
    )  # fmt: skip
    out = Path(out)
    work = lineage.begin(
        out, verb="evaluate", arguments=plan.settings, inputs=plan.inputs, seed=seed
    )
    if work is None:
        return {**lineage.read_object(out / FILE), "out": str(out), "already": True}
    respond(plan, work, device=device, dtype=dtype)
    result = judge(plan, work)
    lineage.write_json(work / FILE, result)
    lineage.finish(work, out)
    return {**result, "out": str(out)}


def prepare(
    checkpoints: Sequence[str],
    *,
    task: str,
    samples: int,
    seed: int,
    temperature: float,
    top_p: float,
    max_tokens: int,
    check: str,
    answer: str,
    timeout_s: float,
    limit: int | None,
    baseline: str | None,
    groups: dict[str, list[str]] | None,
    responses: dict[str, str] | None,
    thinking: bool | None,
    batch: int,
    device: str,
    dtype: str,
) -> Plan:
    """Check every input of an evaluation against files and headers; raises `BadInput`."""
    sampling = Sampling(
        samples=samples, temperature=temperature, top_p=top_p, max_tokens=max_tokens, seed=seed,
        batch=batch, thinking=thinking,
    )  # fmt: skip
    if limit is not None and limit < 1:
        raise BadInput(f"found limit = {limit}, expected at least 1.")
    if not 0 < timeout_s < math.inf:
        raise BadInput(f"found timeout_s = {timeout_s}, expected a number of seconds above 0.")
    placement(device, dtype)
    extract = parse_extractor(answer)
    parse_check(check)
    problems = read_problems(task, check)[:limit]
    chosen = subjects(list(checkpoints))
    given = read_responses(responses, problems, samples, taken=[s.name for s in chosen])
    names = [*(subject.name for subject in chosen), *given]
    if baseline is not None and baseline not in names:
        raise BadInput(f"baseline {baseline} is not evaluated. Name one of: {', '.join(names)}.")
    require_groups(groups, names)
    settings = {
        **asdict(sampling), "task": task, "limit": limit, "baseline": baseline, "groups": groups,
        "responses": responses, "answer": answer, "check": check, "timeout_s": timeout_s,
        "dtype": dtype, "device": device,
    }  # fmt: skip
    # How many are decoded at once changes no response (each has its own random stream).
    settings.pop("batch")
    # Names of candidates hold no spaces, so nothing else here can be taken for one.
    inputs = {subject.name: subject.digest for subject in chosen}
    inputs |= {name: lineage.file_digest((responses or {})[name]) for name in given}
    inputs["labelled task"] = lineage.digest_of([asdict(problem) for problem in problems])
    for role, how in (("answer", answer), ("check", check)):
        code = sys.modules.get(how.partition(":")[0]) if ":" in how else None
        if code is not None and getattr(code, "__file__", None):
            inputs[f"{role} {how}"] = lineage.file_digest(str(code.__file__))
    return Plan(chosen, given, problems, sampling, extract, settings, inputs)


def read_responses(
    files: object, problems: Sequence[Prompt], samples: int, *, taken: Sequence[str]
) -> dict[str, list[Trace]]:
    """The first `samples` responses to each problem from files of traces, in the problems' order;
    raises `BadInput` where one is missing."""
    if files is None:
        return {}
    if not isinstance(files, dict):
        raise BadInput(f"responses is {files!r}, expected {{name: file of traces, ...}}.")
    found = {}
    for name, file in files.items():
        if name in taken or not NAME.fullmatch(str(name)):
            raise BadInput(
                f"responses are called {name!r}, expected a name of its own of letters, digits, "
                "dots, dashes and underscores."
            )
        if not Path(file).is_file():
            raise BadInput(f"responses {name}: {file} is no file. Give a traces.jsonl.")
        traces = {(t.prompt_id, t.sample): t for t in read_traces(file)}
        wanted = [(problem.id, k) for problem in problems for k in range(samples)]
        missing = [pair for pair in wanted if pair not in traces]
        if missing:
            raise BadInput(
                f"responses {name}: {file} lacks {len(missing)} of {len(wanted)} responses, first "
                f"sample {missing[0][1]} of problem {missing[0][0]}. Make them with the same task "
                "and at least as many samples."
            )
        found[name] = [traces[pair] for pair in wanted]
    return found


def require_groups(groups: object, names: Sequence[str]) -> None:
    """Raise `BadInput` unless `groups` maps names to lists of candidates that are evaluated."""
    if groups is None:
        return
    if not isinstance(groups, dict) or not all(isinstance(v, list) for v in groups.values()):
        raise BadInput(f"groups is {groups!r}, expected {{name: [candidate, ...], ...}}.")
    for group, members in groups.items():
        for member in members:
            if member not in names:
                raise BadInput(
                    f"group {group} holds {member}, which is not evaluated. "
                    f"Name some of: {', '.join(names)}."
                )
        if not members:
            raise BadInput(f"group {group} holds no candidate. Name some of: {', '.join(names)}.")


def read_problems(task: str, check: str) -> list[Prompt]:
    """The prompts of a labelled task; raises `BadInput` naming the line without a usable answer."""
    problems = read_prompts(task)
    for n, problem in enumerate(problems):
        if problem.answer is None:
            raise BadInput(
                f"{_place(task, n)}: found no answer, expected the correct one in the field "
                "`answer` of every problem."
            )
        wrong = gold_problem(problem.answer, check)
        if wrong:
            raise BadInput(f"{_place(task, n)}: found {wrong}.")
    return problems


def _place(task: str, index: int) -> str:
    """Where problem number `index` (from 0) stands: `file:line` for JSONL, else the row."""
    path = Path(task).expanduser()
    if not path.is_file() or path.suffix == ".parquet":
        return f"{task}: row {index + 1}"
    with open(path, "rb") as lines:
        filled = [number for number, line in enumerate(lines, 1) if line.strip()]
    return f"{path}:{filled[index]}"


# Responses ---------------------------------------------------------------------------------------


def respond(plan: Plan, work: Path, *, device: str, dtype: str) -> None:
    """Sample the responses that `traces/` lacks, each written as soon as it ends."""
    (work / "traces").mkdir(exist_ok=True)
    wanted = len(plan.problems) * plan.sampling.samples
    done = {
        s.name: {(t.prompt_id, t.sample) for t in stored_traces(work, s)} for s in plan.subjects
    }
    missing = [s for s in plan.subjects if len(done[s.name]) < wanted]
    if not missing:
        return
    total = sum(wanted - len(done[s.name]) for s in missing)
    with bar("evaluate", total) as advance:
        for subject, model, tokenizer in live(missing, *placement(device, dtype)):
            file = trace_file(work, subject)
            for trace in sample(
                model, tokenizer, plan.problems, plan.sampling, done=done[subject.name]
            ):
                append(file, trace)
                advance(note=subject.name)


def trace_file(work: Path, subject: Subject) -> Path:
    return work / "traces" / f"{subject.name}.jsonl"


def stored_traces(work: Path, subject: Subject) -> list[Trace]:
    """The responses of a candidate that are on disk; none when it has not begun."""
    file = trace_file(work, subject)
    return read_traces(file) if file.is_file() else []


# Judgement ---------------------------------------------------------------------------------------


def judge(plan: Plan, work: Path) -> dict[str, Any]:
    """Read, check and count every answer; writes `answers/`, returns what goes to evaluate.json."""
    (work / "answers").mkdir(exist_ok=True)
    place = {problem.id: n for n, problem in enumerate(plan.problems)}
    entries = [
        {"name": s.name, "checkpoint": s.spec, "ratio": s.ratio, "digest": s.digest}
        for s in plan.subjects
    ]
    traces = {
        s.name: sorted(stored_traces(work, s), key=lambda t: (place[t.prompt_id], t.sample))
        for s in plan.subjects
    }
    tokenizers = {s.name: s.source.tokenizer() for s in plan.subjects}
    for name, rows in plan.given.items():
        file = plan.settings["responses"][name]
        entries.append(
            {"name": name, "checkpoint": file, "ratio": None} | {"digest": plan.inputs[name]}
        )
        traces[name], tokenizers[name] = rows, next(iter(tokenizers.values()))
    found = {n: read_answers(rows, plan.extract, tokenizers[n]) for n, rows in traces.items()}
    gold = {problem.id: str(problem.answer) for problem in plan.problems}
    pairs = [
        (answer, gold[trace.prompt_id])
        for name, rows in traces.items()
        for trace, answer in zip(rows, found[name], strict=True)
    ]
    verdicts = iter(check_many(pairs, plan.settings["check"], timeout_s=plan.settings["timeout_s"]))
    candidates, values = [], {}
    for entry in entries:
        name = entry["name"]
        rows, answers = traces[name], found[name]
        judged = [next(verdicts) for _ in rows]
        write_answers(work / "answers" / f"{name}.jsonl", rows, answers, gold, judged)
        values[name] = by_problem(plan, rows, answers, judged)
        candidates.append(
            {
                **entry,
                **measure([values[name]], plan.sampling.seed),
                "problems": len(plan.problems),
                "responses": len(rows),
                "check_timeouts": sum(verdict.timed_out for verdict in judged),
                "check_deaths": sum(verdict.died for verdict in judged),
            }
        )
    groups = [
        {"name": name, "members": members}
        | measure([values[member] for member in members], plan.sampling.seed)
        for name, members in (plan.settings["groups"] or {}).items()
    ]
    baseline = plan.settings["baseline"]
    for row in [*candidates, *groups] if baseline else []:
        members = row.get("members", [row["name"]])
        if members != [baseline]:
            compared = [values[member] for member in members]
            row["gain"] = gain(compared, values[baseline], plan.sampling.seed)
    return {
        "task": {
            "path": plan.settings["task"],
            "problems": len(plan.problems),
            "digest": plan.inputs["labelled task"],
        },
        "settings": plan.settings,
        "warnings": warnings(plan, candidates),
        "candidates": candidates,
        **({"groups": groups} if groups else {}),
    }


def ballot(answer: str | None, check: str) -> str | None:
    """The form under which an answer is counted in the majority vote."""
    if answer is None:
        return None
    return (choice_letter(answer) if check == "choice" else None) or canonical(answer)


class Values(NamedTuple):
    """What one candidate did on each problem."""

    metric: dict[str, np.ndarray]
    """Of each metric that is a mean over problems, float64_P."""
    gap_PX: np.ndarray
    """See `metrics.calibration_gaps`."""
    consistency_KP: np.ndarray
    """Accuracy of the majority of 1, 2, ..., k samples: self-consistency, Cons@j."""


def by_problem(
    plan: Plan, traces: Sequence[Trace], answers: Sequence[str | None], judged: Sequence[Verdict]
) -> Values:
    """One candidate's metrics, problem by problem; responses in the order of the problems."""
    k, check = plan.sampling.samples, plan.settings["check"]

    def apart(values: list[Any]) -> list[list[Any]]:
        return [values[start : start + k] for start in range(0, len(values), k)]

    votes = apart([ballot(answer, check) for answer in answers])
    correct = apart([verdict.correct for verdict in judged])
    metric = {
        "avg": metrics.accuracy_by_prompt(correct),
        "maj": metrics.majority_by_prompt(votes, correct),
        "pass1": metrics.accuracy_by_prompt(correct),
        "tokens": np.mean(apart([len(t.token_ids) for t in traces]), axis=1),
        "truncated": np.mean(apart([t.finish_reason == "length" for t in traces]), axis=1),
        "missing": np.mean(apart([answer is None for answer in answers]), axis=1),
    }
    agreement_P = metrics.agreement_by_prompt(votes)
    consistency_KP = np.array(
        [metrics.consistency_by_prompt(votes, correct, j + 1) for j in range(k)]
    )
    gap_PX = metrics.calibration_gaps(agreement_P, metric["maj"], bins=BINS)
    return Values(metric, gap_PX, consistency_KP)


def measure(members: Sequence[Values], seed: int) -> dict[str, Any]:
    """Every metric's mean over the members and its interval, over problems and members both."""
    value_PSM = np.stack([np.column_stack(list(m.metric.values())) for m in members], axis=1)
    gap_PSX = np.stack([m.gap_PX for m in members], axis=1)
    mean_BSM = metrics.resampled_means(value_PSM, seed=seed)
    ece_BS = np.abs(metrics.resampled_means(gap_PSX, seed=seed)).sum(axis=2)
    both_BSM = np.concatenate([mean_BSM, ece_BS[:, :, None]], axis=2)
    ends = metrics.percentile_interval(metrics.resampled_members(both_BSM, seed=seed))
    point = dict(zip(members[0].metric, value_PSM.mean(axis=(0, 1)).tolist(), strict=True))
    point["ece"] = float(np.abs(gap_PSX.mean(axis=0)).sum(axis=1).mean())
    interval = {name: [float(x) for x in pair] for name, pair in zip(point, ends, strict=True)}
    consistency_K = np.mean([m.consistency_KP.mean(axis=1) for m in members], axis=0)
    return {**point, "interval": interval, "cons": [float(x) for x in consistency_K]}


def gain(members: Sequence[Values], baseline: Values, seed: int) -> dict[str, Any]:
    """How much more accurate the members are than the baseline, on the same problems."""
    more_PS = np.stack([m.metric["avg"] - baseline.metric["avg"] for m in members], axis=1)
    mean_B = metrics.resampled_members(metrics.resampled_means(more_PS, seed=seed), seed=seed)
    low, high = metrics.percentile_interval(mean_B)
    return {"avg": float(more_PS.mean()), "interval": [float(low), float(high)]}


def write_answers(
    file: Path,
    traces: Sequence[Trace],
    answers: Sequence[str | None],
    gold: Mapping[str, str],
    judged: Sequence[Verdict],
) -> None:
    """Write one line per response: what was read out of it and how it was judged."""
    lines = [
        json.dumps(
            {
                "prompt_id": trace.prompt_id,
                "sample": trace.sample,
                "answer": answer,
                "gold": gold[trace.prompt_id],
                **verdict._asdict(),
            }
        )
        for trace, answer, verdict in zip(traces, answers, judged, strict=True)
    ]
    lineage.write_text(file, "".join(f"{line}\n" for line in lines))


def warnings(plan: Plan, candidates: Sequence[dict[str, Any]]) -> list[str]:
    """Plain sentences about what the accuracies may not show; empty when nothing is amiss."""
    found = []
    truncated = float(np.mean([c["truncated"] for c in candidates]))
    unread = float(np.mean([c["missing"] - c["truncated"] for c in candidates]))
    stopped = sum(c["check_timeouts"] + c["check_deaths"] for c in candidates)
    if truncated > WORTH_SAYING:
        found.append(
            f"{truncated:.0%} of the responses hit the limit of {plan.sampling.max_tokens} tokens "
            "and count as wrong."
        )
    if unread > WORTH_SAYING:
        found.append(
            f"No answer was found in {unread:.0%} of the responses, and they count as wrong. Does "
            f"the extractor {plan.settings['answer']!r} fit how these models answer?"
        )
    if stopped:
        found.append(
            f"{stopped} answers count as wrong because their check took longer than "
            f"{plan.settings['timeout_s']:g} s or its process died."
        )
    return found


# What is shown -----------------------------------------------------------------------------------


NARROW = ("no answer", "95% interval", "ECE", "truncated")
"""Columns that a narrow terminal does without, in the order in which they go."""


def table(result: dict[str, Any], width: int = 120) -> "Table":
    """An evaluation for a terminal `width` columns wide, highest accuracy first."""
    from rich.markup import escape
    from rich.table import Table

    k, baseline = result["settings"]["samples"], result["settings"]["baseline"]
    rows = sorted(result["candidates"], key=lambda c: -c["avg"])
    groups = sorted(result.get("groups", []), key=lambda c: -c["avg"])
    columns: dict[str, list[str]] = {"candidate": [], f"Avg@{k}": [], "95% interval": []}
    if baseline:
        columns[f"gain on {baseline}, pp"] = []
    columns |= {name: [] for name in (f"Maj@{k}", "ECE", "tokens", "truncated", "no answer")}
    for c in [*rows, *groups]:
        several = f" ({len(c['members'])} seeds)" if "members" in c else ""
        low, high = c["interval"]["avg"]
        cells = [escape(c["name"] + several), f"{c['avg']:.3f}", f"{low:.3f} … {high:.3f}"]
        if baseline:
            cells.append(gain_text(c.get("gain")))
        cells += [
            f"{c['maj']:.3f}", f"{c['ece']:.3f}", f"{c['tokens']:.0f}", f"{c['truncated']:.0%}",
            f"{c['missing']:.0%}",
        ]  # fmt: skip
        for column, cell in zip(columns.values(), cells, strict=True):
            column.append(cell)
    for name in NARROW:
        if sum(max(map(len, [n, *cells])) + 2 for n, cells in columns.items()) - 2 > width:
            del columns[name]
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        justify = "left" if name == "candidate" else "right"
        style = "dim" if "interval" in name else ""
        shown.add_column(name, justify=justify, style=style, no_wrap=True)
    for n, cells in enumerate(zip(*columns.values(), strict=True), 1):
        shown.add_row(*cells, end_section=n == len(rows))
    return shown


def gain_text(gain: dict[str, Any] | None) -> str:
    """A paired gain and its interval in percentage points; a dash for the baseline itself."""
    if gain is None:
        return "–"
    low, high = gain["interval"]
    return f"{100 * gain['avg']:+.1f} ({100 * low:+.1f} … {100 * high:+.1f})"


def show(result: dict[str, Any]) -> None:
    """Print an evaluation: what was asked, the table, the warnings."""
    from rich.console import Console

    console = Console(highlight=False)
    problems, settings = result["task"]["problems"], result["settings"]
    if result.get("already"):
        console.print("This evaluation was finished before: nothing was computed.")
    console.print(
        f"{problems} problems, {settings['samples']} samples each, answers read by "
        f"{settings['answer']!r} and checked by {settings['check']!r}; Pass@1 is Avg@k.",
        markup=False,
    )
    console.print(table(result, console.width))
    for line in result["warnings"]:
        console.print(f"Warning: {line}", style="yellow", markup=False, soft_wrap=True)
    console.print(f"Written: {result['out']}/{FILE}", markup=False, soft_wrap=True)
