"""On the real CIFAR-10: the counts of the contract and a short run, where the images are."""

from __future__ import annotations

import json

from conftest import manifest_of


def test_a_short_run_on_the_real_images_leaves_the_contracts_counts(cli, cifar10_root, tmp_path):
    arguments = [
        "model=vgg",
        "model.width=0.125",
        "optim=adamw",
        "trainer.epochs=1",
        "trainer.limit_batches=5",
        f"data.root={cifar10_root}",
    ]
    result = cli("train", *arguments, "trainer.progress=plain", "hydra.run.dir=run")
    assert result.code == 0, result.err
    manifest = manifest_of(tmp_path / "run")
    counts = {"trainable": 48_000, "train": 43_200, "val": 4_800, "test": 12_000}
    assert {name: manifest["split"][name] for name in counts} == counts
    assert manifest["test"]["openings"] == 1
    test = json.loads((tmp_path / "run" / "test.json").read_text())
    assert (test["n"], test["n_official"]) == (12_000, 10_000)
    assert [sum(row) for row in test["confusion_matrix"]] == [cell["support"] for cell in test["per_class"].values()]
    assert "reproduced exactly" in cli("eval", "run=run").out


def test_every_image_is_as_published(cli, cifar10_root):
    result = cli("data", "check", f"data.root={cifar10_root}")
    assert result.code == 0
    assert "All 7 files" in result.out
