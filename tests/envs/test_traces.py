"""Load files: the three formats, and everything that is not one of them."""

import gzip
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from flyball.envs.traces import RateTable, Requests, read_requests
from flyball.fleet.errors import LoadError

DATA = Path(os.environ.get("FLYBALL_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens"
AZURE_ROWS = [
    "2023-11-16 18:15:46.6805900,374,44",
    "2023-11-16 18:15:46.6805901,396,109",
    "2023-11-16 18:16:00,9,2",
]
JSONL_ROWS = [
    json.dumps({"timestamp": t, "input_length": p, "output_length": o, "hash_ids": [1]})
    for t, p, o in ((0, 6758, 500), (0, 7322, 490), (3000, 12, 1))
]
RATES = "t_s,rate_rps"


def written(folder: Path, *lines: str, end: str = "\n") -> Path:
    path = folder / "load.txt"
    path.write_bytes(end.join(lines).encode())
    return path


def test_an_azure_csv_keeps_its_seven_digits(tmp_path):
    """Times are seconds from the first request, to 100 ns."""
    r = read_requests(written(tmp_path, AZURE, *AZURE_ROWS))
    assert isinstance(r, Requests)
    np.testing.assert_allclose(r.t_s, [0, 1e-7, 13.31941], atol=5e-9)
    assert r.prompt_tokens.tolist() == [374, 396, 9] and r.output_tokens.tolist() == [44, 109, 2]
    assert r.source == "load.txt" and len(r.digest) == 12


def test_a_mooncake_jsonl_is_in_milliseconds(tmp_path):
    """`hash_ids` is ignored; equal timestamps are what real traces have."""
    r = read_requests(written(tmp_path, *JSONL_ROWS))
    assert r.t_s.tolist() == [0, 0, 3] and r.prompt_tokens.tolist() == [6758, 7322, 12]


def test_a_rate_table_may_carry_lengths(tmp_path):
    """Lengths are optional, columns in any order, and the last row holds as long as the median one."""
    r = read_requests(written(tmp_path, "rate_rps,t_s,output_tokens,prompt_tokens", "2,10,20,30", "0,20,21,31"))
    assert isinstance(r, RateTable)
    assert r.t_s.tolist() == [0, 10] and r.rate_rps.tolist() == [2, 0] and r.prompt_tokens.tolist() == [30, 31]
    assert r.duration_s == 20
    assert read_requests(written(tmp_path, RATES, "0,1", "5,2")).prompt_tokens is None


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("rows", [[AZURE, *AZURE_ROWS], JSONL_ROWS, [RATES, "0,1", "60,2"]])
def test_marks_line_ends_blank_lines_and_gzip_change_nothing(tmp_path, rows, end):
    """The same rows give the same arrays, however the file was saved."""
    plain = read_requests(written(tmp_path, *rows))
    text = "\ufeff" + end.join(["", *rows, "", "  ", ""])
    path = tmp_path / "load.gz"
    path.write_bytes(gzip.compress(text.encode()))
    other = read_requests(path)
    np.testing.assert_array_equal(plain.t_s, other.t_s)
    assert type(plain) is type(other)


def test_zero_output_tokens_are_read_as_one_and_counted(tmp_path):
    """Prefill always yields a token; how many rows were changed is told."""
    r = read_requests(written(tmp_path, AZURE, *AZURE_ROWS, "2023-11-16 18:16:01,9,0"))
    assert r.output_tokens[-1] == 1 and r.zero_outputs == 1


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([""], "empty"),
        (["a,b,c", "1,2,3"], ":1: unknown format"),
        (["TIMESTAMP,ContextTokens", "0,1"], ":1: unknown format"),
        ([AZURE], "0 rows below the header"),
        ([AZURE, AZURE_ROWS[0]], "1 rows below the header"),
        ([AZURE, AZURE_ROWS[0], "2023-11-16 18:16:00,9"], ":3: 2 values under 3 columns"),
        ([AZURE, AZURE_ROWS[0], "2023-11-16 18:16:00,x,9"], ":3: contexttokens must be a number, got 'x'"),
        ([AZURE, AZURE_ROWS[0], "2023-11-16 18:16:00,nan,9"], ":3: contexttokens must be a finite number"),
        ([AZURE, AZURE_ROWS[0], "2023-11-16 18:16:00,0,9"], ":3: prompt tokens must be a whole number"),
        ([AZURE, AZURE_ROWS[0], "2023-11-16 18:16:00,1.5,9"], ":3: prompt tokens must be a whole number"),
        ([AZURE, AZURE_ROWS[0], "2023-11-16 18:16:00,1,-9"], ":3: output tokens must be a whole number"),
        ([AZURE, AZURE_ROWS[0], "2023-11-16 18:16:00,1e9,9"], ":3: prompt tokens must be a whole number"),
        ([AZURE, AZURE_ROWS[2], AZURE_ROWS[0]], ":3: each timestamp must be not earlier"),
        ([AZURE, AZURE_ROWS[0], "", "yesterday,9,9"], ":4: TIMESTAMP must be like"),
        ([AZURE, AZURE_ROWS[0], "NaT,9,9"], ":3: TIMESTAMP must be like"),
        ([AZURE, AZURE_ROWS[0], "2023-13-41 18:16:00,9,9"], ":3: no such date or time"),
        ([AZURE, AZURE_ROWS[0], AZURE_ROWS[0]], "same instant"),
        ([AZURE, "-5,9,9", "6,9,9"], ":2: timestamps must not be negative"),
        ([AZURE, "0,9,9", "1e12,9,9"], "more than 20 years"),
        ([AZURE + ",TIMESTAMP", "0,9,9,0", "1,9,9,1"], ":1: two columns are called 'timestamp'"),
        ([AZURE, AZURE_ROWS[0], '"2023'], ":3: malformed row"),
        ([JSONL_ROWS[0], "{"], ":2: not a JSON object"),
        ([JSONL_ROWS[0], "[1]"], ":2: "),
        ([JSONL_ROWS[0], '{"timestamp": 1}'], ":2: no input_length"),
        ([JSONL_ROWS[0], JSONL_ROWS[0].replace("6758", "true")], ":2: .*must be numbers"),
        ([JSONL_ROWS[0], JSONL_ROWS[0].replace("6758", "NaN")], ":2: input_length must be a finite number"),
        ([JSONL_ROWS[0], JSONL_ROWS[0].replace("6758", "9" * 400)], ":2: not a JSON object"),
        ([JSONL_ROWS[2], JSONL_ROWS[0]], ":2: each timestamp must be not earlier"),
        ([JSONL_ROWS[0].replace("0,", "-1,", 1), JSONL_ROWS[2]], ":1: timestamps must not be negative"),
        ([RATES, "0,1"], "1 rows below the header"),
        ([RATES, "0,1", "0,2"], ":3: each timestamp must be later"),
        ([RATES, "0,1", "1,-2"], ":3: rate_rps must be 0 to"),
        ([RATES, "0,1", "1,inf"], ":3: rate_rps must be a finite number"),
        ([RATES, "0,0", "1,0"], "every rate_rps is 0"),
        ([RATES + ",prompt_tokens", "0,1,0", "1,1,5"], ":2: prompt_tokens must be 1 to"),
    ],
)
def test_a_bad_file_is_refused_with_its_name_and_line(tmp_path, lines, message):
    """Every fault is one line: which file, which line, what to change."""
    path = written(tmp_path, *lines)
    with pytest.raises(LoadError, match="load.txt.*" + message) as caught:
        read_requests(path)
    assert "\n" not in str(caught.value)


def test_missing_files_folders_binaries_and_damaged_gzip_are_refused(tmp_path):
    """What cannot be read at all says so, too."""
    with pytest.raises(LoadError, match="cannot be read"):
        read_requests(tmp_path / "none.csv")
    with pytest.raises(LoadError, match="cannot be read"):
        read_requests(tmp_path)
    if os.path.exists("/dev/null"):
        with pytest.raises(LoadError, match="empty"):
            read_requests("/dev/null")
    for content, message in ((b"\x7fELF\x00\xff", "not text"), (b"t_s,rate_rps\n0\x00,1\n", ":2: binary")):
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(LoadError, match=message):
            read_requests(tmp_path / "x")
    whole = gzip.compress("\n".join(JSONL_ROWS).encode())
    for content in (whole[:-12], whole[:12] + b"junk" + whole[16:]):
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(LoadError, match="damaged gzip"):
            read_requests(tmp_path / "x")


HEADS = st.sampled_from([b"", AZURE.encode() + b"\n", RATES.encode() + b"\n", b"{", b"\x1f\x8b", b'{"timestamp":'])
CELLS = st.lists(
    st.lists(
        st.one_of(
            st.sampled_from(AZURE_ROWS[0].split(",")),
            st.floats().map(str),
            st.integers(-5, 10**8).map(str),
            st.text(max_size=6),
        ),
        max_size=4,
    ).map(",".join),
    max_size=6,
).map(lambda rows: "\n".join(rows).encode("utf-8", "surrogatepass"))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(HEADS, st.one_of(st.binary(max_size=200), CELLS))
@example(b"", b'{"timestamp": ' + b"[" * 100_000)
@example(AZURE.encode() + b"\n", b'1,2,"' + b"x" * 200_000 + b'"\n')
def test_arbitrary_bytes_are_read_or_refused_and_never_crash(tmp_path, head, body):
    """Any content gives arrays that satisfy the contract, or a LoadError of one line."""
    path = tmp_path / "junk"
    path.write_bytes(head + body)
    try:
        r = read_requests(path)
    except LoadError as e:
        assert "\n" not in str(e)
        return
    assert r.t_s[0] == 0 and (np.diff(r.t_s) >= 0).all() and np.isfinite(r.t_s).all()
    if isinstance(r, Requests):
        assert (r.prompt_tokens >= 1).all() and (r.output_tokens >= 1).all()


def real(name: str) -> Path:
    path = DATA / name
    if not path.is_file():
        pytest.skip(f"no {name} under {DATA}; set FLYBALL_DATA to the folder of measured data")
    return path


def test_the_azure_trace_reads_in_under_0_3_s_with_its_published_statistics():
    """19,366 requests in 3,502 s, means and 99th percentiles as published with the trace."""
    path = real("azure_llm_2023/AzureLLMInferenceTrace_conv.csv")
    spent_s = []
    for _ in range(3):
        start_s = time.perf_counter()
        r = read_requests(path)
        spent_s.append(time.perf_counter() - start_s)
    assert min(spent_s) < 0.3
    assert len(r.t_s) == 19_366 and r.duration_s == pytest.approx(3502, abs=1)
    assert round(r.prompt_tokens.mean()) == 1155 and round(r.output_tokens.mean()) == 211
    assert np.percentile(r.prompt_tokens, 99) == 4142 and np.percentile(r.output_tokens, 99) == 601


def test_the_mooncake_trace_reads_whole():
    """3,993 requests in 1,022 s, mean input 15,325 tokens."""
    r = read_requests(real("mooncake_fast25/synthetic_trace.jsonl"))
    assert len(r.t_s) == 3993 and round(r.prompt_tokens.mean()) == 15_325
    assert r.duration_s == pytest.approx(1022, abs=1)


@pytest.mark.parametrize("name", ["train", "validation", "test"])
def test_blocks_are_disjoint_in_time_and_cover_the_trace(tmp_path, name):
    """A policy is never judged on a request it was trained on."""
    rng = np.random.default_rng(1)
    t_s = np.cumsum(rng.exponential(1.0, 900))
    rows = [f"{t:.6f},{100 + k},5" for k, t in enumerate(t_s)]
    r = read_requests(written(tmp_path, AZURE, *rows))
    parts = {b: set(r.block(b)[1].tolist()) for b in ("train", "validation", "test")}
    assert parts["train"] | parts["validation"] | parts["test"] == set(r.prompt_tokens.tolist())
    mine, others = parts.pop(name), set.union(*parts.values())
    assert mine and not mine & others
    start_s, *_, length_s = r.block(name)
    assert start_s.min() >= 0 and start_s.max() < length_s == pytest.approx(r.duration_s / 3)
