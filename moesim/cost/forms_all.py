"""Every form by the kind of operator it costs, and for MoE layers by whether experts run fused or eagerly."""

from __future__ import annotations

from dataclasses import replace

from moesim.cost.forms import Form
from moesim.cost.forms_attention import DECODE, PREFILL
from moesim.cost.forms_collective import COLLECTIVES_FITTED, collective_form
from moesim.cost.forms_eager import EAGER_KERNELS, EAGER_MOE, EAGER_PADDED_MOE
from moesim.cost.forms_gemm import GEMM
from moesim.cost.forms_linear import LINEAR_DECODE, LINEAR_PREFILL
from moesim.cost.forms_moe import MOE
from moesim.errors import CatalogError

__all__ = ["FORMS", "form_of"]

FORMS: dict[str, Form] = {
    form.kind: form
    for form in (
        GEMM,
        MOE,
        PREFILL,
        DECODE,
        replace(PREFILL, kind="mla_attention_prefill", length=2.0),
        replace(DECODE, kind="mla_attention_decode", length=2.0),
        LINEAR_PREFILL,
        LINEAR_DECODE,
        *(collective_form(kind) for kind in COLLECTIVES_FITTED),
    )
}


_EAGER = {kernel: EAGER_PADDED_MOE if kernel == "padded" else EAGER_MOE for kernel in EAGER_KERNELS}


def form_of(kind: str, kernel: str = "") -> Form:
    """The form of an operator kind; of eager MoE kernels (see `EAGER_KERNELS`) their own.

    Raises:
        CatalogError: no form of that kind.
    """
    if kind not in FORMS:
        raise CatalogError("unknown operator kind", field="op_kind", value=kind, allowed=", ".join(FORMS))
    if kind == "moe" and kernel in _EAGER:
        return _EAGER[kernel]
    return FORMS[kind]
