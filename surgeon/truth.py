"""What is true of candidates: the artifact of an evaluation, and accuracies read from one, or from
a small table or from lm-eval, to hold a ranking against."""

import csv
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from surgeon.artifact import Already, Out, artifact, part
from surgeon.consensus import Reliability
from surgeon.errors import BadInput
from surgeon.traces import Trace

EVALUATION = "evaluate.json"
MEAN = "mean"
"""What the mean over several tasks is called, in tables and as a benchmark."""
BENCHMARK = re.compile(r"(?:^|,)\s*([\w.@-]+)=")
"""The name of a benchmark and its `=`, where several are listed."""


@part
class Gain:
    """How much more accurate than the baseline, on the same problems."""

    avg: float
    """Difference of the accuracies, from -1 to 1."""
    interval: tuple[float, float]


@part
class CalibrationBin:
    """Problems whose majority has about the same share of the votes."""

    low: float
    """The bin is (low, low + 1/15]."""
    problems: int
    confidence: float
    """Their mean share."""
    accuracy: float
    """Share of them whose majority is right."""


@part
class Measures:
    """What was measured of a candidate, or of several that differ in their seed only."""

    name: str
    avg: float
    """Avg@k: mean accuracy of one sample."""
    maj: float
    """Maj@k: accuracy of the most frequent answer, ties at their expected value."""
    pass1: float
    """Pass@1: Avg@k under another name."""
    ece: float
    """Expected calibration error of the majority vote. With one sample a problem every answer has
    all the votes, and this is only the share of wrong ones: tables leave it out."""
    tokens: float
    """Mean tokens per response."""
    truncated: float
    """Share of responses that hit the token limit."""
    missing: float
    """Share of responses in which no answer was found, truncated ones included."""
    interval: dict[str, tuple[float, float]]
    """95 % bootstrap interval of each of the above, by its name."""
    cons: tuple[float, ...]
    """Cons@1 to Cons@k: accuracy of the majority of that many samples."""
    gain: Gain | None = None
    """None without a baseline, and for the baseline itself."""
    calibration: tuple[CalibrationBin, ...] = ()
    """The reliability diagram, bins without problems left out."""


@part
class EvaluatedCandidate(Measures):
    """A checkpoint, or a file of responses, and what was measured of it."""

    checkpoint: str
    """What names it: a checkpoint, a family's candidate, or a file of traces."""
    ratio: float | None
    """Its place in a family of merges; None where it has none."""
    digest: str
    problems: int
    responses: int
    check_timeouts: int
    """Answers that count as wrong because their check took too long."""
    check_deaths: int
    """Answers that count as wrong because the process of their check ended by itself."""
    consensus: Reliability | None = None
    """Whether s(x) tells its right responses; None where nobody asked, or no model read them."""


@part
class EvaluatedGroup(Measures):
    """Candidates that differ in their seed only, measured as one."""

    members: tuple[str, ...]


@part
class EvaluatedTask:
    """The problems that were asked."""

    path: str
    problems: int
    digest: str


@part
class PreparedTask:
    """A file of labelled problems."""

    file: str
    """Its name in the directory."""
    problems: int
    check: str
    """How answers are compared."""
    answer: str
    """How an answer is read."""


@part
class TaskResult:
    """One of several tasks, and what was reached on it."""

    name: str
    path: str
    problems: int
    digest: str
    check: str
    answer: str
    measures: tuple[Measures, ...]
    """Of every candidate, then of every group."""


@part
class Beside:
    """A measure over some tasks, and how much more it is than the baseline's on the same ones."""

    value: float
    interval: tuple[float, float]
    gain: float | None = None
    gain_interval: tuple[float, float] | None = None


@part
class Transfer:
    """What training on one task brought there and elsewhere (Neuron-OPSD Tab. 3, 4)."""

    name: str
    """A candidate, or a group of candidates."""
    sources: tuple[str, ...]
    """The tasks that were trained on."""
    in_avg: Beside | None
    """Avg@k on the own task; None where it isn't evaluated. Of a group the mean over members."""
    cross_avg: Beside | None
    """Mean over the other tasks."""
    in_ece: Beside | None
    cross_ece: Beside | None


@artifact("tasks.json", version=1)
class PreparedTasks:
    """Labelled tasks that lie in one directory."""

    source: str
    """The data set they were made of."""
    tasks: dict[str, PreparedTask]
    out: Out = Path()
    already: Already = False


@part
class DecodingTime:
    """How long decoding took, the model's loading left out: of the answers that the last process
    decoded, which are all where nothing was interrupted."""

    answers: int
    tokens: int
    seconds: float
    """Wall time."""
    tokens_per_s: float
    device: str

    @classmethod
    def of(cls, traces: Sequence[Trace], seconds: float, device: str) -> "DecodingTime":
        """That of these answers."""
        tokens = sum(len(trace.token_ids) for trace in traces)
        return cls(
            answers=len(traces), tokens=tokens, seconds=seconds, tokens_per_s=tokens / seconds,
            device=device,
        )  # fmt: skip


@artifact(EVALUATION, version=1)
class Evaluation:
    """The measured quality of candidates on a labelled task."""

    task: EvaluatedTask
    settings: dict[str, Any]
    """Flat names and values, as in surgeon.json."""
    warnings: tuple[str, ...]
    """What the accuracies may not show, in sentences."""
    candidates: tuple[EvaluatedCandidate, ...]
    groups: tuple[EvaluatedGroup, ...] = ()
    tasks: tuple[TaskResult, ...] = ()
    """Where several were asked; the candidates' own measures are then means over tasks."""
    transfers: tuple[Transfer, ...] = ()
    sources: dict[str, str] = Field(default_factory=dict)
    """Candidate -> the task it was trained on, where that was said."""
    consensus_top: float | None = None
    """Neurons kept per token for consensus (below 1 a share of all); None where nobody asked."""
    times: dict[str, DecodingTime] = Field(default_factory=dict)
    """By candidate, of those that the decoder here answered for."""
    out: Out = Path()
    already: Already = False


def benchmark_sources(source: str) -> dict[str, str]:
    """Benchmark -> where its accuracies are: `aime24=FILE,gpqa=FILE`, or one place, whose
    benchmark has the empty name. Raises `BadInput` for a name that stands twice, or for nothing."""
    found = list(BENCHMARK.finditer(source))
    if not found or Path(source).expanduser().exists() or found[0].start() > 0:
        return {"": source}
    ends = [match.start() for match in found[1:]] + [len(source)]
    sources: dict[str, str] = {}
    for match, end in zip(found, ends, strict=True):
        name, place = match[1], source[match.end() : end].strip()
        if name in sources:
            raise BadInput(f"found benchmark {name} twice in {source}, expected each once.")
        if not place:
            raise BadInput(
                f"found benchmark {name} without a file in {source}, expected NAME=FILE."
            )
        sources[name] = place
    return sources


def accuracies_files(path: str | Path) -> list[Path]:
    """The files that hold the accuracies: `path`, evaluate.json in that directory, or else the
    JSON files in it and below, one result of lm-eval each."""
    place, _ = _place_and_metric(path)
    if not place.is_dir():
        return [place]
    results = [] if (place / EVALUATION).exists() else sorted(place.rglob("*.json"))
    return results or [place / EVALUATION]


def _place_and_metric(path: str | Path) -> tuple[Path, str]:
    """`DIR#METRIC` as its parts; the metric is empty where none is named."""
    whole = Path(path).expanduser()
    if whole.exists() or "#" not in str(path):
        return whole, ""
    place, _, metric = str(path).partition("#")
    return Path(place).expanduser(), metric


def read_accuracies(path: str | Path, benchmark: str = "") -> dict[str, float]:
    """Candidate name -> true accuracy in [0, 1].

    `path` is the directory or the `evaluate.json` of an evaluation (its Avg@k is read), a JSON
    object `{"name": accuracy}`, a CSV of two columns, name and accuracy, with or without a header,
    or results of lm-eval: one JSON file a candidate, in a directory or below it. Of the tasks in
    such a file the one called `benchmark` is read, or the only one; of an evaluation of several
    tasks their mean where `benchmark` is empty or `mean`. `DIR#METRIC` names the metric where the
    task has several. Raises `BadInput` naming the file and the entry that can't be used.
    """
    entries: list[tuple[str, Any]] = []
    place, metric = _place_and_metric(path)
    results = place.is_dir() and not (place / EVALUATION).exists()
    for file in accuracies_files(path):
        if not file.is_file():
            raise BadInput(
                f"{file} is no file. Make it with surgeon evaluate, or give a CSV or JSON."
            )
        try:
            text = file.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise BadInput(f"{file} is not text in UTF-8 ({error.reason}).") from error
        if results and '"results"' not in text:
            raise BadInput(
                f"{place / EVALUATION} is no file, and {file} is no result of lm-eval. Name the "
                "file of the accuracies, or a directory of results only."
            )
        csv_like = file.suffix.lower() in (".csv", ".tsv")
        found = (
            _csv_entries(file, text) if csv_like else _json_entries(file, text, benchmark, metric)
        )
        entries += _accuracies(file, found).items()
    return _accuracies(Path(path), entries)


def _accuracies(file: Path, entries: list[tuple[str, Any]]) -> dict[str, float]:
    """The entries as numbers, checked."""
    accuracies: dict[str, float] = {}
    for name, value in entries:
        number = _number(value)
        if number is None or not 0 <= number <= 1:
            raise BadInput(f"{file}: {name} has accuracy {value!r}, expected a number from 0 to 1.")
        if name in accuracies:
            raise BadInput(f"{file} names {name} twice.")
        accuracies[name] = number
    if not accuracies:
        raise BadInput(f"{file} holds no accuracy.")
    return accuracies


def _json_entries(
    file: Path, text: str, benchmark: str = "", metric: str = ""
) -> list[tuple[str, Any]]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{file} is not valid JSON ({error}).") from error
    if not isinstance(content, dict):
        raise BadInput(
            f"{file} holds a {type(content).__name__}, expected evaluate.json or an object "
            '{"name": accuracy}.'
        )
    if isinstance(content.get("results"), dict):
        return [_lm_eval_entry(file, content, benchmark, metric)]
    if "candidates" not in content:
        return list(content.items())
    tasks = content.get("tasks")
    tasks = [task for task in tasks if isinstance(task, dict)] if isinstance(tasks, list) else []
    of_task = [task for task in tasks if benchmark and task.get("name") == benchmark]
    candidates = of_task[0].get("measures") if of_task else content["candidates"]
    if not isinstance(candidates, list) or not all(
        isinstance(c, dict) and "name" in c and "avg" in c for c in candidates
    ):
        raise BadInput(f"{file} is not an evaluation: its candidates lack `name` or `avg`.")
    if tasks and not of_task and benchmark not in ("", MEAN):
        there = ", ".join(str(task.get("name")) for task in tasks)
        raise BadInput(
            f"{file}: found tasks {there}, expected task {benchmark}. Name one of them, or {MEAN} "
            f"for the mean over all: --truth {MEAN}=DIR."
        )
    return [(str(c["name"]), c["avg"]) for c in candidates]


def _lm_eval_entry(
    file: Path, content: Mapping[str, Any], benchmark: str, metric: str
) -> tuple[str, Any]:
    """The candidate and the accuracy in a result of lm-eval.

    The file is called as the candidate, or results_DATE.json as lm-eval calls it: then the model's
    last path component is the candidate.
    """
    tasks = content["results"]
    task = benchmark if benchmark in tasks else next(iter(tasks), "") if len(tasks) == 1 else ""
    if not isinstance(tasks.get(task), dict):
        wanted = f"task {benchmark}" if benchmark else "one task"
        raise BadInput(
            f"{file}: found tasks {', '.join(tasks) or 'none'}, expected {wanted}. Name the task: "
            "--truth TASK=DIR."
        )
    # Keys are "metric,filter": exact_match,strict-match.
    values = {
        key: value
        for key, value in tasks[task].items()
        if "," in key and "_stderr," not in key and isinstance(value, int | float)
    }
    chosen = [k for k in values if metric in ("", k, k.partition(",")[0], k.removesuffix(",none"))]
    if len(chosen) != 1:
        raise BadInput(
            f"{file}: found {len(chosen)} metrics {metric or 'of ' + task} (it has "
            f"{'; '.join(k.removesuffix(',none') for k in values) or 'none'}), expected one. Name "
            f"it: --truth {task}=DIR#METRIC."
        )
    name = file.stem
    if name.startswith("results"):
        config = content.get("config")
        arguments = config.get("model_args") if isinstance(config, dict) else None
        stated = re.search(r"(?:^|,)pretrained=([^,]+)", str(arguments))
        if isinstance(arguments, dict):
            stated = re.match("(.+)", str(arguments.get("pretrained") or ""))
        name = str(content.get("model_name") or (stated and stated[1]) or file.parent.name)
    return name.rstrip("/").rpartition("/")[2], values[chosen[0]]


def _csv_entries(file: Path, text: str) -> list[tuple[str, Any]]:
    delimiter = "\t" if file.suffix.lower() == ".tsv" else ","
    try:
        rows = [row for row in csv.reader(text.splitlines(), delimiter=delimiter) if any(row)]
    except csv.Error as error:
        raise BadInput(f"{file} is not a readable CSV ({error}).") from error
    for row in rows:
        if len(row) != 2:
            raise BadInput(f"{file} has a row of {len(row)} columns {row}, expected name,accuracy.")
    if rows and _number(rows[0][1]) is None:
        rows = rows[1:]
    return [(name.strip(), value) for name, value in rows]


def _number(value: Any) -> float | None:
    """A JSON number or the text of one; None for anything else, True and nan included."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
