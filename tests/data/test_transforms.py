import pytest
import torch

from alexlab.data.transforms import CenterView, RandomCropView, RandomGeometry


def picture(height: int = 30, width: int = 40) -> torch.Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_center_view_keeps_7_of_8_of_the_shorter_side() -> None:
    image = torch.zeros(3, 64, 96, dtype=torch.uint8)
    image[:, 4:60, 20:76] = 255
    assert (CenterView(56)(image) == 255).all()
    assert CenterView(24, ratio=1.0)(picture()).shape == (3, 24, 24)


def test_random_crop_view_moves() -> None:
    torch.manual_seed(0)
    view = RandomCropView(28)
    views = {view(picture()).sum().item() for _ in range(5)}
    assert len(views) > 1
    assert view(picture()).shape == (3, 28, 28)


def test_geometry_of_nothing_is_the_image() -> None:
    assert torch.equal(RandomGeometry()(picture()), picture())


def test_a_shift_moves_pixels_and_repeats_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", lambda _: torch.tensor([0.5, 0.5, 0.5, 0.5, 1.0, 0.5]))
    moved = RandomGeometry(shift=0.25)(picture())
    assert torch.equal(moved[:, :, :30], picture()[:, :, 10:])
    assert torch.equal(moved[:, :, 30:], picture()[:, :, -1:].expand(3, 30, 10))


def test_a_quarter_turn_of_an_oblong_image_keeps_its_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", lambda _: torch.tensor([1.0, 0.5, 0.5, 0.5, 0.5, 0.5]))
    square = picture(30, 30)
    turned = RandomGeometry(rotation=90)(square)
    assert torch.equal(turned, square.rot90(1, (1, 2))) or torch.equal(turned, square.rot90(-1, (1, 2)))
    oblong = torch.zeros(1, 20, 60, dtype=torch.uint8)
    oblong[:, 5:15, 25:35] = 200  # a square in the middle stays that square
    assert torch.equal(RandomGeometry(rotation=90)(oblong), oblong)


def test_a_zoom_scales_about_the_centre(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", lambda _: torch.tensor([0.5, 0.5, 0.0, 0.0, 0.5, 0.5]))
    image = torch.zeros(1, 40, 40, dtype=torch.uint8)
    image[:, 15:25, 15:25] = 255
    zoomed = RandomGeometry(zoom=0.5)(image)
    assert (zoomed[:, 11:29, 11:29] == 255).all()
    assert (zoomed[:, :9] == 0).all()


def test_words() -> None:
    with pytest.raises(ValueError, match=r"zoom must lie in \[0, 1\); got 1"):
        RandomGeometry(zoom=1)
