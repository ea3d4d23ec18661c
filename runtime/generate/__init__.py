"""Text generation on any decoder: prompt, loop, sampling, stopping, pieces of text.

    template.py     messages -> prompt text
    options.py      what a caller may ask for
    sampler.py      logits -> token
    constraints.py  which tokens a JSON Schema, grammar, regex or list of choices allows next
    gbnf.py         llama.cpp's grammars in the form that constraints.py takes
    answer.py       one answer while it grows: tokens -> pieces of text, and when it ends
    detokenize.py   token ids -> text, piece by piece
    stops.py        stop strings, exact across pieces
    speculate.py    guesses of the next tokens, checked by the model
    held.py         a sequence that the engine holds, reused by prompts that begin alike
    slots.py        answers that grow side by side; new ones join between steps
    loop.py         engine steps: one answer, or many side by side
    score.py        how likely a text is, for verification
    timing.py       speed of generation, for `edgelm bench`

`runtime/chat_model.py` puts them together.
"""
