"""TOML files read into frozen dataclasses: types and ranges checked, unknown keys refused with near matches.

A dataclass is the only declaration of a format; the pydantic model that checks the bytes is derived from it.
Pydantic is loaded when the first file is read, so that `import flyball.fleet` stays light.
"""

import dataclasses
import difflib
import tomllib
import types
import typing
from functools import cache
from pathlib import Path

from .errors import BadInput

_MAX_BYTES = 8 * 2**20  # a site of 12,500 nodes that lists each one is about 2 MB


def number(
    default=dataclasses.MISSING,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
):
    """A dataclass field whose value, or whose items, must lie in [low, high] and above `above`."""
    return dataclasses.field(default=default, metadata={"ge": low, "le": high, "gt": above})


def find_file(path_or_name: str | Path, folder: Path, kind: str, error: type[BadInput]) -> Path:
    """The file of a name in `folder`, or the path itself where it ends in .toml.

    Raises:
        BadInput: of the class `error`, naming near matches, if there is no such file.
    """
    text = str(path_or_name)
    if text.endswith(".toml") or "/" in text:
        path = Path(text)
        if not path.is_file():
            raise error(f"{text}: no such file; give a {kind} file or a name: {', '.join(names_in(folder))}")
        return path
    known = names_in(folder)
    if text not in known:
        raise error(f"no {kind} {text!r}; {_suggestion(text, known)}")
    return folder / f"{text}.toml"


def names_in(folder: Path) -> list[str]:
    """Names of the TOML files in a folder, sorted."""
    return sorted(p.stem for p in folder.glob("*.toml"))


def read_toml(path: Path, error: type[BadInput]) -> dict:
    """The content of a TOML file.

    Raises:
        BadInput: of the class `error`, one line with the file and the place at fault.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise error(f"{path}: larger than {_MAX_BYTES >> 20} MiB; this is not a configuration file")
        return tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as e:
        raise error(f"{path}: cannot be read ({e.strerror}); check the path and its permissions") from None
    except UnicodeDecodeError as e:
        raise error(f"{path}: not UTF-8 text at byte {e.start}; save it as UTF-8") from None
    except (tomllib.TOMLDecodeError, RecursionError) as e:
        raise error(f"{path}: not valid TOML: {_one_line(e)}") from None


def parse(cls: type, data: object, source: str | typing.Callable[[tuple], str], error: type[BadInput]):
    """Check `data` against the dataclass `cls` and build it.

    Args:
        cls: A dataclass; nested dataclasses, `tuple[X, ...]` and `tuple[float, float]` are understood.
        data: What the TOML said.
        source: Where it came from, for the message; or a function of the key path.
        error: Class of the error to raise.

    Raises:
        BadInput: of the class `error`, one line: source, key path, what to change.
    """
    from pydantic import ValidationError

    try:
        checked = _model_of(cls).model_validate(data)
    except ValidationError as e:
        found = e.errors(include_url=False)
        # an unknown key is the likeliest cause of whatever else is missing
        first = min(found, key=lambda f: f["type"] != "extra_forbidden")
        place = tuple(part for part in first["loc"] if not _is_union_tag(part))
        where = source(place) if callable(source) else source
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise error(f"{where}: {_key_path(place)}{_explain(first, cls, place)}{more}") from None
    return _build(cls, checked)


@cache
def _model_of(cls: type):
    """A pydantic model with the fields, defaults and ranges of a dataclass."""
    from pydantic import ConfigDict, Field, create_model

    hints = typing.get_type_hints(cls)
    fields: dict[str, typing.Any] = {}
    for f in dataclasses.fields(cls):
        if not f.init or f.metadata.get("is_internal"):
            continue
        bounds = {k: v for k, v in f.metadata.items() if k in ("ge", "le", "gt") and v is not None}
        if f.default is not dataclasses.MISSING:
            default = f.default
        elif f.default_factory is not dataclasses.MISSING:
            default = f.default_factory()
        else:
            default = ...
        fields[f.name] = (_translate(hints[f.name], bounds), Field(default))
    config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())
    return create_model(cls.__name__, __config__=config, **fields)


def _translate(hint, bounds: dict) -> typing.Any:
    """The pydantic type of a dataclass field's annotation."""
    from pydantic import Field

    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _model_of(typing.cast(type, hint))
    if origin is tuple and len(args) == 2 and args[1] is Ellipsis:
        return types.GenericAlias(list, (_translate(args[0], bounds),))
    if origin is tuple:
        items = types.GenericAlias(list, (_translate(args[0], bounds),))
        return typing.Annotated[items, Field(min_length=len(args), max_length=len(args))]
    if origin in (typing.Union, types.UnionType):
        rest = [a for a in args if a is not type(None)]
        return typing.Optional[_translate(rest[0], bounds)]  # noqa: UP045 - built from a value
    if bounds and hint in (int, float):
        return typing.Annotated[hint, Field(**bounds)]
    return hint


def _build(cls: type, checked):
    hints = typing.get_type_hints(cls)
    return cls(**{name: _value(hints[name], getattr(checked, name)) for name in type(checked).model_fields})


def _value(hint, value):
    inner = _inner_dataclass(hint)
    if isinstance(value, list):
        return tuple(_build(inner, v) if inner else v for v in value)
    # a default is what the dataclass says already
    if inner and value is not None and not isinstance(value, tuple) and not dataclasses.is_dataclass(value):
        return _build(inner, value)
    return value


def _inner_dataclass(hint) -> type | None:
    if dataclasses.is_dataclass(hint):
        return typing.cast(type, hint)
    inside = [a for a in typing.get_args(hint) if dataclasses.is_dataclass(a)]
    return typing.cast(type, inside[0]) if inside else None


def _keys_at(cls: type, place: tuple) -> list[str]:
    """Keys known where `place` points, for near matches."""
    inside: type | None = cls
    for part in place[:-1]:
        if isinstance(part, str) and inside is not None:
            hint = typing.get_type_hints(inside).get(part)
            inside = _inner_dataclass(hint) if hint is not None else None
    if inside is None:
        return []
    return [f.name for f in dataclasses.fields(inside) if f.init and not f.metadata.get("is_internal")]


def _explain(found: typing.Any, cls: type, place: tuple) -> str:
    if found["type"] == "extra_forbidden":
        return f"unknown key; {_suggestion(str(place[-1]), _keys_at(cls, place))}"
    if found["type"] == "missing":
        return "missing; add it"
    if found["type"] in ("model_type", "model_attributes_type", "dict_type"):
        return "must be a table"
    got = repr(found["input"])
    # pydantic's own wording serves: "Input should be greater than 0"
    message = found["msg"].replace("Input should be", "must be", 1).replace("List should", "must", 1)
    return f"{message.removesuffix(' after validation')}, got {got if len(got) <= 60 else got[:57] + '...'}"


def _suggestion(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"


def _key_path(place: tuple) -> str:
    text = ""
    for part in place:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return f"{text}: " if text else ""


def _is_union_tag(part) -> bool:
    # pydantic adds the branch of a union to the path; TOML keys with brackets are not in any of our formats
    return isinstance(part, str) and ("[" in part or part in ("constrained-float", "constrained-int"))


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
