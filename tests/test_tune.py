"""`cifarbench tune`: search spaces, workers that share a study, and the seal."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import os
import re
import shlex
import shutil
import signal
import sqlite3

import pytest
import torch
import yaml
from conftest import TINY, manifest_of, rows_of, wait_until
from processes import forked, shell

from cifarbench import runs
from cifarbench.commands.hydra_app import compose
from cifarbench.commands.names import conf_dir
from cifarbench.config.load import load
from cifarbench.config.tune import TuneVerbConfig, dimension
from cifarbench.data.dataset import image_set
from cifarbench.errors import ConfigError, IntegrityError
from cifarbench.training import checkpoint

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


@contextlib.contextmanager
def stored(path):
    """The storage in the database at `path`, whose connections are closed afterwards."""
    storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


def study_of(folder, name="s"):
    """A copy of the study in memory."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    copy = optuna.storages.InMemoryStorage()
    with stored(folder / "outputs" / "tune" / name / "study.db") as storage:
        optuna.copy_study(from_study_name=name, from_storage=storage, to_storage=copy)
    return optuna.load_study(study_name=name, storage=copy)


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


# Optuna leaves its connection open where it cannot make a storage; that is collected here, not in a later test.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("storage", "code"),
    [("nonsense", 2), ("nosuch://x/y", 2), ("sqlite:////nowhere/at/all/study.db", 5), ("sqlite:///damaged.db", 3)],
)
def test_a_storage_that_cannot_be_used_is_refused_in_one_sentence(cli, tmp_path, storage, code):
    (tmp_path / "damaged.db").write_bytes(b"no database, whatever its name says\n" * 40)
    refused = cli("tune", *SMALL, "tune.trials=1", f"tune.storage='{storage}'")
    assert refused.code == code, refused.err
    assert len(refused.err.splitlines()) == 1
    gc.collect()


@pytest.mark.parametrize("space", ["trainer.epochs=int(1,1000000000)", "optim.lr=float(0,1e999)", "seed=int(0,1e3)"])
def test_a_space_too_wide_is_refused(cli, space):
    assert cli("tune", *SMALL, "tune.sampler=grid", f"tune.space=['{space}']").code == 2


def test_a_study_ends_with_the_command_of_its_best_trial(cli, tmp_path):
    here = ["hardware=gpu", "trainer.device=cpu", "trainer.cuda_graphs=false"]
    words = ["tune.trials=3", "tune.pruner=none", "augment.name='of ours'"]
    ended = cli("tune", *SMALL, "experiment=activations", *words, *here)
    assert ended.code == 0, ended.err
    assert states(tmp_path) == ["COMPLETE"] * 3
    folder = tmp_path / "outputs" / "tune" / "s"
    best = json.loads((folder / "study.json").read_text())["best"]
    accuracies = [manifest_of(folder / f"trial-{number}")["best"]["val_accuracy"] for number in range(3)]
    assert best["value"] == max(accuracies) == accuracies[best["trial"]]
    (line,) = (line for line in ended.out.splitlines() if line.startswith("cifarbench train"))
    assert shlex.split(line) == ["cifarbench", "train", *best["overrides"]]
    for number in range(3):
        assert manifest_of(folder / f"trial-{number}")["test"]["openings"] == 0
        assert not (folder / f"trial-{number}" / "test.json").exists()
    assert (folder / "study.png").stat().st_size > 5_000
    # The best config is an experiment that composes, built on what was typed, with the values of the best trial.
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "best.yaml").write_text((folder / "best.yaml").read_text())
    shown = cli("train", "--config-dir", "mine", "experiment=best", "--cfg", "job")
    assert shown.code == 0, shown.err
    assert "# Found with hardware=gpu: type it beside this." in (folder / "best.yaml").read_text().splitlines()
    composed = yaml.safe_load(shown.out)
    trial = study_of(tmp_path).best_trial
    assert composed["optim"]["lr"] == pytest.approx(trial.params["optim.lr"], rel=1e-5)
    assert composed["optim"]["name"] == "sgd"
    assert composed["model"] == yaml.safe_load((folder / "trial-0" / "config.yaml").read_text())["model"]
    assert composed["model"]["norm"] == "none"


def test_a_study_over_options_of_ones_own_ends_with_a_command_that_finds_them(cli, tmp_path):
    (tmp_path / "mine" / "augment").mkdir(parents=True)
    shutil.copy(conf_dir() / "augment" / "flip.yaml", tmp_path / "mine" / "augment" / "plain.yaml")
    ended = cli("tune", *SMALL, "augment=plain", "trainer.epochs=1", "tune.trials=1", "--config-dir", "mine")
    assert ended.code == 0, ended.err
    (line,) = (line for line in ended.out.splitlines() if line.startswith("cifarbench train"))
    shown = cli("train", *shlex.split(line)[2:], "--cfg", "job")
    assert (shown.code, yaml.safe_load(shown.out)["augment"]["flip"]) == (0, 0.5), shown.err


def test_the_best_of_a_search_over_groups_and_seeds_composes(cli, tmp_path):
    space = "tune.space=['optim=choice(adamw,adam)','optim.lr=float(0.001,0.002)','seed=int(7,8)']"
    ended = cli("tune", *SMALL, space, "tune.trials=1", "++optim.weight_decay=0.02")
    assert ended.code == 0, ended.err
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    best = (tmp_path / "outputs" / "tune" / "s" / "best.yaml").read_text()
    (tmp_path / "mine" / "experiment" / "best.yaml").write_text(best)
    shown = cli("train", "--config-dir", "mine", "experiment=best", "--cfg", "job")
    assert shown.code == 0, f"{best}\n{shown.err}"
    composed = yaml.safe_load(shown.out)
    assert composed["optim"]["name"] == study_of(tmp_path).best_trial.params["optim"]
    assert composed["seed"] == study_of(tmp_path).best_trial.params["seed"] >= 7
    assert composed["optim"]["weight_decay"] == 0.02


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
    space = "tune.space=['optim.lr=choice(0.05,0.1)','model.first_widths=choice([8, 8],[4,8])']"
    assert cli("tune", *SMALL, space, "tune.sampler=grid", "tune.pruner=none", "tune.trials=4").code == 0
    seen = {(trial.params["optim.lr"], trial.params["model.first_widths"]) for trial in study_of(tmp_path).trials}
    assert seen == {(rate, widths) for rate in ("0.05", "0.1") for widths in ("[8,8]", "[4,8]")}
    best = yaml.safe_load((tmp_path / "outputs/tune/s/best.yaml").read_text())
    assert best["model"]["first_widths"] in ([8, 8], [4, 8])
    # Asked for more, it stays at that, and says so.
    more = cli("tune", *SMALL, space, "tune.sampler=grid", "tune.pruner=none")
    assert more.code == 0, more.err
    assert "the grid has 4 points" in more.out
    assert len(study_of(tmp_path).trials) == 4


def test_the_point_of_a_failed_trial_is_walked_again(tmp_path):
    from cifarbench.tuning.study import ended, open_study, run_trials, suggest, wanted_trials

    config = section(space=("a=choice(x,y,z)", "b=int(1,2)"), sampler="grid", trials=20)
    failures = iter([MemoryError, None, None, MemoryError])

    def objective(trial, number):
        suggest(trial, config.space)
        if failure := next(failures, None):
            raise failure
        return 0.5

    with open_study(config, f"sqlite:///{tmp_path}/s.db", 0) as study:
        for _ in range(2):
            with pytest.raises(MemoryError):
                run_trials(study, wanted_trials(config), objective)
        run_trials(study, wanted_trials(config), objective)
        walked = sorted(tuple(trial.params.values()) for trial in ended(study))
    assert walked == [(a, b) for a in "xyz" for b in (1, 2)]


@pytest.mark.parametrize("stopped", [False, True], ids=["it goes on", "it is stopped then"])
def test_what_a_worker_trained_that_was_taken_for_dead_is_gone_on_with(tmp_path, capsys, stopped):
    from cifarbench.errors import Interrupted
    from cifarbench.tuning.study import ended, open_study, run_trials

    seen = []

    def objective(trial, number):
        seen.append((trial.number, number))
        trial.suggest_float("x", 0, 1)
        if len(seen) == 1:  # as another worker does after `tune.patience`
            study._storage.set_trial_state_values(trial._trial_id, optuna.trial.TrialState.FAIL)
            if stopped:
                raise Interrupted("stopped", 15)
        return 0.5

    with open_study(section(space=("x=float(0,1)",)), f"sqlite:///{tmp_path}/s.db", 0) as study:
        if stopped:
            with pytest.raises(Interrupted):
                run_trials(study, 1, objective)
        run_trials(study, 1, objective)
        (done,) = ended(study)
        lost = study.trials[0]
    assert seen == [(0, 0), (1, 0)]
    assert (done.params, lost.state.name) == (lost.params, "FAIL")
    assert ("taken for dead" in capsys.readouterr().out) is not stopped


def test_a_trial_whose_directory_another_worker_holds_is_left_to_it(cli, tmp_path):
    directory = tmp_path / "outputs/tune/s"
    holder = runs.RunDirectory(directory / "trial-0")
    holder.acquire()
    try:
        ended = cli("tune", *SMALL, "trainer.epochs=1", "tune.trials=1", "tune.patience=2")
    finally:
        holder.release()
    assert ended.code == 0, ended.err
    assert (directory / "trial-1" / "run.json").is_file()


@pytest.mark.parametrize("optim", ["muon", "sgd", "adam", "adamw", "rmsprop"])
def test_the_space_is_that_of_the_optimizer(optim):
    values = compose("tune", [f"optim={optim}"])
    assert values["tune"] == compose("tune", [f"optim={optim}", f"tune={optim}"])["tune"]
    load(TuneVerbConfig, values)
    low, high = map(float, re.fullmatch(r"optim\.lr=log\((.*),(.*)\)", values["tune"]["space"][0]).groups())
    assert low <= values["optim"]["lr"] <= high


def test_an_option_of_ones_own_has_no_space_and_any_may_be_given(cli, tmp_path):
    (tmp_path / "mine" / "optim").mkdir(parents=True)
    text = (conf_dir() / "optim" / "sgd.yaml").read_text()
    (tmp_path / "mine" / "optim" / "my_sgd.yaml").write_text(text)
    words = ["--config-dir", "mine", "optim=my_sgd"]
    assert cli("tune", *words, "tune=sgd", "--cfg", "job", "-p", "optim.name").out == "sgd\n"
    assert "is empty; name what is searched" in cli("tune", *words, "data=synthetic").err


def test_a_space_that_does_not_fit_is_refused_before_there_is_a_study(cli, tmp_path):
    assert cli("tune", "data=synthetic", "data.size=600", "model=linear", "optim=adamw", "tune=muon").code == 2
    assert not list(tmp_path.glob("outputs/tune/*/study.db"))


def section(**values):
    from cifarbench.config.tune import TuneSection

    common = {"metric": "accuracy", "pruner": "none", "study": "s", "storage": None, "patience": 60}
    return TuneSection(**{"trials": 1, "sampler": "random", **common, **values})


def test_a_study_is_of_one_search(cli, tmp_path):
    one = ["tune", *SMALL, "trainer.epochs=1", "tune.trials=1"]
    assert cli(*one).code == 0
    for change, key in [
        ("augment=none", "`augment.flip`: 0.5 before, 0.0 now"),
        ("data.size=700", "`data.size`: 600 before, 700 now"),
        ("tune.metric=loss", "`tune.metric`: 'accuracy' before, 'loss' now"),
    ]:
        refused = cli(*one, "tune.trials=2", change)
        assert (refused.code, len(refused.err.splitlines())) == (3, 1), refused.err
        assert key in refused.err
        assert "`tune.study=` to another name" in refused.err
    assert states(tmp_path) == ["COMPLETE"]
    # How and how long is searched may differ, the searched keys, and what no result depends on.
    others = ["tune.sampler=random", "tune.pruner=none", "tune.patience=9", "trainer.progress=none", "optim.lr=0.3"]
    went_on = cli(*one, "tune.trials=2", *others)
    assert went_on.code == 0, went_on.err
    assert len(states(tmp_path)) == 2


def test_a_study_of_an_older_version_is_taken_over(cli, tmp_path):
    one = ["tune", *SMALL, "trainer.epochs=1", "tune.trials=1"]
    assert cli(*one).code == 0
    with contextlib.closing(sqlite3.connect(tmp_path / "outputs/tune/s/study.db")) as database:
        database.execute("DELETE FROM study_user_attributes")
        database.commit()
    assert cli(*one, "tune.metric=loss").code == 3  # that it is of accuracy, Optuna has always kept
    assert cli(*one, "augment=none").code == 0
    assert cli(*one).code == 3


def test_images_of_another_kind_are_refused():
    from cifarbench.data.synthetic import CLASSES
    from cifarbench.tuning.subject import claim_dataset

    study = optuna.create_study(study_name="s")
    before, now = (image_set("cifar10", torch.full((3, 3, 32, 32), n), torch.arange(3), CLASSES) for n in (0, 1))
    for _ in range(2):
        claim_dataset(study, before)
    with pytest.raises(
        IntegrityError, match=f"cifar10 {before.fingerprint[:12]} before, cifar10 {now.fingerprint[:12]}"
    ):
        claim_dataset(study, now)


def searched(*words):
    runs.register_resolvers()
    return load(TuneVerbConfig, compose("tune", ["data=synthetic", "tune=sgd", "tune.study=s", *words]))


def test_what_can_change_a_result_makes_it_another_search():
    from cifarbench.tuning.subject import claim

    config = searched("model=simple_cnn")
    study = optuna.create_study(study_name="s", direction="maximize")
    claim(study, config, [])
    for section, key, value in [("split", "seed", 5), ("trainer", "ema", 0.5), ("tune", "space", ("seed=int(1,2)",))]:
        other = dataclasses.replace(getattr(config, section), **{key: value})
        with pytest.raises(IntegrityError, match=rf"`{section}\.{key}`: .* before, .* now"):
            claim(study, dataclasses.replace(config, **{section: other}), [])
    with pytest.raises(IntegrityError, match="`seed`: 0 before, 5 now"):
        claim(study, dataclasses.replace(config, seed=5), [])
    free = dataclasses.replace(config.trainer, threads=3, tensorboard=False), dataclasses.replace(config.optim, lr=0.3)
    claim(study, dataclasses.replace(config, trainer=free[0], optim=free[1]), [])


def test_where_a_group_is_searched_what_was_typed_of_it_still_tells():
    from cifarbench.tuning.subject import claim

    space = "tune.space=['model=choice(simple_cnn,vgg)']"
    study = optuna.create_study(study_name="s", direction="maximize")
    config = searched(space, "model=simple_cnn")
    claim(study, config, ["data=synthetic", "+model.first_widths=[8,8]"])
    claim(study, searched(space, "model=vgg"), ["model.first_widths=[8,8]", "model=vgg"])
    with pytest.raises(IntegrityError, match=r"`model.first_widths`: '\[8,8\]' before, '\[8,9\]' now"):
        claim(study, config, ["model.first_widths=[8,9]"])


@pytest.mark.parametrize("metric", ["accuracy", "loss"])
def test_a_trial_with_nothing_left_to_train_has_the_best_value_of_its_run(cli, tmp_path, metric):
    one = ["tune", *SMALL, "tune.trials=1", f"tune.metric={metric}"]
    assert cli(*one).code == 0
    folder = tmp_path / "outputs" / "tune" / "s"
    params = study_of(tmp_path).trials[0].params
    (folder / "study.db").unlink()  # as if its worker had been killed before it told the value
    direction = "maximize" if metric == "accuracy" else "minimize"
    with stored(folder / "study.db") as storage:
        optuna.create_study(study_name="s", storage=storage, direction=direction).enqueue_trial(params)
    best = improve_first_epoch(folder / "trial-0")[f"val_{metric}"]
    again = cli(*one)
    assert again.code == 0, again.err
    assert len(rows_of(folder / "trial-0")) == 2
    assert study_of(tmp_path).best_value == best


def improve_first_epoch(run):
    """Let the checkpoint's first epoch be the best by far; returns its row."""
    state = checkpoint.load(run / "checkpoints" / "last.pt")
    row = state["progress"]["rows"][0]
    row.update(val_accuracy=0.99, val_loss=0.01)
    checkpoint.save(state, run / "checkpoints" / "last.pt")
    return row


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_an_interrupted_trial_is_gone_on_with_by_the_same_command(cli, tmp_path, number, code):
    one = ["tune", *SMALL, "trainer.epochs=12", "tune.trials=1"]
    trial = tmp_path / "outputs" / "tune" / "s" / "trial-0"
    worker = forked(*one, cwd=tmp_path, log=tmp_path / "log")
    wait_until(lambda: (trial / "checkpoints" / "last.pt").exists())
    os.kill(worker.pid, number)
    worker.join(60)
    log = (tmp_path / "log").read_text()
    assert worker.exitcode == code, log
    assert log.splitlines()[-1].endswith(f"cifarbench tune {shlex.join(one[1:])}")
    assert "trainer.resume" not in log
    assert manifest_of(trial)["status"] == "interrupted"
    best = improve_first_epoch(trial)["val_accuracy"]
    again = cli(*one)
    assert again.code == 0, again.err
    stopped, ended = study_of(tmp_path).trials
    assert (stopped.state.name, ended.state.name, ended.params) == ("FAIL", "COMPLETE", stopped.params)
    assert (ended.value, len(ended.intermediate_values)) == (best, 12)
    assert (manifest_of(trial)["status"], len(manifest_of(trial)["sessions"])) == ("completed", 2)
    assert not trial.with_name("trial-1").exists()


def test_a_search_whose_trials_all_diverge_says_so(cli, tmp_path):
    bare = ["model.norm=none", "model.bias=true"]  # which nothing holds back
    one = ["tune", *SMALL, *bare, "tune.trials=2", "trainer.epochs=1", "tune.space=['optim.lr=log(999,1000)']"]
    for _ in range(2):
        ended = cli(*one)
        assert ended.code == 4, ended.err
        assert ended.err.startswith("cifarbench: 2 of 2 trials diverged")
        assert len(ended.err.splitlines()) == 1
    assert manifest_of(tmp_path / "outputs/tune/s/trial-1")["status"] == "failed"


def test_a_search_whose_trials_were_all_pruned_says_so(tmp_path):
    from cifarbench.reporting.tuning import show_study

    study = optuna.create_study(direction="maximize")
    study.add_trial(optuna.create_trial(state=optuna.trial.TrialState.PRUNED))
    with pytest.raises(ConfigError, match=r"`tune\.pruner` ended all 1 trials"):
        show_study(study, "accuracy", [], tmp_path)


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
        (
            ["tune.space=['optim.bias_lr=float(1,2)']"],
            ["optim.bias_lr", "optim=muon", "`tune.space`", "without `tune=`"],
        ),
    ],
)
def test_a_bad_search_is_one_sentence_and_exit_2(cli, tmp_path, bad, words):
    ended = cli("tune", *SMALL, "tune.trials=1", *bad)
    assert ended.code == 2, ended.err
    assert [word for word in words if word not in ended.err] == []
    assert len(ended.err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "text",
    [
        *("optim.lr", "optim.lr=log(0,1)", "optim.lr=float(2,1)", "a=int(1.5,2)", "a=choice(1)", "a=choice([1,2])"),
        "a=normal(0,1)",
    ],
)
def test_what_is_no_dimension_is_refused(text):
    with pytest.raises(ConfigError, match=r"`tune\.space`"):
        dimension(text)


def test_without_optuna_the_remedy_is_said(tmp_path):
    (tmp_path / "optuna.py").write_text("raise ImportError('no module named optuna')")
    ended = shell("tune", *SMALL, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert (ended.code, "pip install" in ended.err) == (5, True)
