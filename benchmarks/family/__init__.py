"""Where the built-in family comes from: `make family` draws its prompt sets and trains its
checkpoints.

The product, `surgeon.builtin`, ships what this writes. Nothing in `surgeon` imports it.
"""
