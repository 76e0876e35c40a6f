"""Training: what is tuned, a slow teacher, and a loop that can be killed and continued exactly.

tuning.py      LoRA or full weights; the teacher, an average of the student
processes.py   one process or several: how they start, which one writes
student.py     the model on them
memory.py      how many tokens a pass may have
sequences.py   token sequences, the loss of their tokens, and how a step shares them out
loop.py        `fit`: batches from a generator, steps, records, warnings
state.py       what is saved, and brought back
outputs.py     what is left at the end: a checkpoint or an adapter
"""
