"""A check of your own: a number is right when it is within one percent of the gold answer.

    surgeon evaluate CHECKPOINT --task problems.jsonl --answer number \
        --check my_check:within_a_percent --out runs/mine

Run it from this directory, or put the file on the Python path. The function gets two texts and
returns whether the answer is right. It runs in a process of its own with a time limit, so it may be
slow. When its file changes, the evaluation is another one.
"""


def within_a_percent(answer: str, gold: str) -> bool:
    try:
        number, wanted = (float(text.replace(",", "")) for text in (answer, gold))
    except ValueError:
        return False
    return abs(number - wanted) <= 0.01 * abs(wanted)
