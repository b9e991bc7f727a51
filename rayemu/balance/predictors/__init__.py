"""Load predictors: what the next window's loads will be, from those of past windows.

A predictor is a frozen dataclass with `fit(history [W, L, E]) -> Forecast`. It learns what it can from the
windows (oldest first); the forecast is a function from recent windows [W, L, E], which may be later ones, to
the next window's loads [L, E]. `last_window` is the naive one that the others are measured against
(`rayemu.balance.scores`).
"""

from rayemu.balance.predictors.federated import Federated
from rayemu.balance.predictors.forecast import Forecast, Predictor
from rayemu.balance.predictors.last_window import LastWindow
from rayemu.balance.predictors.moving_average import MovingAverage
from rayemu.balance.predictors.pattern_similarity import PatternSimilarity
from rayemu.balance.predictors.recurrent import Recurrent
from rayemu.balance.predictors.transition_matrix import TransitionMatrix

PREDICTORS: dict[str, type[Predictor]] = {
    "last_window": LastWindow,
    "moving_average": MovingAverage,
    "pattern_similarity": PatternSimilarity,
    "transition_matrix": TransitionMatrix,
    "recurrent": Recurrent,
    "federated": Federated,
}

__all__ = [
    "PREDICTORS",
    "Federated",
    "Forecast",
    "LastWindow",
    "MovingAverage",
    "PatternSimilarity",
    "Predictor",
    "Recurrent",
    "TransitionMatrix",
]
