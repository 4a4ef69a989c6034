"""Arguments of other frameworks: each is understood, or answered in one sentence with what to write here."""

import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from hydra._internal.utils import get_args_parser
from torchvision import models

from alexlab.cli.arguments import FLAGS, VALUE_FLAGS, join_arguments
from alexlab.cli.data_option import select_data
from alexlab.cli.invocation import parse_invocation
from alexlab.cli.synonyms import read_table, replacement
from alexlab.config import CONFIG_DIR
from alexlab.data.sources.downloads import DATASETS
from alexlab.errors import ConfigError
from support.configs import OPTIONS
from support.runs import composed


def message(command: str, typed: str) -> str:
    """Return the error message for a command line, which is composed as the command does."""
    with pytest.raises(ConfigError) as caught:
        composed(*parse_invocation(command, shlex.split(typed)).arguments, name=command)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("typed", "instead"),
    [
        ("lr=0.1", "unknown key lr; use optimizer.lr=0.1"),
        ("epochs=5", "unknown key epochs; use trainer.max_epochs=5"),
        ("parameters.biases_lr=0.02", "use param_groups.bias_lr=0.02"),
        ("scheduler.cooldown=2", "use scheduler=plateau scheduler.cooldown=2"),
        ("batch_size=32", "unknown key batch_size; use data.batch_size=32"),
        ("max_epochs=5", "unknown key max_epochs; use trainer.max_epochs=5"),
        ("image_size=64", "use data.image_size=64"),
        ("devices=2", "unknown key devices; use trainer.devices=2"),
        ("width=0.5", "unknown key width; use model.width=0.5"),
        ("--lr 0.1", "unknown key lr; use optimizer.lr=0.1"),
        ("--lr=0.1", "unknown key lr; use optimizer.lr=0.1"),
        ("--epochs 5", "unknown key epochs; use trainer.max_epochs=5"),
        ("--batch-size 32", "unknown key batch_size; use data.batch_size=32"),
        ("-b 32", "unknown key b; use data.batch_size=32"),
        ("--amp", "unknown key amp; omit it: trainer.precision=auto already uses bf16-mixed where the device supports it"),
        ("amp=false", "unknown key amp; use trainer.precision=32-true"),
        ("freeze=10", "use callbacks=finetune callbacks.finetune.freeze=MODULE, such as features"),
        ("freeze_epochs=3", "use callbacks=finetune callbacks.finetune.unfreeze_epoch=3"),
        ("save_period=5", "use callbacks.checkpoint.every_n_epochs=5 callbacks.checkpoint.keep_last=3"),
        ("trainer.auto_scale_batch_size=true", "omit it: if memory runs out, use trainer.accumulate_grad_batches=2"),
        ("weights=best.pt", "unknown key weights; use model.weights=best.pt"),
        ("lr = 0.1", "unknown key lr; use optimizer.lr=0.1"),
        ("--model resnet18", "unknown option model=resnet18; use model=torchvision model.name=resnet18"),
        ("trainer.logger=false", "use logger=[]"),
        ("model=AlexNet", "unknown option model=AlexNet; did you mean alexnet? The options of model are alexnet, "),
        ("model=Alexnet-Half", "did you mean alexnet_half?"),
        ("model=resnet18", "unknown option model=resnet18; use model=torchvision model.name=resnet18"),
        ("model=ResNet50", "use model=torchvision model.name=resnet50"),
        ("optimizer=rmsprop", "unknown option optimizer=rmsprop; use optimizer=any optimizer._target_=torch.optim.RMSprop"),
        ("optimizer=SGD", "unknown option optimizer=SGD; did you mean sgd?"),
        ("scheduler=OneCycleLR", "use scheduler=one_cycle"),
        ("scheduler=onecycle", "did you mean one_cycle?"),
        ("scheduler=reduce_on_plateau", "use scheduler=plateau"),
        ("data=cifar10", "unknown option data=cifar10; use data.root=data/cifar10 after alexlab prepare dataset=cifar10"),
        ("launcher=slurm", "unknown option launcher=slurm; use -m launcher=submitit"),
        ("hydra/launcher=joblib", "use -m launcher=parallel"),
        ("logger=tb", "omit it: tensorboard and csv are the default loggers"),
        ("logger=[tb,wandb]", "unknown option logger=tb; omit it"),
        ("callbacks=model_checkpoint", "omit it: it is one of the default callbacks"),
        ("trainer=ddp_sim", "use trainer=ddp trainer.accelerator=cpu"),
        ("debug=fdr", "unknown option debug=fdr; use debug=fast"),
        ("debug=profiler", "use debug=profile"),
        ("debug=true", "debug must be one of default, doctor, fast, limit, lr_find, overfit, profile; got true; use debug=fast"),
        ("ckpt_path=x.ckpt", "use resume=RUN to continue a run, or model.weights=x.ckpt to start from its weights"),
        ("hparams_search=optuna", "use -m sweep=optuna 'optimizer.lr=tag(log,interval(1e-4,1e-2))'"),
        ("trainer.gpus=2", "unknown key trainer.gpus; use trainer.accelerator=gpu trainer.devices=2"),
        ("--test-only", "use alexlab evaluate ckpt=RUN"),
        ("--lr-warmup-epochs 5", "use scheduler.warmup_epochs=5"),
        ("--crop-pct 0.875", "use augmentation.eval.center.ratio=0.875"),
        ("--clip-grad-norm 1", "use trainer.gradient_clip_val=1"),
        ("--train-crop-size 176", "use data.image_size=176"),
        ("--use-deterministic-algorithms", "use trainer.deterministic=true"),
        ("fine_tune=1", "use model.weights=IMAGENET1K_V1 callbacks=finetune"),
        ("show_batch=true", "use data.preview=16"),
        ("scheduler.patience=3", "use scheduler=plateau scheduler.patience=3"),
        ("model.scheduler.patience=3", "use scheduler=plateau scheduler.patience=3"),
        ("scheduler=plateau model.scheduler.patience=3", "unknown key model.scheduler.patience; use scheduler.patience=3"),
        ("--arch resnet18", "unknown key arch; use model=torchvision model.name=resnet18"),
        ("--arch nothing", "unknown key arch; use model=NAME, one of alexnet, "),
        ("--arch alexnet_half", "use model=alexnet_half"),
        ("--lr-scheduler cosineannealinglr", "use scheduler=cosine"),
        ("--opt SGD", "use optimizer=sgd"),
        ("--datamodule pics/cats", "use data.root=pics/cats"),
        ("+experiment=cifar10", "experiment is a group of every run; leave out the +: experiment=cifar10"),
        ("+model=alexnet", "leave out the +: model=alexnet"),
        ("++optimizer=sgd", "leave out the +: optimizer=sgd"),
        ("trainer.gpus=-1", "use trainer.accelerator=gpu trainer.devices=auto"),
        ("trainer.epochs=2", "unknown key trainer.epochs; use trainer.max_epochs=2"),
        ("trainer.batch_size=2", "unknown key trainer.batch_size; use data.batch_size=2"),
        ("model.optimizer.lr=0.1", "unknown key model.optimizer.lr; use optimizer.lr=0.1"),
        ("model.compile=true", "use compile.enabled=true"),
        ("compile=true", "compile must be a mapping; got True; use compile.enabled=true"),
        ("data.data_dir=/x", "use data.root=/x"),
        ("paths.data_dir='/my pics'", "unknown key paths.data_dir; use 'data.root=/my pics'"),
        ("paths.log_dir=/x", "use hydra.run.dir=DIR for the folder of a run, or outputs=DIR for that of all runs"),
        ("datamodule=mnist", "unknown key datamodule; use data.root=data/mnist after alexlab prepare dataset=mnist"),
        ("datamodule.batch_size=3", "use data.batch_size=3"),
        ("train=False", "unknown key train; use alexlab evaluate ckpt=RUN"),
        ("test=False", "test must be a mapping; got False; use trainer.limit_test_batches=0"),
        ("test=True", "omit it: a run scores its best checkpoint on the test split at the end"),
        ("task_name=x", "use 'tags=[x]', or hydra.run.dir=DIR for another folder"),
        ("name=y", "unknown key name; use 'tags=[y]'"),
        ("project=x", "or logger=wandb logger.wandb.project=x"),
        ("imgsz=64", "use data.image_size=64"),
        ("workers=4", "use data.num_workers=4"),
        ("device=cpu", "unknown key device; use trainer.accelerator=cpu"),
        ("device=0", "use trainer.accelerator=gpu trainer.devices=[INDEX]"),
        ("device=cuda", "use trainer.accelerator=gpu"),
        ("pretrained=true", "use model.weights=IMAGENET1K_V1"),
        ("pretrained=false", "omit it: by default nets start from random weights"),
        ("pretrained=best.pt", "use model.weights=best.pt"),
        ("momentum=0.8", "use optimizer=sgd optimizer.momentum=0.8"),
        ("optimizer=sgd momentum=0.8", "unknown key momentum; use optimizer.momentum=0.8"),
        ("patience=5", "use callbacks=early_stopping callbacks.early_stopping.patience=5"),
        ("ema=true", "use callbacks=ema"),
        ("trainer.callbacks=ema", "use callbacks=ema"),
        ("num_classes=10", "omit it: the classes are the folders of data.root"),
        ("'+paths={data_dir: x}'", "unknown key paths.data_dir; use data.root=x"),
        ("resume=true", "resume must be a run folder or last; got true; use resume=last"),
        ("alexnet_half", "alexnet_half must be KEY=VALUE; use model=alexnet_half"),
        ("optimizer=0.1", "got 0.1; use optimizer.lr=0.1"),
        ("optimizer=1e-3", "got 1e-3; use optimizer.lr=1e-3"),
        ("trainer=30", "use trainer.max_epochs=30 for the number of epochs, or trainer.devices=30 for that of devices"),
        ("launcher=2", "use -m launcher=parallel launcher.jobs=2"),
        ("--mixup 0.8", "use augmentation=mixup augmentation.batch.mixup.alpha=0.8, or augmentation=mixup_cutmix for both"),
        ("--mixup-alpha 0.0", "unknown key mixup_alpha; omit it: it is off by default"),
        ("cutmix=true", "unknown key cutmix; use augmentation=cutmix"),
        ("--auto-augment ta_wide", "use augmentation=trivial"),
        ("--aa rand-m9-mstd0.5", "use augmentation=randaugment"),
        ("--aa augmix", "use augmentation=randaugment, the most similar one"),
        ("--reprob 0.25", "use +augmentation.train.erase._target_=torchvision.transforms.v2.RandomErasing +augmentation.train.erase.p=0.25"),
        ("--hflip 0", "use augmentation=crop"),
        ("flipud=0.5", "use augmentation=vertical_flip"),
        ("model=runs/best.ckpt", "unknown option model=runs/best.ckpt; use model.weights=runs/best.ckpt"),
        ("model=/runs/../best", "unknown option model=/runs/../best; use model.weights=/runs/../best"),
        ("model=net.PTH", "use model.weights=net.PTH"),
        ("data=train.csv", "use data.root=train.csv"),
        ("experiment=runs/1", "use resume=RUN to continue a run, or rerun=RUN to repeat it"),
        ("experiment=conf/experiment/d2l_nin.yaml", "did you mean d2l_nin? The options of experiment are"),
        ("optimizer=a/b", "unknown option optimizer=a/b; the options of optimizer are adam, "),
        ("resnet18", "resnet18 must be KEY=VALUE; use model=torchvision model.name=resnet18"),
        ("-m none seed=1,2", "none must be KEY=VALUE; use ablation=none or augmentation=none"),
    ],
)  # fmt: skip
def test_arguments_of_other_frameworks_are_answered(typed: str, instead: str) -> None:
    assert instead in message("train", typed)


@pytest.mark.parametrize(
    ("command", "typed", "instead"),
    [
        ("evaluate", "weights=best.pt", "weights must be numbers, one per checkpoint; got best.pt; use ckpt=best.pt"),
        (
            "predict",
            "--weights runs/a input=x",
            "weights must be numbers, one per checkpoint; got runs/a; use ckpt=runs/a",
        ),
        ("evaluate", "ckpt_path=x", "unknown key ckpt_path; use ckpt=x"),
        ("evaluate", "ckpt=x model=y.pt", "this command has no config group model; use ckpt=y.pt"),
        ("evaluate", "ckpt=x data=DIR", "this command has no config group data; use data.root=DIR"),
        ("evaluate", "ckpt=x batch_size=3", "use data.batch_size=3"),
        ("evaluate", "conf", "conf must be KEY=VALUE; use ckpt=conf"),
        ("predict", "model=best.pt source=cat.jpg", "use ckpt=best.pt"),
        ("predict", "ckpt=x source=cat.jpg", "unknown key source; use input=cat.jpg"),
        ("predict", "ckpt=x conf", "use input=conf"),
        ("predict", "ckpt=x --batch 3", "use batch_size=3"),
        ("explain", "ckpt=x test=true", "use split=NAME"),
        ("export", "ckpt=x output=x.onnx", "use out=x.onnx"),
        ("export", "ckpt=x accelerator=cpu", "omit it: the file is written on the CPU"),
        ("reproduce", "conf", "conf must be KEY=VALUE; use data.root=conf"),
        ("demo", "pretrained=x", "use ckpt=x"),
        ("prepare", "name=mnist", "use dataset=mnist"),
        ("summary", "model=resnet18", "use model=torchvision model.name=resnet18"),
        ("summary", "imgsz=64", "use data.image_size=64"),
        ("benchmark", "lr=1", "use optimizer.lr=1"),
    ],
)
def test_other_commands_answer_too(monkeypatch: pytest.MonkeyPatch, command: str, typed: str, instead: str) -> None:
    monkeypatch.chdir(CONFIG_DIR.parent)
    assert instead in message(command, typed)
    assert "weights=[2,1]" in parse_invocation("evaluate", ["ckpt=[a,b]", "weights=[2,1]"]).arguments


@pytest.mark.parametrize(
    ("typed", "arguments"),
    [
        ("--seed 3 --trainer.max_epochs=4", "seed=3 trainer.max_epochs=4"),
        ("--optimizer.lr -0.1 --amp --no-aug", "optimizer.lr=-0.1 amp=true no_aug=true"),
        ("optimizer.lr = 0.1 seed= 2 model.width =0.5", "optimizer.lr=0.1 seed=2 model.width=0.5"),
        ("-m seed=1,2 --cfg job --info", "-m seed=1,2 --cfg job --info"),
        ("-i seed=1 --config-dir my --multi -cjob", "-i seed=1 --config-dir my --multirun -cjob"),
        ("--config-d=my --reso --config --cfg=job", "--config-dir=my --resolve --config --cfg=job"),
        ("model.weights= seed=1 ~callbacks.lr --fast ~x", "model.weights= seed=1 ~callbacks.lr fast=true ~x"),
    ],
)
def test_flags_and_spaces_are_understood(typed: str, arguments: str) -> None:
    assert join_arguments(typed.split()) == arguments.split()


def test_the_flags_of_hydra_are_known() -> None:
    assert {*FLAGS, *VALUE_FLAGS, "--experimental-rerun"} == set(get_args_parser()._option_string_actions)


def test_no_group_or_key_is_read_as_an_abbreviated_flag_of_hydra() -> None:
    keys = {key for path in CONFIG_DIR.glob("*.yaml") for key in yaml.safe_load(path.read_text())} - {
        "hydra",
        "defaults",
    }
    for name in {*keys, *(path.name for path in CONFIG_DIR.iterdir() if path.is_dir())} - {"hydra"}:
        assert join_arguments([f"--{name}", "x"]) == [f"{name}=x"]
        assert join_arguments([f"--{name}=x"]) == [f"{name}=x"]


def test_a_pickle_file_is_not_rerun() -> None:
    for typed in (
        "--experimental-rerun config.pickle",
        "--experimental-rerun=config.pickle",
        "--experimental config.pickle",
    ):
        assert "unknown key experimental" in message("train", typed)
    assert "use rerun=RUN, which repeats a run from its record" in message("train", "--experimental-rerun x")


def test_a_folder_is_understood_as_the_location_of_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("pics", "digits", "a,b"):
        (tmp_path / name).mkdir()
    assert select_data(["data=pics"]) == ["data.root=pics", "data=folder"]
    assert select_data(["data=/no/where", "seed=1"]) == ["data.root=/no/where", "seed=1", "data=folder"]
    assert select_data(["data=a,b"]) == ["data.root=a,b", "data=folder"]
    assert select_data(["-m", "data=pics,./x"]) == ["-m", "data.root=pics,./x", "data=folder"]
    (tmp_path / "split.csv").touch()
    assert select_data(["data=split.csv"]) == ["data.root=split.csv", "data=folder"]
    assert select_data(["data=s3://bucket/prefix"]) == ["data.url=s3://bucket/prefix", "data=streaming"]
    (tmp_path / "own/data").mkdir(parents=True)
    (tmp_path / "own/data/pics.yaml").touch()
    assert select_data(["data=pics"], config_dirs=[tmp_path / "own"]) == ["data=pics"]
    for option in ("digits", "streaming", "nowhere", "pics,nowhere"):  # an option, or no folder
        assert select_data([f"data={option}"]) == [f"data={option}"]


def test_an_existing_path_as_an_option_is_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("run", "run_seed=1"):
        (tmp_path / name).mkdir()
        assert f"use model.weights={name}" in message("train", f"model={name}")
    assert "the options of model are" in message("train", "model=no_run")


@pytest.mark.parametrize("accelerator", ["cpu", "gpu", "mps"])
def test_the_accelerator_is_an_option_of_the_trainer(accelerator: str) -> None:
    assert composed(f"trainer={accelerator}").trainer.accelerator == accelerator


def test_every_classifier_of_torchvision_is_recognized() -> None:
    for name in set(models.list_models(module=models)) - {*OPTIONS["model"], "vgg11"}:
        assert replacement("train", "model", name) == f"use model=torchvision model.name={name}"
        assert replacement("summary", "model", name) == f"use model=torchvision model.name={name}"


def test_the_optimizers_of_torch_are_recognized() -> None:
    own = {"Adam", "AdamW", "SGD"}
    others = {
        "Optimizer",
        "LBFGS",
        "SparseAdam",
        "Muon",
    }  # not for the dense 4-D weights and steps of one closure call here
    for name in {*torch.optim.__all__} & {*dir(torch.optim)} - own - others:
        if isinstance(getattr(torch.optim, name), type):
            instead = f"use optimizer=any optimizer._target_=torch.optim.{name}"
            assert replacement("train", "optimizer", name.lower()) == instead


def test_the_datasets_to_download_are_recognized() -> None:
    for name in DATASETS:
        instead = f"use data.root=data/{name} after alexlab prepare dataset={name}"
        assert replacement("train", "data", name) == instead


def _alternatives() -> list[tuple[str, str]]:
    """Return a command and the arguments of each text in the table, one entry for each alternative that it offers."""
    found = set()
    for section in read_table():
        for entry in [*section.get("keys", {}).values(), *section.get("arguments", {}).values()]:
            for text in entry.values() if isinstance(entry, dict) else [entry]:
                for part in re.split(r",? or ", text.partition(" after ")[0].partition("python ")[0]):
                    words = re.findall(r"(?<![^\s'])[\w.]+=[^\s,;'(]+(?![^\s]*\()", part)
                    # An interpolation has no type, so it stands for any value; placeholders and `group={value}` do not compose.
                    kept = [
                        word.replace("{value}", "${seed}").replace("{lower}", "x")
                        for word in words
                        if not word.endswith(("NAME", "DIR", "RUN"))
                    ]
                    kept = [word for word in kept if not (word.endswith("=${seed}") and word[:-8] in OPTIONS)]
                    found.add((section["commands"][0], " ".join(kept)))
    return sorted((command, text) for command, text in found if text)


def test_what_the_table_says_to_write_composes() -> None:
    alternatives = _alternatives()
    assert len(alternatives) > 80
    for command, text in alternatives:
        typed = text.split() if command in ("train", "summary") else text.replace("${seed}", "1").split()
        composed(
            *parse_invocation(command, [word for word in typed if not word.startswith("resume=")]).arguments,
            name=command,
        )
