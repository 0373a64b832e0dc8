"""Request files and rate tables, told apart by their first line and read into arrays.

* Azure LLM CSV: `TIMESTAMP,ContextTokens,GeneratedTokens`
* Mooncake JSONL: `timestamp` (ms), `input_length`, `output_length`; other keys are ignored
* rate table CSV: `t_s,rate_rps` and, optionally, `prompt_tokens,output_tokens`

Plain or gzip, with or without a byte-order mark, any line ends. A request of zero output tokens (cancelled,
or of length one by another count) is read as one token, because prefill always yields the first, and is
counted in `Requests.zero_outputs`; a prompt of zero tokens is refused.
"""

import csv
import gzip
import hashlib
import io
import json
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from ..fleet.errors import LoadError

AZURE = ("timestamp", "contexttokens", "generatedtokens")
MOONCAKE = ("timestamp", "input_length", "output_length")
RATES = ("t_s", "rate_rps")
RATE_LENGTHS = ("prompt_tokens", "output_tokens")

MAX_TOKENS = 10_000_000
"""Ten times the longest context on offer (1 M tokens): more is a slipped column."""

MAX_RATE_RPS = 1e9
MAX_SPAN_S = 20 * 366 * 86400.0
MAX_BYTES = 2**28
"""About seven million requests, which take some 2 GB while they are read."""

_BLOCKS = {"train": 0, "validation": 1, "test": 2}


@dataclass(frozen=True)
class Requests:
    """A request-level trace.

    Attributes:
        t_s: Arrival since the first request, shape (R,), float64, not decreasing.
        prompt_tokens: (R,), float64, at least 1.
        output_tokens: (R,), float64, at least 1.
        source: Name of the file.
        digest: First 12 hex digits of the SHA-256 of its bytes.
        zero_outputs: Requests whose zero output tokens were read as one.
    """

    t_s: np.ndarray
    prompt_tokens: np.ndarray
    output_tokens: np.ndarray
    source: str
    digest: str
    zero_outputs: int = 0

    @property
    def duration_s(self) -> float:
        """Time from the first request to where the next after the last would be."""
        return float(self.t_s[-1]) * len(self.t_s) / (len(self.t_s) - 1)

    @cached_property
    def ca2(self) -> float:
        """Squared CV of inter-arrival times, relative to the local rate (bins of about 60 s).

        Relative, because the slow changes of the rate are in the arrivals already.
        """
        gap_s = np.diff(self.t_s)
        bins = np.minimum((self.t_s[1:] / 60).astype(np.int64), int(self.t_s[-1] / 60))
        _, group = np.unique(bins, return_inverse=True)
        count = np.bincount(group)
        mean_s = np.bincount(group, gap_s) / count
        relative = gap_s / np.maximum(mean_s[group], 1e-12)
        enough = count[group] >= 8
        return float(np.var(relative[enough])) if enough.sum() >= 8 else 1.0

    def block(self, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
        """One time-separated third ("train", "validation", "test") or "all" of it.

        Returns:
            Arrivals since the block's start, prompt tokens, output tokens, the block's length in seconds.

        Raises:
            LoadError: if nothing arrives in it.
        """
        start_s, end_s = _span(name, self.duration_s)
        first, last = np.searchsorted(self.t_s, (start_s, end_s), side="left")
        if first == last:
            raise LoadError(f"{self.source}: no request in the {name} block; use another block or a longer trace")
        cut = slice(first, last)
        return self.t_s[cut] - start_s, self.prompt_tokens[cut], self.output_tokens[cut], end_s - start_s


@dataclass(frozen=True)
class RateTable:
    """Rates over time; each row holds until the next.

    Attributes:
        t_s: Start of each row since the first, shape (R,), float64, increasing.
        rate_rps: Requests per second, (R,), float64.
        prompt_tokens: Mean prompt length, (R,), or None where the table has none.
        output_tokens: Mean output length, (R,), or None.
        source: Name of the file.
        digest: First 12 hex digits of the SHA-256 of its bytes.
    """

    t_s: np.ndarray
    rate_rps: np.ndarray
    prompt_tokens: np.ndarray | None
    output_tokens: np.ndarray | None
    source: str
    digest: str

    @property
    def duration_s(self) -> float:
        """Time from the first row to the end of the last, which holds as long as the median row."""
        return float(self.t_s[-1] + np.median(np.diff(self.t_s)))

    def block(self, name: str):
        """As `Requests.block`: row starts, rates, prompt and output tokens, the block's length in seconds."""
        start_s, end_s = _span(name, self.duration_s)
        first = int(np.searchsorted(self.t_s, start_s, side="right")) - 1
        last = int(np.searchsorted(self.t_s, end_s, side="left"))
        cut = slice(first, last)
        lengths = (None if a is None else a[cut] for a in (self.prompt_tokens, self.output_tokens))
        return np.maximum(self.t_s[cut] - start_s, 0.0), self.rate_rps[cut], *lengths, end_s - start_s


def read_requests(path: str | Path) -> Requests | RateTable:
    """Read a load file of any known format.

    Raises:
        LoadError: one line with file, line number and what to change.
    """
    path = Path(path)
    raw, text = _read_text(path)
    digest = hashlib.sha256(raw).hexdigest()[:12]
    # not splitlines(): it also cuts at characters that JSON strings may hold
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    first = next((i for i, line in enumerate(lines) if line.strip()), None)
    if first is None:
        raise LoadError(f"{path}: the file is empty; give a load file with at least two rows")
    if lines[first].lstrip().startswith("{"):
        return _read_jsonl(path, digest, lines)
    header = [name.strip().lower() for name in lines[first].split(",")]
    for wanted, reader in ((AZURE, _read_azure), (RATES, _read_rates)):
        if set(wanted) <= set(header):
            return reader(path, digest, *_columns(path, lines, first, header))
    raise LoadError(
        f"{path}:{first + 1}: unknown format; the first line must be the header TIMESTAMP,ContextTokens,"
        "GeneratedTokens or t_s,rate_rps, or a JSON object with timestamp, input_length and output_length"
    )


def _read_text(path: Path) -> tuple[bytes, str]:
    """The file's bytes and its text, unpacked where it is gzip."""
    try:
        with path.open("rb") as f:
            raw = f.read(MAX_BYTES + 1)
    except (OSError, ValueError) as e:
        reason = getattr(e, "strerror", None) or str(e)
        raise LoadError(f"{path}: cannot be read ({reason}); check the path and its permissions") from None
    if len(raw) > MAX_BYTES:
        raise LoadError(f"{path}: larger than {MAX_BYTES >> 20} MiB; cut the part that you need")
    data = raw
    if raw[:2] == b"\x1f\x8b":
        try:
            with gzip.open(io.BytesIO(raw)) as unpacked:
                data = unpacked.read(MAX_BYTES + 1)
        except (OSError, EOFError, zlib.error) as e:
            raise LoadError(f"{path}: damaged gzip ({' '.join(str(e).split())}); unpack or fetch it again") from None
        if len(data) > MAX_BYTES:
            raise LoadError(f"{path}: unpacks to more than {MAX_BYTES >> 20} MiB; cut the part that you need")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        line = data[: e.start].count(b"\n") + 1
        raise LoadError(f"{path}:{line}: not text (UTF-8); give a CSV or JSONL file") from None
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise LoadError(f"{path}:{line}: binary content; give a CSV or JSONL file")
    return raw, text


def _columns(path: Path, lines: list[str], first: int, header: list[str]) -> tuple[np.ndarray, dict[str, list[str]]]:
    """Line numbers and columns of a CSV file, by name in lower case."""
    for name in header:
        if name and header.count(name) > 1:
            raise LoadError(f"{path}:{first + 1}: two columns are called {name!r}; remove one")
    rows, numbers = [], []
    reader = csv.reader(lines[first + 1 :], strict=True)
    try:
        for row in reader:
            if len(row) != len(header):
                if not row or (len(row) == 1 and not row[0].strip()):
                    continue  # a blank line
                raise LoadError(
                    f"{path}:{first + 1 + reader.line_num}: {len(row)} values under {len(header)} columns; "
                    "complete or remove the row"
                )
            rows.append(row)
            numbers.append(first + 1 + reader.line_num)
    except csv.Error as e:
        raise LoadError(f"{path}:{first + 1 + reader.line_num}: malformed row ({e}); repair or remove it") from None
    if len(rows) < 2:
        raise LoadError(f"{path}: {len(rows)} rows below the header; a load file needs at least two")
    return np.array(numbers), dict(zip(header, map(list, zip(*rows, strict=True)), strict=True))


def _read_azure(path: Path, digest: str, numbers: np.ndarray, columns: dict[str, list[str]]) -> Requests:
    t_s = _timestamps(path, numbers, columns[AZURE[0]])
    prompt, output = (_numbers(path, numbers, columns[c], c) for c in AZURE[1:])
    return _requests(path, digest, numbers, t_s, prompt, output)


def _read_jsonl(path: Path, digest: str, lines: list[str]) -> Requests:
    rows, numbers = [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            values = [row[key] for key in MOONCAKE]
            if any(type(v) not in (int, float) for v in values):
                raise TypeError
            rows.append([float(v) for v in values])
        except KeyError as e:
            raise LoadError(f"{path}:{number}: no {e.args[0]}; each line needs {', '.join(MOONCAKE)}") from None
        except TypeError:
            raise LoadError(f"{path}:{number}: {', '.join(MOONCAKE)} must be numbers; repair the line") from None
        except (ValueError, OverflowError, RecursionError) as e:
            raise LoadError(
                f"{path}:{number}: not a JSON object ({' '.join(str(e).split())}); repair or remove the line"
            ) from None
        numbers.append(number)
    if len(rows) < 2:
        raise LoadError(f"{path}: {len(rows)} requests; a load file needs at least two")
    at, table = np.array(numbers), np.array(rows)
    for column, name in zip(table.T, MOONCAKE, strict=True):
        _refuse(path, at, ~np.isfinite(column), column, f"{name} must be a finite number")
    return _requests(path, digest, at, table[:, 0] / 1000, table[:, 1], table[:, 2])


def _read_rates(path: Path, digest: str, numbers: np.ndarray, columns: dict[str, list[str]]) -> RateTable:
    t_s, rate_rps = (_numbers(path, numbers, columns[c], c) for c in RATES)
    _check_times(path, numbers, t_s, strictly=True)
    _refuse(path, numbers, (rate_rps < 0) | (rate_rps > MAX_RATE_RPS), rate_rps, "rate_rps must be 0 to 1e9")
    if not rate_rps.any():
        raise LoadError(f"{path}: every rate_rps is 0; give at least one row with arrivals")
    lengths: list[np.ndarray | None] = []
    for name in RATE_LENGTHS:
        if name not in columns:
            lengths.append(None)
            continue
        tokens = _numbers(path, numbers, columns[name], name)
        _refuse(path, numbers, (tokens < 1) | (tokens > MAX_TOKENS), tokens, f"{name} must be 1 to {MAX_TOKENS}")
        lengths.append(tokens)
    return RateTable(t_s - t_s[0], rate_rps, lengths[0], lengths[1], path.name, digest)


def _requests(path, digest, numbers, t_s, prompt, output) -> Requests:
    """Checks that every request format shares."""
    _check_times(path, numbers, t_s, strictly=False)
    bad = (prompt < 1) | (prompt > MAX_TOKENS) | (prompt != np.floor(prompt))
    _refuse(path, numbers, bad, prompt, f"prompt tokens must be a whole number from 1 to {MAX_TOKENS}")
    bad = (output < 0) | (output > MAX_TOKENS) | (output != np.floor(output))
    _refuse(path, numbers, bad, output, f"output tokens must be a whole number from 0 to {MAX_TOKENS}")
    if t_s[-1] <= t_s[0]:
        raise LoadError(f"{path}: all requests arrive at the same instant; check the timestamps")
    zeros = int((output == 0).sum())
    return Requests(t_s - t_s[0], prompt, np.maximum(output, 1), path.name, digest, zeros)


def _check_times(path: Path, numbers: np.ndarray, t_s: np.ndarray, strictly: bool) -> None:
    _refuse(path, numbers, t_s < 0, t_s, "timestamps must not be negative")
    step_s = np.diff(t_s)
    back = np.append(False, step_s <= 0 if strictly else step_s < 0)
    rule = "later than" if strictly else "not earlier than"
    _refuse(path, numbers, back, t_s, f"each timestamp must be {rule} the one before; sort the rows by time")
    if t_s[-1] - t_s[0] > MAX_SPAN_S:
        raise LoadError(f"{path}: spans {t_s[-1] - t_s[0]:.3g} s, more than 20 years; check the timestamps' unit")


def _refuse(path: Path, numbers: np.ndarray, bad: np.ndarray, values: np.ndarray, rule: str) -> None:
    """Raise for the first bad row, if there is one."""
    if bad.any():
        k = int(np.argmax(bad))
        raise LoadError(f"{path}:{numbers[k]}: {rule}, got {values[k]:.10g}")


def _numbers(path: Path, numbers: np.ndarray, column: list[str], name: str) -> np.ndarray:
    """A column as finite float64."""
    try:
        values = np.array([float(v) for v in column])
    except ValueError:
        k = next(k for k, v in enumerate(column) if not _is_number(v))
        raise LoadError(f"{path}:{numbers[k]}: {name} must be a number, got {_short(column[k])}") from None
    _refuse(path, numbers, ~np.isfinite(values), values, f"{name} must be a finite number")
    return values


def _timestamps(path: Path, numbers: np.ndarray, column: list[str]) -> np.ndarray:
    """ISO times in UTC as seconds since the first row's day; plain numbers are seconds.

    NumPy's parser keeps the trace's seven fractional digits, which `datetime` does not.
    """
    if _is_number(column[0]):
        return _numbers(path, numbers, column, "TIMESTAMP")
    # numpy warns at UTC offsets; a trace in UTC may carry one
    plain = [v.strip().removesuffix("Z").removesuffix("+00:00") for v in column]
    for k, v in enumerate(plain):
        if not _looks_like_time(v):
            raise LoadError(
                f"{path}:{numbers[k]}: TIMESTAMP must be like 2023-11-16 18:15:46.6805900 in UTC, "
                f"got {_short(column[k])}"
            )
    try:
        stamps = np.array(plain, dtype="datetime64[ns]")
    except ValueError:
        k = next(k for k, v in enumerate(plain) if not _is_time(v))
        raise LoadError(f"{path}:{numbers[k]}: no such date or time, {_short(column[k])}; repair the row") from None
    return (stamps - stamps[0].astype("datetime64[D]")).astype(np.int64) / 1e9


def _looks_like_time(text: str) -> bool:
    """A date from 1970 to 2200 and a time, digits where digits belong.

    Nothing passes that NumPy would read in a way of its own ("now", "NaT", years that overflow nanoseconds).
    """
    digits = text[:4] + text[5:7] + text[8:10] + text[11:13] + text[14:16] + text[17:19]
    return (
        len(text) <= 29
        and len(digits) == 14
        and digits.isascii()
        and digits.isdigit()
        and text[4] + text[7] + text[13] + text[16] == "--::"
        and text[10] in " T"
        and (len(text) == 19 or (text[19] == "." and text[20:].isascii() and text[20:].isdigit()))
        and 1970 <= int(text[:4]) <= 2200
    )


def _is_time(text: str) -> bool:
    try:
        np.datetime64(text, "ns")
    except ValueError:
        return False
    return True


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _span(name: str, duration_s: float) -> tuple[float, float]:
    if name == "all":
        return 0.0, duration_s
    if name not in _BLOCKS:
        raise LoadError(f"no block {name!r}; use all, {', '.join(_BLOCKS)}")
    third = _BLOCKS[name]
    return duration_s * third / 3, duration_s * (third + 1) / 3


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")
