"""Live models: what families differ in once a model is loaded, and how traces are read back.

architecture.py   context, threads, unembedding, and what attention the model wants
passes.py         traces read back through a model, in passes
"""
