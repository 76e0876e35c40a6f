"""The methods that Neuron-OPSD is compared with: their equations by hand, and that a kill changes
nothing."""

import json
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from test_distill import SMALL, living, planned, records, running, write_pool

from benchmarks import distill_study
from surgeon import nopsd
from surgeon.artifact import read
from surgeon.checkpoint import Checkpoint
from surgeon.decoding import Answer
from surgeon.distill import METHODS, Distillation, controls, distill, grpo, rollouts
from surgeon.distill.accuracy_gap import by_votes
from surgeon.distill.advice import (
    auroc_within,
    best_of,
    of_a_score,
    of_the_majority_methods,
    split_half,
)
from surgeon.distill.demonstrations import choose_contexts
from surgeon.distill.diagnostics import told
from surgeon.distill.evidence import SetDiagnostics, Verdict
from surgeon.distill.grpo import RewardedMethod, RewardedRollouts, overlong_punishment
from surgeon.distill.pseudo_solutions import lessons, split
from surgeon.distill.rollouts import AnsweredQuestion, StepRollouts
from surgeon.distill.suppression import (
    Sampled,
    logprobs_and_entropies,
    lowest_tokens,
    negative_advantages,
    suppression_loss,
)
from surgeon.errors import BadInput
from surgeon.live.architecture import Head
from surgeon.settings import bind
from surgeon.settings.distill import DistillSettings
from surgeon.settings.evaluate import EvaluateSettings
from surgeon.settings.training import Tuning
from surgeon.threads import one_thread
from surgeon.traces import Trace
from surgeon.training.sequences import sequences
from surgeon.training.tuning import AveragedWeights, trainable, tune

TINY: dict[str, Any] = SMALL | {
    "steps": 3, "batch_size": 2, "samples": 3, "max_tokens": 12, "save_every": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory, make_checkpoint) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("rivals") / "m", dtype="float32")


# --- OPSA


def test_opsa_takes_the_least_likely_fifth_of_a_response():
    """Of ten tokens two, the first of equal ones; of three one."""
    logprob = torch.tensor([-0.1, -3.0, -0.2, -2.0, -0.3, -3.0, 0.0, 0.0, 0.0, 0.0])
    assert lowest_tokens(logprob, 0.2).tolist() == [1, 5]
    assert lowest_tokens(logprob, 0.35).tolist() == [1, 3, 5]
    assert lowest_tokens(logprob[2:5], 0.2).tolist() == [1]


def test_opsa_suppresses_more_where_the_model_was_undecided():
    """Entropies .5, 1, 1.5: -1/2, -3/4, -1; equal ones -1."""
    assert negative_advantages(torch.tensor([0.5, 1.0, 1.5])).tolist() == [-0.5, -0.75, -1.0]
    assert negative_advantages(torch.tensor([0.7, 0.7])).tolist() == [-1, -1]


def test_opsa_reads_likelihood_and_entropy_of_a_token():
    """p = (3/4, 1/4): log p of the second -1.3863, entropy .5623."""
    head = Head(torch.nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        head.module.weight.copy_(torch.eye(2))  # pyright: ignore
    state = torch.tensor([[torch.tensor(3.0).log(), 0.0]])
    logprob, entropy = logprobs_and_entropies(state, torch.tensor([1]), head)
    assert float(logprob) == pytest.approx(-1.386294, abs=1e-5)
    assert float(entropy) == pytest.approx(0.562335, abs=1e-5)


def test_opsa_loss_is_its_definition_token_by_token(source: Path):
    """Two responses of 5 and 3 tokens, of which 2 and 1 are suppressed (share .4)."""
    model = Checkpoint.open(source).model()
    prompts, responses = [[5, 6], [7]], [[8, 9, 10, 11, 12], [13, 14, 15]]
    ids = torch.tensor([t for response in responses for t in response])
    micro = Sampled(sequences(prompts, responses), ids, [5, 3])
    wanted, suppressed = torch.zeros(()), []
    for prompt, response in zip(prompts, responses, strict=True):
        logits = model(input_ids=torch.tensor([[*prompt, *response]])).logits[0].float()
        log_p = logits[len(prompt) - 1 : -1].log_softmax(-1)
        own = log_p[range(len(response)), response]
        entropy = -(log_p.exp() * log_p).sum(-1)
        lowest = sorted(sorted(range(len(response)), key=own.tolist().__getitem__)[
            : int(0.4 * len(response))])  # fmt: skip
        low, high = entropy[lowest].min(), entropy[lowest].max()
        for t in lowest:
            spread = (entropy[t] - low) / (high - low) if len(lowest) > 1 else torch.tensor(1.0)
            wanted = wanted + (0.5 + 0.5 * spread).detach() * own[t] / len(lowest)
        suppressed.append(len(lowest))
    loss = suppression_loss(0.4)(model, micro, None)
    assert suppressed == [2, 1] and float(loss.sums["suppressed"]) == 3
    assert loss.total.item() == pytest.approx(wanted.item(), rel=1e-5)
    loss.total.backward()
    mine = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    wanted.backward()
    theirs = [p.grad for p in model.parameters() if p.grad is not None]
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


# --- DAPO


def test_dapo_punishes_the_last_fifth_of_the_longest_answer():
    """Of 100 tokens: nothing up to 80, half at 90, 1 at 100."""
    found = [overlong_punishment(tokens, 100) for tokens in (1, 80, 85, 90, 100)]
    assert found == pytest.approx([0, 0, -0.25, -0.5, -1])


def rewarded(questions: list[int], rewards: list[list[float]]) -> RewardedRollouts:
    groups = [
        AnsweredQuestion(i, [Answer(n, [20, 2][: 1 + n], "stop") for n in range(2)])
        for i in questions
    ]
    return RewardedRollouts(StepRollouts(groups, 0, 3 * len(questions)), rewards)


def test_dapo_replaces_questions_that_teach_nothing(source: Path, tmp_path: Path, monkeypatch):
    """Two places: of the first draw only question 1 is answered unlike, of the second only 5."""
    labels = write_pool(tmp_path / "l.jsonl", labels=True)
    run = running(planned(source, tmp_path, method="dapo", labels=labels, samples=2), live=None)
    run = run._replace(
        evidence=run.evidence, live=type("Live", (), {"accelerator": type("Peers", (), {
            "device": "cpu", "num_processes": 1})()})()
    )  # fmt: skip
    run.evidence.chosen = list(range(8))
    draws = iter([rewarded([4, 5], [[1, 1], [0, 1]])])
    monkeypatch.setattr(grpo, "rewarded", lambda *_: next(draws))
    method = RewardedMethod(grpo.checked_reward, grpo.shaped, dynamic=True, by_token=True)
    first = rewarded([0, 1], [[0, 0], [1, 0]])
    found = grpo.informative(run, method, None, 0, [0, 1], first)
    assert [each.question for each in found.rollouts.questions] == [1, 5]
    assert found.rewards == [[1, 0], [0, 1]] and found.rollouts.generated == 12
    # Where none is found what was drawn first stays, without an advantage.
    monkeypatch.setattr(grpo, "rewarded", lambda *_: rewarded([6, 7], [[1, 1], [0, 0]]))
    alike = rewarded([0, 2], [[0, 0], [1, 1]])
    assert grpo.informative(run, method, None, 0, [0, 1], alike).rewards == [[0, 0], [1, 1]]


def test_dapo_averages_over_tokens_and_grpo_over_responses(source: Path, tmp_path: Path):
    """Responses of 1 and 2 tokens with rewards 1 and 0: advantages +-.7071. GRPO weighs tokens
    1 and 1/2 and divides by 2 responses, DAPO weighs all alike and divides by 3 tokens."""
    run = running(planned(source, tmp_path))
    found = rewarded([0], [[1.0, 0.0]])
    by_response = grpo.batch_of(run, RewardedMethod(grpo.checked_reward), None, found)
    by_token = grpo.batch_of(run, RewardedMethod(grpo.checked_reward, by_token=True), None, found)
    assert (by_response.weight, by_token.weight) == (2, 3)
    (one,), (two,) = by_response.micros, by_token.micros
    order = one.sequences.at_P.argsort()
    assert one.share_P.tolist() == [0.5, 0.5, 1.0] and two.share_P.tolist() == [1, 1, 1]
    a = 0.70711 / (1 + 1e-4 / 0.70711)
    assert len(order) == 3
    assert one.advantage_P.tolist() == pytest.approx([-a / 2, -a / 2, a], abs=1e-3)
    assert two.advantage_P.tolist() == pytest.approx([-a, -a, a], abs=1e-3)
    assert by_token.sums["alike"] == 0 and by_token.sums["reward"] == 1


# --- U-OPSD


@pytest.mark.parametrize(
    ("votes", "threshold", "expected"),
    [
        # 7, 7, 8, cut and 7: the sevens from the longest on, then those that disagree.
        (["7", "7", "8", None, "7"], 0.5, ([4, 0, 1], [3, 2])),
        (["7", "7", "8", None, "7"], 0.7, None),
        (["7", "7", "7", "7", "7"], 0.5, None),  # nobody is taught
        ([None] * 5, 0.0, None),
        (["7", "8", "9", "6", None], 0.5, None),
    ],
)
def test_uopsd_teaches_those_that_disagree_with_a_sure_majority(votes, threshold, expected):
    assert split(votes, [9, 5, 12, 20, 11], threshold) == expected


def test_forward_kl_and_its_gradient_are_the_definition():
    """Sum of q (log q - log p) over the vocabulary, weighted by token; p is the student."""
    torch.manual_seed(0)
    student, teacher = torch.randn(5, 4, requires_grad=True), torch.randn(5, 4)
    head, weight = torch.randn(9, 4, requires_grad=True), torch.rand(5)
    found = nopsd.forward_kl(student, teacher, head, weight_T=weight, chunk_tokens=2)
    log_p = (student @ head.T).log_softmax(-1)
    log_q = (teacher @ head.T).log_softmax(-1).detach()
    wanted = (weight * (log_q.exp() * (log_q - log_p)).sum(-1)).sum()
    torch.testing.assert_close(found.total, wanted)
    mine = torch.autograd.grad(found.total, (student, head))
    theirs = torch.autograd.grad(wanted, (student, head))
    torch.testing.assert_close(mine, theirs)


def test_uopsds_teacher_sees_the_question_with_its_solution(source: Path, tmp_path: Path):
    """Of 3, 3, 8 the first three solves; a template that drops thinking sees
    it without tags."""
    plan = planned(source, tmp_path, method="uopsd", answer=r"(\d)$", samples=3)
    live = living(plan)
    words = live.tokenizer.get_vocab()
    three, eight, w9 = (words[word] for word in ("3", "8", "w9"))
    answers = [
        Answer(0, [w9, three, 2], "stop"), Answer(1, [three, 2], "stop"),
        Answer(2, [eight, 2], "stop"),
    ]  # fmt: skip
    run = running(plan, live=live)
    (lesson,) = lessons(run, [AnsweredQuestion(4, answers)])
    assert lesson.question == 4 and lesson.answer == answers[2]
    text = str(live.tokenizer.decode(list(lesson.teacher_ids)))
    turns = [turn.split("<|im_start|>")[-1].split() for turn in text.split("<|im_end|>")]
    assert [turn[0] for turn in turns] == ["user", "assistant", "user", "assistant"]
    assert turns[1][1:] == ["w9", "3"] and turns[0] == turns[2]
    # A teacher's prompt without room: the shorter solution, then none.
    for room, shown in ((len(lesson.teacher_ids) - 1, 1), (len(lesson.teacher_ids) - 2, 0)):
        tight = run._replace(plan=plan._replace(teacher_tokens=room))
        assert len(lessons(tight, [AnsweredQuestion(4, answers)])) == shown


def test_a_step_without_a_lesson_moves_nothing(source: Path, tmp_path: Path):
    """Where all would have to agree, nobody is left to teach: no loss and no gradient."""
    pool = write_pool(tmp_path / "pool.jsonl", 4)
    settings = TINY | {"method": "uopsd", "steps": 1, "diagnose": 2, "threshold": 1.0}
    distill(str(source), pool=pool, out=tmp_path / "out", **settings)
    (record,) = records(tmp_path / "out")
    assert record["taught"] == record["loss"] == record["gradient_norm"] == record["tokens"] == 0
    weights = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert all(not tensor.any() for name, tensor in weights.items() if "lora_B" in name)


# --- contexts


def test_demonstrations_of_like_lengths_are_not_the_neighbours():
    """The query 0 has neighbours 1 (5 long) and 2 (9 long): 4 (6) and 3 (8) are nearest in
    length."""
    found = controls.of_like_lengths(
        [[1, 2]], np.array([5, 5, 9, 8, 6, 1]), queries=[0], candidates=np.arange(6)
    )
    assert found == [[4, 3]]


def test_demonstrations_with_the_same_answer():
    answers = ["7", "7", "8", "7", None, "7"]
    found = controls.of_the_same_answer(
        answers, 2, queries=[0, 2, 4], candidates=np.array([0, 1, 3, 2]), seed=1
    )
    assert set(found[0]) == {1, 3} and found[1:] == [[], []]


def test_demonstrations_by_cosine():
    """(1, 0) against (2, 0), (0, 1), (1, 1): distances 0, 1 and 1 - 1/sqrt 2."""
    vectors = np.array([[1.0, 0], [2, 0], [0, 1], [1, 1]])
    found, distances = controls.nearest_by_cosine(vectors, 2, queries=[0], candidates=np.arange(4))
    assert found == [[1, 3]] and distances[0] == pytest.approx([0, 0.292893], abs=1e-6)


@pytest.mark.parametrize("context", ["length", "answer", "embedding"])
def test_a_control_chooses_the_teachers_context(source: Path, tmp_path: Path, context: str):
    plan = planned(source, tmp_path, context=context, shots=2)
    live = living(plan)
    traces = [Trace(f"q{i}", 0, [5], [20], "w7" if i % 2 else "w8", "stop") for i in range(16)]
    sets = nopsd.gather([np.arange(i, i + 9, dtype=np.int32) for i in range(16)], 200)
    found = choose_contexts(plan, live, traces, sets, [3, 8])
    for query, shown in found.items():
        assert len(shown.shot_K) == shown.kept == 2 and query not in shown.shot_K
        if context == "answer":
            assert all(i % 2 == query % 2 for i in shown.shot_K)
        if context == "length":
            assert not set(shown.shot_K) & {query - 1, query + 1}  # its neighbours
        assert (shown.distance_K is not None) is (context == "embedding")
    if context == "answer":
        apart = [replace(trace, text=f"w{i}") for i, trace in enumerate(traces)]
        with pytest.raises(BadInput, match="context 'answer' has nothing to show"):
            choose_contexts(plan, live, apart, sets, [3, 8])


# --- before training


def test_the_accuracy_gap_by_votes_and_by_hand():
    """Two questions, two answers a side. The pooled majorities are 7 (three of 7, 8 | 7, 7) and 5
    (5, None | 5, 4): the student is right in 1/2 and 1/2, the teacher in 1 and 1/2."""
    found = by_votes([["7", "8"], ["5", None]], [["7", "7"], ["5", "4"]])
    assert (found.student, found.teacher, found.gap) == (0.5, 0.75, 0.25)
    assert found.against == "votes" and found.questions == 2
    assert found.interval[0] == 0 and found.interval[1] == 0.5
    assert "by the law a gain of +0.165 to +0.375" in found.sentence()


def test_halves_of_the_votes_by_hand():
    """7, 7, 7, 8, 7, 7: halves (7, 7, 7) and (7, 8, 7) both say 7, single answers 5/6 of the time.
    1, 2, 1, 2: the halves say 1 and 2, nobody agrees with the other half."""
    gain_Q, agree_Q = split_half([["7", "7", "7", "8", "7", "7"], ["1", "2", "1", "2"]])
    assert agree_Q.tolist() == [1, 0] and gain_Q == pytest.approx([1 / 6, 0])


def test_a_score_is_held_against_the_vote_within_a_question():
    """Answers 7, 7, 8 with scores 3, 1, 2: of the pairs (3, 2) and (1, 2) one is in order."""
    assert auroc_within([3, 1, 2], ["7", "7", "8"]) == 0.5
    assert auroc_within([3, 3, 2], ["7", "7", None]) == 1.0
    assert auroc_within([3, 1], ["7", "7"]) is None and auroc_within([3, 1], ["7", "8"]) is None


def test_what_is_said_of_the_methods():
    sure = [["7"] * 6 + ["8"] * 2] * 12
    (said, *_) = of_the_majority_methods(sure, 0.25, 0.0)
    assert (said.method, said.speaks) == ("lmsi", "for") and said.gain == pytest.approx(0.25)
    for votes, room, unread, why in (
        (sure, 0.25, 0.6, "60% of the answers can't be read"),
        (sure, 0.01, 0.0, "agree already"),
        ([["1", "2"] * 4] * 12, 0.5, 0.0, "the same majority in 0%"),
    ):
        (said, *_) = of_the_majority_methods(votes, room, unread)
        assert said.speaks == "against" and why in said.why
    for high, speaks in ((3.0, "for"), (1.0, "against")):
        told = of_a_score("opsa", "x", [[high, high, 2.0]] * 9, [["7", "7", "8"]] * 9)
        assert told.speaks == speaks
    assert of_a_score("opsa", "x", [[1.0, 1.0]] * 9, [["7", "7"]] * 9).speaks == "neither"


def verdict(method: str, speaks: Any, gain: float | None) -> Verdict:
    return Verdict(method=method, speaks=speaks, gain=gain, why="")


def test_auto_takes_the_largest_gain_that_is_spoken_for():
    against = [verdict("nopsd", "against", 0.3), verdict("opsa", "neither", None)]
    spoken = [verdict("lmsi", "for", 0.1), verdict("ttrl", "for", 0.1)]
    assert best_of([*against, *spoken, verdict("intuitor", "for", None)]) == "lmsi"
    assert best_of([*against, verdict("intuitor", "for", None)]) == "intuitor"
    assert best_of(against) is None and best_of(against, forced=True) == "nopsd"


def test_auto_never_trains_what_is_spoken_against(source: Path, tmp_path: Path, capsys):
    """Three questions are too few to speak for anything; --force trains all the same, from the
    answers that are there."""
    pool = write_pool(tmp_path / "pool.jsonl", 6)
    settings = SMALL | {"method": "auto", "steps": 1, "diagnose": 3, "lr": None, "batch_size": 2}
    with one_thread():
        with pytest.raises(BadInput, match="speak for no method, so auto trains none"):
            distill(str(source), pool=pool, out=tmp_path / "out", **settings)
        said = capsys.readouterr().err
        assert "auto takes              none of them" in said and "too few" in said
        assert not (tmp_path / "out").exists()
        result = distill(str(source), pool=pool, out=tmp_path / "out", force=True, **settings)
    measured = result.diagnostics
    assert [v.method for v in measured.verdicts] == [
        "nopsd", "lmsi", "uopsd", "ttrl", "intuitor", "opsa",
    ]  # fmt: skip
    assert measured.taken in METHODS and result.settings["method"] == "auto"
    part = measured.taken == "nopsd"
    assert isinstance(measured, SetDiagnostics)
    assert measured.chosen == (2 if part else 6) and ("is trained on" in told(measured)) is part
    assert METHODS[str(measured.taken)].what in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(BadInput, match="give steps"):
        planned(source, tmp_path, method="auto", steps=None, epochs=1)
    with pytest.raises(BadInput, match="it is for method auto"):
        planned(source, tmp_path, method="ttrl", force=True)


# --- all of them


@pytest.mark.parametrize("method", ["intuitor", "uopsd", "opsa", "dapo"])
def test_a_method_trains_and_a_kill_changes_nothing(
    source: Path, tmp_path: Path, monkeypatch, method: str
):
    """Killed in its third step and continued; labelled methods say that they are."""
    pool = write_pool(tmp_path / "pool.jsonl", 6)
    labels = write_pool(tmp_path / "labels.jsonl", 5, labels=True)
    rows = [json.loads(line) | {"answer": "1"} for line in Path(labels).read_text().splitlines()]
    Path(labels).write_text("".join(json.dumps(row) + "\n" for row in rows))
    labelled = method in ("grpo", "dapo")
    settings = TINY | {"method": method, "diagnose": 2}
    if method in ("uopsd", "dapo"):  # answers are first digits of words: some agree, some are 1
        settings |= {"answer": r"w(\d)", "max_tokens": 80, "samples": 5}
    settings |= {"labels": labels} if labelled else {}
    settings |= {"threshold": 0.2} if method == "uopsd" else {}
    with one_thread():
        result = distill(str(source), pool=pool, out=tmp_path / "one", **settings)
        real, fits = rollouts.rollout, []

        def rollout(*args):
            fits.append(1)
            if len(list((tmp_path / "two.partial" / "training").glob("state-*[0-9]"))) and (
                json.loads(
                    (tmp_path / "two.partial" / "training" / "metrics.jsonl")
                    .read_text().splitlines()[-1]
                )["step"] == 2
            ):  # fmt: skip
                raise KeyboardInterrupt
            return real(*args)

        with monkeypatch.context() as patch:
            patch.setattr(rollouts, "rollout", rollout)
            with pytest.raises(KeyboardInterrupt):
                distill(str(source), pool=pool, out=tmp_path / "two", **settings)
        distill(str(source), pool=pool, out=tmp_path / "two", **settings)
    assert len(records(tmp_path / "one")) == 3
    assert records(tmp_path / "one") == records(tmp_path / "two")
    assert any(record["gradient_norm"] > 0 for record in records(tmp_path / "one"))
    name = "adapter_model.safetensors"
    assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    card = (tmp_path / "one" / "README.md").read_text()
    assert ("Labelled: training was rewarded by the answers to 5 questions" in card) is labelled
    assert ("No label was read in training" in card) is not labelled
    assert result.rewarded_by == (5 if labelled else 0)
    assert read(Distillation, tmp_path / "one") == result
    assert result.cost is not None and result.cost.rollout_seconds > 0
    assert result.cost.generated == sum(
        round(row["generated"] * row["responses"]) for row in records(tmp_path / "one")
    )


@pytest.mark.parametrize("method", ["ttrl", "opsa"])
def test_rollouts_come_from_the_engine(source: Path, tmp_path: Path, monkeypatch, method: str):
    """An engine that answers as the decoder here does is asked for every rollout, and the numbers
    are the same."""
    import surgeon.distill.suppression as opsa

    pool = write_pool(tmp_path / "pool.jsonl", 6)
    settings = TINY | {"method": method, "steps": 2, "diagnose": 2}
    asked = []

    class Engine:
        def __init__(self, run: Any):
            self.run = run

        def rollouts(self, step: int, keys: Any, prompts: Any) -> tuple[list[Answer], int]:
            asked.append((step, len(keys)))
            stop = rollouts.stop_ids(self.run.student.model, self.run.live.tokenizer)
            requests = [
                rollouts.Request(ids, rollouts.stream_key(0, *key))
                for ids, key in zip(prompts, keys, strict=True)
            ]
            plan = self.run.plan
            return self.run.student.rollouts(
                lambda model: rollouts.rollout(model, requests, stop, plan)
            ), step

    @contextmanager
    def pushed(run: Any):
        yield Engine(run)

    with one_thread():
        distill(str(source), pool=pool, out=tmp_path / "here", **settings)
        for module in (grpo, opsa):
            monkeypatch.setattr(module, "pushed", pushed)
        distill(str(source), pool=pool, out=tmp_path / "there", **settings)
    assert asked == [(0, 6 if method == "ttrl" else 2), (1, 6 if method == "ttrl" else 2)]
    told = records(tmp_path / "there")
    assert [row.pop("staleness") for row in told] == [0, 1]
    assert told == records(tmp_path / "here")


def test_a_check_against_labels_rewards_right_rollouts(source: Path, tmp_path: Path):
    """Question 3 has the label 3: of 3, 8 and a truncated 3 the first is right; DAPO's reward is
    1, -1, -1 and -1 more for the longest possible answer."""
    labels = write_pool(tmp_path / "l.jsonl", labels=True)
    plan = planned(
        source, tmp_path, method="dapo", labels=labels, answer=r"(\d)$", samples=3, max_tokens=4
    )
    live = living(plan)
    three, eight = (live.tokenizer.get_vocab()[word] for word in "38")
    answers = [
        Answer(0, [three, 2], "stop"), Answer(1, [eight, 2], "stop"),
        Answer(2, [three] * 4, "length"),
    ]  # fmt: skip
    run = running(plan, live=live)
    asked = [AnsweredQuestion(3, answers)]
    assert grpo.checked_reward(run, live.model, asked) == [[1, 0, 0]]
    assert grpo.shaped(run, asked[0], [1, 0, 0]) == pytest.approx([1, -1, -2])


# --- what a step costs


def test_rollouts_of_a_question_read_its_prompt_once(source: Path, tmp_path: Path):
    """Eight rollouts of one question, of one token each: the prompt passes through the model once,
    and once a row at most its last token."""
    plan = planned(source, tmp_path, max_tokens=1)
    model = living(plan).model
    passed = []
    hook = model.get_input_embeddings().register_forward_hook(  # pyright: ignore
        lambda _, args, __: passed.append(args[0].numel())
    )
    prompt = list(range(20, 60))
    requests = [rollouts.Request(prompt, rollouts.stream_key(0, "q", n)) for n in range(8)]
    rollouts.rollout(model, requests, frozenset(), plan)  # asks the model once what it can do
    passed.clear()
    answers = rollouts.rollout(model, requests, frozenset(), plan)
    hook.remove()
    assert [len(answer.token_ids) for answer in answers] == [1] * 8
    assert sum(passed) < 2 * len(prompt) + 8


def test_teacher_and_student_share_the_base(source: Path):
    """Under LoRA the teacher holds the factors and nothing else, and acts with the base's own
    weights."""
    model = Checkpoint.open(source).model()
    tune(model, Tuning(rank=4))
    teacher = AveragedWeights(model, 0.01)
    assert teacher.tensors.keys() == trainable(model).keys()
    assert all(".lora_" in name for name in teacher.tensors)
    frozen = {n: p.data_ptr() for n, p in model.named_parameters() if not p.requires_grad}
    with teacher.acting():
        acting = {n: p.data_ptr() for n, p in model.named_parameters() if not p.requires_grad}
    assert acting == frozen
    held = sum(tensor.numel() for tensor in teacher.tensors.values())
    assert held < 0.2 * sum(p.numel() for p in model.parameters())


def test_the_committed_recipes_of_the_study_are_the_generated_ones():
    recipe = Path(__file__).parents[1] / "recipes" / "distill-study.yaml"
    assert recipe.read_text() == distill_study.rates_recipe()
    committed = (recipe.parent / "distill-study-seeds.yaml").read_text()
    firsts = {
        step["distill"]["method"]: float(step["distill"]["lr"])
        for step in reversed(yaml.safe_load(committed))
        if "distill" in step
    }
    best = {method: firsts[method] for method in distill_study.METHODS}
    assert distill_study.seeds_recipe(best) == committed
    written = yaml.safe_load(committed)
    trainings = [step["distill"] for step in written if "distill" in step]
    assert len(trainings) == 5 * (8 + 6 + 2 * 5) + (1 + 6 + 2)
    assert len({training["out"] for training in trainings}) == len(trainings)
    for training in trainings:
        bind(DistillSettings, training)
        # Labels are of the pool's questions; a pool that has answers is its own.
        labels, pool = training["labels"], training["pool"].partition("[")[0]
        source = distill_study.LABELS.get(Path(labels))
        assert pool == (f"builtin:{source}" if source else labels.partition("[")[0])
    for step in written[-6:]:
        bind(EvaluateSettings, step["evaluate"])


def test_the_studys_tables_by_hand(tmp_path: Path, monkeypatch):
    """Every method gains most at the middle rate; teachers 0, 1, 2 ... points better than the
    student gain twice as much."""
    monkeypatch.chdir(tmp_path)
    place = Path(distill_study.PLACE)

    def write(name: str, content: Any) -> None:
        file = place / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content))

    cost = dict(rollout_seconds=2, teacher_seconds=0, student_seconds=1, answered=30, generated=70)
    for one in distill_study.rates():
        write(f"{one.name}/distill.json", {"cost": cost})
    write("rates/evaluate.json", {"candidates": [
        {"name": one.name, "avg": 0.5 + 0.1 * (one.lr == 1e-3)} for one in distill_study.rates()
    ]})  # fmt: skip
    assert distill_study.best_rates() == dict.fromkeys(distill_study.METHODS, 1e-3)
    assert "| opsa | 0.500 | **0.600** | 0.500 | 100 to 100 | 3 to 3 |" in distill_study.table()
    names = ["nopsd", *distill_study.CONTROLS, *(f"{p}-nopsd" for p in distill_study.POOLS)]
    within = [-0.01, 0.05]
    groups = [
        {
            "name": name, "avg": 0.5, "maj": 0.75, "ece": 0.1, "tokens": 99.5, "truncated": 0.25,
            "gain": {"avg": 0.02 * i, "interval": within}, "interval": {"ece": [0.05, 0.125]},
        }
        for i, name in enumerate(names)
    ]  # fmt: skip
    base = {**groups[0], "name": "base", "gain": None}
    for measured in ("test", "cross", *distill_study.POOLS):
        write(f"{measured}/evaluate.json", {"candidates": [base], "groups": groups})
    for i, name in enumerate(names):
        gaps = [
            {"gap": gap, "interval": within, "teacher": 0.9, "student": 0.7}
            for gap in (0.3, 0.01 * i)
        ]
        told = {"entropy_gap": -0.01, "entropy_gap_interval": [-0.02, 0], "accuracy_gaps": gaps,
                "labelled": {"maj": 0.8}}  # fmt: skip
        write(f"teacher-{name}/distill.json", {"diagnostics": told})
    results = distill_study.results()
    assert results.count("| base | 0.500 |  | 0.750 | 0.100 (0.050 to 0.125) | 100 | 25% |") == 4
    assert "| nopsd-top | 0.500 | +2.0 (-1.0 to +5.0) | 0.750 |" in results
    law = distill_study.law()
    assert (
        "| nopsd-top | -0.0100 (-0.0200 to +0.0000) | +0.300 (-0.010 to +0.050) "
        "| +0.010 (-0.010 to +0.050) | 0.900 | 0.700 | 0.800 | +2.0 (-1.0 to +5.0) |"
    ) in law
    assert "slope 2.00, r 1.00" in law
