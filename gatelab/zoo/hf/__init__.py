"""Hugging Face's MoE blocks as ours and back. None of it imports transformers: it reads what a block is.

A block is taken apart without knowing its name. A copy of it with random router tensors and stubs for experts
(`shadow.py`) is run on a few batches; what it hands to its experts tells how it routes (`gate.py`), what it makes of
their output how it is wired (`wiring.py`), and its experts' own answer what they compute (`experts.py`). Of a
block that loops over a list of experts, who got a token shows in its output (`looped.py`). Readers in `families/` take
the blocks that work otherwise. Whatever was read is proved on the block itself (`verify.py`).
"""
