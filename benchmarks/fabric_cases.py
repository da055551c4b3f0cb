"""Published whole passes of DeepSeek-V3: profile data, SGLang's large-scale deployment, production."""

from __future__ import annotations

from dataclasses import dataclass, replace

from moesim.lowering import Pass
from moesim.ops import Phase
from moesim.specs.parallel import Overlap
from moesim.specs.routing import PlacementKind, RouterFamily

__all__ = ["CASES", "RATIOS", "Case", "Ratio", "step_of"]


@dataclass(frozen=True)
class Case:
    """A published deployment; `measured` tokens/s per node of 8. `family` None is the load of the router `preset`.

    `idle_extra`: redundant slots get no tokens, as in SGLang unless a dispatch algorithm is named (or EPLB is on).
    """

    name: str
    cluster: str
    n_ranks: int
    phase: Phase
    batch_per_rank: int
    tokens: int
    measured: float
    redundant: int = 0
    family: RouterFamily | None = RouterFamily.BALANCED
    preset: str = "deepseek-v3"
    dispersion: float | None = None
    placement: PlacementKind = PlacementKind.EPLB_GLOBAL
    idle_extra: bool = False
    cached: int = 0
    overlap: Overlap = Overlap.TWO_BATCH
    n_sms: int | None = None
    date: str = "2025-02"
    target: str = ""


#: Expert counts of the deployment's own requests (ShareGPT's first turns, repeated to the length), and SGLang's balancing in
#: prefill as its code was in April and May 2025: expert groups are packed on nodes, since 4 nodes divide the 8 groups.
SHAREGPT = "deepseek-v3-sharegpt"

_PROFILE = Case("", "h800_x40_nodes", 32, Phase.PREFILL, 4, 4096, 62_713, n_sms=24)
_SGLANG = Case(
    "", "h100_x128_nodes", 32, Phase.PREFILL, 4, 4096, 50_302, 32, None, SHAREGPT, placement=PlacementKind.EPLB, date="2025-03"
)  # fmt: skip
_EP72 = Case("", "h100_x128_nodes", 72, Phase.DECODE, 256, 2000, 22_282, 32, None, date="2025-03")
_FLEET = Case(
    "", "h800_x22_nodes", 32, Phase.PREFILL, 8, 1923, 32_200, 32, None, placement=PlacementKind.EPLB, cached=2477, n_sms=24
)  # fmt: skip
_DECODE = Case("", "h800_x22_nodes", 144, Phase.DECODE, 88, 4989, 14_800, 32, None)

CASES = (
    # 24 compute units to exchanges: DeepEP's README example sets them; the library's default, and SGLang's, is 20
    replace(_PROFILE, name="DeepSeek profile, prefill EP32", target="10%"),
    replace(_PROFILE, name="  the same, 20 units to exchanges", n_sms=20),
    replace(
        _PROFILE, name="DeepSeek profile, decode EP128", n_ranks=128, phase=Phase.DECODE, batch_per_rank=128, measured=18_598,
        target="10%",
    ),
    # "random expert selection following group-limited routing semantics"
    replace(_SGLANG, name="SGLang prefill EP32, perfect EPLB", measured=59_337, family=RouterFamily.UNIFORM, target="15%"),
    replace(
        _SGLANG, name="  the same, 24 units to exchanges", measured=59_337, family=RouterFamily.UNIFORM, n_sms=24
    ),
    replace(_SGLANG, name="SGLang prefill EP32, EPLB", target="15%"),
    replace(_SGLANG, name="  the same, prompts alike", dispersion=0.0),
    replace(_SGLANG, name="  the same, EPLB regardless of groups", placement=PlacementKind.EPLB_GLOBAL),
    replace(_SGLANG, name="  the same, TensorRT-LLM's load", preset="deepseek-v3"),
    replace(_SGLANG, name="SGLang prefill EP32, EPLB, prompts of 2,048", batch_per_rank=8, tokens=2048, measured=54_543),
    replace(_SGLANG, name="SGLang prefill EP32, EPLB, prompts of 1,024", batch_per_rank=16, tokens=1024, measured=57_674),
    replace(_EP72, name="SGLang decode EP72, EPLB, TensorRT-LLM's load"),
    replace(_EP72, name="  the same, counts of its prefill", preset=SHAREGPT),
    # 20 to 22 tokens/s per user and 1,850 tokens/s per GPU: 88 requests per GPU; mean context as published
    replace(_DECODE, name="DeepSeek production, decode EP144"),
    replace(_DECODE, name="  the same, even load", family=RouterFamily.BALANCED),
    # 56.3% of input tokens came from the cache; a prompt of 4,400 tokens is an assumption
    replace(_FLEET, name="DeepSeek production, prefill EP32"),
    replace(_FLEET, name="  the same, load of SGLang's prefill", preset=SHAREGPT),
    replace(_FLEET, name="  the same, even load", family=RouterFamily.BALANCED),
    replace(
        _FLEET, name="  the same, even load, nothing cached", batch_per_rank=4, tokens=4400, cached=0,
        family=RouterFamily.BALANCED,
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Ratio:
    """A published speed-up of one deployment over another."""

    name: str
    better: Case
    worse: Case
    measured: str


_OFF = PlacementKind.TRIVIAL
_ON = replace(_SGLANG, batch_per_rank=8, tokens=2048)
_PERFECT = replace(_SGLANG, family=RouterFamily.UNIFORM)
_AT_8K = replace(_ON, batch_per_rank=4)
_EP72_32 = replace(_EP72, batch_per_rank=32)
_EP72_OWN = replace(_EP72, preset=SHAREGPT)

RATIOS = (
    Ratio("SGLang: perfect EPLB over EPLB, prefill EP32", _PERFECT, _SGLANG, "1.18 (penalty 15.2%)"),
    Ratio("  the same, prompts alike", _PERFECT, replace(_SGLANG, dispersion=0.0), "1.18 (penalty 15.2%)"),
    Ratio(
        "  the same, EPLB regardless of groups", _PERFECT, replace(_SGLANG, placement=PlacementKind.EPLB_GLOBAL),
        "1.18 (penalty 15.2%)",
    ),
    Ratio("  the same, TensorRT-LLM's load", _PERFECT, replace(_SGLANG, preset="deepseek-v3"), "1.18 (penalty 15.2%)"),
    Ratio("SGLang: EPLB on over off, prefill EP32, prompts of 2,048", _ON, replace(_ON, placement=_OFF), "1.49"),
    Ratio("  the same, extra slots idle when off", _ON, replace(_ON, placement=_OFF, idle_extra=True), "1.49"),
    Ratio("SGLang: EPLB on over off, decode EP72", _EP72_OWN, replace(_EP72_OWN, placement=_OFF), "2.54"),
    Ratio("  the same, extra slots idle when off", _EP72_OWN, replace(_EP72_OWN, placement=_OFF, idle_extra=True), "2.54"),
    Ratio("  the same, TensorRT-LLM's load", _EP72, replace(_EP72, placement=_OFF), "2.54"),
    Ratio("SGLang: two micro-batches, prefill, 8k tokens", _AT_8K, replace(_AT_8K, overlap=Overlap.NONE), "1.27 to 1.35"),
    Ratio("SGLang: 16k in two over 8k in one", _ON, replace(_AT_8K, overlap=Overlap.NONE), "1.405"),
    Ratio("SGLang: two micro-batches, decode EP72, 256 per GPU", _EP72, replace(_EP72, overlap=Overlap.NONE), "1.255"),
    Ratio("SGLang: the same, 32 per GPU", _EP72_32, replace(_EP72_32, overlap=Overlap.NONE), "0.73"),
)  # fmt: skip


def step_of(case: Case) -> Pass:
    """The pass that the figure was measured on."""
    n = float(case.batch_per_rank * case.n_ranks)
    if case.phase is Phase.PREFILL:
        return Pass(case.phase, n, float(case.tokens), float(case.cached))
    return Pass(case.phase, n, 1.0, float(case.tokens))
