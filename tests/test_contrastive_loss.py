import urllib.error

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from csd_plugin import ContrastiveLoss, OptionError, contrastive_loss
from csd_plugin.losses.distances import _fused_gradient, _fused_sums, _gradient, _sums
from csd_plugin.losses.vgg import IMAGENET_FILE, LAYERS, VGGFeatures

WEIGHTS = {"relu1_1": 1 / 32, "relu3_1": 1 / 8}
DISTANCES = pytest.mark.parametrize("distance", ["l1", "cosine"])


def naive(student, positive, negatives, distance, mask=None):
    """The formula of the paper, written out with every pair."""
    total = 0
    for name, weight in WEIGHTS.items():
        s, p, n = student[name], positive[name], negatives[name]
        if distance == "l1":
            pull, pushes = (s - p).abs().mean(), (s[:, None] - n[None]).abs().mean((2, 3, 4))
        else:
            pull = 1 - torch.cosine_similarity(s, p, dim=1).mean()
            pushes = 1 - torch.cosine_similarity(s[:, None], n[None], dim=2).mean((2, 3))
        pushes = pushes if mask is None else pushes * mask
        total = total + weight * pull / (pushes.sum(1).mean() + 1e-7)
    return total


def features(count, seed, requires_grad=False):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"relu1_1": (3, 4, 4), "relu3_1": (6, 2, 2)}
    made = {k: torch.randn(count, *s, dtype=torch.float64, generator=generator) for k, s in shapes.items()}
    return {k: v.requires_grad_(requires_grad) for k, v in made.items()}


@DISTANCES
@pytest.mark.parametrize("count", [1, 4, 10])
@pytest.mark.parametrize("masked", [False, True])
def test_values_and_gradients_are_those_of_the_formula(distance, count, masked):
    student, positive, negatives = features(3, 0, True), features(3, 1, True), features(count, 2)
    mask = (torch.arange(3 * count).view(3, count) % 3 + 1).double() if masked else None
    ours = contrastive_loss(student, positive, negatives, WEIGHTS, mask, distance)
    theirs = naive(student, positive, negatives, distance, mask)
    torch.testing.assert_close(ours, theirs)
    leaves = [*student.values(), *positive.values()]
    for a, b in zip(torch.autograd.grad(ours, leaves), torch.autograd.grad(theirs, leaves), strict=True):
        torch.testing.assert_close(a, b)


@DISTANCES
@pytest.mark.parametrize("count", [1, 4, 10])
def test_gradcheck(distance, count):
    positive, negatives = features(2, 1), features(count, 2)

    def loss(*values):
        return contrastive_loss(dict(zip(WEIGHTS, values, strict=True)), positive, negatives, WEIGHTS, None, distance)

    assert torch.autograd.gradcheck(loss, tuple(features(2, 0, True).values()))


@DISTANCES
def test_without_negatives_only_the_pull_is_left(distance):
    student, positive = features(2, 0), features(2, 1)
    alone = contrastive_loss(student, positive, None, WEIGHTS, None, distance)
    far = {k: torch.empty(0, *v.shape[1:]) for k, v in student.items()}
    torch.testing.assert_close(contrastive_loss(student, positive, far, WEIGHTS, None, distance), alone)
    pulls = [naive({k: student[k] for k in WEIGHTS}, positive, features(1, 2), distance)]
    assert alone > 0 and pulls[0] != alone


def test_degenerate_negatives_stay_finite():
    student = features(2, 0, True)
    same = {k: v.detach()[:1].expand(2, -1, -1, -1) for k, v in student.items()}
    equal = {k: v.detach() for k, v in features(1, 0).items()}
    one = {k: v[:1] for k, v in student.items()}
    loss = contrastive_loss(one, {k: v[:1] for k, v in same.items()}, {k: v[:1] for k, v in equal.items()}, WEIGHTS)
    assert torch.isfinite(loss)


class Largest(TorchDispatchMode):
    """The number of values in the largest tensor that any operation returns."""

    values = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.values = max(self.values, tensor.numel())
        return out


@DISTANCES
def test_no_tensor_holds_every_pair(distance):
    student, positive, negatives = features(4, 0, True), features(4, 1), features(10, 2)
    with Largest() as largest:
        contrastive_loss(student, positive, negatives, WEIGHTS, None, distance).backward()
    one_each = max(v[0].numel() for v in student.values())
    assert largest.values <= 10 * one_each < 4 * 10 * one_each


def images(count, seed, size=32):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def test_module_equals_function_on_vgg_features():
    module = ContrastiveLoss(loss_weight=2.0, layer_weights=WEIGHTS, vgg_weights="random")
    student, positive, negatives = images(2, 0), images(2, 1), images(3, 2)
    vgg = VGGFeatures(tuple(WEIGHTS), "random")
    expected = 2 * contrastive_loss(vgg(student), vgg(positive), vgg(negatives), WEIGHTS)
    torch.testing.assert_close(module(student, positive, negatives), expected)


def test_fixed_reference_value():
    """The random VGG has a fixed seed: a change of this value is a change of the loss."""
    loss = ContrastiveLoss(loss_weight=1.0, vgg_weights="random")
    assert float(loss(images(2, 0), images(2, 1), images(3, 2))) == pytest.approx(0.48465, rel=1e-4)


@pytest.mark.parametrize("detach", [True, False])
def test_the_positive_moves_by_option_only(detach):
    loss = ContrastiveLoss(vgg_weights="random", layer_weights=WEIGHTS, detach_positive=detach)
    student, positive = images(2, 0).requires_grad_(), images(2, 1).requires_grad_()
    loss(student, positive, images(3, 2)).backward()
    assert student.grad.any()
    assert (positive.grad is None) is detach


def test_the_vgg_is_frozen_and_leaves_the_random_state_alone():
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    loss = ContrastiveLoss(vgg_weights="random", layer_weights={"relu1_1": 1.0})
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not any(p.requires_grad for p in loss.parameters())
    assert not loss.train().vgg.training


def slim_file(path, channels=(2, 3, 4, 5, 6)):
    """A VGG-19 with few channels under torchvision's keys."""
    torch.manual_seed(0)
    state, previous = {}, 3
    for name, index in LAYERS.items():
        if name.startswith("conv"):
            current = channels[int(name[4]) - 1]
            state[f"features.{index}.weight"] = torch.randn(current, previous, 3, 3)
            state[f"features.{index}.bias"] = torch.randn(current)
            previous = current
    torch.save(state, path)


def test_channel_counts_are_read_from_the_file(tmp_path):
    slim_file(tmp_path / "slim.pth")
    vgg = VGGFeatures(("relu1_1", "relu5_1"), str(tmp_path / "slim.pth"))
    outputs = vgg(images(1, 0))
    assert outputs["relu1_1"].shape == (1, 2, 32, 32)
    assert outputs["relu5_1"].shape == (1, 6, 2, 2)
    assert all((f >= 0).all() for f in outputs.values())


def test_layers_are_torchvisions():
    from torchvision.models import vgg19

    stock = vgg19(weights=None).eval()
    ours = VGGFeatures(("conv1_2", "relu5_1"), "random", "none")
    ours.features.load_state_dict({k: v for k, v in stock.features.state_dict().items() if int(k.split(".")[0]) < 30})
    x = images(1, 0)
    torch.testing.assert_close(ours(x)["relu5_1"], stock.features[:30](x))
    torch.testing.assert_close(ours(x)["conv1_2"], stock.features[:3](x))


def test_a_range_of_255_gives_the_features_in_units_that_do_not_overflow(tmp_path):
    x = images(1, 0)
    torch.manual_seed(1)
    stack = {0: (3, 8), 2: (8, 8), 5: (8, 16)}
    state = {f"features.{i}.weight": torch.randn(o, n, 3, 3) for i, (n, o) in stack.items()}
    state |= {f"features.{i}.bias": 100 * torch.randn(o) for i, (_, o) in stack.items()}
    torch.save(state, tmp_path / "vgg.pth")
    plain, ranged = (VGGFeatures(("relu1_1", "relu2_1"), str(tmp_path / "vgg.pth"), "none", r) for r in (1.0, 255))
    assert (plain.unit, ranged.unit) == (1, 255)
    for name, expected in plain(255 * x).items():
        torch.testing.assert_close(ranged(x)[name] * 255, expected, rtol=1e-4, atol=0.05)


def test_the_loss_is_in_the_units_of_the_range():
    student, positive, negatives = images(2, 0), images(2, 1), images(3, 2)
    settings = {"vgg_weights": "random", "layer_weights": WEIGHTS, "input_norm": "none"}
    ours = ContrastiveLoss(1, input_range=255, **settings).distances
    targets = ContrastiveLoss(1, input_range=255, **settings).targets(positive, negatives)
    plain = ContrastiveLoss(1, **settings)
    expected = plain.distances(255 * student, plain.targets(255 * positive, 255 * negatives))
    torch.testing.assert_close(ours(student, targets), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("kernels", [(_sums, _gradient), (_fused_sums, _fused_gradient)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernels_accumulate_in_float32(kernels, dtype):
    generator = torch.Generator().manual_seed(0)
    student, positive, negatives = (torch.randn(n, 8, 32, 32, generator=generator).to(dtype) for n in (3, 3, 5))
    weights = torch.rand(3, 5, generator=generator)
    difference = student.double()[:, None] - negatives.double()[None]
    pull = (student.double() - positive.double()).abs().sum()
    push = (difference.abs().sum((2, 3, 4)) * weights).sum()
    tolerance = 1e-6 if dtype == torch.float32 else 4e-3  # a difference of bfloat16 numbers is one itself
    found = kernels[0](student, positive, negatives, weights)
    torch.testing.assert_close(torch.stack(found).double(), torch.stack([pull, push]), rtol=tolerance, atol=0)
    gradient = torch.empty_like(student)
    kernels[1](student, positive, negatives, weights, torch.tensor(0.5), gradient)
    signs = (student.double() - positive.double()).sign()
    expected = 0.5 * signs + (difference.sign() * weights[:, :, None, None, None]).sum(1)
    torch.testing.assert_close(gradient, expected.to(dtype), rtol=1e-6 if dtype == torch.float32 else 1e-2, atol=1e-5)


def test_input_settings():
    x = images(1, 0)
    plain = VGGFeatures(("conv1_1",), "random", "none")
    normed = VGGFeatures(("conv1_1",), "random")
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    by_hand = (x - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    torch.testing.assert_close(normed(x)["conv1_1"], plain(by_hand)["conv1_1"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layer_weights": {"relu6_1": 1.0}}, "relu6_1 .*layer_weights"),
        ({"layer_weights": {}}, "layer_weights"),
        ({"input_norm": "z"}, "input_norm"),
        ({"input_range": 255}, "input_range"),
        ({"distance": "l2"}, "expected l1 or cosine, got 'l2'"),
        ({"vgg_weights": "missing.pth"}, r"no such file: missing.pth \(option train:contrastive_opt:vgg_weights"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(OptionError, match=message):
        ContrastiveLoss(**{"vgg_weights": "random", **arguments})


def test_a_file_that_is_no_vgg_is_refused(tmp_path):
    (tmp_path / "text.pth").write_text("not a checkpoint")
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "other.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    for name, message in (
        ("text", "no file of PyTorch weights"),
        ("other", "is no VGG-19"),
        ("list", "expected a mapping, got list"),
    ):
        with pytest.raises(OptionError, match=message):
            ContrastiveLoss(vgg_weights=str(tmp_path / f"{name}.pth"))


def test_the_imagenet_file_is_torchvisions():
    from torchvision.models import VGG19_Weights

    assert VGG19_Weights.IMAGENET1K_V1.url.endswith(f"/{IMAGENET_FILE}")


def test_offline_imagenet_says_which_file_goes_where(monkeypatch, tmp_path):
    def offline(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    with pytest.raises(OptionError, match=r"vgg19-dcbb9e9d.pth \(548 MB\) at .*checkpoints"):
        ContrastiveLoss(vgg_weights="imagenet")


@pytest.mark.parametrize("bad", [images(2, 0, 16), torch.rand(3, 3, 32, 32), torch.rand(2, 1, 32, 32)])
def test_images_that_do_not_match_are_refused(bad):
    loss = ContrastiveLoss(vgg_weights="random", layer_weights={"relu1_1": 1.0})
    with pytest.raises(ValueError, match="expected"):
        loss(images(2, 0), bad)
