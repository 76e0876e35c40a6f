"""The benchmarks of the papers: where each lies, and how a row becomes a question with an answer.

A row function takes one row of the benchmark as its data set has it and a generator of random
numbers, and returns prompt, answer and (where the row has one) id; None leaves the row out. It
raises KeyError for a column that is missing.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Row = Mapping[str, Any]
Question = dict[str, str]
"""prompt, answer, and id where the row has one."""
LETTERS = "ABCDEFGHIJ"
LETTER = "Answer with the letter of the right option."
GOOD, BAD = ("1", "1.0", "true", "yes", "good"), ("0", "0.0", "false", "no", "bad")
"""How the labels of a comment are spelt."""
BOXED = "Put the final answer in \\boxed{}."


class Benchmark(NamedTuple):
    """Where a benchmark lies, and what its rows become."""

    sources: Mapping[str, str]
    """Task -> data set on the hub; empty where there is none to name."""
    question: Callable[[Row, np.random.Generator], Question | None]
    check: str
    answer: str
    instruction: str
    split: bool = False
    """Whether it has no split of its own and is parted here."""
    sizes: tuple[int, int] | None = None
    """Questions for training and for testing, where the paper gives numbers instead of a share."""


def options(question: str, texts: Sequence[str], right: int) -> Question:
    """A multiple-choice question: options below it, its answer a letter."""
    if not 0 <= right < len(texts) <= len(LETTERS):
        raise ValueError(
            f"option {right} of {len(texts)} is right, expected 0 to {len(texts) - 1} of at most "
            f"{len(LETTERS)}"
        )
    listed = "\n".join(
        f"{letter}. {str(text).strip()}" for letter, text in zip(LETTERS, texts, strict=False)
    )
    return {"prompt": f"{question.strip()}\n\n{listed}", "answer": LETTERS[right]}


def sciknoweval(row: Row, _: np.random.Generator) -> Question | None:
    """SciKnowEval's multiple-choice questions with four options; the other kinds are left out."""
    choices = row.get("choices") or {}
    texts, labels = list(choices.get("text") or ()), list(choices.get("label") or ())
    key = str(row.get("answerKey") or "").strip()
    if row["type"] != "mcq-4-choices" or len(texts) < 2 or key not in labels:
        return None
    # Some questions bring their options in the text too.
    question = str(row["question"])
    return options(question, texts, labels.index(key))


def mmlu_pro(row: Row, _: np.random.Generator) -> Question:
    """Up to ten options, the answer by its index."""
    question = options(str(row["question"]), row["options"], int(row["answer_index"]))
    return {**question, "id": str(row["question_id"])}


def gpqa(row: Row, rng: np.random.Generator) -> Question:
    """Four options in random order: the data set lists the right one first."""
    texts = [row["Correct Answer"], *(row[f"Incorrect Answer {n}"] for n in (1, 2, 3))]
    order = rng.permutation(4).tolist()
    question = options(str(row["Question"]), [texts[n] for n in order], order.index(0))
    return {**question, "id": str(row["Record ID"])} if row.get("Record ID") else question


def edu_feedback(row: Row, _: np.random.Generator) -> Question:
    """A comment and whether it is good feedback: columns text (or comment) and label, 0 or 1."""
    text = row["text"] if "text" in row else row["comment"]
    label = str(row["label"]).strip().lower()
    for right, spelt in enumerate((GOOD, BAD)):
        if label in spelt:
            asked = f"Is this good feedback?\n\n{str(text).strip()}"
            return options(asked, ["Yes", "No"], right)
    raise ValueError(f"label {row['label']!r}, expected one of {', '.join((*GOOD, *BAD))}")


def stated(*columns: str) -> Callable[[Row, np.random.Generator], Question]:
    """A question whose answer stands in a column of its own: (question, answer[, id])."""

    def question(row: Row, _: np.random.Generator) -> Question:
        asked, answer, *identity = columns
        # The capitals differ between copies of one contest.
        known = {str(name).lower(): value for name, value in row.items()}
        found = {"prompt": str(known[asked]).strip(), "answer": str(known[answer]).strip()}
        if identity and known.get(identity[0]) is not None:
            found["id"] = str(known[identity[0]])
        return found

    return question


def gsm8k(row: Row, _: np.random.Generator) -> Question:
    """The answer stands behind #### at the end of the solution."""
    solution = str(row["answer"])
    if "####" not in solution:
        raise ValueError("no #### before the answer")
    answer = re.sub(r"[,$]", "", solution.rpartition("####")[2]).strip()
    return {"prompt": str(row["question"]).strip(), "answer": answer}


def contest(source: str, *columns: str, name: str) -> Benchmark:
    """A mathematical contest with answers to compare by value."""
    return Benchmark({name: source}, stated(*columns), "math", "auto", BOXED)


BENCHMARKS: dict[str, Benchmark] = {
    "sciknoweval": Benchmark(
        {
            name: f"hf:hicai-zju/SciKnowEval#{config}:test"
            for name, config in (
                ("bio", "Biology"), ("mat", "Material"), ("phys", "Physics"), ("chem", "Chemistry"),
            )
        },
        sciknoweval, "choice", "choice", LETTER, split=True,
    ),
    "edu-feedback": Benchmark(
        {"edu": ""}, edu_feedback, "choice", "choice", LETTER, split=True, sizes=(1799, 1000)
    ),
    "mmlu-pro": Benchmark(
        {"mmlu": "hf:TIGER-Lab/MMLU-Pro:test"}, mmlu_pro, "choice", "choice", LETTER, split=True
    ),
    "aime24": contest(
        "hf:HuggingFaceH4/aime_2024:train", "problem", "answer", "id", name="aime24"
    ),
    "aime25": contest(
        "hf:MathArena/aime_2025:train", "problem", "answer", "problem_idx", name="aime25"
    ),
    "gpqa": Benchmark(
        {"gpqa": "hf:Idavidrein/gpqa#gpqa_diamond:train"}, gpqa, "choice", "choice", LETTER
    ),
    "hmmt25": contest(
        "hf:MathArena/hmmt_feb_2025:train", "problem", "answer", "problem_idx", name="hmmt25"
    ),
    "brumo25": contest(
        "hf:MathArena/brumo_2025:train", "problem", "answer", "problem_idx", name="brumo25"
    ),
    "math500": contest(
        "hf:HuggingFaceH4/MATH-500:test", "problem", "answer", "unique_id", name="math500"
    ),
    "gsm8k": Benchmark(
        {"gsm8k": "hf:openai/gsm8k#main:test"}, gsm8k, "math", "auto", BOXED
    ),
}  # fmt: skip
