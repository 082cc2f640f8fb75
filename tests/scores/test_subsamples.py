import torch

from psi_engine.scores.subsamples import subsampled_log_psi
from psi_engine.statistics import NullSummary, calibrate, quantile
from tests.nulls.call import make_batch, make_call, normal


def observed_and_halves(change=lambda nulls: nulls, channels=16, n=24):
    """Log PSI of channels with labels and texts, and of their subsamples."""
    call = make_call(normal(0, 300, 8), normal(1, 9, 8), subsamples=200)
    labels = torch.randint(0, 10, (channels, n), generator=torch.Generator().manual_seed(2))
    batch = make_batch(normal(3, channels, n, 8), call, labels)
    seen = {"s": batch.s, "q": batch.q, "d": batch.d}
    nulls = {
        name: NullSummary(x - 0.05, torch.full_like(x, 0.1), torch.ones_like(x), x[:, None])
        for name, x in seen.items()
    }
    nulls = change(nulls)
    log_psi = sum(
        calibrate(x, nulls[name].mean, nulls[name].std).log_hat for name, x in seen.items()
    )
    return log_psi, subsampled_log_psi(batch, call, nulls)


def test_halves_lie_on_both_sides_of_the_estimate():
    """NMI of half the patches is larger by construction: uncentred, nearly all halves exceed."""

    def only_q(nulls):
        wide = {name: null._replace(std=null.std * 1e4) for name, null in nulls.items()}
        return wide | {"q": nulls["q"]}

    log_psi, halves = observed_and_halves(only_q)
    above = (halves > log_psi[:, None]).double().mean(1)
    assert ((above > 0.25) & (above < 0.75)).all()
    low, high = quantile(halves, 0.025), quantile(halves, 0.975)
    assert (low < log_psi).all()
    assert (high > log_psi).all()


def test_a_null_without_spread_gives_no_interval():
    """Where σ is 0 (rotation-shared) z is a jump: the subsamples keep the channel's own value."""

    def degenerate(nulls):
        return {
            name: null._replace(mean=null.mean + 0.05, std=torch.zeros_like(null.std))
            for name, null in nulls.items()
        }

    log_psi, halves = observed_and_halves(degenerate)
    assert torch.equal(halves, log_psi[:, None].expand_as(halves))
