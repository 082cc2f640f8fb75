"""psi-engine: null-calibrated polysemanticity scores for every neuron of a vision model."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from psi_engine.artifacts import Run, open_run
    from psi_engine.config import MineConfig, PatchConfig, RunConfig, ScoreConfig
    from psi_engine.errors import PsiEngineError
    from psi_engine.mining import mine
    from psi_engine.pipeline import run
    from psi_engine.retrieval.search import search
    from psi_engine.scores.score import score
    from psi_engine.types import Scores

__version__ = "0.1.0"

# Names are imported when first used: `import psi_engine` alone loads neither torch nor a model.
_HOMES = {
    "MineConfig": "config",
    "PatchConfig": "config",
    "PsiEngineError": "errors",
    "Run": "artifacts",
    "RunConfig": "config",
    "ScoreConfig": "config",
    "Scores": "types",
    "mine": "mining",
    "open_run": "artifacts",
    "run": "pipeline",
    "score": "scores.score",
    "search": "retrieval.search",
}

__all__ = [
    "MineConfig",
    "PatchConfig",
    "PsiEngineError",
    "Run",
    "RunConfig",
    "ScoreConfig",
    "Scores",
    "__version__",
    "mine",
    "open_run",
    "run",
    "score",
    "search",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"psi_engine.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'psi_engine' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
