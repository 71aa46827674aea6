"""ZS3Net and CaGNet: the discrepancy against loops, and which networks each loss reaches."""

from __future__ import annotations

import math

import pytest
import torch
from per_pixel import NAMES, SEEN, batch, small

from deop.models.generators import CAGNET_BANDWIDTHS, ZS3_BANDWIDTHS, class_positions, mmd


def literal_mmd(generated, real, bandwidths):
    """The equation, by a double loop over pairs."""

    def mean(one, other, bandwidth):
        values = [
            math.exp(-sum((a - b) ** 2 for a, b in zip(x, y)) / (2 * bandwidth)) for x in one for y in other
        ]
        return sum(values) / len(values)

    total = sum(
        mean(generated, generated, b) + mean(real, real, b) - 2 * mean(generated, real, b) for b in bandwidths
    )
    return math.sqrt(total)


@pytest.mark.parametrize("bandwidths", [ZS3_BANDWIDTHS, CAGNET_BANDWIDTHS])
def test_mmd_equals_a_double_loop(bandwidths):
    generator = torch.Generator().manual_seed(0)
    generated, real = torch.randn(3, 5, 4, generator=generator), torch.randn(3, 7, 4, generator=generator) + 1
    found = mmd(generated, real, bandwidths)
    for index in range(3):
        expected = literal_mmd(generated[index].tolist(), real[index].tolist(), bandwidths)
        assert found[index].item() == pytest.approx(expected, rel=1e-4)


def test_mmd_of_a_set_with_itself_is_zero_and_has_a_finite_gradient():
    features = torch.randn(2, 6, 4, requires_grad=True)
    found = mmd(features, features.detach().clone(), ZS3_BANDWIDTHS)
    found.sum().backward()
    assert found.tolist() == [0, 0] and torch.isfinite(features.grad).all()


def test_positions_are_of_their_class_and_image():
    labels = batch()[1]
    positions, classes = class_positions(labels, 20)
    assert classes.tolist() == [0, 1, 0, 1] and positions.shape == (4, 20)
    flat = labels.flatten()
    for row, (image, label) in zip(positions, [(0, 0), (0, 1), (1, 0), (1, 1)]):
        assert (flat[row] == label).all() and (row // 1024 == image).all()
        assert len(row.unique()) > 5


def reached(system, loss) -> set[str]:
    """The parts of a system that a loss has gradients for."""
    system.zero_grad()
    loss.backward(retain_graph=True)
    return {
        name.partition(".")[0]
        for name, value in system.named_parameters()
        if value.grad is not None and value.grad.abs().sum() > 0
    }


def test_each_round_of_zs3net_reaches_its_own_networks(mini_clip):
    images, labels = batch()
    expected = {
        "training": {"features", "classifier"},
        "generator": {"generator"},
        "classifier": {"classifier"},
        "self_training": {"features", "classifier"},
    }
    for name, parts in expected.items():
        system = small("zs3net", mini_clip)
        system.start_round(name)
        losses = system.train().losses(images, labels, list(SEEN))
        assert reached(system, sum(losses.values())) == parts
        learned = {key.partition(".")[0] for key, value in system.named_parameters() if value.requires_grad}
        assert learned == parts


def test_the_last_layer_is_all_that_changes_in_the_classifier_round(mini_clip):
    images, labels = batch()
    system = small("zs3net", mini_clip)
    system.start_round("classifier")
    system.train()
    before = {name: value.clone() for name, value in system.state_dict().items()}
    optimizer = torch.optim.SGD([value for value in system.parameters() if value.requires_grad], lr=1.0)
    system.losses(images, labels, list(SEEN))["classes"].backward()
    optimizer.step()
    changed = {name for name, value in system.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"classifier.weight", "classifier.bias"}
    # The row of the unseen class learned too, from generated features alone.
    assert not torch.equal(system.classifier.weight[1], before["classifier.weight"][1])


def test_self_training_labels_only_hidden_pixels_and_the_share_that_is_asked(mini_clip):
    images, labels = batch()
    system = small("zs3net", mini_clip, confident=0.25)
    system.start_round("self_training")
    coarse = system.coarse(labels)
    targets = system.pseudo_labels(images, coarse, list(SEEN))
    labelled = coarse >= 0
    assert (targets[labelled] == torch.tensor([0, 2])[coarse[labelled]]).all()  # dog and grass of three names
    assert (targets[coarse == -1] == -1).all()
    hidden = coarse == -2
    assert int((targets[hidden] >= 0).sum()) == round(0.25 * int(hidden.sum()))


@pytest.mark.parametrize("name", ["zs3net", "cagnet"])
def test_a_dataset_without_unseen_classes_is_trained_on_in_every_round(mini_clip, name):
    images, labels = batch()
    system = small(name, mini_clip, SEEN)
    for of_round in (*system.settings.rounds, *(["self_training"] if name == "zs3net" else [])):
        system.start_round(of_round)
        assert all(
            torch.isfinite(loss) for loss in system.train().losses(images, labels, list(SEEN)).values()
        )


@pytest.mark.parametrize("of_round", ["training", "generator", "classifier", "self_training"])
def test_losses_of_zs3net_are_those_of_the_whole_batch_however_it_is_divided(
    mini_clip, monkeypatch, of_round
):
    """With what is drawn at random made the same: positions, noise, and the classes of generated features."""
    images, labels = batch()
    labels[0, :4], labels[1, 14:24] = -2, -1  # the images differ in labelled pixels and in their classes
    system = small("zs3net", mini_clip, unseen_share=0.5).eval()
    system.start_round(of_round)
    system.eval()

    def positions(labels, count):
        _, classes = class_positions(labels, count)
        every = torch.arange(labels.numel()).view(labels.shape)
        sets = [
            every[index][image == label]
            for index, image in enumerate(labels)
            for label in image.unique()
            if label >= 0
        ]
        return torch.stack([one.repeat(count)[:count] for one in sets]), classes

    monkeypatch.setattr("deop.methods.zs3net.class_positions", positions)
    monkeypatch.setattr(torch, "rand", torch.zeros)
    parts = [(images[:1], labels[:1]), (images[1:], labels[1:])]
    with torch.no_grad():
        [(name, whole)] = system.losses(images, labels, list(SEEN)).items()
        values = [system.losses(*part, list(SEEN))[name] for part in parts]
    weights = [system.denominators(part[1])[name] for part in parts]
    assert system.denominators(labels)[name] == pytest.approx(sum(weights).item(), abs=4)  # a rounded count
    assert weights[0] != weights[1]
    divided = sum(weight * value for weight, value in zip(weights, values)) / sum(weights)
    assert divided.item() == pytest.approx(whole.item(), rel=2e-3)


def test_denominators_of_cagnet_count_labelled_pixels_and_classes_of_images(mini_clip):
    labels = batch()[1]
    labels[1, 14:24] = -1
    system = small("cagnet", mini_clip)
    coarse = system.coarse(labels)
    pixels = int((coarse >= 0).sum())
    sets = sum(len({int(label) for label in image.flatten() if label >= 0}) for image in coarse)
    found = {name: int(value) for name, value in system.denominators(labels).items()}
    assert sets == 3
    assert found == dict.fromkeys(("pixels", "backbone", "real", "generated"), pixels) | {
        "fake": 3,
        "content": 3,
    }


def test_names_are_embedded_once(mini_clip, monkeypatch):
    system = small("cagnet", mini_clip)
    system.start_round("finetuning")
    calls = []
    monkeypatch.setattr(
        system, "_embed", lambda names, embed=system._embed: calls.append(names) or embed(names)
    )
    for _ in range(2):
        system.train().losses(*batch(), list(SEEN))
    assert len(calls) == 1


def test_each_loss_of_cagnet_reaches_its_own_networks(mini_clip):
    images, labels = batch()
    system = small("cagnet", mini_clip)
    system.start_round("training")
    losses = system.train().losses(images, labels, list(SEEN))
    judges, real = {"judge", "classifier"}, {"features", "before", "context"}
    assert reached(system, losses["pixels"]) == judges
    assert reached(system, losses["backbone"]) == real
    assert reached(system, losses["kl"]) == real
    assert reached(system, losses["content"]) == {"generator"}
    assert reached(system, losses["real"]) == {"judge"}
    assert reached(system, losses["fake"]) == {"generator", "judge"}
    system.start_round("finetuning")
    losses = system.train().losses(images, labels, list(SEEN))
    assert set(losses) == {"pixels", "content", "real", "fake", "generated"}
    assert reached(system, sum(losses.values())) == {"generator"} | judges


def test_the_divergence_is_that_of_two_gaussians(mini_clip):
    images, labels = batch()
    system = small("cagnet", mini_clip, kl_weight=1.0).eval()
    context = system.context(system.before(system.pixel_features(images)), sample=False)
    code = torch.distributions.Normal(context.mean, (0.5 * context.log_variance).exp())
    unit = torch.distributions.Normal(torch.zeros_like(context.mean), torch.ones_like(context.mean))
    expected = torch.distributions.kl_divergence(code, unit).mean()
    found = system.losses(images, labels, list(SEEN))["kl"]
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)
    assert (context.log_variance >= 0).all() and 0 < context.features.min() < context.features.max() < 1


@pytest.mark.parametrize("name", ["zs3net", "cagnet"])
def test_known_names_have_trained_rows_and_others_a_fitted_classifier(mini_clip, name):
    system = small(name, mini_clip).eval()
    images = batch()[0]
    plain = system.segment(images, list(NAMES))
    torch.testing.assert_close(system.segment(images, ["grass", "dog"]), plain[:, [2, 0]])
    new = ["zebra", "sky", "dog", "car"]
    fitted = system.segment(images, new)
    assert fitted.shape == (2, 4, 32, 32)
    system.train().eval()  # forgets what it fitted
    assert torch.equal(system.segment(images, new), fitted)
