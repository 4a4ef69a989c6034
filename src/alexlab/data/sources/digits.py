"""Default dataset: scikit-learn's handwritten digits as image files, so that a first run needs no download."""

from pathlib import Path

from alexlab.records.atomic import atomic_dir

TEST_FRACTION = VAL_FRACTION = 0.15
SEED = 0


def write_digits(root: str) -> None:
    """Write the 1797 digits (8 x 8, grey) to `root/{train,val,test}/<digit>/<index>.png`, all or nothing.

    Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI repository, test set.
    """
    from PIL import Image
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    pixels = (images.reshape(-1, 8, 8) * (255 / 16)).round().astype("uint8")  # from 0..16
    rest, test = train_test_split(range(len(labels)), test_size=TEST_FRACTION, stratify=labels, random_state=SEED)
    val_size = round(VAL_FRACTION * len(labels))
    train, val = train_test_split(rest, test_size=val_size, stratify=labels[rest], random_state=SEED)

    with atomic_dir(Path(root)) as folder:
        for split, indices in (("train", train), ("val", val), ("test", test)):
            for index in indices:
                class_dir = folder / split / str(labels[index])
                class_dir.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels[index]).save(class_dir / f"{index:04d}.png")
