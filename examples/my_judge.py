"""A judge of your own: a step fails that says the same as an earlier one, word for word.

    cd examples; surgeon trigger label CHECKPOINT --prompts questions.jsonl \
        --judge my_judge:repetitions --out runs/labels

The function gets the question and the texts of a trace's whole steps. It returns what it found: the
level, the first and the last step (from 0), and why.
"""

from surgeon.judges.finding import Finding


def repetitions(question: str, steps: list[str]) -> list[Finding]:
    texts = [step.strip() for step in steps]
    return [
        Finding("inter", n, n, f"as step {texts.index(text)}")
        for n, text in enumerate(texts)
        if text in texts[:n]
    ]
