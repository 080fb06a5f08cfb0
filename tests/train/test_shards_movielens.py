"""Ratings in MovieLens' form, trained with tables on two ranks and in one process: the same model, the same AUC."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from commands import dqrm_cpu
from dqrm_cpu.data.movielens.prepare import files_in, prepare_movielens
from launching import run_world
from several_commands import several_commands

pytestmark = [pytest.mark.mpi, pytest.mark.long]

USERS, ITEMS, RATINGS_OF_A_USER = 300, 400, 20
GENRES = ("Comedy", "Drama", "War", "Crime")
# Tables of some hundred rows of 256 values are larger than what is kept on every rank.
MODEL = [
    *("--model.embedding-dim", "256", "--model.bottom-mlp", "16,256", "--model.top-mlp", "24,1"),
    *("--train.epochs", "4", "--train.batch-size", "128", "--train.threads", "1", "--comm.timeout", "120"),
    *("--train.optimizer", "rowwise-adagrad", "--train.learning-rate", "0.02", "--comm.wire", "int8"),
]


def write_ratings(folder: Path) -> dict[str, Path]:
    """Files as RecBole has them, of nobody's ratings: films of even numbers are liked."""
    draw = random.Random(3)
    users = [f"{user}\t{draw.randrange(18, 70)}\t{draw.choice('MF')}\twriter\t1" for user in range(USERS)]
    films = [
        f"{item}\tFilm\t{draw.randrange(1960, 1999)}\t{' '.join(GENRES[: draw.randrange(4)])}" for item in range(ITEMS)
    ]
    ratings = []
    for user in range(USERS):
        for number, item in enumerate(draw.sample(range(ITEMS), RATINGS_OF_A_USER)):
            stars = draw.choice((4, 5)) if item % 2 == 0 else draw.choice((1, 2, 3, 4))
            ratings.append(f"{user}\t{item}\t{stars}\t{3600 * (number + user)}")
    heads = {
        "inter": ("user_id:token\titem_id:token\trating:float\ttimestamp:float", ratings),
        "user": ("user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token", users),
        "item": ("item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq", films),
    }
    for ending, (head, lines) in heads.items():
        (folder / f"ml-100k.{ending}").write_text("\n".join([head, *lines]) + "\n")
    return files_in(folder)


def test_sharded_ratings_have_the_auc_of_one_process(tmp_path: Path) -> None:
    prepare_movielens(write_ratings(tmp_path), tmp_path / "data")
    options = ["train", "--data", tmp_path / "data", *MODEL, "--run-dir"]
    done = dqrm_cpu(*options, tmp_path / "alone", "--comm.simulated-ranks", "2")
    assert done.returncode == 0, done.stderr
    sharded = [*options, tmp_path / "sharded", "--comm.tables", "shard", "--comm.overlap", "on"]
    world = run_world("mpi", several_commands(sharded), 2, timeout_s=240).check()
    assert "2 cut over 2 ranks" in world.stderr  # those of users and films
    results = [json.loads((tmp_path / run / "result.json").read_text()) for run in ("sharded", "alone")]
    assert results[0]["test"] == results[1]["test"]
    assert results[0]["test"]["best"]["auc"] > 0.6
    packed = [load_file(tmp_path / run / "packed" / "dense.safetensors") for run in ("sharded", "alone")]
    assert packed[0].keys() == packed[1].keys()
    assert all(np.array_equal(packed[0][name], packed[1][name]) for name in packed[0])
