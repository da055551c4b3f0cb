"""Every form by the kind of operator it costs."""

from __future__ import annotations

from dataclasses import replace

from moesim.cost.forms import Form
from moesim.cost.forms_attention import DECODE, PREFILL
from moesim.cost.forms_collective import COLLECTIVES_FITTED, collective_form
from moesim.cost.forms_gemm import GEMM
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
        *(collective_form(kind) for kind in COLLECTIVES_FITTED),
    )
}


def form_of(kind: str) -> Form:
    """The form of an operator kind.

    Raises:
        CatalogError: no form of that kind.
    """
    if kind not in FORMS:
        raise CatalogError("unknown operator kind", field="op_kind", value=kind, allowed=", ".join(FORMS))
    return FORMS[kind]
