"""The bank of unrelated texts for a finished run that kept none."""

from __future__ import annotations

from dataclasses import replace

from psi_engine.errors import PsiEngineError
from psi_engine.inputs import Texts, reopen
from psi_engine.stored import StoredRun
from psi_engine.vocabulary import unrelated_bank


def with_bank(stored: StoredRun) -> tuple[Texts, str | None]:
    """Texts of a run with the bank embedded, or as they are and why there can be no bank.

    Only an encoder of free texts can embed it. It is loaded again as :func:`reopen` does, and
    what that refuses is the reason. The bank leaves out the run's own concepts.
    """
    texts = stored.texts
    if texts.embeddings is None or texts.unrelated is not None:
        return texts, None
    if stored.run.manifest["encoder"]["text"] != "encoder":
        return texts, "the encoder cannot embed a bank of unrelated texts"
    concepts = stored.concepts or ()
    bank = unrelated_bank(exclude=concepts)
    if len(bank.concepts) < len(concepts):
        return texts, (
            f"the bank of {len(bank.concepts)} unrelated concepts is smaller than the vocabulary "
            f"of {len(concepts)}"
        )
    try:
        encoder = reopen(stored.run).encoder
    except PsiEngineError as refused:
        said = str(refused).splitlines()[0]
        return texts, f"the bank of unrelated texts cannot be embedded: {said}"
    rows = encoder.encode_texts(list(bank.texts)).cpu()
    return replace(texts, unrelated=rows, unrelated_ids=bank.concept_ids), None
