"""Live models: what families differ in once a model is loaded, and how traces are read back.

architecture.py   context, unembedding, and whether rows share passes
processor.py      how many threads, and which types of numbers are slow
blocks.py         where each layer computes its FFN units and mixes its heads
passes.py         traces read back through a model, in passes
support.py        what surgeon can do with an architecture, from its config alone
"""
