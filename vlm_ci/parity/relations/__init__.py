"""Metamorphic relations: properties of the compiled twin that need no eager baseline."""

from vlm_ci.parity.relations.checker import RelationChecker
from vlm_ci.parity.relations.order import WARM_UP_ORDER, check_warm_up_order
from vlm_ci.parity.relations.records import Books, Match, Relation, Variant, Violation
from vlm_ci.parity.relations.variants import RELATIONS, parse

__all__ = [
    "Books",
    "Match",
    "RELATIONS",
    "Relation",
    "RelationChecker",
    "Variant",
    "Violation",
    "WARM_UP_ORDER",
    "check_warm_up_order",
    "parse",
]
