"""Live models: what families differ in once a model is loaded, and how traces are read back.

architecture.py   context, threads, unembedding, and whether rows share passes
blocks.py         where each layer computes its FFN units and mixes its heads
passes.py         traces read back through a model, in passes
support.py        what surgeon can do with an architecture, from its config alone
"""
