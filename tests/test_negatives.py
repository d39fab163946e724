import numpy as np
import torch

from csd_plugin.config.schema import NegativesOptions
from csd_plugin.data.bicubic import resize
from csd_plugin.models.inference import run_padded, self_ensemble
from csd_plugin.models.negatives import NegativeSampler


def sampler(scale=2, seed=0, **options):
    return NegativeSampler(NegativesOptions(**options), scale, seed)


def constant_images(values):
    return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 3, 4, 4).contiguous()


def test_no_anchor_meets_its_own_image_and_each_meets_k():
    lq = constant_images([i / 10 for i in range(8)])
    for iteration in range(1, 30):
        negatives = sampler(num=4).sample(lq, iteration)
        assert len(negatives.images) == 5
        assert torch.equal(negatives.pair_weights.sum(1), torch.full((8,), 4.0))
        values = negatives.images.mean((1, 2, 3))
        for anchor, row in zip(lq, negatives.pair_weights, strict=True):
            assert not torch.isclose(values[row > 0], anchor.mean(), atol=1e-3).any()


def test_draws_depend_on_seed_and_iteration_alone():
    lq = torch.rand(6, 3, 4, 4)
    first = sampler(num=2, seed=1).sample(lq, 7)
    torch.manual_seed(99)
    again = sampler(num=2, seed=1).sample(lq, 7)
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.pair_weights, again.pair_weights)
    others = [sampler(num=2, seed=1).sample(lq, i).images for i in range(8, 14)]
    assert not all(torch.equal(first.images, other) for other in others)


def test_pool_serves_more_negatives_than_the_batch_has():
    pooled = sampler(source="pool", num=10, pool_size=12)
    first = pooled.sample(torch.rand(4, 3, 4, 4), 1)
    assert first.pair_weights.count_nonzero(1).tolist() == [3] * 4
    torch.testing.assert_close(first.pair_weights.sum(1), torch.full((4,), 10.0))
    for iteration in (2, 3):
        last = pooled.sample(torch.rand(4, 3, 4, 4), iteration)
    assert last.pair_weights.count_nonzero(1).tolist() == [10] * 4
    pooled.sample(torch.rand(4, 3, 4, 4), 4)
    assert len(pooled.pool) == 12
    alone = pooled.sample(torch.rand(4, 3, 4, 4), 5)
    assert len(alone.images) == 10 and torch.equal(alone.pair_weights, torch.ones(4, 10))


def test_own_negatives_are_the_anchors_own_images():
    lq = torch.rand(3, 3, 8, 8)
    own = sampler(source="own", num=4).sample(lq, 1)
    assert torch.equal(own.pair_weights, 4 * torch.eye(3))
    others = sampler(num=2).sample(lq, 1).images
    assert all(any(torch.equal(image, mine) for mine in own.images) for image in others)


def test_blurred_negatives_are_smoother_and_noisy_ones_rougher():
    image = torch.nn.functional.interpolate(torch.rand(2, 3, 4, 4), scale_factor=4, mode="bicubic").clamp(0.1, 0.9)
    plain, blurred, noisy = (
        sampler(source="own", num=1, kind=kind).sample(image, 1).images for kind in ("bicubic", "blurred", "noisy")
    )
    roughness = [float(t.diff(dim=-1).abs().mean()) for t in (blurred, plain, noisy)]
    assert roughness == sorted(roughness) and roughness[0] < 0.8 * roughness[1] < 0.8 * roughness[2]
    assert (noisy - plain).std() < 3 * 10 / 255
    assert torch.equal(noisy, sampler(source="own", num=1, kind="noisy").sample(image, 1).images)
    assert all(t.min() >= 0 and t.max() <= 1 and t.shape == (2, 3, 32, 32) for t in (plain, blurred, noisy))


def test_a_lone_image_has_no_negatives_until_the_pool_has():
    pooled = sampler(source="pool", num=1)
    assert pooled.sample(torch.rand(1, 3, 4, 4), 1) is None
    assert pooled.sample(torch.rand(1, 3, 4, 4), 2).pair_weights.tolist() == [[1.0]]
    assert sampler(num=0).sample(torch.rand(4, 3, 4, 4), 1) is None


def test_enlarged_as_matlab_does():
    lq = torch.rand(1, 3, 20, 20).expand(3, -1, -1, -1).contiguous()
    negative = sampler(scale=3, num=2).sample(lq, 1).images[0].permute(1, 2, 0).numpy()
    expected = resize(lq[0].permute(1, 2, 0).numpy(), 3).clip(0, 1)
    inside = slice(9, -9)  # the borders are handled otherwise
    np.testing.assert_allclose(negative[inside, inside], expected[inside, inside], atol=2e-6)


def test_self_ensemble_leaves_an_equivariant_network_as_it_is_and_averages_another():
    x = torch.rand(2, 3, 5, 7)
    torch.testing.assert_close(self_ensemble(lambda t: 2 * t, x), 2 * x)
    ramp = self_ensemble(lambda t: t + torch.arange(t.shape[-1]).to(t), torch.zeros(1, 3, 5, 5))
    torch.testing.assert_close(ramp, ramp.flip(-1))
    torch.testing.assert_close(ramp, torch.rot90(ramp, 1, (-2, -1)))
    torch.testing.assert_close(ramp.mean(), torch.tensor(2.0))


def test_padding_is_cut_off_again():
    x = torch.rand(1, 3, 5, 7)
    seen = []

    def double(t):
        seen.append(t.shape[-2:])
        return t.repeat_interleave(2, 2).repeat_interleave(2, 3)

    assert torch.equal(run_padded(double, 4, x), double(x))
    assert seen[0] == (8, 8)
    clip = torch.rand(2, 3, 3, 5, 7)
    middle = run_padded(lambda t: double(t[:, 1]), 4, clip)
    assert torch.equal(middle, double(clip[:, 1]))
    assert seen[2] == (8, 8)
