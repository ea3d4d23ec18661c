"""Weights found anew on the grid of a variant's quantizer, so that it answers like the float model.

settings.py    whether and how a variant is recovered
rounding.py    each weight's rounding error made up for by those not yet rounded
optimizer.py   AdamW of weights that the model holds rounded
lessons.py     what is trained on, and against what, by task
"""
