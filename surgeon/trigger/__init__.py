"""`surgeon trigger`: find where a checkpoint fails, watch the units that show it, and teach it to
mend what it is told of (NeuReasoner).

Five stages, each a module of its name with a function of its name, each with a directory of its
own, each resumed after a kill:

    1  label         traces, spans of failing steps, their counterparts   traces.jsonl, spans.jsonl
    2  identify      the units and heads that carry each failure          channels.json
    3  detectors     a detector per level over their activations          monitor.safetensors
    4  reconstruct   a failure, a trigger, its diagnosis and repair       examples.jsonl
    5  sft           training on those; the result carries its monitor    checkpoint or adapter

fluctuation.py   beside 2: how those units fluctuate where it fails, as a page
counterparts.py  1: failing spans decoded anew
trials.py        3: firings forced on trial, worths.py what they are worth
examples.py      5: examples as tokens
tokens.py        5: the triggers as tokens
sft_result.py    5: its artifact, and the model card
artifacts.py     what the stages hand each other
"""
