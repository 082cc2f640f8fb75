"""The control of the method page: with the prompts turned at random, D must know nothing."""

import pytest
import torch
from sklearn.metrics import roc_auc_score

from psi_engine.config import ScoreConfig
from psi_engine.scores.score import score

TURNS = 4


@pytest.mark.parametrize(
    ("measure", "null", "chance"),
    [
        ("gap", "pool", True),
        ("gap", "neighborhood", True),
        ("contrast", "text-shuffle", True),
        ("contrast", "text-rotation", True),
        ("margin", "text-rotation", True),
        # contrast grows with the distance between clusters whatever the texts say, and pool sets
        # have less of it, neighbourhoods of equal mean cosine, too: there D is partly a second S
        ("contrast", "pool", False),
        ("contrast", "neighborhood", False),
    ],
)
def test_turned_prompts_leave_d_at_chance(measure, null, chance):
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(40, 32, generator=generator)
    channels = 240
    kinds = torch.where(torch.arange(channels) % 2 == 0, 1, 3)
    labels = (torch.rand(channels, 30, generator=generator) * kinds[:, None]).long()
    labels = (labels * 7 + torch.arange(channels)[:, None]) % 40
    z = centres[labels] + torch.randn(channels, 30, 32, generator=generator)
    pool = centres.repeat_interleave(30, 0) + torch.randn(1200, 32, generator=generator)
    turns = torch.linalg.qr(torch.randn(TURNS, 32, 32, generator=generator)).Q
    config = ScoreConfig(replicates=100, d_measure=measure, d_null=null)
    truth = (kinds > 1).numpy()

    def auc(texts):
        got = score(z, text_embeddings=texts, pool=pool, config=config)
        return roc_auc_score(truth, got.d_z.numpy())

    if measure != "gap":
        assert auc(centres) > 0.9
    # 40 different sets of classes stand behind the channels: one turn varies by 0.05 to 0.25
    turned = sum(auc(centres @ turn) for turn in turns) / TURNS
    assert (abs(turned - 0.5) < 0.2) == chance
