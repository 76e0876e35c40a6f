"""A method of `distill` from outside this package.

    cd examples; surgeon distill CHECKPOINT --pool FILE --out DIR --method my_finisher:brevity

It learns, for each question, the shortest of the answers that came to an end.
"""

from surgeon.distill import TrainingRun
from surgeon.errors import BadInput
from surgeon.training.state import History


def brevity(run: TrainingRun) -> History:
    """fine-tuning on the model's own shortest answers"""
    pairs = []
    for question in run.evidence.chosen:
        ended = [trace for trace in run.answers(question) if trace.finish_reason == "stop"]
        if ended:
            pairs.append((question, min(ended, key=lambda trace: len(trace.token_ids))))
    if not pairs:
        raise BadInput("found no answer with an end. Raise max_tokens.")
    return run.learn(pairs)
