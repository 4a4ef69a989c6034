from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from alexlab.config import build_data
from alexlab.data.dataset import SeededDataset, ViewReader
from alexlab.data.decode import decode
from alexlab.data.image_file import Decoding
from alexlab.data.transforms import (
    CenterView,
    NearestResize,
    PCAColorNoise,
    RandomCropView,
    RandomGeometry,
    Views,
    set_epoch,
)
from support.runs import plain


def random_image(height: int = 30, width: int = 40) -> torch.Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_center_view_keeps_7_of_8_of_the_shorter_side() -> None:
    image = torch.zeros(3, 64, 96, dtype=torch.uint8)
    image[:, 4:60, 20:76] = 255
    assert (CenterView(56)(image) == 255).all()
    assert CenterView(24, ratio=1.0)(random_image()).shape == (3, 24, 24)


def test_random_crops_differ() -> None:
    torch.manual_seed(0)
    view = RandomCropView(28)
    views = {view(random_image()).sum().item() for _ in range(5)}
    assert len(views) > 1
    assert view(random_image()).shape == (3, 28, 28)


def test_random_geometry_defaults_to_the_identity() -> None:
    assert torch.equal(RandomGeometry()(random_image()), random_image())


def test_a_shift_moves_pixels_and_repeats_the_border(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", lambda _: torch.tensor([0.5, 0.5, 0.5, 0.5, 1.0, 0.5]))
    moved = RandomGeometry(shift=0.25)(random_image())
    assert torch.equal(moved[:, :, :30], random_image()[:, :, 10:])
    assert torch.equal(moved[:, :, 30:], random_image()[:, :, -1:].expand(3, 30, 10))


def test_a_rotation_does_not_distort_an_oblong_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", lambda _: torch.tensor([1.0, 0.5, 0.5, 0.5, 0.5, 0.5]))
    square = random_image(30, 30)
    turned = RandomGeometry(rotation=90)(square)
    assert torch.equal(turned, square.rot90(1, (1, 2))) or torch.equal(turned, square.rot90(-1, (1, 2)))
    oblong = torch.zeros(1, 20, 60, dtype=torch.uint8)
    oblong[:, 5:15, 25:35] = 200  # a centred square, which a quarter turn leaves unchanged
    assert torch.equal(RandomGeometry(rotation=90)(oblong), oblong)


def test_the_shift_is_rotated_as_in_keras(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keras maps a cell to the cell R (T (S (Z x))) of the image: the rotated image is shifted."""
    monkeypatch.setattr(torch, "rand", lambda _: torch.tensor([1.0, 0.5, 0.5, 0.5, 1.0, 0.5]))
    image = random_image(40, 40)
    rotated = RandomGeometry(rotation=90)(image)
    assert torch.equal(RandomGeometry(rotation=90, shift=0.25)(image), RandomGeometry(shift=0.25)(rotated))


def test_zoom_scales_about_the_centre(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", lambda _: torch.tensor([0.5, 0.5, 0.0, 0.0, 0.5, 0.5]))
    image = torch.zeros(1, 40, 40, dtype=torch.uint8)
    image[:, 15:25, 15:25] = 255
    zoomed = RandomGeometry(zoom=0.5)(image)
    assert (zoomed[:, 11:29, 11:29] == 255).all()
    assert (zoomed[:, :9] == 0).all()


def test_a_zoom_of_1_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"zoom must be in \[0, 1\); got 1"):
        RandomGeometry(zoom=1)


def test_colour_noise_has_the_covariance_of_the_components() -> None:
    """One colour for the whole image: P (a * lambda), a ~ N(0, std), as values in [0, 1]."""
    vectors, values = torch.linalg.qr(torch.randn(3, 3))[0], torch.tensor([0.2, 0.05, 0.01])
    noise = PCAColorNoise(values.tolist(), vectors.tolist(), std=0.1)
    image = torch.full((3, 4, 5), 128, dtype=torch.uint8)
    shifts = torch.stack([noise(image).float() for _ in range(4000)]) - 128
    assert (shifts == shifts[..., :1, :1]).all()
    covariance = torch.cov(shifts[..., 0, 0].T / 255)
    expected = vectors @ torch.diag((0.1 * values) ** 2) @ vectors.T
    rounding = 1 / 12 / 255**2
    torch.testing.assert_close(covariance, expected + rounding * torch.eye(3), atol=3e-5, rtol=0.1)
    assert noise(torch.full((3, 2, 2), 255, dtype=torch.uint8)).dtype == torch.uint8


AXES = [[0.6, 0.8, 0.0], [0.8, -0.6, 0.0], [0.0, 0.0, 1.0]]  # columns


@pytest.mark.parametrize(
    ("scale", "expected"),
    [
        # a = .1 x (1, -2, 3) and eigenvalues (.04, .01, .0025), so a * s = (.004, -.002, .00075) for eigenvalues and
        # (.02, -.02, .015) for their roots (.2, .1, .05). P (a * s) = (.0008, .0044, .00075) and (-.004, .028, .015), in 255ths
        # (.204, 1.122, .191) and (-1.02, 7.14, 3.825).
        ("eigenvalue", [200, 101, 50]),  # 200.204, 101.122, 50.191
        # x -> m + (x + shift - m) / 1.1 with m = (127.5, 102, 76.5): 192.482, 106.673, 55.886.
        ("std", [192, 107, 56]),
    ],
)
def test_colour_noise_by_hand(scale: str, expected: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "randn", lambda _: torch.tensor([1.0, -2.0, 3.0]))
    noise = PCAColorNoise([0.04, 0.01, 0.0025], AXES, mean=[0.5, 0.4, 0.3], std=0.1, scale=scale)
    image = torch.tensor([200, 100, 50], dtype=torch.uint8)[:, None, None].expand(3, 2, 2)
    assert noise(image)[:, 1, 0].tolist() == expected
    assert noise(torch.full((3, 1, 1), 255, dtype=torch.uint8)).max() <= 255


def test_colour_noise_ends_with_its_last_epoch() -> None:
    """It depends on the epoch of each image only, in any order, so that resumed runs and DataLoader workers agree."""
    images = [(torch.full((3, 2, 2), 100 + index, dtype=torch.uint8), index) for index in range(3)]
    recipe = v2.Compose([v2.Identity(), PCAColorNoise([0.5, 0.1, 0.1], AXES, [0.5] * 3, scale="std", end_epoch=2)])

    class Noisy:
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            return recipe(images[index][0]), index

    dataset = SeededDataset(Noisy(), seed=1, on_epoch=partial(set_epoch, recipe))
    for epoch in (1, 2, 3):
        for index in range(3):
            assert torch.equal(dataset[epoch, index][0], images[index][0]) == (epoch >= 2)
    keys = [(1, 0), (2, 0), (1, 1), (3, 2), (0, 2)]
    assert all(
        torch.equal(item[0], dataset[key][0]) for item, key in zip(dataset.__getitems__(keys), keys, strict=True)
    )


def test_colour_noise_without_valid_components_is_rejected() -> None:
    with pytest.raises(ValueError, match="or both be null for a run to measure them"):
        PCAColorNoise()
    with pytest.raises(ValueError, match="must be 3 x 3"):
        PCAColorNoise([0.1], [[1.0]])
    with pytest.raises(ValueError, match="scale must be eigenvalue or std; got 'root'"):
        PCAColorNoise([0.1] * 3, AXES, scale="root")
    with pytest.raises(ValueError, match="mean must be given for scale=std"):
        PCAColorNoise([0.1] * 3, AXES, scale="std")
    with pytest.raises(ValueError, match="end_epoch must be null or at least 0; got -1"):
        PCAColorNoise([0.1] * 3, AXES, end_epoch=-1)


@pytest.mark.parametrize("sides", [(375, 500), (500, 375), (281, 300), (30, 40), (224, 224), (1, 7), (1024, 3)])
@pytest.mark.parametrize("size", [224, 150, 64, 299])
def test_nearest_resize_equals_pillow(sides: tuple[int, int], size: int) -> None:
    """Pillow's positions, some of which are integers: 1.5 x 500 / 150 = 5, for example."""
    image = random_image(*sides)
    expected = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((size, size), Image.Resampling.NEAREST)
    assert torch.equal(NearestResize(size)(image).permute(1, 2, 0), torch.from_numpy(np.array(expected)))


def test_the_keras_recipe_reads_like_keras(images: Path) -> None:
    """`load_img(path, target_size=(64, 64))`, with the default interpolation, is Pillow's resize with NEAREST."""
    config = plain("experiment=catdog_tf_1", f"data.root={images}", "data.image_size=64")
    view = build_data.eval_view(config)
    path = images / "val/cat/001.png"
    expected = Image.open(path).convert("RGB").resize((64, 64), Image.Resampling.NEAREST)
    read = ViewReader(view, Decoding())
    assert read.crop is None, "a JPEG is decoded in full"
    assert torch.equal(read(partial(decode, path)).permute(1, 2, 0), torch.from_numpy(np.array(expected)))
    assert config["augmentation"]["train"]["squash"] == config["augmentation"]["eval"]["squash"]
    assert plain("augmentation=keras", "augmentation/eval=squash")["augmentation"]["train"]["squash"]["antialias"]


def test_square_crops_are_inside_the_central_square() -> None:
    image = torch.zeros(3, 80, 400, dtype=torch.uint8)
    image[:, :, 160:240] = 255
    assert all(RandomCropView(70, 0.875, square=True)(image).min() > 200 for _ in range(20))
    assert min(RandomCropView(70, 0.875)(image).min() for _ in range(20)) == 0


def test_views_are_the_crops_and_their_mirror_images() -> None:
    image = torch.randint(0, 255, (3, 90, 120), dtype=torch.uint8)
    assert Views(64)(image).shape == (1, 3, 64, 64)
    assert Views(64, "five")(image).shape == (5, 3, 64, 64)
    ten = Views(64, "ten_crop")(image)
    assert torch.equal(ten[:5].flip(-1), ten[5:])
    assert torch.equal(Views(64)(image)[0], ten[4])
    assert torch.equal(CenterView(64)(image), ten[4])
