"""The control of the method page: with the prompts turned at random, D must know nothing."""

import pytest
import torch
from sklearn.metrics import roc_auc_score

from psi_engine.config import ScoreConfig
from psi_engine.scores.score import score


@pytest.mark.parametrize(
    ("measure", "null", "chance"),
    [
        ("gap", "pool", True),
        ("contrast", "text-shuffle", True),
        # contrast grows with the distance between clusters whatever the texts say, and pool sets
        # have less of it: against this null D is partly a second S
        ("contrast", "pool", False),
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
    turn = torch.linalg.qr(torch.randn(32, 32, generator=generator)).Q
    config = ScoreConfig(replicates=100, d_measure=measure, d_null=null)
    truth = (kinds > 1).numpy()

    def auc(texts):
        got = score(z, text_embeddings=texts, pool=pool, config=config)
        return roc_auc_score(truth, got.d_z.numpy())

    named, turned = auc(centres), auc(centres @ turn)
    if measure == "contrast":
        assert named > 0.9
    # 40 different sets of classes stand behind the channels: standard error about 0.07
    assert (abs(turned - 0.5) < 0.2) == chance
