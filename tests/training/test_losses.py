import re

import pytest
import torch
import torch.nn.functional as F

from alexlab.errors import ConfigError
from alexlab.training.losses import CrossEntropy


def test_cross_entropy_returns_one_loss_per_image() -> None:
    logits, labels = torch.randn(5, 3), torch.tensor([0, 1, 2, 2, 1])
    loss = CrossEntropy([1, 1, 1], label_smoothing=0.1)(logits, labels)
    assert loss.shape == (5,)
    torch.testing.assert_close(loss.mean(), F.cross_entropy(logits, labels, label_smoothing=0.1))


def test_balanced_classes_have_equal_total_weight() -> None:
    counts = [6, 3, 1]
    loss = CrossEntropy(counts, class_weights="balanced")
    labels = torch.tensor([0] * 6 + [1] * 3 + [2])
    weights = loss(torch.zeros(10, 3), labels) / torch.log(torch.tensor(3.0))
    sums = [weights[labels == label].sum() for label in range(3)]
    torch.testing.assert_close(torch.stack(sums), torch.full((3,), 10 / 3))
    torch.testing.assert_close(weights.mean(), torch.tensor(1.0))


def test_labels_may_be_probabilities() -> None:
    logits, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    for weights in (None, "balanced"):
        loss = CrossEntropy([4, 2, 2], class_weights=weights)
        torch.testing.assert_close(loss(logits, labels), loss(logits, F.one_hot(labels, 3).float()))


def test_a_class_without_images_has_a_finite_weight() -> None:
    loss = CrossEntropy([3, 0], class_weights="balanced")(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]))
    assert torch.isfinite(loss).all()


def test_class_weights_of_mixed_labels_are_exact_under_autocast() -> None:
    loss = CrossEntropy([1, 2, 5], class_weights="balanced")
    logits, labels = torch.randn(4, 3), torch.eye(3)[[0, 1, 2, 0]]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss(logits, labels), loss(logits, labels.argmax(1)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_smoothing": 1.5}, "loss.label_smoothing must lie in [0, 1); got 1.5"),
        ({"class_weights": "even"}, "loss.class_weights must be balanced or null; got 'even'"),
    ],
)
def test_invalid_arguments_are_rejected(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        CrossEntropy([1, 1], **options)


def test_binary_cross_entropy_matches_pytorch() -> None:
    from alexlab.training.losses import BinaryCrossEntropy

    z, labels = torch.randn(6), torch.tensor([0, 1, 1, 0, 1, 0])
    loss = BinaryCrossEntropy([3, 3])(F.pad(z[:, None], (1, 0)), labels)
    torch.testing.assert_close(loss, F.binary_cross_entropy_with_logits(z, labels.float(), reduction="none"))
    with pytest.raises(
        ConfigError, match="loss=binary_cross_entropy needs 2 classes; the data has 3: use loss=cross_entropy"
    ):
        BinaryCrossEntropy([1, 1, 1])


def test_one_logit_gives_the_same_outputs_as_two(train, tmp_path) -> None:
    """A net with one logit z and a net with two logits (0, z) are equivalent."""
    from alexlab.config import build
    from alexlab.config.data import data_config
    from alexlab.training.module import CHECKPOINT_KEY
    from support.images import write_images
    from support.runs import rows

    root = write_images(tmp_path / "two", {f"{split}/{name}": 8 for split in ("train", "val") for name in ("a", "b")})
    train(f"data.root={root}", "loss=binary_cross_entropy", "trainer.max_epochs=2", "optimizer.lr=0.01")
    checkpoint = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["state_dict"]["net.classifier.fc7.weight"].shape == (1, 16)

    config = checkpoint[CHECKPOINT_KEY]["config"]
    splits = data_config(config).find_splits()
    one = build.classifier(config, splits).eval()
    one.load_state_dict(checkpoint["state_dict"])
    two = build.classifier(config | {"loss": {"_target_": "alexlab.training.losses.CrossEntropy"}}, splits).eval()
    state = checkpoint["state_dict"]
    for name in ("net.classifier.fc7.weight", "net.classifier.fc7.bias"):
        state[name] = torch.cat([torch.zeros_like(state[name]), state[name]])
    two.load_state_dict(state)
    images = torch.randint(0, 256, (5, 3, 64, 64), dtype=torch.uint8)
    torch.testing.assert_close(one(images), two(images))
    assert float(rows(tmp_path / "run/metrics.csv")[-1]["val/top5"]) == 1.0
