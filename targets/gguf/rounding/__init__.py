"""Matrices to the blocks of GGUF types by edgelm itself, with the errors of a column carried over
into the columns after it.

`types.py` quantizes rows as llama.cpp does and reads them back; `codes.py` knows where each value's
bits lie in a block; `feedback.py` rounds; `file.py` writes the file.
"""
