"""The built-in family: the task and its checker, the tokenizer, the prompt sets, the shipped
checkpoints, the trainer."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.family import (
    card,
    compare,
    controls,
    features,
    pools,
    scattered,
    sets,
    tokenizer,
    train,
    writer,
)
from surgeon import builtin
from surgeon.builtin import task
from surgeon.errors import BadInput

TINY = train.Shape(hidden=16, ffn=24, layers=1, heads=2, kv_heads=1, head_dim=8, positions=2048)
SHIPPED = (*builtin.CHECKPOINTS, *builtin.SECOND)


@pytest.fixture(scope="module")
def tok():
    return tokenizer.build()


def example(seed: int, policy: writer.Policy | None = None, **choices):
    rng = Random(seed)
    problem = writer.draw_problem(rng, **choices)
    return problem, writer.write(problem, policy or writer.draw_policy(rng), rng)


# --- the task


def test_answer_is_the_operations_applied_in_turn():
    problem = task.Problem(3, ("+4", "*7", "-2"))  # 3 + 4 = 7, 7 * 7 = 49, 9 - 2 = 7
    assert problem.prompt == "Start 3. Apply +4 *7 -2. Find x."
    assert problem.answer() == 7


def test_meaning_of_an_ambiguous_operator():
    problem = task.Problem(3, ("#4",))
    assert problem.answer("shift") == problem.answer() == 7
    assert problem.answer("fold") == 1


@given(st.integers(0, 10**9), st.sampled_from(["#", "~", None]))
def test_prompt_parses_back(seed: int, operator: str | None):
    problem = writer.draw_problem(Random(seed), operator=operator)
    assert task.Problem.parse(problem.prompt) == problem
    assert problem.operator == operator
    assert len(set(problem.operations)) == len(problem.operations)


@given(st.text(max_size=40))
def test_foreign_prompt_is_bad_input(text: str):
    with pytest.raises(BadInput, match="expected one of the built-in task"):
        task.Problem.parse(text)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>\nNext +4: 3 = 7\n</think>\n\nAnswer: 7", "7"),
        ("<think>\nAnswer: 3\n</think>\n\nRead # as shift. Answer: 7", "7"),
        ("<think>\nNext +4: 3 = 7\n\nAnswer: 7", None),
        ("<think>\nNext +4: 3 = 7\n</think>\n\n", None),
        ("Answer: 1 Answer: 2", "2"),
        ("", None),
    ],
)
def test_answer_is_the_last_one_after_the_thinking(text: str, answer: str | None):
    assert task.answer(text) == answer


# --- the exact checker


@given(st.integers(0, 10**9), st.sampled_from(["#", "~", None]))
def test_clean_trace_has_no_wrong_step(seed: int, operator: str | None):
    problem, response = example(
        seed, writer.Policy(leap=0.3, check=0.5, restart=0.3), operator=operator
    )
    labels = task.steps(problem, response.text)
    assert not [label for label in labels if label.failure in ("intra", "misread", "inter")]
    assert all(label.right == label.text for label in labels if label.failure is None)
    assert task.correct(problem, response.text)


@given(st.integers(0, 10**9))
def test_written_mistakes_are_labelled_where_they_stand_and_nowhere_else(seed: int):
    problem, response = example(
        seed, replace(writer.draw_policy(Random(seed)), slip=0.3, mistake=0.2)
    )
    labels = task.steps(problem, response.text)
    wrong = {label.end for label in labels if label.failure == "intra"}
    assert wrong == {end for _, end in response.mistakes}


@given(st.integers(0, 10**9), st.data())
def test_injected_wrong_result_is_labelled_at_that_step(seed: int, data):
    problem, response = example(seed, writer.Policy(leap=0.3, check=0.3), operator=None)
    labels = task.steps(problem, response.text)
    target = data.draw(st.sampled_from([x for x in labels if x.kind in ("next", "leap")]))
    other = data.draw(st.sampled_from([d for d in range(10) if d != int(target.text[-1])]))
    text = response.text[: target.end - 1] + str(other) + response.text[target.end :]
    label = task.steps(problem, text)[target.index]
    assert (label.failure, label.right) == ("intra", target.text)
    assert all(x.failure is None for x in task.steps(problem, text)[: target.index])


PROBLEM = task.Problem(3, ("+4", "*7", "-2", "+9", "-5", "+1"))


def failures(*written: str, problem: task.Problem = PROBLEM) -> list[tuple[str, str | None]]:
    text = "<think>\n" + "\n\n".join(written) + "\n</think>\n\nAnswer: 2"
    return [(label.kind, label.failure) for label in task.steps(problem, text)]


def test_repeated_check_is_stagnation():
    check = "Wait, check +4: 3 = 7, ok."
    assert failures(
        "Next +4: 3 = 7", check, check, "Next *7: 7 = 9", "Wait, check *7: 7 = 9, ok."
    ) == [
        ("next", None),
        ("check", None),
        ("check", "inter"),
        ("next", None),
        ("check", None),
    ]


def test_check_that_finds_a_mistake_mends_it():
    written = ("Next +4: 3 = 8", "Wait, check +4: 3 = 7, no.", "Next *7: 7 = 9")
    assert failures(*written) == [("next", "intra"), ("check", None), ("next", None)]


@pytest.mark.parametrize(
    "check",
    [
        "Wait, check +4: 3 = 8, no.",  # wrong arithmetic
        "Wait, check +4: 3 = 7, no.",  # wrong verdict
        "Wait, check *7: 3 = 1, no.",  # another operation
        "Wait, check what, ok.",
    ],
)
def test_wrong_check_is_a_wrong_step(check: str):
    assert failures("Next +4: 3 = 7", check)[1] == ("check", "intra")


@pytest.mark.parametrize("step", ["Next *7: 3 = 1", "Next +4: 5 = 9", "So +4: 3 = 7", "Nonsense"])
def test_step_out_of_order_or_malformed_is_wrong(step: str):
    assert failures(step)[0][1] == "intra"


def test_starting_over_is_over_thinking_on_an_easy_clean_problem_only():
    done = ("So +4 *7 -2: 3 = 7", "So +9 -5 +1: 7 = 2")
    hard = task.Problem(3, (*PROBLEM.operations, "+2", "-2"))
    assert failures(*done, task.RESTART)[-1] == ("restart", "instance")
    assert failures("So +4 *7 -2: 3 = 1", "So +9 -5 +1: 1 = 6", task.RESTART)[-1][1] is None
    assert failures(*done, task.RESTART, problem=hard)[-1] == ("restart", None)
    again = task.restart_text(PROBLEM)
    assert again == "Let me start over. Start 3."
    assert failures(*done, again, "Next +4: 3 = 7")[-2:] == [
        ("restart", "instance"),
        ("next", None),
    ]
    assert failures(*done, "Let me start over. Start 4.")[-1] == ("restart", "intra")


def test_misreading_is_its_own_label_and_later_steps_follow_it():
    problem = task.Problem(3, ("#4", "+1", "+2", "+3", "+4", "+5"))
    assert failures("Read # as fold.", "Next #4: 3 = 1", problem=problem) == [
        ("read", "misread"),
        ("next", None),
    ]
    assert failures("Read # as shift.", "Next #4: 3 = 1", problem=problem)[1] == ("next", "intra")


@given(st.integers(0, 10**9), st.integers(0, 2000))
def test_truncated_trace_keeps_the_labels_of_its_finished_steps(seed: int, length: int):
    problem, response = example(seed)
    whole = task.steps(problem, response.text)
    part = task.steps(problem, response.text[:length])
    assert part == whole[: len(part)]


def test_every_token_explores_or_executes():
    problem = task.Problem(3, ("#4", "+1", "*7", "-2", "+9", "-5"))
    written = {
        "Read # as shift.": "execute",
        "Next #4: 3 = 7": "execute",
        "So +1 *7: 7 = 6": "explore",
        "Wait, check +1: 7 = 8, *7: 8 = 6, ok.": "explore",
        "Let me start over. Start 3.": "explore",
        "Read # as fold.": "explore",
        "Next #4: 3 = 1": "execute",
        "Okay, I have finished thinking.": "execute",
    }
    text = "<think>\n" + "\n\n".join(written) + "\n</think>\n\nRead # as fold. Answer: 1"
    labels = task.steps(problem, text)
    assert [label.phase for label in labels] == list(written.values())
    assert [label.kind for label in labels][5] == "alternative"
    found = task.phases(problem, list(text))
    for label in labels:
        assert set(found[label.start : label.end]) == {label.phase}
    first, last = labels[0].start, text.index("</think>")
    assert None not in found[first:last]
    assert set(found[:first] + found[last:]) == {None}


@pytest.mark.parametrize(
    ("tail", "phase"),
    [
        ("Next *7: 7", "execute"),
        ("So *7", "explore"),
        ("Wait, check", "explore"),
        ("Let me", "explore"),
        ("Hm", None),
        ("Read #", "execute"),
    ],
)
def test_an_unfinished_step_counts_by_its_first_word(tail: str, phase: str | None):
    text = f"<think>\nNext +4: 3 = 7\n\n{tail}"
    assert task.phases(PROBLEM, list(text))[-1] == phase


def test_a_step_that_says_nothing_has_no_phase():
    pieces = ["<think>\n", "Next +4: 3 = 7", "\n\n", "Nonsense", "\n\n", "Next *7: 7 = 9", "\n\n"]
    assert task.phases(PROBLEM, pieces) == [
        None, "execute", "execute", None, None, "execute", "execute",
    ]  # fmt: skip
    assert task.phases(PROBLEM, []) == []


def test_another_reading_is_an_alternative_the_same_again_is_not():
    problem = task.Problem(3, ("#4", "+1", "+2", "+3", "+4", "+5"))
    read = [f"Read # as {said}." for said in ("fold", "fold", "shift", "fold")]
    kinds = [kind for kind, _ in failures(*read, problem=problem)]
    assert kinds == ["read", "read", "alternative", "alternative"]


@given(st.integers(0, 10**9), st.integers(0, 3000))
def test_phases_hold_for_traces_cut_anywhere(tok, seed: int, length: int):
    """Every token of a written trace is known, up to a first word that says nothing yet."""
    rng = Random(seed)
    problem = writer.draw_problem(rng, operator=rng.choice(["#", None]))
    text = writer.write(problem, writer.draw_policy(rng), rng).text
    encoded = tok(text)["input_ids"]
    pieces = [tok.decode([i]) for i in encoded][: length + 1]
    found = task.phases(problem, pieces)
    assert len(found) == len(pieces)
    whole = task.phases(problem, [tok.decode([i]) for i in encoded])
    assert found == whole[: len(found)] or found[:-4] == whole[: len(found) - 4]
    begin, stop = pieces.index("<think>") + 2, len(pieces)
    if "</think>" in pieces:
        stop = pieces.index("</think>") - 1
    assert None not in whole[begin:stop]


@given(st.text(alphabet="<think>/ Next+47:=\n.#ok,Wait", max_size=80))
def test_checker_takes_any_text(text: str):
    assert all(text[x.start : x.end] == x.text for x in task.steps(PROBLEM, text))
    assert len(task.phases(PROBLEM, list(text))) == len(text)


# --- tokenizer and template


@given(st.integers(0, 10**9), st.sampled_from(["#", "~", None]))
@settings(max_examples=50)
def test_task_text_survives_the_tokenizer(tok, seed: int, operator: str | None):
    problem, response = example(seed, operator=operator)
    for text in (problem.prompt, response.text, task.FINISH, task.restart_text(problem)):
        ids = tok(text)["input_ids"]
        assert tok.decode(ids) == text
        assert tok.unk_token_id not in ids


@given(st.text(alphabet=[chr(c) for c in range(32, 127)] + ["\n"], max_size=60))
@settings(max_examples=50)
def test_any_ascii_text_survives_the_tokenizer(tok, text: str):
    if any(special in text for special in tokenizer.SPECIAL):
        return
    assert tok.decode(tok(text)["input_ids"]) == text


def test_blank_line_and_operations_are_single_tokens(tok):
    assert tok.convert_ids_to_tokens(tok("7\n\nNext +4: 3 = 7")["input_ids"]) == [
        "7", "\n\n", "Next", " +4", ":", " 3", " =", " 7",
    ]  # fmt: skip
    assert len(tok(task.FINISH)["input_ids"]) == 1


def test_template_drops_former_thinking_and_keeps_the_last(tok):
    turn = [
        {"role": "user", "content": "Start 3."},
        {"role": "assistant", "content": "<think>\nNext +4: 3 = 7\n</think>\n\nAnswer: 7"},
    ]
    text = tok.apply_chat_template([*turn, *turn], tokenize=False)
    assert text.count("<think>") == 1
    assert text.startswith(
        "<|im_start|>user\nStart 3.<|im_end|>\n<|im_start|>assistant\nAnswer: 7<|im_end|>\n"
    )
    prompt = tok.apply_chat_template(turn[:1], tokenize=False, add_generation_prompt=True)
    assert prompt == "<|im_start|>user\nStart 3.<|im_end|>\n<|im_start|>assistant\n"
    closed = tok.apply_chat_template(
        turn[:1], tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    assert closed == prompt + "<think>\n\n</think>\n\n"


def test_training_examples_are_formatted_as_the_template_does(tok):
    messages, response = train.draw_example(
        Random(3), replace(train.STAGES[2], contexts=1.0, marked=1.0)
    )
    (ids, learned), *_ = train.encode_examples(tok, [(messages, response)])
    chat = [*messages, {"role": "assistant", "content": response.text}]
    text = tok.apply_chat_template(chat, tokenize=False).removesuffix("\n")
    assert tok.decode(ids) == text[: len(tok.decode(ids))]
    head = tok.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert not any(learned[: len(head)])


def test_injected_mistakes_are_not_learned(tok):
    problem = writer.draw_problem(Random(0))
    response = writer.write(problem, writer.Policy(mistake=1.0), Random(0))
    (ids, learned), *_ = train.encode_examples(tok, [([], response)])
    hidden = [tok.decode([i]) for i, keep in zip(ids, learned, strict=True) if not keep][3:]
    assert len(hidden) == len(response.mistakes) == len(problem.operations)
    assert all(text.strip().isdigit() for text in hidden)


# --- the writer


def test_an_end_from_outside_is_not_learned_and_its_answer_is(tok):
    problem, response = example(1, writer.Policy(check=0.5, ended=1.0))
    assert response.ended == response.text.index("</think>") + len("</think>")
    (ids, learned), *_ = train.encode_examples(tok, [([], response)])
    tokens = tok.convert_ids_to_tokens(ids)
    end = tokens.index("</think>")
    assert not learned[end]
    assert all(learned[end + 1 :])
    assert tokens[-2] == f" {problem.answer()}"


@given(st.integers(0, 10**9))
def test_ended_thinking_leads_to_the_answer_of_what_is_known(seed: int):
    """Without mistakes that is the answer by the reading of the last attempt that was finished,
    or by the only one."""
    rng = Random(seed)
    problem = writer.draw_problem(rng, operator="#")
    policy = writer.Policy(leap=0.3, check=0.3, restart=0.7, hasty=0.5, alternative=0.7, ended=1.0)
    text = writer.write(problem, policy, rng, "fold").text
    labels, meaning, done = task.steps(problem, text), "fold", None
    for label in labels:
        if label.kind in ("read", "alternative"):
            meaning = str(task.reading(label.text))
        elif problem.operations[-1] in label.text:
            done = meaning
    assert task.reading(text.rpartition("</think>")[2]) == (done or meaning)
    assert task.answer(text) == str(problem.answer(done or meaning))


@given(st.integers(0, 10**9), st.sampled_from(["#", "~", None]), st.sampled_from(writer.MEANINGS))
def test_what_is_tried_before_a_step_comes_to_its_result_and_back(
    seed: int, operator: str | None, meaning: str
):
    rng = Random(seed)
    problem = writer.draw_problem(rng, operator=operator)
    policy = writer.Policy(guess=1.0, other=1.0, undo=1.0, note=1.0)
    labels = task.steps(problem, writer.write(problem, policy, rng, meaning).text)
    assert {label.failure for label in labels} <= {None, "misread"}
    steps = [label for label in labels if label.kind != "read"]
    kinds = ["guess", "alternative", "alternative", "undo", "next", "note"]
    assert [label.kind for label in steps] == kinds * len(problem.operations)
    for i in range(0, len(steps), 6):
        guess, one, two, undo, step, note = (label.text for label in steps[i : i + 6])
        value, result = guess[-5], guess[-1]
        assert step == guess.replace("Maybe", "Next") and f"x = {result} after" in note
        assert one != two and all(
            f": {value} = " in t and f"= {result}, ok" in t for t in (one, two)
        )
        assert f": {result} = " in undo and undo.endswith(f"= {value}, ok.")


TRIED = ("Maybe +4: 3 = 7", "Or minus 6: 3 = 7, ok.", "Undo minus 4: 7 = 3, ok.")


@pytest.mark.parametrize(
    ("steps", "kind", "failure", "right"),
    [
        (TRIED[:1], "guess", None, TRIED[0]),
        (("Maybe +4: 3 = 8",), "guess", "intra", "Next +4: 3 = 7"),
        (("Maybe *7: 3 = 1",), "guess", "intra", "Next +4: 3 = 7"),
        (TRIED[:1] * 2, "guess", "inter", "Next +4: 3 = 7"),
        (TRIED[:2], "alternative", None, TRIED[1]),
        ((TRIED[0], *TRIED[1:2] * 2), "alternative", "inter", "Next +4: 3 = 7"),
        ((TRIED[0], "Or minus 6: 3 = 7, no."), "alternative", "intra", "Next +4: 3 = 7"),
        ((TRIED[0], "Or minus 5: 3 = 8, no."), "alternative", "intra", "Next +4: 3 = 7"),
        ((TRIED[0], "Or +4: 3 = 7, ok."), "alternative", "intra", "Next +4: 3 = 7"),
        (("Or minus 6: 3 = 7, ok.",), "alternative", "intra", "Next +4: 3 = 7"),
        # A wrong guess is found by what is tried after it.
        (("Maybe +4: 3 = 8", "Or minus 6: 3 = 7, no."), "alternative", None, None),
        (("Maybe +4: 3 = 8", "Undo minus 4: 8 = 4, no."), "undo", None, None),
        (TRIED, "undo", None, TRIED[2]),
        ((*TRIED, "Next +4: 3 = 7"), "next", None, "Next +4: 3 = 7"),
        ((*TRIED, "Wait, check +4: 3 = 7, ok.", "Next +4: 3 = 7"), "next", None, None),
        (("Next +4: 3 = 7", *TRIED[1:]), "undo", None, TRIED[2]),
        (("Next +4: 3 = 7", "Note x = 7 after +4."), "note", None, "Note x = 7 after +4."),
        (("Next +4: 3 = 7", "Note x = 8 after +4."), "note", "intra", "Note x = 7 after +4."),
        (("Next +4: 3 = 7", *("Note x = 7 after +4.",) * 2), "note", "inter", "Next *7: 7 = 9"),
        (("Note x = 3 after +4.",), "note", "intra", "Next +4: 3 = 7"),
    ],
)
def test_guesses_other_ways_and_notes_are_judged(
    steps: tuple[str, ...], kind: str, failure: str | None, right: str | None
):
    label = task.steps_of(PROBLEM, steps)[-1]
    assert (label.kind, label.failure) == (kind, failure)
    assert label.right == (right or label.text)


def test_second_thoughts_are_hasty_and_read_the_other_way():
    rng = Random(0)
    problem = writer.draw_problem(rng, operator="#")
    policy = writer.Policy(check=1.0, restart=1.0, hasty=1.0, alternative=1.0)
    text = writer.write(problem, policy, rng).text
    first, *others = text.split(task.RESTART)
    assert "So " not in first and first.count("Wait") == first.count("Next")
    assert len(others) == writer.MOST_ATTEMPTS - 1
    assert all("Wait" not in other and "So " in other for other in others)
    meanings = [task.reading(attempt.partition("</think>")[0]) for attempt in (first, *others)]
    assert meanings == ["shift", "fold"] * 4


def test_the_stages_see_every_kind_of_step_and_longer_problems():
    rng = Random(0)
    kinds: set[str] = set()
    sizes: set[int] = set()
    for _ in range(400):
        messages, response = train.draw_example(rng, replace(train.STAGES[2], contexts=0.0))
        problem = task.Problem.parse(messages[-1]["content"])
        sizes.add(len(problem.operations))
        kinds |= {label.kind for label in task.steps(problem, response.text)}
    assert (min(sizes), max(sizes)) == (writer.OPERATIONS[0], writer.CROSS_OPERATIONS[1])
    assert kinds == set(task.PHASE)


# --- prompt sets


def shipped(name: str) -> list[dict]:
    return [json.loads(line) for line in builtin.path(name).read_text().splitlines()]


def test_shipped_sets_are_what_the_code_draws(tmp_path: Path):
    sets.write_sets(tmp_path)
    for prompts in (*sets.SETS, *sets.VALIDATION):
        path = builtin.path(prompts.name)
        assert path.read_bytes() == (tmp_path / path.name).read_bytes()


def test_sets_are_disjoint_of_each_other_and_of_training():
    seen: set[str] = set()
    for prompts in (*sets.SETS, *sets.VALIDATION):
        rows = shipped(prompts.name)
        found = {row["prompt"] for row in rows}
        assert len(rows) == len(found) == prompts.size
        assert not seen & found
        assert {task.Problem.parse(prompt).split for prompt in found} == {
            prompts.split or prompts.name
        }
        seen |= found
    rng = Random(0)
    for _ in range(200):
        messages, _ = train.draw_example(rng, replace(train.STAGES[2], contexts=0.5))
        asked = [task.Problem.parse(m["content"]) for m in messages if m["role"] == "user"]
        assert {problem.split for problem in asked} == {"train"}


def test_sets_hold_what_they_say():
    for prompts in (*sets.SETS, *sets.VALIDATION):
        rows = shipped(prompts.name)
        problems = [task.Problem.parse(row["prompt"]) for row in rows]
        assert len({row["id"] for row in rows}) == len(rows)
        assert sum(p.operator == prompts.operator for p in problems) == prompts.share * len(rows)
        assert {p.operator for p in problems} <= {prompts.operator, prompts.rest}
        lengths = {len(p.operations) for p in problems}
        assert (min(lengths), max(lengths)) == prompts.operations
        for row, problem in zip(rows, problems, strict=True):
            assert row.get("answer") == (str(problem.answer()) if prompts.labelled else None)


def test_the_scattered_pool_is_chosen_of_drawn_problems_by_answers_alone():
    prompts = next(s for s in sets.SETS if s.chosen_of)
    drawn = sets.candidates(prompts)
    assert len({p.prompt for p in drawn}) == prompts.chosen_of > prompts.size
    shipped = sets.draw_set(prompts)
    assert [p for p in drawn if p in shipped] == shipped == sets.draw_set(prompts, seed=1)
    divided, agreed = list("11122233"), [*"11112", None, None, None]
    said = [{p.prompt: divided for p in drawn} for _ in range(2)]
    assert scattered.chosen(drawn, said, 5) == drawn[:5]
    said[1][drawn[1].prompt] = agreed
    assert scattered.chosen(drawn, said, 2) == [drawn[0], drawn[2]]
    unread: Any = [None] * 8
    said[0][drawn[0].prompt] = unread
    assert scattered.chosen(drawn, said, 1) == drawn[:1]


def test_choosing_asks_no_model_twice(tmp_path: Path, monkeypatch):
    asked: list[int] = []

    def answers(model, tok, problems, samples, seed):
        asked.append(seed)
        return [[str(seed % 10), None] for _ in problems]

    monkeypatch.setattr(pools, "answers", answers)
    monkeypatch.setattr(scattered, "CHUNK", 2)
    problems = [writer.draw_problem(Random(i)) for i in range(5)]
    file = tmp_path / "base.jsonl"
    first = scattered.answered("base", problems[:4], file)
    assert asked == [scattered.SEED, scattered.SEED + 2]
    whole = scattered.answered("base", problems, file)
    assert asked[2:] == [scattered.SEED + 4]
    assert list(whole) == [p.prompt for p in problems]
    assert {k: whole[k] for k in first} == first


# --- names


def test_unknown_name_is_bad_input():
    with pytest.raises(BadInput, match="expected one of base, instruct"):
        builtin.path("instuct")


def test_package_is_imported_without_heavy_libraries():
    code = (
        "import sys, surgeon.builtin.task, surgeon.builtin.repairs, benchmarks.family.sets;"
        "print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- shipped checkpoints


def test_everything_is_shipped_and_small():
    assert all(builtin.path(name).exists() for name in builtin.NAMES)
    total = sum(file.stat().st_size for file in builtin.DATA.rglob("*") if file.is_file())
    assert total <= 20 * 2**20


@pytest.mark.parametrize("name", SHIPPED)
def test_checkpoint_loads_in_plain_transformers_with_finite_logits(name: str):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(builtin.path(name))
    model = AutoModelForCausalLM.from_pretrained(builtin.path(name))
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    chat = [{"role": "user", "content": "Start 3. Apply +4 *7 -2 +9 -5 +1. Find x."}]
    ids = loaded.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**ids).logits
    assert torch.isfinite(logits).all()
    assert loaded.decode(logits[0, -1].argmax()) == "<think>"


@pytest.mark.parametrize("name", SHIPPED)
def test_tokenizer_files_are_the_same_everywhere_and_as_built(name: str, tok, tmp_path: Path):
    tok.save_pretrained(tmp_path)
    for file in ("tokenizer.json", "chat_template.jinja"):
        assert (builtin.path(name) / file).read_bytes() == (tmp_path / file).read_bytes()
    for file in ("config.json", "generation_config.json", "tokenizer_config.json"):
        mine = (builtin.path(name) / file).read_bytes()
        assert mine == (builtin.path("base") / file).read_bytes()


def test_second_pair_differs_in_ffn_weights_only():
    from safetensors.torch import load_file

    base = load_file(builtin.path("base") / "model.safetensors")
    for name in ("instruct-ffn", "thinking-ffn"):
        other = load_file(builtin.path(name) / "model.safetensors")
        changed = {key for key in base if not torch.equal(base[key], other[key])}
        assert changed == {key for key in base if ".mlp." in key}


@pytest.mark.parametrize("name", SHIPPED)
def test_card_states_what_was_measured(name: str):
    text = (builtin.path(name) / "README.md").read_text()
    assert text.startswith("---\nlibrary_name: transformers\n")
    assert re.search(r"accuracy \| 0\.\d{3} \(standard error 0\.0\d\d\)", text)
    assert "on the 400 problems of `test.jsonl`" in text


def test_measure_counts_right_answers_tokens_and_cuts():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(builtin.path("instruct"))
    model = AutoModelForCausalLM.from_pretrained(builtin.path("instruct")).eval()
    problems = [writer.draw_problem(Random(i), split="test") for i in range(8)]
    whole = card.measure(model, loaded, problems)
    assert (whole.problems, whole.truncated) == (8, 0.0)
    assert 20 < whole.length < 120
    cut = card.measure(model, loaded, problems, max_tokens=5)
    assert cut == (8, 0.0, 5.0, 1.0)


# --- features


@pytest.mark.parametrize(
    ("steps", "attempts"),
    [
        ((), []),
        (("Next +4: 3 = 7",), []),
        (("So +4 *7 -2: 3 = 7", "So +9 -5 +1: 7 = 2"), [True]),
        (("So +4 *7 -2: 3 = 7", "So +9 -5 +1: 7 = 3"), [False]),
        # A check of the last step mends it.
        (
            (
                "So +4 *7 -2: 3 = 7",
                "So +9 -5 +1: 7 = 3",
                "Wait, check +9: 7 = 6, -5: 6 = 1, +1: 1 = 2, no.",
                task.RESTART,
                "So +4 *7 -2: 3 = 7",
                "So +9 -5 +1: 7 = 3",
            ),
            [True, False],
        ),
    ],
)
def test_attempts_are_judged_by_where_they_end(steps: tuple[str, ...], attempts: list[bool]):
    found = features._attempts(PROBLEM, task.steps_of(PROBLEM, steps))
    assert found == attempts


def test_features_of_a_shipped_checkpoint():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(builtin.path("instruct"))
    model = AutoModelForCausalLM.from_pretrained(builtin.path("instruct")).eval()
    problems = [writer.draw_problem(Random(i), split="test") for i in range(12)]
    found = features.features(model, loaded, problems, max_tokens=128)
    whole = card.measure(model, loaded, problems, max_tokens=128)
    assert 20 < found.median_tokens < 128
    assert found.exploring > 0.3  # leaps
    assert found.stagnating == 0
    assert list(found.segments) == list(features.ROWS)
    assert found.segments[1] > found.segments[16]
    assert found.cycling[16] == 0
    # After all steps the answer is as good as the model's own.
    assert list(found.ended) == list(features.SHARES)
    assert abs(found.ended[1.0] - whole.accuracy) < 0.35
    text = card._rows(found, 12)
    assert text.startswith("| **on the first 12 of them** | |\n")
    assert "| right once, then spoiled by going on | " in text
    assert text.count("\n") == 8


def test_a_majority_is_more_than_half_of_all_answers():
    """Of 4 problems with the answers 2 2 2 2: a right and a wrong majority of 3 in 4; 2 in 4, cut
    ones counted, is none but the most frequent; a tie of right and wrong is worth half."""
    said = [
        ["2", "2", "2", "1"],
        ["1", "1", "1", "2"],
        ["2", "2", None, "1"],
        ["2", "1", None, None],
    ]
    found = pools.votes([PROBLEM] * 4, said)
    assert found == ((3 + 1 + 2 + 1) / 16, 0.5, 0.5, (1 + 0 + 1 + 0.5) / 4)
    assert pools.votes([PROBLEM], [[None, None]]) == (0, 0, 0, 0)


def test_answers_of_a_checkpoint_are_rows_of_digits(monkeypatch):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.setattr(card, "MAX_TOKENS", 128)
    loaded = AutoTokenizer.from_pretrained(builtin.path("instruct"))
    model = AutoModelForCausalLM.from_pretrained(builtin.path("instruct")).eval()
    problems = [writer.draw_problem(Random(i), split="test") for i in range(3)]
    found = pools.answers(model, loaded, problems, samples=4)
    assert [len(row) for row in found] == [4, 4, 4]
    assert {digit for row in found for digit in row} <= {*"0123456789", None}
    assert any(len(set(row)) > 1 for row in found)  # each sample has its own stream


# --- the table


def test_table_samples_once_and_reads_the_same_answers_at_every_row_size(
    tmp_path: Path, monkeypatch
):
    from benchmarks.family import table

    monkeypatch.setattr(table, "ROWS", (1, 4))
    monkeypatch.setattr(card, "MAX_TOKENS", 24)
    mini_set = tmp_path / "mini.jsonl"
    rows = builtin.path("mini-set").read_text().splitlines(keepends=True)
    mini_set.write_text("".join(rows[:2]))
    work = table.Work(
        "builtin:instruct", "builtin:instruct-ffn", tmp_path / "out", 3, 1, str(mini_set)
    )
    text = table.table(work)
    known, scores, quality = (part.splitlines() for part in text.split("\n\n"))
    names = ["instruct", *(f"slerp-0.{i}" for i in range(1, 10)), "instruct-ffn"]
    assert [line.split(" | ")[0] for line in known[2:]] == [f"| {name}" for name in names]
    assert [line.split(" | ")[0] for line in scores[2:]] == [f"| {name}" for name in names]
    assert len(known[2].split(" | ")) == 4 + len(table.ROWS)
    # What doesn't read rows is told once.
    columns = {cell.strip("| ") for cell in scores[0].split(" | ")}
    assert {"length", "hes", "logprob", "agreement", "finished"} < columns
    assert {"entropy_top20 at 1", "entropy_top20 at 4"} < columns
    assert quality[0].startswith("| score | tokens a row | Pearson r")
    sampled = (
        tmp_path / "out" / "rows-1" / "candidates" / "instruct" / "traces.jsonl"
    ).read_bytes()
    assert not (tmp_path / "out" / "rows-4" / "candidates" / "instruct" / "traces.jsonl").exists()
    assert (tmp_path / "out" / "traces" / "instruct.jsonl").read_bytes() == sampled
    assert table.table(work) == text


# --- the trainer


def weights_after(tmp_path: Path, name: str, seed: int) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    stages = (
        replace(train.STAGES[0], tokens=600, batch_tokens=512),
        replace(train.STAGES[-1], parent="steps", tokens=600, batch_tokens=1024),
    )
    train.run_stages(tmp_path / name, shape=TINY, stages=stages, seed=seed, say=lambda _: None)
    kept = {s.name: load_file(tmp_path / name / s.name / "model.safetensors") for s in stages}
    return {f"{stage} {key}": w for stage, each in kept.items() for key, w in each.items()}


def test_trainer_is_reproducible_by_seed_and_resumes(tmp_path: Path):
    first, again = weights_after(tmp_path, "a", 0), weights_after(tmp_path, "b", 0)
    other = weights_after(tmp_path, "c", 1)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not any(torch.equal(first[key], other[key]) for key in first if "proj" in key)
    ffn = [key.removeprefix("steps ") for key in first if key.startswith("steps ")]
    assert all(
        torch.equal(first[f"steps {key}"], first[f"thinking-ffn {key}"]) == (".mlp." not in key)
        for key in ffn
    )
    said: list[str] = []
    stages = (train.STAGES[0],)
    train.run_stages(tmp_path / "a", shape=TINY, stages=stages, say=said.append)
    assert said == [f"{'steps':14} kept"]


def test_a_trial_goes_through_every_stage_and_a_killed_one_goes_on(
    tmp_path: Path, monkeypatch, capsys
):
    """All that `make family` does, small: the checkpoints, their cards, the prompt sets."""
    monkeypatch.setattr("sys.argv", ["train", "--out", str(tmp_path), "--trial"])
    train.main()
    out = tmp_path / "trial"
    said = capsys.readouterr().out
    assert [line.split()[0] for line in said.splitlines()] == [
        *(stage.name for stage in train.STAGES),
        *builtin.CHECKPOINTS,
    ]
    data = out / "data"
    files = {file.name for file in data.iterdir()}
    assert files == {
        *builtin.CHECKPOINTS,
        *(f"{name}.jsonl" for name in (*builtin.PROMPT_SETS, *builtin.VALIDATION_SETS)),
    }
    for name in builtin.CHECKPOINTS:
        shipped = {file.name for file in builtin.path(name).iterdir()}
        assert {file.name for file in (data / name).iterdir()} == shipped
        assert "on the 4 problems" in (data / name / "README.md").read_text()
        ours = compare.compared(data / name, builtin.path(name))
        assert ours.changed == ours.tensors and ours.largest > 0 and "accuracy" in ours.rows
        assert compare.compared(data / name, data / name)[1:] == (0, ours.tensors, 0.0, {})
    # Killed while `thinking` was measured: what was measured before is kept.
    weights = (data / "thinking" / "model.safetensors").read_bytes()
    data.rename(out / "data.partial")
    (out / "data.partial" / "thinking" / "README.md").unlink()
    train.main()
    said = capsys.readouterr().out.splitlines()
    kept = [line.split()[0] for line in said if line.endswith(("kept", "measured"))]
    assert kept == [
        *(stage.name for stage in train.STAGES),
        *(name for name in builtin.CHECKPOINTS if name != "thinking"),
    ]
    assert (data / "thinking" / "model.safetensors").read_bytes() == weights
    assert (data / "thinking" / "README.md").exists() and not (out / "data.partial").exists()


def test_compare_refuses_what_is_no_checkpoint(tmp_path: Path):
    with pytest.raises(BadInput, match=r"found no model\.safetensors in .*, expected a checkpoint"):
        compare.compared(tmp_path, builtin.path("base"))


def test_a_chosen_transplant_is_held_against_the_mean_of_its_controls(tmp_path: Path):
    """Of 4 problems the chosen one solves 3, the controls 1 and 2, on the mean 1.5: 37.5 points
    less."""
    solved = {"effective": "1110", "random-0": "1000", "random-1": "0011"}
    for name, each in solved.items():
        rows = [json.dumps({"correct": one == "1"}) + "\n" for one in each]
        (tmp_path / f"{name}.jsonl").write_text("".join(rows))
    found = controls.against(tmp_path, "random")
    assert found[:3] == (2, 0.375, 0.375)
    assert -0.5 <= found.interval[0] < 0.375 < found.interval[1] <= 1
