"""What may come over HTTP: types, ranges and the one line that a refusal says.

NaN and null both mean "missing" where a value may be missing; infinity never does.
"""

import math
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

from ..fleet.errors import BadInput
from ..fleet.tables import UNKNOWN_W

NAN = float("nan")
MAX_GPUS = 1024
MAX_NAME = 200


def _nan_is_missing(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be whole watts or null")
    return UNKNOWN_W if value is None or (isinstance(value, float) and math.isnan(value)) else value


def _between(low: float, high: float) -> AfterValidator:
    def check(value: float) -> float:
        if not math.isnan(value) and not low <= value <= high:
            raise ValueError(f"must lie between {low:g} and {high:g}")
        return value

    return AfterValidator(check)


def _measured(low: float, high: float) -> WrapValidator:
    """A number within a range; null and NaN are missing, infinity and truth values are refused."""

    def check(value: Any, handler: ValidatorFunctionWrapHandler) -> float:
        if value is None:
            return NAN
        if isinstance(value, bool):
            raise ValueError("must be a number or null")
        number = float(handler(value))
        if not math.isnan(number) and not low <= number <= high:
            raise ValueError(f"must lie between {low:g} and {high:g}, or be null where it is missing")
        return number

    return WrapValidator(check)


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("must be a finite number")
    return value


Watts = Annotated[float, _measured(0, 1e9)]
NodeWatts = Annotated[float, _measured(0, 1e6)]
Seconds = Annotated[float, _measured(0, 1e6)]
Count = Annotated[float, _measured(0, 1e9)]
Share = Annotated[float, _measured(0, 1)]
ReadBackWatts = Annotated[int, BeforeValidator(_nan_is_missing), _between(UNKNOWN_W, 10**6)]
Time = Annotated[float, AfterValidator(_finite), _between(-1e12, 1e12)]
Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME)]
NO_LEASE = -1
Counter = Annotated[int, Field(ge=NO_LEASE, le=10**15)]


class Message(BaseModel):
    """Unknown fields are ignored, so that a newer agent can talk to an older service."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class NodeTelemetry(Message):
    """What an agent posts once a tick."""

    node: Name | None = None
    boot_id: Name
    sent_at: Time = Field(validation_alias=AliasChoices("sent_at", "sent_at_s"))
    ack_epoch: Counter = NO_LEASE
    ack_seq: Counter = NO_LEASE
    cap_w: ReadBackWatts = UNKNOWN_W
    fallback_w: ReadBackWatts = UNKNOWN_W
    power_w: NodeWatts = NAN
    demand_w: NodeWatts = NAN
    util_frac: Annotated[float, _measured(0, 10)] = NAN
    clock_frac: Annotated[float, _measured(0, 2)] = NAN
    temp_c: Annotated[float, _measured(-60, 200)] = NAN
    stage: Annotated[int, Field(ge=0, le=2)] | None = None
    moving_s: Seconds = 0.0
    xid: list[Annotated[int, Field(ge=0, le=100_000)]] | None = Field(None, max_length=256)
    gpus: list[Name] | None = Field(None, max_length=MAX_GPUS)
    problems: list[Annotated[str, Field(max_length=1000)]] | None = Field(None, max_length=64)
    dry_run: bool = False


class DomainTelemetry(Message):
    """A meter's reading."""

    domain: Name | None = None
    meter_w: Watts
    sent_at: Time = Field(validation_alias=AliasChoices("sent_at", "sent_at_s"))


class ServiceTelemetry(Message):
    """A model server's figures of the last interval; what is absent is missing."""

    service: Name | None = None
    sent_at: Time = Field(validation_alias=AliasChoices("sent_at", "sent_at_s"))
    arrival_rps: Count = NAN
    prompt_tokens: Count = NAN
    output_tokens: Count = NAN
    backlog_s: Seconds = NAN
    ttft_s: Seconds = NAN
    itl_s: Seconds = NAN
    active: Count = NAN
    kv_frac: Annotated[float, _measured(0, 2)] = NAN
    ttft_ok_frac: Share = NAN
    itl_ok_frac: Share = NAN
    reject_frac: Share = NAN


class TelemetryBatch(Message):
    """Many reports at once, from a rack proxy; each is checked on its own."""

    nodes: list[dict[str, Any]] = Field(default_factory=list, max_length=50_000)
    domains: list[dict[str, Any]] = Field(default_factory=list, max_length=50_000)
    services: list[dict[str, Any]] = Field(default_factory=list, max_length=10_000)


class Registration(Message):
    """An agent says who it is before it asks for leases."""

    boot_id: Name
    gpus: list[Name] = Field(max_length=MAX_GPUS)


class Order(Message):
    """Why an operator cordons, drains or releases a node."""

    reason: str = Field("", max_length=1000)


class OverrideOrder(Message):
    """An operator's order about one node; `release` ends the one that stands.

    A pin holds the node's cap at `cap_w`, a freeze at what it is, with its stage; an excluded node is left to somebody
    else and counts at the most that it can draw. Give `until_s` (Unix) or `for_s` (from now) to have it end by itself.
    """

    node: Name
    kind: Literal["pin", "freeze", "exclude", "release", "cordon", "drain"]
    reason: str = Field(min_length=1, max_length=1000)
    cap_w: Annotated[int, Field(ge=1, le=10**9)] | None = None
    until_s: Time | None = None
    for_s: Annotated[float, AfterValidator(_finite), Field(gt=0, le=366 * 86400)] | None = None


class LoadTarget(Message):
    """A change of one domain's limit.

    Give `limit_w` or `limit_frac` (of the site file's peak_w), and `start_s` (Unix) or `notice_s` (from now);
    neither starts it now. The same id again replaces the event; `supersedes` withdraws others.
    """

    id: Name
    domain: Name = Field(validation_alias=AliasChoices("domain", "feed"))
    limit_w: Annotated[int, Field(ge=1, le=10**12)] | None = None
    limit_frac: Annotated[float, AfterValidator(_finite), Field(gt=0, le=1)] | None = None
    start_s: Time | None = Field(None, validation_alias=AliasChoices("start_s", "start"))
    notice_s: Annotated[float, AfterValidator(_finite), Field(ge=0, le=366 * 86400)] | None = None
    until_s: Time | None = Field(None, validation_alias=AliasChoices("until_s", "until"))
    supersedes: list[Name] = Field(default_factory=list, max_length=100)
    reason: str = Field("", max_length=1000)


class EntityImpacted(Message):
    type: str = Field("", max_length=MAX_NAME)
    value: str = Field("", max_length=MAX_NAME)


class DrainOverrides(Message):
    force: bool = False
    skip: bool = False


class HealthEvent(Message):
    """A health event with the fields of NVSentinel's."""

    agent: str = Field("", max_length=MAX_NAME)
    componentClass: str = Field("", max_length=MAX_NAME)
    checkName: str = Field("", max_length=MAX_NAME)
    isFatal: bool = False
    isHealthy: bool = False
    message: str = Field("", max_length=4000)
    recommendedAction: Literal[
        "NONE",
        "COMPONENT_RESET",
        "CONTACT_SUPPORT",
        "RUN_FIELDDIAG",
        "RESTART_VM",
        "RESTART_BM",
        "REPLACE_VM",
        "RUN_DCGMEUD",
        "CUSTOM",
        "UNKNOWN",
    ] = "UNKNOWN"
    errorCode: list[Annotated[str, Field(max_length=MAX_NAME)]] = Field(default_factory=list, max_length=100)
    entitiesImpacted: list[EntityImpacted] = Field(default_factory=list, max_length=MAX_GPUS)
    metadata: dict[str, str] = Field(default_factory=dict)
    generatedTimestamp: str | float | None = None
    nodeName: Name
    quarantineOverrides: DrainOverrides = DrainOverrides()
    drainOverrides: DrainOverrides = DrainOverrides()
    processingStrategy: Literal["EXECUTE_REMEDIATION", "STORE_ONLY", "STORE_AND_ANALYSE"] = "EXECUTE_REMEDIATION"


class DecideRequest(Message):
    """A decision for a snapshot from outside: columns, or the bytes of both in base64."""

    snapshot: dict[str, Any] | str
    state: str | None = None


M = TypeVar("M", bound=Message)


def one_line(error: ValidationError) -> str:
    """A refusal as one line: the first fault, and how many more there are."""
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    where = ".".join(str(p) for p in faults[0]["loc"]) or "body"
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return f"{where}: {faults[0]['msg'].removeprefix('Value error, ')}{more}"


def parse(kind: type[M], body: bytes | dict[str, Any]) -> M:
    """A message from a body.

    Raises:
        BadInput: with one line.
    """
    try:
        return kind.model_validate_json(body) if isinstance(body, bytes) else kind.model_validate(body)
    except ValidationError as error:
        raise BadInput(one_line(error)) from None
    except RecursionError:
        raise BadInput("body: nested too deeply") from None
