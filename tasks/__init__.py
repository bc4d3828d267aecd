"""The tasks, one module or package each, and the parts that they share.

    dictionary.py     translate strings with a dictionary that is new in every sequence
    babi/             answer questions about short stories
    algorithmic/      copy, repeat copy, double copy, associative recall, priority sort, and random pairs
    league/           tokens: multi-query recall, selective copying, noisy recall, parity, S3
    maze/             reinforcement learning in a maze with a hidden reward
    actor_critic.py   an environment (environment.py) as a task
    gymnax_env.py     an environment of gymnax as such an environment
    scoring.py        loss and metrics; sampling.py: evaluation sets; timeline.py: pictures; arguments.py: checks

Each task implements the protocol `mnm_jax.training.Task`, which `mnm_jax.testing.check_task` checks.
"""
