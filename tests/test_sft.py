"""`surgeon sft`: what is learned of a row, packing, mixtures, exact resume, what comes out."""

# Shapes: B rows, T tokens, P learned tokens.

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

import surgeon.sft as verb
from surgeon.checkpoint import Checkpoint, resolve
from surgeon.errors import BadInput
from surgeon.settings import bind
from surgeon.settings.sft import SftTracesSettings
from surgeon.sft import batches, prepare, sft
from surgeon.sft.lessons import Mixture
from surgeon.traces import Prompt, Trace, append, encode
from surgeon.traces.answered import read_answered, tokens_of
from surgeon.training.sequences import (
    can_pack,
    grouped,
    nll_loss,
    packed,
    response_states,
    targets,
)

QUICK: dict[str, Any] = dict(batch_size=4, lr=1e-2, save_every=2, micro_tokens=48)
TAGGED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|> assistant "
    "{% generation %}{{ m.content }} <|im_end|>{% endgeneration %} {% else %}"
    "<|im_start|> {{ m.role }} {{ m.content }} <|im_end|> {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)
STRIPS = TAGGED.replace("{% generation %}", "").replace("{% endgeneration %}", "").replace(
    "{{ m.content }} <|im_end|> {%", "{{ m.content.split('</think>')[-1] }} <|im_end|> {%"
)  # fmt: skip


@pytest.fixture(scope="module")
def pico(tmp_path_factory: pytest.TempPathFactory, make_checkpoint) -> Path:
    """A checkpoint `m`, and answers of two writers to 10 prompts, of different lengths."""
    root = tmp_path_factory.mktemp("sft")
    make_checkpoint(root / "m")
    for name, word in (("a", "w3"), ("b", "w4")):
        rows = [
            {"id": f"p{n}", "prompt": f"w{n} w1", "response": " ".join([word] * (1 + 3 * n % 7))}
            for n in range(10)
        ]
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def plan_of(pico: Path, **given: Any) -> Any:
    named = {"traces": (str(pico / "a.jsonl"),)} if "mix" not in given else {}
    given = {"checkpoint": str(pico / "m"), "out": pico / "none", **named, **given}
    return prepare(bind(SftTracesSettings, given))


def one_row(tmp_path: Path, row: dict[str, Any]) -> Any:
    (tmp_path / "row.jsonl").write_text(json.dumps(row) + "\n")
    ((_, answered),) = read_answered(tmp_path / "row.jsonl")
    return answered


# --- packing


def test_packed_examples_have_the_loss_and_the_gradient_they_have_alone(pico: Path):
    model: Any = Checkpoint.open(pico / "m").model(dtype=torch.float32)
    rows = [list(range(5, 25)), list(range(30, 38)), list(range(7, 14)), [9, 8, 7, 6], [3, 4]]
    flags = [[False] * (len(row) // 2) + [True] * (len(row) - len(row) // 2) for row in rows]
    together, alone = packed(rows, flags), targets(rows, flags)
    assert together.sequences.ids_BT.shape == (3, 20) and len(alone.sequences.ids_BT) == 5
    assert together.sequences.position_BT is not None
    assert together.sequences.position_BT[1].tolist() == [*range(8), *range(7), *range(4), 0]
    found = []
    for made in (together, alone):
        loss = nll_loss(model, made, None)
        found.append((loss.total, torch.autograd.grad(loss.total, list(model.parameters()))))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-5, atol=0)
    for ours, own in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(ours, own, rtol=1e-3, atol=1e-4)
    # Without their positions examples would attend to each other: another loss.
    leaking = together._replace(sequences=together.sequences._replace(position_BT=None))
    assert abs(nll_loss(model, leaking, None).total - found[1][0]) > 1e-3


def test_a_model_that_takes_no_positions_is_not_packed(pico: Path, monkeypatch):
    model: Any = Checkpoint.open(pico / "m").model(dtype=torch.float32)
    assert can_pack(model, [5, 6, 7])
    forward = model.model.forward

    def deaf(input_ids: Any, use_cache: bool, position_ids: Any = None) -> Any:
        return forward(input_ids=input_ids, use_cache=use_cache)

    monkeypatch.setattr(model.model, "forward", deaf)
    assert not can_pack(model, list(range(5, 40)))
    with torch.no_grad():
        assert response_states(model, targets([[5, 6]], [[True, True]]).sequences).shape == (1, 32)


def test_groups_hold_every_sequence_once_and_no_more_than_their_tokens():
    lengths = [5, 30, 7, 12, 12, 3, 29, 1, 60]
    for pack in (False, True):
        groups = grouped(lengths, 60, pack=pack)
        assert sorted(n for group in groups for n in group) == list(range(9))
        for group in groups:
            rows = [[1] * lengths[n] for n in group]
            made = (packed if pack else targets)(rows, [[True] * len(row) for row in rows])
            assert made.sequences.ids_BT.numel() <= 60
    assert len(grouped(lengths, 60, pack=True)) < len(grouped(lengths, 60))


# --- what is learned


def test_a_response_is_learned_as_it_stands_and_a_cut_one_has_no_end(tmp_path: Path):
    tokenizer: Any = resolve("builtin:base").tokenizer()
    row = {"prompt": "Start 3. Apply +5. Find x.", "response": "Start 3. Answer: 8."}
    asked = encode(tokenizer, Prompt("1", ({"role": "user", "content": row["prompt"]},)))
    for reason in ("stop", "length"):
        answered = one_row(tmp_path, {**row, "finish_reason": reason})
        ids, learned = tokens_of(tokenizer, answered)
        assert ids[: len(asked)] == asked and learned.index(True) == len(asked)
        assert all(learned[len(asked) :])
        end = tokenizer.eos_token if reason == "stop" else ""
        assert tokenizer.decode(ids[len(asked) :]) == row["response"] + end


def test_a_trace_keeps_its_tokens_and_is_encoded_anew_for_another_tokenizer(
    pico: Path, tmp_path: Path
):
    base: Any = resolve("builtin:base").tokenizer()
    other: Any = Checkpoint.open(pico / "m").tokenizer()
    text = "Start 3. Answer: 8."
    ids = [*base(text)["input_ids"], base.eos_token_id]
    append(tmp_path / "t.jsonl", Trace("p1", 0, [1, 2, 3], ids, text, "stop"))
    ((_, answered),) = read_answered(tmp_path / "t.jsonl")
    assert tokens_of(base, answered).ids == [1, 2, 3, *ids]
    with pytest.raises(BadInput, match="written with another tokenizer"):
        tokens_of(other, answered)
    known = {"p1": Prompt("p1", ({"role": "user", "content": "w1"},))}
    ((_, answered),) = read_answered(tmp_path / "t.jsonl", known)
    assert tokens_of(base, answered).ids == [*encode(base, known["p1"]), *ids]
    assert tokens_of(other, answered).ids[-1] == other.eos_token_id


def test_the_templates_own_marks_say_what_is_learned(pico: Path, tmp_path: Path):
    """Both turns of the assistant are marked; without marks the last one is told by rendering."""
    tokenizer: Any = Checkpoint.open(pico / "m").tokenizer()
    messages = [
        {"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2 w3"},
        {"role": "user", "content": "w4"}, {"role": "assistant", "content": "w5 w6 w7"},
    ]  # fmt: skip
    answered = one_row(tmp_path, {"messages": messages})
    found = {}
    for name, template in (("tags", TAGGED), ("plain", STRIPS)):
        tokenizer.chat_template = template
        ids, learned = tokens_of(tokenizer, answered)
        found[name] = (ids, tokenizer.decode([i for i, f in zip(ids, learned, strict=True) if f]))
    assert found["tags"] == (found["plain"][0], "w2 w3 <|im_end|> w5 w6 w7 <|im_end|>")
    assert found["plain"][1] == "w5 w6 w7 <|im_end|>"
    messages[-1]["content"] = "w8 </think> w9"
    with pytest.raises(BadInput, match="leaves out a part of the answer"):
        tokens_of(tokenizer, one_row(tmp_path, {"messages": messages}))


@pytest.mark.parametrize(
    "row, said",
    [
        ("[]", "found an empty list, expected an object"),
        ('{"prompt": "w1"}', "found no answer, expected a trace, a column response"),
        ('{"messages": [{"role": "user", "content": "w1"}]}', "found no answer"),
        ('{"messages": [{"role": "user", "content": "w1"}, {"role": "user", "content": "w2"}]}',
         "expected the assistant's answer"),
        ('{"prompt": "w1", "response": ""}', "found an empty str as response"),
        ("", "holds no rows"),
    ],
)  # fmt: skip
def test_rows_that_are_none_are_refused(pico: Path, tmp_path: Path, monkeypatch, row, said):
    monkeypatch.setattr(Checkpoint, "model", None)
    (tmp_path / "rows.jsonl").write_text(row + "\n")
    with pytest.raises(BadInput, match=said) as caught:
        sft(str(pico / "m"), traces=[tmp_path / "rows.jsonl"], out=tmp_path / "out")
    assert "\n" not in str(caught.value) and not list(tmp_path.glob("out*"))


# --- mixtures


def test_a_mixture_takes_each_prompt_from_one_file_and_grows(pico: Path):
    chosen = {}
    for share in (0, 0.3, 0.7, 1):
        mix = f"{pico / 'a.jsonl'}:{pico / 'b.jsonl'}={share}"
        plan = plan_of(pico, mix=mix)
        tokenizer: Any = plan.checkpoint.tokenizer()
        second = int(tokenizer("w4")["input_ids"][0])
        from_b = [second in x.ids[x.learned].tolist() for x in plan.taught.lessons]
        chosen[share] = {x.prompt_id for x, b in zip(plan.taught.lessons, from_b, strict=True) if b}
        assert len(plan.taught.lessons) == 10
        assert [f.examples for f in plan.taught.files] == [10 - sum(from_b), sum(from_b)]
    assert chosen[0] == set() and len(chosen[1]) == 10 and chosen[0.3] < chosen[0.7]
    for text in ("a.jsonl=.3", f"{pico / 'a.jsonl'}:{pico / 'b.jsonl'}=2", "x:y", "x:y=.5"):
        with pytest.raises(BadInput, match="found mix"):
            Mixture.parse(text)


# --- the verb


def test_a_killed_training_ends_as_one_that_was_not(pico: Path, tmp_path: Path, monkeypatch):
    """It is killed after a step that wasn't saved."""
    given: dict[str, Any] = dict(traces=[pico / "a.jsonl"], epochs=2.0, **QUICK)
    whole = sft(str(pico / "m"), out=tmp_path / "whole", **given)
    assert whole.steps == 6 and whole.packed and whole.last_loss < whole.first_loss

    def killed(plan: Any, accelerator: Any, tokens: int, pack: bool) -> Any:
        def from_step(start: int) -> Any:
            for n, batch in enumerate(batches(plan, accelerator, tokens, pack)(start)):
                if n == 3:
                    raise KeyboardInterrupt
                yield batch

        return from_step

    monkeypatch.setattr(verb, "batches", killed)
    with pytest.raises(KeyboardInterrupt):
        sft(str(pico / "m"), out=tmp_path / "again", **given)
    monkeypatch.undo()
    sft(str(pico / "m"), out=tmp_path / "again", **given)
    made, same = (Checkpoint.open(tmp_path / name) for name in ("whole", "again"))
    assert made.digest == same.digest
    assert made.digest != Checkpoint.open(pico / "m").digest
    with pytest.raises(BadInput, match="holds another run"):
        sft(str(pico / "m"), out=tmp_path / "whole", **{**given, "lr": 1e-3})


def test_unpacked_training_is_the_same_training(pico: Path, tmp_path: Path):
    results = [
        sft(str(pico / "m"), traces=[pico / "a.jsonl"], out=tmp_path / f"{pack}", pack=pack,
            held_out=0.2, dtype="float32", **QUICK)
        for pack in (True, False)
    ]  # fmt: skip
    assert [r.packed for r in results] == [True, False]
    assert results[0].last_loss == pytest.approx(results[1].last_loss, rel=1e-4)
    held, own = (r.held_out for r in results)
    assert held is not None and own is not None and held.examples == 2
    assert held.before == pytest.approx(own.before, rel=1e-4) and held.after < held.before


def test_adapters_and_merged_checkpoints_load_everywhere(pico: Path, tmp_path: Path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    given: dict[str, Any] = dict(traces=[pico / "a.jsonl"], tuning="lora", rank=4, **QUICK)
    sft(str(pico / "m"), out=tmp_path / "lora", **given)
    sft(str(pico / "m"), out=tmp_path / "merged", merge=True, **given)
    ids = torch.tensor([[5, 6, 7, 8]])
    own: Any = AutoModelForCausalLM.from_pretrained(pico / "m", dtype=torch.float32)
    with torch.no_grad():
        before = own(ids).logits
        adapted = PeftModel.from_pretrained(own, tmp_path / "lora")(ids).logits
        merged: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
        after = merged.float()(ids).logits
    assert (adapted - before).abs().max() > 0.01
    torch.testing.assert_close(adapted, after, rtol=0.1, atol=0.1)  # bfloat16 on disk
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template
    assert "supervised fine-tuning" in (tmp_path / "merged" / "README.md").read_text()


def test_processes_share_a_step_and_learn_every_token_once(pico: Path):
    plan = plan_of(pico, **QUICK)
    alone = next(batches(plan, Accelerator(cpu=True), 48, True)(0))

    class Peer:
        num_processes = 3

        def __init__(self, process_index: int):
            self.process_index = process_index

    shares = [next(batches(plan, Peer(n), 48, True)(2)) for n in range(3)]  # pyright: ignore
    assert sum(batch.responses for batch in shares) == 2  # the last step of the epoch
    assert shares[2].weight == 0 and len(shares[2].micros[0].token_P) == 0
    assert alone.weight == sum(len(micro.token_P) for micro in alone.micros)
