"""The All-to-All: views of the cluster, replica choice, exchange shapes, plans, and orders of sending."""

from rayemu.alltoall.exchange import RELAYS, Flat, Hierarchical
from rayemu.alltoall.order import ORDERS
from rayemu.alltoall.phases import Phases, permutation_phases, rotation_phases
from rayemu.alltoall.plan import LEAST_ROWS, Parcel, count_slices, cut_micro_batches, cut_slices, plan_parcels
from rayemu.alltoall.replicas import Even, Hash, LeastLoaded, Nearest, Split
from rayemu.alltoall.view import ALIVE, DEAD, LEAVING, LOADING, READY, SUSPECTED, Copies, View

EXCHANGES = {"flat": Flat, "hierarchical": Hierarchical}
REPLICAS = {"nearest": Nearest, "least_loaded": LeastLoaded, "even": Even, "split": Split, "hash": Hash}

__all__ = [
    "ALIVE",
    "DEAD",
    "EXCHANGES",
    "LEAST_ROWS",
    "LEAVING",
    "LOADING",
    "ORDERS",
    "READY",
    "RELAYS",
    "REPLICAS",
    "SUSPECTED",
    "Copies",
    "Even",
    "Flat",
    "Hash",
    "Hierarchical",
    "LeastLoaded",
    "Nearest",
    "Parcel",
    "Phases",
    "Split",
    "View",
    "count_slices",
    "cut_micro_batches",
    "cut_slices",
    "permutation_phases",
    "plan_parcels",
    "rotation_phases",
]
