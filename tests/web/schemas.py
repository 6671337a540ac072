"""Values that fit a JSON schema, and values that nearly do, to fuzz what an OpenAPI description says."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

KEYS = st.sampled_from([b"", b"\0", b"a", b"b", b"e/15", b"\xff", b"a" * 300])
JUNK = st.sampled_from(
    [None, True, False, 0, -1, 1.5, 1e300, 1 << 64, "", "x", "\0", "\ud800", "YQ", [], {}, [None], {"key": 1}]
)
NUMBERS = st.sampled_from([0, 1, 2, 5, -1, (1 << 63) - 1, -(1 << 63)])
DEPTH_MAX = 4


class Fitting:
    """Strategies for the schemas of one description.

    Args:
        components: its ``components/schemas``.
        junk: one value in so many is anything at all; 0 for none.
    """

    def __init__(self, components: Mapping[str, Any], junk: int = 0) -> None:
        self._components = components
        self._junk = junk

    def value(self, schema: Mapping[str, Any], depth: int = 0) -> st.SearchStrategy[Any]:
        """Values of a schema."""
        fitting = self._of(schema, depth)
        return st.one_of(*[fitting] * self._junk, JUNK) if self._junk else fitting

    def _of(self, schema: Mapping[str, Any], depth: int) -> st.SearchStrategy[Any]:
        if "$ref" in schema:
            name = schema["$ref"].rpartition("/")[2]
            return st.deferred(lambda: self._of(self._components[name], depth + 1))
        if "anyOf" in schema:
            return st.one_of(*(self.value(choice, depth) for choice in schema["anyOf"]))
        if "enum" in schema:
            return st.sampled_from(schema["enum"])
        return self._of_type(schema, depth)

    def _of_type(self, schema: Mapping[str, Any], depth: int) -> st.SearchStrategy[Any]:
        match schema["type"]:
            case "object":
                shown = schema.get("properties", {}) if depth < DEPTH_MAX else {}
                fields = {name: self.value(item, depth) for name, item in shown.items()}
                return st.fixed_dictionaries({}, optional=fields)
            case "array":
                return st.lists(self.value(schema["items"], depth), max_size=3 if depth < DEPTH_MAX else 0)
            case "integer":
                low, high = schema["minimum"], schema["maximum"]
                return (NUMBERS | st.integers(low, high)).filter(lambda number: low <= number <= high)
            case "string" if "pattern" in schema:
                return st.from_regex(schema["pattern"], fullmatch=True)
            case "string" if schema.get("contentEncoding") == "base64":
                return (KEYS | st.binary(max_size=20)).map(lambda data: base64.b64encode(data).decode())
            case "string":
                return st.text(max_size=10)
            case "boolean":
                return st.booleans()
            case "null":
                return st.none()
        raise AssertionError(f"the description has a schema that is not understood: {schema}")
