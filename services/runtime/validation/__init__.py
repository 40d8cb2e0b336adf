"""Declarative request rules: each service lists its own in `rules.py`, the interceptor runs them.

An absent optional field passes every rule but `required`. A field without presence tracking
counts as absent while it holds its zero value, so `optional` it where zero must be judged.
"""

from services.runtime.validation.rule import Rule, RuleSet, RuleTable
from services.runtime.validation.shape import custom, each, items, keys, nested, one_of_set
from services.runtime.validation.values import (
    blob,
    enum_known,
    enum_set,
    integer,
    page,
    required,
    text,
    uuid,
)
from services.runtime.validation.wellknown import amount, duration, mask, struct, timestamp

__all__ = [
    "Rule",
    "RuleSet",
    "RuleTable",
    "amount",
    "blob",
    "custom",
    "duration",
    "each",
    "enum_known",
    "enum_set",
    "integer",
    "items",
    "keys",
    "mask",
    "nested",
    "one_of_set",
    "page",
    "required",
    "struct",
    "text",
    "timestamp",
    "uuid",
]
