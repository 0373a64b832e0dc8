"""Fitted numbers as TOML, each table with its source and errors."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...fleet.errors import BadInput


def write_toml(tables: Mapping[str, Mapping[str, Any]], path: Path, comment: str) -> None:
    """Write tables of numbers, strings, booleans and lists of them; floats to four digits, NaN left out.

    Raises:
        BadInput: if the file cannot be written.
    """
    lines = [f"# {line}" for line in comment.splitlines()]
    for name, table in tables.items():
        lines += ["", f"[{'.'.join(_key(part) for part in name.split('/'))}]"]
        for key, value in table.items():
            if isinstance(value, float) and not math.isfinite(value):
                continue
            lines.append(f"{_key(key)} = {_value(value)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n")
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}; give another --out") from None


def _key(key: str) -> str:
    return key if key.replace("_", "").replace("-", "").isalnum() and key.isascii() else json.dumps(key)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(v) for v in value) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, int):
        return str(value)
    text = f"{float(value):.4g}"
    return text if any(c in text for c in ".e") else text + ".0"
