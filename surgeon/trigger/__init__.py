"""`surgeon trigger`: find where a checkpoint fails, watch the units that show it, and teach it to
mend what it is told of (NeuReasoner).

Five stages, each a function and a command, each with a directory of its own, each continued after
a kill:

    1  label         traces, spans of failing steps, their counterparts   traces.jsonl, spans.jsonl
    2  identify      the units and heads that carry each failure          channels.json
    3  detectors     a detector per level over their activations          monitor.safetensors
    4  reconstruct   a failure, a trigger, its diagnosis and repair       examples.jsonl
    5  sft           training on those; the result carries its monitor    checkpoint or adapter

asked.py         1: what is asked, checked          rewriting.py   4
labelling.py     1: the stage                       examples.py    5: examples as tokens
resampling.py    1: counterparts decoded            sft.py         5: the stage
pairing.py       1: verdicts to spans               card.py        5: its model card
judges.py        who says where a trace fails       identifying.py 2
judging.py       asking about many traces           detecting.py   3
endpoint.py      OpenAI-compatible endpoints        artifacts.py   what the stages hand each other
prompts.yaml     what judges and writers are asked; another file of its form can be given
"""

from surgeon.trigger.detecting import detectors, show_detectors
from surgeon.trigger.identifying import identify, show_identify
from surgeon.trigger.labelling import label, show_label
from surgeon.trigger.rewriting import reconstruct, show_reconstruct
from surgeon.trigger.sft import sft
from surgeon.trigger.sft import show as show_sft

__all__ = [
    "detectors",
    "identify",
    "label",
    "reconstruct",
    "sft",
    "show_detectors",
    "show_identify",
    "show_label",
    "show_reconstruct",
    "show_sft",
]
