import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from alexlab.distributed import ranks
from alexlab.records import layout


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], "defaults"),
        (["model=alexnet_half", "trainer.devices=2"], "model-alexnet_half_devices-2"),
        (["data.root='/data/my cats & dogs'"], "root-my-cats-dogs"),
        (["model.widths=[1,2,3]", "optimizer.lr=1e-3"], "widths-1-2-3_lr-1e-3"),
        (["+optimizer.x=1", "~callbacks.lr"], "x-1_lr"),
        (["data.root=/数据/学习 3"], "root-学习-3"),
        (["data.root='/data/Événement 3 classes'"], "root-Evenement-3-classes"),
        (["data.root=/data/Straße_हिन्दी"], "root-Strasse_हिन्दी"),
        (
            ["trainer.max_epochs=3", "optimizer.lr=0.1,0.01", "model.norm=choice(a,b)"],
            "lr-0.1-0.01_norm-choice-a-b_max_epochs-3",
        ),
        (["optimizer.lr=-1", "optimizer._target_=torch.optim.NAdam"], "lr-minus1_optimizer-NAdam"),
        (["optimizer.lr=0.00057051239"], "lr-0.0005705"),
    ],
)
def test_tags_are_readable(overrides: list[str], expected: str) -> None:
    assert layout.tag(overrides) == expected


def test_tags_need_no_quoting_and_are_short() -> None:
    tag = layout.tag([f"group.key{number}=va(l){{u}},e" for number in range(40)])
    assert re.fullmatch(r"(key\d+-va-l-u-e_?)+", tag) and len(tag) <= 60
    assert layout.tag([f"data.root={'/word-' + 'word-' * 20}"]) == "root-word" + 10 * "-word", "cut between words"


def test_create_folder_is_atomic(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        claimed = list(pool.map(lambda _: layout.create_folder(tmp_path / "date" / "12-00-00_x"), range(40)))
    assert len(set(claimed)) == 40
    assert {path.name for path in claimed} == {"12-00-00_x", *(f"12-00-00_x.{number}" for number in range(2, 41))}


def test_broadcast_without_other_ranks() -> None:
    assert (ranks.broadcast("where", lambda: "here"), ranks.rank()) == ("here", 0)
