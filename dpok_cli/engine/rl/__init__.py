"""Online RL.

In: a model, a reward and settings.
Out: a trained adapter, and a record a round.
"""
