"""`cifarbench tune`: search spaces, workers that share a study, and the seal."""

from __future__ import annotations

import json

import pytest
import yaml
from conftest import TINY, manifest_of, wait_until
from processes import forked, shell

from cifarbench.config.tune import dimension
from cifarbench.errors import ConfigError

optuna = pytest.importorskip("optuna", reason="needs the extra `tune`")

SMALL = [
    *[argument for argument in TINY if not argument.startswith("optim.lr")],
    "data.size=600",
    "trainer.epochs=2",
    "trainer.tensorboard=false",
    "trainer.threads=1",
    "tune=sgd",
    "tune.study=s",
]


def study_of(folder, name="s"):
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.load_study(study_name=name, storage=f"sqlite:///{folder}/outputs/tune/{name}/study.db")


def states(folder):
    return [trial.state.name for trial in study_of(folder).trials]


def test_a_trial_that_cannot_go_on_ends_the_search_in_one_sentence(cli, tmp_path):
    one = ["tune", *SMALL, "tune.trials=1", "trainer.epochs=1"]
    assert cli(*one).code == 0
    (tmp_path / "outputs/tune/s/study.db").unlink()  # so that the next search begins with this trial's directory
    refused = cli(*one, "model.bias=false")
    assert refused.code == 3
    assert refused.err.splitlines()[-1].startswith("cifarbench: ")
    assert "Traceback" not in refused.err


@pytest.mark.parametrize(
    ("storage", "code"),
    [("nonsense", 2), ("nosuch://x/y", 2), ("sqlite:////nowhere/at/all/study.db", 5), ("sqlite:///damaged.db", 3)],
)
def test_a_storage_that_cannot_be_used_is_refused_in_one_sentence(cli, tmp_path, storage, code):
    (tmp_path / "damaged.db").write_bytes(b"no database, whatever its name says\n" * 40)
    refused = cli("tune", *SMALL, "tune.trials=1", f"tune.storage='{storage}'")
    assert refused.code == code, refused.err
    assert len(refused.err.splitlines()) == 1


@pytest.mark.parametrize("space", ["trainer.epochs=int(1,1000000000)", "optim.lr=float(0,1e999)", "seed=int(0,1e3)"])
def test_a_space_too_wide_is_refused(cli, space):
    assert cli("tune", *SMALL, "tune.sampler=grid", f"tune.space=['{space}']").code == 2


def test_a_study_ends_with_the_command_of_its_best_trial(cli, tmp_path):
    ended = cli("tune", *SMALL, "tune.trials=3", "tune.pruner=none")
    assert ended.code == 0, ended.err
    assert states(tmp_path) == ["COMPLETE"] * 3
    folder = tmp_path / "outputs" / "tune" / "s"
    best = json.loads((folder / "study.json").read_text())["best"]
    accuracies = [manifest_of(folder / f"trial-{number}")["best"]["val_accuracy"] for number in range(3)]
    assert best["value"] == max(accuracies) == accuracies[best["trial"]]
    assert " ".join(best["overrides"]) in ended.out
    for number in range(3):
        assert manifest_of(folder / f"trial-{number}")["test"]["openings"] == 0
        assert not (folder / f"trial-{number}" / "test.json").exists()
    assert (folder / "study.png").stat().st_size > 5_000
    # The best config is an experiment that composes, with the values of the best trial.
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "best.yaml").write_text((folder / "best.yaml").read_text())
    shown = cli("train", "--config-dir", "mine", "experiment=best", "--cfg", "job")
    assert shown.code == 0, shown.err
    composed = yaml.safe_load(shown.out)
    trial = study_of(tmp_path).best_trial
    assert composed["optim"]["lr"] == pytest.approx(trial.params["optim.lr"], rel=1e-5)
    assert composed["optim"]["name"] == "sgd"


def test_a_second_call_adds_only_what_is_missing(cli, tmp_path):
    for trials in (2, 3, 3):
        assert cli("tune", *SMALL, "trainer.epochs=1", f"tune.trials={trials}").code == 0
    assert len([state for state in states(tmp_path) if state in ("COMPLETE", "PRUNED")]) == 3


@pytest.mark.parametrize("values", [[0.5], [0.5, 0.5]])
def test_too_few_trials_to_say_what_matters_are_no_shares_and_no_warning(values):
    from cifarbench.tuning.study import importance

    study = optuna.create_study(direction="maximize")
    for value in values:
        distribution = optuna.distributions.FloatDistribution(0.0, 1.0)
        study.add_trial(
            optuna.create_trial(params={"optim.lr": value}, distributions={"optim.lr": distribution}, value=value)
        )
    assert importance(study) == {}


def test_a_grid_is_walked_once(cli, tmp_path):
    space = "tune.space=['optim.lr=choice(0.05,0.1)','trainer.batch_size=choice(64,128)']"
    assert cli("tune", *SMALL, space, "tune.sampler=grid", "tune.pruner=none", "tune.trials=4").code == 0
    seen = {(trial.params["optim.lr"], trial.params["trainer.batch_size"]) for trial in study_of(tmp_path).trials}
    assert len(seen) == 4


def test_two_workers_one_killed_and_the_study_is_whole(tmp_path):
    arguments = ["tune", *SMALL, "trainer.epochs=6", "tune.trials=4", "tune.pruner=none", "tune.patience=3"]
    study = tmp_path / "outputs" / "tune" / "s"
    victim = forked(*arguments, cwd=tmp_path, log=tmp_path / "log")
    wait_until(lambda: (study / "trial-0" / "checkpoints" / "last.pt").exists(), seconds=60)
    other = forked(*arguments, cwd=tmp_path, log=tmp_path / "log")
    victim.kill()
    victim.join()
    other.join(150)
    assert other.exitcode == 0, (tmp_path / "log").read_text()
    trials = study_of(tmp_path).trials
    ended = [trial for trial in trials if trial.state.name in ("COMPLETE", "PRUNED")]
    assert len(ended) == 4
    assert not [trial for trial in trials if trial.state.name == "RUNNING"]
    # The trial that was taken over went on in its own directory, with its own parameters.
    (lost,) = [trial for trial in trials if trial.state.name == "FAIL"]
    (again,) = [trial for trial in ended if trial.params == lost.params]
    assert manifest_of(study / f"trial-{lost.number}")["status"] == "completed"
    assert len(manifest_of(study / f"trial-{lost.number}")["sessions"]) == 2
    assert not (study / f"trial-{again.number}").exists()


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (["tune.metric=test_accuracy"], ["tune.metric", "test images"]),
        (["tune.space=['optim.lrr=log(0.1,1)']"], ["optim.lrr"]),
        (["tune.space=['split.seed=int(1,9)']"], ["split.seed", "stay the same"]),
        (["tune.sampler=grid"], ["tune.sampler", "choice"]),
        (["split.val_fraction=0"], ["split.val_fraction"]),
        (["tune.study=../x"], ["tune.study"]),
        (["tune.space=[]"], ["tune.space"]),
    ],
)
def test_a_bad_search_is_one_sentence_and_exit_2(cli, tmp_path, bad, words):
    ended = cli("tune", *SMALL, "tune.trials=1", *bad)
    assert ended.code == 2, ended.err
    assert [word for word in words if word not in ended.err] == []
    assert len(ended.err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "text", ["optim.lr", "optim.lr=log(0,1)", "optim.lr=float(2,1)", "a=int(1.5,2)", "a=choice(1)", "a=normal(0,1)"]
)
def test_what_is_no_dimension_is_refused(text):
    with pytest.raises(ConfigError, match=r"`tune\.space`"):
        dimension(text)


def test_without_optuna_the_remedy_is_said(tmp_path):
    (tmp_path / "optuna.py").write_text("raise ImportError('no module named optuna')")
    ended = shell("tune", *SMALL, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert (ended.code, "pip install" in ended.err) == (5, True)
