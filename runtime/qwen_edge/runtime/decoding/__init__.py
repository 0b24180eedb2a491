"""How the next tokens come about: the loop, the choice, what limits it, what guesses ahead.

`generation.py` is the loop. It asks a `picker.py` for each token; that one joins the sampler
(`sampling.py`) with constraints (`constraint.py`) such as a grammar or a limit on reasoning.
Drafts (`drafting.py`) let one forward call settle several tokens. Nothing here knows text.
"""
