"""Generation: a batch engine with its own cache of keys and values.

engine = Engine(model, slots=64)
completions = engine.generate(params, prompts, max_new_tokens=128, temperature=0.7, samples=4)
"""

from easylm_jax.decode.engine import Cancelled, Engine, engine_for, generate
from easylm_jax.decode.request import Completions, ScoredCompletions

__all__ = ["Cancelled", "Completions", "Engine", "ScoredCompletions", "engine_for", "generate"]
