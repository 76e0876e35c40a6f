"""What a path or a spec is, in facts: one function a kind."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from surgeon import artifact, jsonl, lineage
from surgeon.artifact import part
from surgeon.checkpoint import (
    DTYPES,
    Checkpoint,
    d_ff_of,
    hub_id,
    is_adapter,
    open_adapter,
    read_header,
    read_json,
    resolve,
    split_member,
)
from surgeon.checkpoint.config import CHOSEN, ROUTED
from surgeon.checkpoint.resolving import split_adapter
from surgeon.early_stop.stop_result import EarlyStop
from surgeon.errors import BadInput
from surgeon.families import Family
from surgeon.families.description import FILE as FAMILY
from surgeon.families.subjects import spread
from surgeon.ranking import Ranking
from surgeon.settings import yaml_text
from surgeon.traces.records import parse_trace
from surgeon.truth import EVALUATION, Evaluation

MOST = 6
"""Rows of a list that are shown."""
TAKES_CHECKPOINTS = (
    "merge-sweep", "rank", "evaluate", "transplant", "extract-lora", "distill", "curate", "sft",
    "trigger", "monitor", "serve", "diff", "push",
)  # fmt: skip
NEEDS = {
    "decode": ("rank", "evaluate", "distill", "trigger", "monitor", "serve"),
    "record": ("rank", "transplant", "curate"),
    "distill": ("distill",),
    "triggers": ("trigger", "monitor"),
}
"""What must be possible with an architecture -> the verbs that ask for it."""


@part
class Fact:
    """One line of what is known."""

    name: str
    text: str


@part
class Use:
    """A command that takes it."""

    verb: str
    why_not: str | None = None
    """Why it would be refused; None where it wouldn't."""


class Kind(NamedTuple):
    """What something is."""

    name: str
    """In a word or two: checkpoint, family, ranking."""
    facts: list[tuple[str, str]]
    uses: list[Use]


def kind_of(spec: str) -> Kind:
    """What a path or a spec is; raises `BadInput` where nothing is there, or it is damaged."""
    place, member = split_member(spec)
    path = Path(spec).expanduser()
    if member:
        return _candidate(Family.open(place), member)
    if path.is_dir():
        return _directory(path, spec)
    if path.is_file() and path.suffix != ".gguf":
        return _file(path)
    if "+" in spec and not path.exists():
        base, adapter = split_adapter(spec)
        if Path(adapter).expanduser().is_dir():
            return _adapted(spec, base, Path(adapter).expanduser())
    if not path.exists() and not hub_id(spec) and not spec.startswith("builtin:"):
        raise BadInput(
            f"found nothing at {spec}, expected a path, a hub id (owner/name), BASE+ADAPTER, "
            "builtin:NAME or DIR/family.json#CANDIDATE."
        )
    if spec.startswith("builtin:"):
        from surgeon import builtin

        there = builtin.path(spec.removeprefix("builtin:"))
        if there.is_file():
            return _file(there)
    return _checkpoint(resolve(spec))


def _directory(path: Path, spec: str) -> Kind:
    for file, (_, reader) in RESULTS.items():
        if (path / file).is_file():
            kind = reader(path)
            break
    else:
        kind = None
    name = "" if kind is None else kind.name
    if (path / "config.json").is_file():
        own = _checkpoint(Checkpoint.open(path, spec))
        more = [] if kind is None else kind.facts
        return own._replace(name=f"checkpoint, {name}" if name else own.name,
                            facts=own.facts + more)  # fmt: skip
    if is_adapter(path):
        own = _adapter(path)
        more = [] if kind is None else kind.facts
        return own._replace(name=f"adapter, {name}" if name else own.name, facts=own.facts + more)
    if kind is not None:
        return kind
    steps = spread([str(path)])
    if steps != [str(path)]:
        facts = [("checkpoints", f"{len(steps)}: {_some([Path(s).name for s in steps])}")]
        return Kind("training run", facts, _uses("rank", "evaluate", "merge-sweep"))
    record = lineage.read(path)
    if record is not None:
        done = "unfinished " if path.name.endswith(".partial") else ""
        return Kind(f"{done}output of {record.get('verb')}", [_files(path)], [])
    inside = sorted(p for p in path.iterdir() if p.is_dir() and (p / lineage.FILE).is_file())
    if inside:
        facts = [(p.name, str((lineage.read(p) or {}).get("verb"))) for p in inside[:MOST]]
        rest = [("and", f"{len(inside) - MOST} more")] if len(inside) > MOST else []
        return Kind("directory of results", facts + rest, _uses("report"))
    raise BadInput(
        f"{spec} is nothing that surgeon knows: no config.json, no adapter_config.json, no "
        f"{FAMILY}, no {lineage.FILE}."
    )


# --- checkpoints and adapters ---------------------------------------------------------------------


def _checkpoint(checkpoint: Checkpoint) -> Kind:
    quantised = checkpoint.config.get("quantization_config")
    named = (checkpoint.config.get("architectures") or ["?"])[0]
    facts = [
        ("architecture", f"{named} ({checkpoint.model_type})"),
        ("shape", _shape(checkpoint)),
        ("weights", _weights(checkpoint)),
        ("context", f"{checkpoint.context:,} tokens"),
        ("vocabulary", _vocabulary(checkpoint)),
        ("chat template", _some(list(checkpoint.chat_templates)) or "none"),
    ]
    if quantised:
        facts.append(("quantised", f"{quantised.get('quant_method')}: dequantised when it is used"))
    chosen = {
        key: value
        for key, value in checkpoint.generation_config.items()
        if key not in ("transformers_version", "_from_model_config")
    }
    if chosen:
        facts.append(("generation", ", ".join(f"{k} {v}" for k, v in chosen.items())))
    return Kind("checkpoint", facts, checkpoint_uses(checkpoint))


def _shape(checkpoint: Checkpoint) -> str:
    # Families call these numbers otherwise in their files; transformers knows what they mean.
    text = checkpoint.full_config.get_text_config()
    names = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads")
    layers, width, heads, groups = (getattr(text, name, None) for name in names)
    parts = [f"{layers} layers", f"width {width}"]
    if heads:
        keys = f" ({groups} of keys)" if groups not in (None, heads) else ""
        parts.append(f"{heads} heads{keys}")
    if units := d_ff_of(text.to_dict()) or getattr(text, "intermediate_size", None):
        parts.append(f"{units:,} FFN units a layer")
    experts = next((n for name in ROUTED if (n := getattr(text, name, None))), None)
    if experts:
        chosen = next((n for name in CHOSEN if (n := getattr(text, name, None))), None)
        parts.append(f"{experts} experts" + (f", {chosen} a token" if chosen else ""))
    return ", ".join(parts)


def _weights(checkpoint: Checkpoint) -> str:
    infos = checkpoint.tensors.values()
    dtypes = sorted({DTYPES[i.dtype].torch if i.dtype in DTYPES else i.dtype for i in infos})
    n, files = sum(_count(info.shape) for info in infos), len(checkpoint.shards)
    tied = ", embedding and head tied" if checkpoint.tied else ""
    return (
        f"{n:,} parameters in {len(checkpoint.tensors)} tensors, {'/'.join(dtypes)}, "
        f"{_size(checkpoint.size)} in {files} file{'s' * (files != 1)}{tied}"
    )


def _count(shape: tuple[int, ...]) -> int:
    n = 1
    for size in shape:
        n *= size
    return n


def _vocabulary(checkpoint: Checkpoint) -> str:
    rows = checkpoint.text_config.get("vocab_size")
    content = read_json(checkpoint.path / "tokenizer.json")
    words = (content.get("model") or {}).get("vocab")
    text = f"{rows:,} rows" if isinstance(rows, int) else "rows unknown"
    if words is None:
        there = (checkpoint.path / "tokenizer.model").is_file()
        return f"{text}, {'tokenizer.model' if there else 'no tokenizer'}"
    ids = set(words.values()) if isinstance(words, dict) else set(range(len(words)))
    ids |= {added["id"] for added in content.get("added_tokens") or []}
    return f"{text}, {len(ids):,} tokens ({(content.get('model') or {}).get('type')})"


def checkpoint_uses(checkpoint: Checkpoint) -> list[Use]:
    """The commands that take a checkpoint, and why some would refuse it."""
    from surgeon.live.support import support

    found = support(checkpoint.full_config)
    uses = []
    for verb in TAKES_CHECKPOINTS:
        asked = [getattr(found, need) for need, verbs in NEEDS.items() if verb in verbs]
        uses.append(Use(verb=verb, why_not=next((why for why in asked if why), None)))
    return uses


def _adapter(path: Path) -> Kind:
    adapter = open_adapter(path)
    config = adapter.config
    base = config.get("base_model_name_or_path") or "not said"
    n = sum(_count(info.shape) for info in adapter.tensors.values())
    targets = config.get("target_modules")
    named = _some(sorted(targets)) if isinstance(targets, list) else str(targets)
    facts = [
        (
            "kind",
            f"{config.get('peft_type')}, rank {config.get('r')}, alpha {config.get('lora_alpha')}",
        ),
        ("base", str(base)),
        ("adapts", f"{len(adapter.modules)} modules: {named}"),
        ("weights", f"{n:,} parameters, {_size(sum(i.nbytes for i in adapter.tensors.values()))}"),
    ]
    why = f"name its base too: BASE+{path}"
    return Kind("adapter", facts, [Use(verb=v, why_not=None if v == "push" else why)
                                   for v in TAKES_CHECKPOINTS])  # fmt: skip


def _adapted(spec: str, base: str, adapter: Path) -> Kind:
    own, below = _adapter(adapter), kind_of(base)
    facts = [(f"adapter: {name}", text) for name, text in own.facts if name != "base"]
    return Kind("checkpoint with an adapter", [*below.facts, *facts], below.uses)


# --- families and results -------------------------------------------------------------------------


def _family(path: Path) -> Kind:
    family = Family.open(path)
    merged = [c for c in family.candidates if c.merge]
    written = sum(c.written for c in merged)
    ratios = [c.ratio for c in merged if c.ratio is not None]
    span = f", ratios {min(ratios):g} to {max(ratios):g}" if ratios else ""
    facts = [
        ("endpoints", " and ".join(family.endpoint_names)),
        ("candidates", f"{len(family.candidates)}: {_some([c.name for c in family.candidates])}"),
        ("methods", f"{', '.join(family.methods)}{span}"),
        ("on disk", "all" if written == len(merged) else f"{written} of {len(merged)}; the others "
                    "are merged in memory when they are used"),
        ("shape", _shape(family.endpoints[0])),
    ]  # fmt: skip
    facts += [("notice", text) for text in family.notices[:3]]
    return Kind("family", facts, _uses("rank", "evaluate"))


def _candidate(family: Family, name: str) -> Kind:
    candidate = family.candidate(name)
    directory = family.directory(candidate)
    source = family.source("tokenizer") if directory is None else Checkpoint.open(directory)
    method = candidate.merge.get("merge_method")
    share = "" if candidate.ratio is None else f", ratio {candidate.ratio:g}"
    facts = [
        ("family", f"{family.path} of {' and '.join(family.endpoint_names)}"),
        ("recipe", f"{method}{share}" if method else "an endpoint as it is"),
        ("on disk", str(directory) if directory else "no: merged in memory when it is used"),
    ]
    own = _checkpoint(source)
    what = "candidate of a family" if directory else "virtual candidate of a family"
    return Kind(what, facts + own.facts, own.uses)


def _ranking(path: Path) -> Kind:
    ranking = artifact.read(Ranking, path)
    facts = [("says", line) for line in ranking.headline[:3]]
    facts.append(("mini-set", f"{ranking.mini_set.prompts} prompts of {ranking.mini_set.path}"))
    facts.append(("candidates", f"{len(ranking.candidates)} by {ranking.select}: "
                  + _some([f"{c.name} {_number(c.scores.get(ranking.select))}"
                           for c in ranking.candidates])))  # fmt: skip
    facts += [("warning", text) for text in ranking.warnings[:3]]
    if (path / "report.html").is_file():
        facts.append(("page", str(path / "report.html")))
    return Kind("ranking", facts, _uses("read", "transplant", "weights", "soup", "summary", "pick",
                                        "report"))  # fmt: skip


def _evaluation(path: Path) -> Kind:
    found = artifact.read(Evaluation, path)
    best = sorted(found.candidates, key=lambda c: -c.avg)
    facts = [
        ("task", f"{found.task.problems} problems of {found.task.path}"),
        ("accuracy", _some([f"{c.name} {100 * c.avg:.1f}%" for c in best])),
        ("tokens", _some([f"{c.name} {c.tokens:.0f}" for c in best])),
        *(("warning", text) for text in found.warnings[:3]),
    ]
    return Kind("evaluation", facts, _uses("report", "rank"))


def _plain(name: str, *verbs: str) -> Callable[[Path], Kind]:
    """A reader of any other result: its plain values, and its sentences."""

    def read(path: Path) -> Kind:
        file = next(file for file, (kind, _) in RESULTS.items() if kind == name
                    and (path / file).is_file())  # fmt: skip
        return Kind(name, plain_facts(lineage.read_object(path / file)), _uses(*verbs))

    return read


def plain_facts(content: Mapping[str, Any], most: int = 8) -> list[tuple[str, str]]:
    """The values of a JSON object that are numbers or short texts; warnings after them."""
    facts = []
    for name, value in content.items():
        if name == artifact.FORMAT or value is None:
            continue
        if isinstance(value, float):
            facts.append((name, _number(value)))
        elif isinstance(value, bool | int | str) and len(str(value)) < 200:
            facts.append((name.replace("_", " "), str(value)))
        elif isinstance(value, dict) and {"spec", "digest"} <= value.keys():
            facts.append((name.replace("_", " "), str(value["spec"])))
        elif isinstance(value, list) and name != "warnings" and value:
            plain = all(isinstance(v, str | int) for v in value)
            facts.append((name.replace("_", " "), _some([str(v) for v in value]) if plain
                          else f"{len(value)} entries"))  # fmt: skip
    facts = facts[:most]
    return facts + [("warning", str(text)) for text in _listed(content.get("warnings"))[:3]]


def _listed(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _object(value: object) -> dict[str, object]:
    return value if isinstance(value, dict) else {}


def _transplant(path: Path) -> Kind:
    found = lineage.read_object(path / "transplant.json")
    units, of = (
        sum(n for n in _listed(found.get(name)) if isinstance(n, int))
        for name in ("units_L", "of_units_L")
    )
    donor = found.get("donor")
    facts = [
        ("surgery", f"{found.get('surgery')}: {units:,} of {of:,} units"
         + (f" of {donor}" if donor else "") + f" in {found.get('recipient')}"),
        ("chosen", str(found.get("selection"))),
        *(("warning", str(text)) for text in _listed(found.get("warnings"))[:3]),
    ]  # fmt: skip
    return Kind("transplant", facts, [])


def _monitored(path: Path) -> Kind:
    found = lineage.read_object(path / "monitor.json")
    fired = {k: _object(v).get("firings") for k, v in _object(found.get("levels")).items()}
    tokens = _number(_object(found.get("tokens")).get("mean", 0), ".0f")
    asked = f"{found.get('responses')} to {found.get('prompts')} prompts, {tokens} tokens each"
    firings = ", ".join(f"{k} {v}" for k, v in fired.items()) or "no level watched"
    facts = [("responses", asked), ("firings", firings)]
    if rate := found.get("pass1"):
        facts.append(("Pass@1", _number(_object(rate).get("value"))))
    return Kind("monitored run", facts, _uses("report"))


def _stopped(path: Path) -> Kind:
    found = artifact.read(EarlyStop, path)
    on = f"{found.questions['test']} test questions" if found.questions["test"] \
        else f"the {found.questions['validation']} questions that set it"  # fmt: skip
    right = "right" if found.judged else "agree"
    said = {
        row.rule: f"{100 * at.right:.1f}% {right}, {at.tokens:.0f} tokens"
        for row in found.rows
        if (at := row.test or row.chosen) is not None
    }
    stop = f"rule {found.rule} of {found.checkpoint}: {said.get(found.rule, 'nothing chosen')}"
    without = f"without a stop {said.get('never', 'unknown')}"
    facts = [("early stop", f"{stop}; {without}, on {on}")]
    facts += [("warning", text) for text in found.warnings[:3]]
    return Kind("early stop", facts, [])


RESULTS: dict[str, tuple[str, Callable[[Path], Kind]]] = {
    FAMILY: ("family", _family),
    "ranking.json": ("ranking", _ranking),
    EVALUATION: ("evaluation", _evaluation),
    "early-stop.json": ("early stop", _stopped),
    "transplant.json": ("transplant", _transplant),
    "monitor.json": ("monitored run", _monitored),
    "distill.json": ("distilled", _plain("distilled")),
    "training.json": ("trained on traces", _plain("trained on traces")),
    "sft.json": ("trained on triggers", _plain("trained on triggers")),
    "extraction.json": ("extracted adapter", _plain("extracted adapter")),
    "curate.json": ("curated pool", _plain("curated pool", "distill", "sft")),
    "pick.json": ("picks", _plain("picks", "sft")),
    "read.json": ("reading of a ranking", _plain("reading of a ranking")),
    "weights.json": ("comparison of neuron weights", _plain("comparison of neuron weights")),
    "soup.json": ("soup", _plain("soup")),
    "summary.json": ("summary of rankings", _plain("summary of rankings")),
    "tasks.json": ("labelled tasks", _plain("labelled tasks", "evaluate", "distill")),
    "label.json": ("labelled traces", _plain("labelled traces", "trigger")),
    "channels.json": ("channels", _plain("channels", "trigger")),
    "detectors.json": ("monitor of detectors", _plain("monitor of detectors", "monitor", "serve",
                                                      "trigger")),
    "calibration.json": ("calibrated monitor", _plain("calibrated monitor")),
    "reconstruct.json": ("mended examples", _plain("mended examples", "trigger")),
    "diff.json": ("difference of two checkpoints", _plain("difference of two checkpoints")),
    "overview.json": ("report over several runs", _plain("report over several runs")),
}  # fmt: skip
"""File -> what a directory that holds it is, and its reader; the first that is there."""


# --- files ----------------------------------------------------------------------------------------


def _file(path: Path) -> Kind:
    if path.name == FAMILY:
        return _family(path.parent)
    if path.suffix == ".safetensors":
        return _tensors(path)
    if path.suffix == ".jsonl":
        return _rows(path)
    if path.suffix in (".yaml", ".yml"):
        return _recipe(path)
    if path.suffix == ".json":
        content = read_json(path)
        if path.name in RESULTS:
            return _directory(path.parent, str(path.parent))
        return Kind("JSON file", plain_facts(content), [])
    raise BadInput(
        f"{path} is a file of a kind that surgeon doesn't know; expected .safetensors, .gguf, "
        ".jsonl, .json or .yaml."
    )


def _tensors(path: Path) -> Kind:
    header = read_header(path)
    names = [f"{name} {list(info.shape)} {info.dtype}" for name, info in header.items()]
    facts = [("tensors", f"{len(header)}, {_size(path.stat().st_size)}")]
    facts += [("", name) for name in names[:MOST]]
    neuron = {"weight_LF", "weights"} & header.keys()
    return Kind("neuron weights" if neuron else "tensors", facts,
                _uses("transplant", "pick", "weights") if neuron else [])  # fmt: skip


def _rows(path: Path) -> Kind:
    read = list(jsonl.rows(path))
    rows = [row for _, row in read]
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise BadInput(f"{path} holds no rows, expected a JSON object a line.")
    keys = list(rows[0])
    if {"prompt_id", "token_ids"} <= rows[0].keys():
        for place, row in read:
            parse_trace(row, place)
        tokens = [len(row["token_ids"]) for row in rows]
        finished = sum(row.get("finish_reason") == "stop" for row in rows)
        facts = [
            ("answers", f"{len(rows)} to {len({row['prompt_id'] for row in rows})} prompts"),
            ("tokens", f"{sum(tokens):,}, {sum(tokens) / len(tokens):.0f} an answer"),
            ("finished", f"{finished / len(rows):.0%}"),
        ]
        return Kind("traces", facts, _uses("rank", "curate", "pick", "sft", "trigger"))
    facts = [("rows", f"{len(rows):,}"), ("keys", _some(keys))]
    if {"prompt", "question", "messages", "problem"} & rows[0].keys():
        solved = sum(bool(row.get("answer") or row.get("solution")) for row in rows)
        facts.append(("with an answer", f"{solved:,}"))
        uses = _uses("rank", "monitor", *(["evaluate", "distill"] if solved else []))
        return Kind("prompts", facts, uses)
    return Kind("rows", facts, [])


def _recipe(path: Path) -> Kind:
    import yaml

    from surgeon import recipes

    try:
        steps = recipes.load(path)
    except BadInput as error:
        try:
            documents = yaml_text.parse_all(path.read_text(encoding="utf-8"))
        except (UnicodeDecodeError, yaml.YAMLError):
            raise error from None
        merge = documents[0].get("merge") if documents and isinstance(documents[0], dict) else None
        if isinstance(merge, dict):
            return Kind("merge config", plain_facts(merge), _uses("merge-sweep"))
        raise
    facts = [
        (f"step {n}", f"{s.verb} {s.parameters.get('out', '')}") for n, s in enumerate(steps, 1)
    ]
    return Kind("recipe", facts, _uses("run"))


# --- words ----------------------------------------------------------------------------------------


def _uses(*verbs: str) -> list[Use]:
    return [Use(verb=verb) for verb in verbs]


def _some(names: list[str]) -> str:
    """The first of a list, and how many more there are."""
    more = len(names) - MOST
    return ", ".join(names[:MOST]) + (f" and {more} more" if more > 0 else "")


def _number(value: object, shape: str = ".4g") -> str:
    if value is None:
        return "none"
    return f"{value:{shape}}" if isinstance(value, int | float) else str(value)


def _size(n_bytes: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
        if n_bytes >= size:
            return f"{n_bytes / size:.3g} {unit}"
    return f"{n_bytes} bytes"


def _files(path: Path) -> tuple[str, str]:
    names = sorted(p.name for p in path.iterdir() if p.name != lineage.FILE)
    return "files", _some(names) or "none"
