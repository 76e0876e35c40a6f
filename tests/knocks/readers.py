# ruff: noqa: E501
"""Everything that reads what somebody else wrote, each with sound examples to damage."""

import io
import json
import random
import shutil
import struct
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from mutating import JINJA, YAML, Mutator, framed

from surgeon.errors import BadInput

Read = Callable[[bytes, random.Random], object]


class Target(NamedTuple):
    """One kind of input."""

    name: str
    mutator: Mutator
    read: Read
    """Writes the bytes where they belong and reads them; `BadInput` is a good end."""
    weight: int
    """How many of all inputs are of this kind, beside the others'."""


def targets(work: Path) -> list[Target]:
    """Every kind, with a directory of its own below `work`."""
    found: list[Target] = []

    def add(name: str, seeds: Sequence[bytes], weight: int, read: Callable[[Path], Read],
            words: Sequence[bytes] = (), noise: float = 0.15) -> None:  # fmt: skip
        place = work / name.replace(" ", "-")
        place.mkdir(parents=True)
        found.append(Target(name, Mutator(seeds, words, noise), read(place), weight))

    for part in (_tensors, _checkpoints, _adapters, _prompts, _recipes, _results, _requests):
        part(add)
    return found


def _json(*values: object) -> list[bytes]:
    return [json.dumps(value).encode() for value in values]


def _lines(*rows: object) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def at(file: str, read: Callable[[Path], object]) -> Callable[[Path], Read]:
    """A reader of one file of that name."""

    def made(place: Path) -> Read:
        path = place / file

        def run(content: bytes, _: random.Random) -> object:
            path.write_bytes(content)
            return read(path)

        return run

    return made


def framed_at(
    file: str, data: bytes, read: Callable[[Path], object], wrap: Callable[[bytes], bytes] = bytes
) -> Callable[[Path], Read]:
    """A reader of a safetensors file whose header is the input."""

    def made(place: Path) -> Read:
        path = place / file

        def run(content: bytes, draw: random.Random) -> object:
            path.write_bytes(framed(wrap(content), data, draw))
            return read(path)

        return run

    return made


# --- safetensors ----------------------------------------------------------------------------------


def _header(arrays: Mapping[str, tuple[str, Sequence[int]]], metadata: Any = None) -> bytes:
    sizes = {"F32": 4, "F16": 2, "BF16": 2, "I32": 4, "I64": 8, "U8": 1, "BOOL": 1}
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    end = 0
    for name, (dtype, shape) in arrays.items():
        size = sizes[dtype]
        for length in shape:
            size *= length
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    return json.dumps(header).encode()


def _size(header: bytes) -> int:
    found = json.loads(header)
    return max(v["data_offsets"][1] for k, v in found.items() if k != "__metadata__")


def _tensors(add: Any) -> None:
    from surgeon import evidence_file, neuron_weights
    from surgeon.checkpoint import read_header
    from surgeon.show import kinds
    from surgeon.watch import monitor

    plain = _header({"a": ("F32", [2, 3]), "b": ("BF16", [4]), "c": ("I64", [])}, {"format": "pt"})
    words = [b'"F64"', b'"BF16"', b'"F8_E4M3"', b'"F4"', b'"data_offsets"', b'"__metadata__"',
             b"[0, 24]", b"[24, 0]", b"[0, 99999999999]", b"[1e3, 2e3]", b"[0, 24, 48]"]  # fmt: skip
    data = bytes(_size(plain))
    add("headers", [plain], 12, framed_at("a.safetensors", data, read_header), words)
    add(
        "shown tensors",
        [plain],
        2,
        framed_at("a.safetensors", data, lambda p: kinds.kind_of(str(p))),
        words,
    )

    scores = _header(
        {"weight_LF": ("F32", [2, 3]), "mass_LF": ("F32", [2, 3])},
        {"digest": "sha256:0", "checkpoint": "x", "candidate": "x"},
    )
    add("neuron weights", [scores], 4,
        framed_at("weights.safetensors", struct.pack("<12f", *([0.5] * 12)),
                  lambda p: neuron_weights.read_weights(p, 2, 3)), words)  # fmt: skip

    head, values = _monitor_file()
    add(
        "monitors", [head], 4, framed_at("monitor.safetensors", values, monitor.Monitor.load), words
    )
    meta = json.loads(head)["__metadata__"][monitor.FORMAT].encode()
    rest = {k: v for k, v in json.loads(head).items() if k != "__metadata__"}

    def wrapped(content: bytes) -> bytes:
        text = content.decode("utf-8", "backslashreplace")
        return json.dumps({"__metadata__": {monitor.FORMAT: text}, **rest}).encode()

    add("monitor settings", [meta], 5,
        framed_at("monitor.safetensors", values, monitor.Monitor.load, wrapped), words)  # fmt: skip

    head, values = _evidence_file()
    add("evidence", [head], 3,
        framed_at(evidence_file.FILE, values, evidence_file.read), words)  # fmt: skip
    kept = json.loads(head)["__metadata__"]["kept"].encode()
    others = {k: v for k, v in json.loads(head).items() if k != "__metadata__"}

    def packed(content: bytes) -> bytes:
        text = content.decode("utf-8", "backslashreplace")
        return json.dumps(
            {"__metadata__": {"format": evidence_file.FORMAT, "kept": text}, **others}
        ).encode()

    add("evidence heads", [kept], 2,
        framed_at(evidence_file.FILE, values, evidence_file.read, packed), words)  # fmt: skip


def _split(content: bytes) -> tuple[bytes, bytes]:
    length = int.from_bytes(content[:8], "little")
    return content[8 : 8 + length], content[8 + length :]


def _monitor_file() -> tuple[bytes, bytes]:
    import tempfile

    from surgeon.channels import Channels
    from surgeon.neureasoner.detectors import Detector
    from surgeon.neureasoner.features import FEATURES
    from surgeon.settings.neureasoner import WatchSettings
    from surgeon.watch.monitor import Monitor

    channels = Channels(1, (0, 3), (1,))
    levels = ("intra", "instance")
    made = Monitor(
        dict.fromkeys(levels, channels),
        {level: Detector(channels.size * len(FEATURES[level]), 2) for level in levels},
        WatchSettings(probes=(0.5, 1.0)),
        "sha256:" + "0" * 64,
    )
    with tempfile.TemporaryDirectory() as place:
        made.save(Path(place) / "monitor.safetensors")
        return _split((Path(place) / "monitor.safetensors").read_bytes())


def _evidence_file() -> tuple[bytes, bytes]:
    import tempfile

    import numpy as np

    from surgeon import evidence_file, nex
    from surgeon.activations import Activations

    one = {}
    for name in nex.Evidence._fields:
        if evidence_file.per_response(name):
            one[name] = 0.5
        else:
            one[name] = np.array([1, 4]) if name == "neuron_K" else np.full(2, 0.5)
    used, half = np.array([1, 4]), np.array([0.5, 0.5])
    rows = Activations(used, half, np.array([0, 1, 2]), used)
    kept = evidence_file.KeptResponse("p", 0, used, half, nex.Evidence(**one), used, half, rows)
    whole = evidence_file.CandidateEvidence("a", "sha256:0", 2, 3, 4, 2, {"top_k": 2}, (kept, kept))
    with tempfile.TemporaryDirectory() as place:
        evidence_file.write(place, whole)
        return _split((Path(place) / evidence_file.FILE).read_bytes())


# --- checkpoints ----------------------------------------------------------------------------------


def builtin_copy(place: Path, name: str = "instruct") -> Path:
    """A checkpoint of the built-in family, its files linked."""
    from surgeon import builtin

    source = builtin.path(name)
    for file in source.iterdir():
        shutil.copy2(file, place)
    return source


def _opened(path: Path) -> object:
    from surgeon.checkpoint import Checkpoint

    checkpoint = Checkpoint.open(path.parent)
    return (
        checkpoint.n_layers, checkpoint.d_ff, checkpoint.passed_units, checkpoint.tied,
        checkpoint.size, checkpoint.side_files, checkpoint.generation_config,
    )  # fmt: skip


def _described(path: Path) -> object:
    from surgeon.checkpoint.resolving import opened

    checkpoint = opened(path.parent, str(path.parent))
    return checkpoint.context, checkpoint.passed_units


def _checkpoints(add: Any) -> None:
    from surgeon import builtin, lineage
    from surgeon.checkpoint import INDEX, SINGLE, Checkpoint, read_templates
    from surgeon.traces import Prompt, encode

    source = builtin.path("instruct")
    config = (source / "config.json").read_bytes()
    mixture = json.dumps({**json.loads(config), "num_experts": 4, "num_experts_per_tok": 2,
                          "quantization_config": {"quant_method": "fp8"}}).encode()  # fmt: skip
    words = [b'"auto_map"', b'"qwen3_moe"', b'"llama"', b'"text_config"', b'"num_experts"',
             b'"quantization_config"', b'"transformers_weights"', b'"rope_parameters"',
             b'{"rope_type": "yarn", "factor": 2}', b"1000000000", b"1e9"]  # fmt: skip

    def beside(file: str, read: Callable[[Path], object]) -> Callable[[Path], Read]:
        def made(place: Path) -> Read:
            builtin_copy(place)
            return at(file, read)(place)

        return made

    add("configs", [config, mixture], 8, beside("config.json", _opened), words)
    add("configs as models", [config], 1, beside("config.json", _described), words)

    def indexed(place: Path) -> Read:
        builtin_copy(place)
        (place / SINGLE).rename(place / "model-00001-of-00001.safetensors")
        return at(INDEX, lambda p: Checkpoint(place).tensors)(place)

    names = list(Checkpoint(source).tensors)
    index = {
        "metadata": {"total_size": 1},
        "weight_map": dict.fromkeys(names[:9], "model-00001-of-00001.safetensors"),
    }
    add("indices", _json(index), 8, indexed,
        [b'"config.json"', b'"../instruct/model.safetensors"', b'"weight_map"', b'"model.safetensors"'])  # fmt: skip

    def record(path: Path) -> object:
        lineage.check(path.parent, lineage.Run("rank", {"samples": 3}, {"a": "sha256:0"}, 0))
        return Checkpoint(path.parent).path and lineage.read(path.parent)

    mark = {
        "format": 2,
        "verb": "rank",
        "arguments": {"samples": 3, "x": {"y": [1]}},
        "inputs": {"a": "sha256:0"},
        "seed": 0,
    }
    add("records", _json(mark), 6, at("surgeon.json", record), [b'"format"', b'"arguments"'])

    template = (source / "chat_template.jinja").read_bytes()
    settings = (source / "tokenizer_config.json").read_bytes()
    both = json.dumps(
        {
            **json.loads(settings),
            "chat_template": [{"name": "default", "template": "x"}, {"name": "a", "template": "y"}],
        }
    ).encode()
    add(
        "template files",
        [both, settings],
        5,
        at("tokenizer_config.json", lambda p: read_templates(p.parent)),
        [b'"chat_template"'],
    )

    def rendered(place: Path) -> Read:
        from surgeon.traces import template_trial

        template_trial.LIMIT_S = 1.0
        tokenizer: Any = Checkpoint.open(source).tokenizer()
        prompt = Prompt("p", ({"role": "user", "content": "Start 3."},))

        def run(content: bytes, _: random.Random) -> object:
            (place / "chat_template.jinja").write_bytes(content)
            tokenizer.chat_template = read_templates(place)["default"]
            return encode(tokenizer, prompt)

        return run

    short = b"{% for m in messages %}<|{{ m.role }}|>{{ m['content'] | trim }}{% if loop.last %}!{% endif %}{% endfor %}"
    add("templates", [template, short], 3, rendered, JINJA)

    vocabulary = (source / "tokenizer.json").read_bytes()
    add(
        "tokenizers",
        [vocabulary],
        1,
        beside("tokenizer.json", lambda p: Checkpoint(p.parent).tokenizer()),
    )
    add("tokenizer configs", [settings], 1, beside("tokenizer_config.json", lambda p: Checkpoint(p.parent).tokenizer()),
        [b'"tokenizer_class"', b'"PreTrainedTokenizerFast"', b'"auto_map"', b'"Qwen2Tokenizer"'])  # fmt: skip


# --- adapters -------------------------------------------------------------------------------------


def _adapters(add: Any) -> None:
    from surgeon.checkpoint import adapter_digest, open_adapter

    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "task_type": "CAUSAL_LM", "target_modules": ["up_proj"],
              "base_model_name_or_path": "x", "bias": "none", "rank_pattern": {}}  # fmt: skip
    module = "base_model.model.model.layers.0.mlp.up_proj.lora_"
    head = _header(
        {module + "A.weight": ("F32", [2, 96]), module + "B.weight": ("F32", [384, 2])},
        {"format": "pt"},
    )
    data = bytes(_size(head))

    def use(path: Path) -> object:
        adapter = open_adapter(path.parent)
        return adapter.modules, adapter.tokenizer_files, adapter_digest("x", adapter)

    def with_weights(place: Path) -> Read:
        (place / "adapter_model.safetensors").write_bytes(
            len(head).to_bytes(8, "little") + head + data
        )
        return at("adapter_config.json", use)(place)

    def with_config(place: Path) -> Read:
        (place / "adapter_config.json").write_text(json.dumps(config))
        return framed_at("adapter_model.safetensors", data, use)(place)

    add(
        "adapter configs",
        _json(config),
        5,
        with_weights,
        [b'"LORA"', b'"IA3"', b'"peft_type"', b'"alora_invocation_tokens"'],
    )
    add("adapter weights", [head], 5, with_config, [b'"lora_A.weight"', b'"x.lora_embedding_A"'])

    def merged(place: Path) -> Read:
        from surgeon.checkpoint import resolve
        from surgeon.checkpoint.adapter_merging import Merging

        base = resolve("builtin:instruct")
        (place / "adapter_model.safetensors").write_bytes(
            len(head).to_bytes(8, "little") + head + data
        )
        return at("adapter_config.json", lambda p: Merging(base, open_adapter(p.parent)))(place)

    add("adapters on a base", _json(config), 1, merged, [b'"LORA"', b'["q_proj"]', b'"all-linear"'])


# --- prompts and answers --------------------------------------------------------------------------


def _prompts(add: Any) -> None:
    from surgeon import truth
    from surgeon.read.labels import read_labels
    from surgeon.show import kinds
    from surgeon.traces import read_prompts, read_traces
    from surgeon.traces.answered import read_answered
    from surgeon.traces.columns import Columns

    rows = [
        {"id": "a", "prompt": "What is 1 + 1?", "answer": "2"},
        {"id": 7, "messages": [{"role": "system", "content": "x"}, {"role": "user", "content": "y"}]},
        {"question": "q", "solution": "so \\boxed{3}", "tools": [{"function": {"name": "f", "parameters": {}}}]},
        {"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}], "system": "s"},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "t"}]},
                      {"role": "assistant", "content": "", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}]},
                      {"role": "tool", "content": "r", "tool_call_id": "1"}]},
    ]  # fmt: skip
    each, whole = [_lines(row) for row in rows], _lines(*rows[:2])
    prompts = lambda p: read_prompts(str(p))  # noqa: E731
    add("mini-sets", [*each, whole], 12, at("m.jsonl", prompts))
    add("mini-sets as arrays", _json(rows[:2], {"data": rows[:2]}, rows), 5, at("m.json", prompts))
    table = b'id,question,answer\n1,"What, is\n 1?",2\n2,x,3\n'
    add(
        "tables",
        [table, table.replace(b",", b";")],
        5,
        at("m.csv", prompts),
        [b",", b'"', b"\r", b"\n"],
    )
    add("tables of tabs", [table.replace(b",", b"\t")], 1, at("m.tsv", prompts), [b"\t", b'"'])
    add("parquet", [_parquet(rows[0])], 1, at("m.parquet", prompts), noise=1.0)
    add("columns", [b"prompt=question,answer=solution", b"messages=dialogue,id=x.y"], 1,
        lambda _: lambda content, draw: Columns.parse(content.decode("utf-8", "surrogateescape")))  # fmt: skip

    trace = {
        "prompt_id": "a",
        "sample": 0,
        "prompt_token_ids": [1, 2],
        "token_ids": [3, 4],
        "text": "x y",
        "finish_reason": "stop",
    }
    other = {**trace, "sample": 1}
    add("traces", [_lines(trace, other), _lines(trace)], 12, at("t.jsonl", read_traces))
    answered = [_lines(trace), _lines({"prompt": "x", "response": "y"}), _lines({"prompt": "x", "completion": [{"role": "assistant", "content": "y"}]}),
                _lines({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]})]  # fmt: skip
    add("answered", answered, 6, at("t.jsonl", lambda p: list(read_answered(p))))
    add(
        "shown rows",
        [_lines(trace, other), each[0]],
        2,
        at("t.jsonl", lambda p: kinds.kind_of(str(p))),
    )

    def plain(place: Path) -> Read:
        from surgeon.checkpoint import resolve
        from surgeon.settings.sampling import Sampling
        from surgeon.traces.imported import read_plain

        tokenizer, known = (
            resolve("builtin:instruct").tokenizer(),
            read_prompts("builtin:mini-set")[:3],
        )
        return at("t.jsonl", lambda p: read_plain(p, known, tokenizer, Sampling(), {2}))(place)

    name = read_prompts("builtin:mini-set")[0].id
    add(
        "responses",
        [
            _lines(
                {"prompt_id": name, "response": "x"},
                {"prompt_id": name, "responses": ["a", "b"], "finish_reason": "length"},
            )
        ],
        2,
        plain,
    )

    labels = [b"id,label,annotator\na,E,x\nb,X,x\n", _lines({"id": "a", "label": "E"})]
    add("labels", labels, 2, at("l.csv", lambda p: read_labels(str(p))), [b"explore", b",", b";"])
    known = _json({"a": 0.5, "b": 1}, {"candidates": [{"name": "a", "avg": 0.5}], "tasks": [{"name": "t", "measures": [{"name": "a", "avg": 0.1}]}]},
                  {"results": {"t": {"exact_match,none": 0.5, "alias": "t"}}, "config": {"model_args": "pretrained=x/y,dtype=auto"}})  # fmt: skip
    add("truths", known, 2, at("truth.json", lambda p: truth.read_accuracies(p, "t")))
    add(
        "truths as tables",
        [b"name,accuracy\na,0.5\nb,1\n"],
        1,
        at("truth.csv", truth.read_accuracies),
        [b",", b"nan", b"inf"],
    )
    add("text answers", [b"So the answer is \\boxed{\\frac{1}{2}}.", b"#### 1,234", b"The answer is (C).", b"x = 3/4 or 75%"], 3, _answers,
        [b"\\frac", b"\\sqrt", b"{", b"}", b"^", b"9" * 400, b"10**10**10", b"\\boxed{", b"!", b"1e999", b"0/0", b"\xcc\xb8"])  # fmt: skip


def _answers(_: Path) -> Read:
    from surgeon import answers

    hows = ("auto", "boxed", "choice", "number", "last-line")

    def run(content: bytes, draw: random.Random) -> object:
        text = content.decode("utf-8", "replace")
        found = answers.extract(text, draw.choice(hows))
        return found is not None and (answers.canonical(found), answers.same(found, "1/2"))

    return run


def _parquet(row: Mapping[str, Any]) -> bytes:
    import pyarrow
    from pyarrow import parquet

    stream = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist([dict(row)] * 2), stream)
    return stream.getvalue()


# --- recipes and settings -------------------------------------------------------------------------


def _recipes(add: Any) -> None:
    from surgeon import recipes
    from surgeon.judges.wording import read_phase_texts
    from surgeon.merge.members import from_config
    from surgeon.settings.verbs import VERBS
    from surgeon.show import kinds

    steps = (
        b"- merge-sweep:\n    a: builtin:instruct\n    b: builtin:thinking\n    out: x/f\n    ratios: '0.2:0.8:0.2'\n"
        b"- rank: &r\n    checkpoints: x/f\n    mini_set: builtin:mini-set\n    out: x/r\n    samples: 2\n    temperature: 0.7\n"
        b"- rank: {<<: *r, truth: x/e.json, sampling: {top_p: 0.5}}\n"
    )
    small = b"distill:\n  checkpoint: builtin:base\n  pool: builtin:pool\n  out: x\n  steps: 3\n  lr: 1e-3\n"
    words = [*YAML, b"samples", b"sampling", b"rank", b"distill", b"true"]

    def run(path: Path) -> object:
        made = recipes.override(
            recipes.load(path), ["out=y"] if b"out" in path.read_bytes()[:9] else []
        )
        for step in made:
            with suppress(BadInput):
                step.settings()
        return made

    add("recipes", [steps, small, small], 4, at("r.yaml", run), words)
    add(
        "shown recipes",
        [small, b"merge:\n  merge_method: slerp\n"],
        1,
        at("r.yaml", lambda p: kinds.kind_of(str(p))),
        words,
    )

    parameters = [b"samples=3", b"temperature=0.5", b"ratios='0:1:0.1'", b"sampling={top_p: 0.9}", b"by=[nex, hes]", b"tuning.rank=4",
                  b"seed=1", b"device=cpu", b"columns={prompt: x}", b"top_k=0.1", b"out=x", b"groups={a: [b]}", b"levels=none"]  # fmt: skip

    def setting(_: Path) -> Read:
        verbs = list(VERBS)

        def one(content: bytes, draw: random.Random) -> object:
            name, value = recipes.parse_setting(content.decode("utf-8", "surrogateescape"))
            return recipes.RecipeStep(draw.choice(verbs), {name: value, "out": "x"}).settings()

        return one

    add("--set", parameters, 6, setting, words)
    merge = (
        b"merge:\n  merge_method: slerp\n  base_model: a\n  models:\n  - model: a\n  - model: b\n  parameters:\n    t: ${t}\n"
        b"  dtype: bfloat16\nsweep:\n  t: '0.1:0.9:0.4'\nendpoints: [builtin:instruct, builtin:thinking]\n"
    )
    add(
        "merge configs",
        [merge],
        3,
        at("m.yaml", lambda p: from_config(p, None)),
        [*words, b"ties", b"${y}", b"linear", b"0:1:1e-9"],
    )
    add("wordings", [b"system: x\nuser: y\n"], 1, at("w.yaml", read_phase_texts), YAML)


# --- results of other runs ------------------------------------------------------------------------


def sample(schema: Mapping[str, Any], definitions: Mapping[str, Any], depth: int = 0) -> Any:
    """A small value that fits a JSON schema; lists are empty where it is deep."""
    if "$ref" in schema:
        return sample(definitions[schema["$ref"].rpartition("/")[2]], definitions, depth + 1)
    for key in ("const", "default"):
        if key in schema and schema[key] not in (None, [], {}):
            return schema[key]
    if "enum" in schema:
        return schema["enum"][0]
    for key in ("anyOf", "oneOf", "allOf"):
        if key in schema:
            return sample(schema[key][0], definitions, depth)
    kind = schema.get("type")
    if kind == "object" or "properties" in schema:
        found = {n: sample(s, definitions, depth) for n, s in schema.get("properties", {}).items()}
        more = schema.get("additionalProperties")
        return found or (
            {"a": sample(more, definitions, depth)} if isinstance(more, dict) else {"a": 1}
        )
    if kind == "array":
        items = schema.get("prefixItems") or [schema.get("items") or {}]
        return [sample(item, definitions, depth) for item in items] if depth < 6 else []
    return {"string": "a", "integer": 1, "number": 0.5, "boolean": True, "null": None}.get(
        kind or "", "a"
    )


def artifact_kinds() -> list[type]:
    """Every kind of artifact, whatever module has it."""
    import gc
    import importlib
    import pkgutil

    import surgeon

    for module in pkgutil.walk_packages(surgeon.__path__, "surgeon."):
        if module.name not in ("surgeon.__main__", "surgeon.traces.template_process"):
            importlib.import_module(module.name)
    kinds = {
        k
        for k in gc.get_objects()
        if isinstance(k, type) and "FILE" in vars(k) and "VERSION" in vars(k)
    }
    return sorted(kinds, key=lambda k: (k.__module__, k.__qualname__))


def _results(add: Any) -> None:
    from pydantic import TypeAdapter

    from surgeon import artifact
    from surgeon.families.description import Family
    from surgeon.show import kinds

    found = artifact_kinds()
    seeds = []
    for kind in found:
        schema: Any = TypeAdapter(kind).json_schema(mode="serialization")
        seeds.append(
            json.dumps({"format": kind.VERSION, **sample(schema, schema.get("$defs", {}))}).encode()
        )  # pyright: ignore

    def any_kind(place: Path) -> Read:
        def run(content: bytes, draw: random.Random) -> object:
            # The mutant's own kind can't be told any more: its keys say most of the time.
            kind = found[draw.randrange(len(found))] if draw.random() < 0.2 else best(content)
            path = place / kind.FILE  # pyright: ignore
            path.write_bytes(content)
            return artifact.read(kind, path)

        keys = [set(json.loads(seed)) for seed in seeds]

        def best(content: bytes) -> type:
            scores = [sum(f'"{key}"'.encode() in content for key in k) / len(k) for k in keys]
            return found[scores.index(max(scores))]

        return run

    add("artifacts", seeds, 8, any_kind)

    def shown(place: Path) -> Read:
        def run(content: bytes, draw: random.Random) -> object:
            kind = found[draw.randrange(len(found))]
            own = place / "one"
            own.mkdir(exist_ok=True)
            file = own / kind.FILE  # pyright: ignore
            file.write_bytes(content)
            try:
                return kinds.kind_of(str(own))
            finally:
                file.unlink()

        return run

    add("shown artifacts", seeds, 2, shown)
    entry = {"spec": "builtin:instruct", "name": "instruct", "path": None, "digest": "sha256:0"}
    family = {"format": 1, "name": "f", "methods": ["slerp"], "dtype": None, "choices": {"tokenizer": "first", "template": "first", "generation": "first"},
              "seed": 0, "others": {}, "endpoints": [entry, {**entry, "spec": "builtin:thinking", "name": "thinking"}],
              "candidates": [{"name": "instruct", "ratio": 0.0, "merge": {}, "path": None, "written": False, "digest": "sha256:0"},
                             {"name": "slerp-0.5", "ratio": 0.5, "written": False, "path": None, "digest": "sha256:1",
                              "merge": {"merge_method": "slerp", "base_model": "a", "models": [{"model": "a"}, {"model": "b"}], "parameters": {"t": 0.5}}}]}  # fmt: skip

    def opened(path: Path) -> object:
        family = Family.open(path.parent)
        for candidate in family.candidates:
            _ = candidate.mix, candidate.endpoint, family.directory(candidate)
        return family.inputs, family.virtual

    add(
        "families",
        _json(family),
        2,
        at("family.json", opened),
        [b'"slerp"', b'"first"', b'"../.."'],
    )


# --- requests to the server -----------------------------------------------------------------------


def _requests(add: Any) -> None:
    from surgeon.serve.query import read_chat, read_completion
    from surgeon.serve.refusals import Refusal
    from surgeon.serve.service import load
    from surgeon.settings.serve import ServeSettings

    chat = {"model": "instruct", "messages": [{"role": "user", "content": "Start 3."}], "max_tokens": 8, "temperature": 0.5, "stop": ["a"],
            "logit_bias": {"5": 1}, "stream": False, "n": 1, "seed": 1, "logprobs": True, "top_logprobs": 2}  # fmt: skip
    tool = {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}], "response_format":
            {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object", "properties": {"a": {"type": "integer", "enum": [1, 2]}}}}}}  # fmt: skip
    text = {
        "prompt": ["x", [1, 2]],
        "max_tokens": 3,
        "echo": True,
        "logprobs": 1,
        "best_of": 2,
        "top_p": 0.9,
    }

    def reader(read: Any) -> Callable[[Path], Read]:
        def made(_: Path) -> Read:
            service = load(ServeSettings(checkpoint="builtin:instruct"))

            def run(content: bytes, draw: random.Random) -> object:
                try:
                    return read(content, service.tokenizer, service.offer).requests
                except Refusal as why:
                    json.dumps(why.body).encode()
                    if not 400 <= why.status < 500:
                        raise
                    return None

            return run

        return made

    add("chats", _json(chat, tool), 4, reader(read_chat))
    add("completions", _json(text), 4, reader(read_completion))
