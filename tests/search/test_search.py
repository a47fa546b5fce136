import copy
import itertools
import json
import multiprocessing
import os
import random
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from espnet_omnisparse.core.spec_yaml import read_spec, write_spec
from espnet_omnisparse.search.evaluation_cache import Evaluations, Workers
from espnet_omnisparse.search.evolution import (
    Candidate,
    Genes,
    Search,
    SearchOptions,
    Target,
    pareto_front,
)
from espnet_omnisparse.search.sensitivity import (
    cheapest_harm,
    measured_levels,
    sensitivity,
)

GRID = (0.0, 0.25, 0.5, 0.75)
# how much a weight has, and how much its zeros hurt
SIZES = (4, 8, 8, 16, 4, 8)
HARM = (9.0, 1.0, 4.0, 2.0, 6.0, 1.0)
ALIVE = ((True,) * 6, (True, True, False, False, True, True))
GENES = Genes(ALIVE, GRID, (tuple(range(6)), (0, 0, 1, 1, 2, 2), (0, 1) * 3))
DROPPED = 5.0  # what the smaller set of branches costs in fitness


def cost(one):
    """Weights that are left."""
    rows = zip(SIZES, one.sparsity, ALIVE[one.branches], strict=True)
    return sum(size * (1 - share) for size, share, there in rows if there)


def toy(one):
    """Harm grows faster than sparsity, so that uniform sparsities are not the best."""
    harm = sum(h * s * s for h, s in zip(HARM, one.sparsity, strict=True))
    return harm + DROPPED * one.branches


def every_candidate():
    for branches, alive in enumerate(ALIVE):
        levels = [range(len(GRID)) if there else (0,) for there in alive]
        for row in itertools.product(*levels):
            yield GENES.candidate(branches, row)


TARGETS = (Target("half", cost, 24.0), Target("quarter", cost, 14.5))


def search(options=None, evaluate=None, targets=TARGETS, genes=GENES, **more):
    many = SearchOptions(population=12, generations=12, **more)
    evaluate = evaluate or (lambda ones: [toy(one) for one in ones])
    return Search(genes, targets, options or many, evaluate).run()


# --- the algorithm --------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_the_optimum_of_a_landscape_that_can_be_enumerated_is_found(seed):
    found = search(seed=seed)
    for target in TARGETS:
        best = min(toy(one) for one in every_candidate() if target.met_by(one))
        assert toy(found.best[target.name]) == pytest.approx(best)
        assert toy(found.uniform[target.name]) > best + 0.1
    assert len(found.fitness) < 0.1 * len(list(every_candidate()))


def test_the_set_of_branches_is_searched_too():
    # what is free to drop is dropped
    def free(ones):
        return [toy(one) - 2 * DROPPED * one.branches for one in ones]

    assert {one.branches for one in search(evaluate=free).best.values()} == {1}
    assert search().best["half"].branches == 0


def test_every_candidate_is_within_a_budget_and_as_near_as_the_grid_allows():
    found = search()
    uniform = {one for one in found.fitness if len(set(one.sparsity) - {0.0}) == 1}
    for one in set(found.fitness) - uniform:
        near = [target for target in TARGETS if target.met_by(one)]
        assert near, one
        levels = GENES.levels(one)
        tight = []
        for target in near:
            backs = [
                GENES.candidate(
                    one.branches, [*levels[:i], level - 1, *levels[i + 1 :]]
                )
                for i, level in enumerate(levels)
                if level and ALIVE[one.branches][i]
            ]
            tight.append(not any(target.met_by(back) for back in backs))
        assert any(tight), one


def test_the_least_uniform_sparsity_of_each_set_is_evaluated_first():
    found = search()
    first = list(found.fitness)[:2]
    shares = [max(one.sparsity) for one in first]
    assert shares == [0.5, 0.0]  # 48 weights and 24, of which 24 may be left
    assert set(first[0].sparsity) == {0.5}
    quarter = found.uniform["quarter"]
    assert toy(quarter) == min(
        toy(GENES.uniform(0, 0.698)), toy(GENES.uniform(1, 0.3959))
    )
    # 24 (1 - s) <= 14.5 first holds at s = 0.3959 of ten-thousandths
    assert quarter == GENES.uniform(1, 0.3959)
    assert quarter in found.fitness


@pytest.mark.parametrize("seed", range(5))
def test_what_a_search_starts_from_may_be_what_it_makes_itself(seed):
    # a single set of branches, whose only start is its uniform sparsity
    genes = Genes(((True, True),), GRID, ((0, 1),))
    half = Target("half", lambda one: 2 - sum(one.sparsity), 1.0)
    starts = {"half": [genes.uniform(0, 0.5)]}
    options = SearchOptions(population=4, generations=1, seed=seed)

    def evaluate(ones):
        return [sum(share**2 for share in one.sparsity) for one in ones]

    found = Search(genes, [half], options, evaluate, starts=starts).run()
    assert found.best["half"] == genes.uniform(0, 0.5)


def test_best_and_uniform_meet_their_budgets():
    found = search(options=SearchOptions(population=3, generations=1))
    for target in TARGETS:
        assert target.met_by(found.best[target.name])
        assert target.met_by(found.uniform[target.name])
        fit = [f for one, f in found.fitness.items() if target.met_by(one)]
        assert found.fitness[found.best[target.name]] == min(fit)


def test_weights_that_do_not_exist_have_no_sparsity():
    for one in search().fitness:
        pairs = zip(one.sparsity, ALIVE[one.branches], strict=True)
        assert all(there or share == 0.0 for share, there in pairs)


def test_nothing_is_evaluated_twice_and_seeds_differ():
    asked = []

    def evaluate(ones):
        asked.extend(ones)
        return [toy(one) for one in ones]

    one = search(evaluate=evaluate)
    assert len(set(asked)) == len(asked)
    again, other = search(), search(seed=1)
    assert list(one.fitness.items()) == list(again.fitness.items())
    assert set(one.fitness) != set(other.fitness)


def test_mutations_move_weights_alone_and_in_groups_on_the_grid():
    def mutated(seed, mutation):
        options = SearchOptions(mutation=mutation)
        one = Search(GENES, TARGETS, options, list)
        return tuple(one._mutated([1] * 6, random.Random(seed)))

    assert {mutated(seed, 0.0) for seed in range(9)} == {(1,) * 6}
    rows = {mutated(seed, 0.5) for seed in range(200)}
    assert {level for row in rows for level in row} == {0, 1, 2, 3}
    pairs = [row for row in rows if row[0::2] == row[1::2]]  # groups of two
    thirds = [row for row in rows if len({row[0::2], (row[0],) * 3}) == 1]
    assert 15 < len(pairs) < 100 and 3 < len(thirds) < 100
    # without them, and with one parent, a child is its parent
    still = search(SearchOptions(12, 12, mutation=0.0, crossover=0.0))
    moving = search(SearchOptions(12, 12, crossover=0.0))
    assert 2 * len(still.fitness) < len(moving.fitness)


def test_a_budget_that_cannot_be_met_is_a_defect():
    with pytest.raises(ValueError, match="cannot be met"):
        search(targets=[Target("none", cost, 1.0)])


def test_a_cost_that_masks_do_not_lower_is_met_by_branches():
    branches = Target("ms", lambda one: 2.0 - one.branches, 1.0)
    found = search(targets=[branches])
    assert set(found.fitness) == {
        GENES.uniform(1, 0.0)
    }  # all else is needlessly sparse


def test_the_front_is_what_nothing_dominates():
    points = [(toy(one), cost(one)) for one in list(every_candidate())[::7]]
    front = [points[number] for number in pareto_front(points)]

    def dominated(a):
        return any(b != a and b[0] <= a[0] and b[1] <= a[1] for b in points)

    assert set(front) == {point for point in points if not dominated(point)}
    assert front == sorted(set(front))


# --- evaluations are kept -------------------------------------------------------------

MASKS = ((True, True), (True, False))
HEADER = {"checkpoint": "x", "objective": "loss"}


class Killed(Exception):
    pass


def kept(path, killed_after=10**9, header=HEADER):
    """Evaluations in a file; the list of those that were made."""
    made = []

    def evaluate(key):
        if len(made) == killed_after:
            raise Killed
        made.append(key)
        return toy(Candidate(MASKS.index(key[0]), key[1]))

    return Evaluations(path, header, evaluate, MASKS, Workers()), made


def test_a_search_killed_anywhere_goes_on_to_the_same_end(tmp_path):
    options = SearchOptions(population=3, generations=3)
    whole, made = kept(tmp_path / "whole")
    expected = search(options, whole.of)
    assert len(made) == len(expected.fitness) > 10
    for count in range(len(made)):
        path = tmp_path / f"{count}"
        first, before = kept(path, killed_after=count)
        with pytest.raises(Killed):
            search(options, first.of)
        with path.open("a") as file:  # the kill came while the next line was written
            file.write('{"units": 3}\nno JSON\n{"units": "11", "spars')
        second, after = kept(path)
        found = search(options, second.of)
        assert before + after == made
        assert list(found.fitness.items()) == list(expected.fitness.items())
        assert path.read_text() == (tmp_path / "whole").read_text()


def test_evaluations_of_something_else_are_not_mixed_in(tmp_path):
    one = GENES.uniform(0, 0.5)
    first, made = kept(tmp_path / "file")
    first.of([one, one])
    assert len(made) == 1
    other, made = kept(tmp_path / "file", header={**HEADER, "objective": "wer"})
    other.of([one])
    assert len(made) == 1
    lines = (tmp_path / "file").read_text().splitlines()
    assert [json.loads(lines[0])["objective"], len(lines)] == ["wer", 2]


def test_progress_tells_known_and_new_ones(tmp_path):
    told = []
    evaluations, _ = kept(tmp_path / "file")
    ones = [GENES.uniform(0, 0.5), GENES.uniform(1, 0.5)]
    evaluations.of(ones[:1])
    evaluations.of(ones, told.append)
    assert told == [1, 1]


# --- a real supernet ------------------------------------------------------------------

COMMAND = ["--budgets", "60% 11k", "--population", "3", "--generations", "2"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    from helpers.training import write_corpus

    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def experiment(tmp_path, corpus):
    """An untrained supernet of both axes with a searchable folder."""

    def make(name="exp", conv_norm="layer_norm", **more):
        import torch
        from helpers.tiny import asr_defaults, changed
        from helpers.training import CONFIG

        from espnet_omnisparse.core.spec import SubnetSpec, fingerprint
        from espnet_omnisparse.extract import experiment as family
        from espnet_omnisparse.files import save_tensors, write_yaml

        config = changed({**asr_defaults(), **copy.deepcopy(CONFIG)}, more)
        config["encoder"] = "omni_sparse_conformer"
        config["encoder_conf"] = {**config["encoder_conf"], "conv_norm": conv_norm}
        if not more:
            config["model_conf"]["supernet"]["sparsity"] = {"final": 0.8, "step": 0.2}
        for part in ("train", "valid"):
            config[f"{part}_data_path_and_name_and_type"] = [
                [str(corpus.folder / part / "wav.scp"), "speech", "sound"],
                [str(corpus.folder / part / "text"), "text", "text"],
            ]
        folder = tmp_path / name
        plain = json.loads(json.dumps(config))
        write_yaml(folder / "config.yaml", plain)
        torch.manual_seed(0)
        model = family.build(plain)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
        state = model.state_dict()
        save_tensors(folder / "valid.loss_sizes.ave.pth", state)
        mark = fingerprint(state, plain["token_list"])
        space = model.encoder.space
        mask = (True, False, True, True) * space.num_blocks
        write_spec(SubnetSpec.full(mark, space), folder / "subnets/full.yaml")
        write_spec(
            SubnetSpec("small", mark, space, mask), folder / "subnets/small.yaml"
        )
        return folder

    return make


def run(folder, *more, monkeypatch=None):
    from espnet_omnisparse.cli import main

    main(["search", str(folder), *COMMAND, *more])
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".pth"
    }


def test_the_command_writes_sizes_that_meet_their_budgets(experiment, capsys):
    from espnet_omnisparse.extract import experiment as family

    folder = experiment()
    files = run(folder)
    table = capsys.readouterr().out
    names = ["60pct", "60pct_uniform", "11k", "11k_uniform"]
    for name in names:
        assert f"| {name} |" in table
    assert table.strip() in files["search/table.md"].decode()
    assert "omnisparse search" in files["search/table.md"].decode()
    assert files["search/front.png"].startswith(b"\x89PNG")
    config = family.read_config(folder)
    state = family.load_tensors(folder / "valid.loss_sizes.ave.pth")
    full = family.build(config, state)
    maskable = sum(w.numel() for w in full.encoder.maskable().values())
    for name in names:
        spec = read_spec(folder / "subnets" / f"{name}.yaml")
        cut = family.build(*family.cut(config, state, spec))
        nonzero = sum(int(p.count_nonzero()) for p in cut.parameters())
        if name.startswith("11k"):
            assert 10_000 < nonzero <= 11_000
        else:
            every = sum(int(p.count_nonzero()) for p in full.parameters())
            training_only = sum(p.numel() for p in full.supernet.parameters())
            outside = every - training_only - maskable
            assert nonzero <= outside + 0.4 * maskable
        if name.endswith("uniform"):
            assert len(set(spec.sparsities.values())) == 1
    front = json.loads(files["search/front.json"])
    assert set(front) == {"sparsity", "nonzero"}
    for points in front.values():
        fits = [point["fitness"] for point in points]
        assert fits == sorted(fits, reverse=True) and len(set(fits)) == len(fits)


@pytest.mark.parametrize("conv_norm", ["layer_norm", "batch_norm"])
def test_the_loss_is_that_of_the_extracted_size(experiment, conv_norm, monkeypatch):
    """What an evaluation in the supernet says is what the deployed size does."""
    import torch

    from espnet_omnisparse.core.spec import SubnetSpec, fingerprint
    from espnet_omnisparse.extract import experiment as family
    from espnet_omnisparse.extract.batch_norm import reestimate
    from espnet_omnisparse.search import dev_set as evaluation
    from espnet_omnisparse.search.dev_set import DevSet, _valid_batches

    folder = experiment(conv_norm=conv_norm)
    config = family.read_config(folder)
    state = family.load_tensors(folder / "valid.loss_sizes.ave.pth")
    model = family.build(config, state)
    space = model.encoder.space
    monkeypatch.setattr(evaluation, "_BATCH", 2)  # two batches, of two and of one
    dev = DevSet(model, config, utterances=3, calibration=8)
    weights = len(space.weights)
    mask = (True, False, True, True) * space.num_blocks
    sparsity = tuple(0.1 * (index % 9) for index in range(weights))
    alive = ["mhsa" not in name for name in space.weights]
    sparsity = tuple(s * a for s, a in zip(sparsity, alive, strict=True))
    dev.score((True,) * len(space), ())  # leaves nothing behind
    score = dev.score(mask, sparsity)
    mark = fingerprint(state, config["token_list"])
    spec = SubnetSpec("x", mark, space, mask, sparsity)
    small = family.build(*family.cut(config, state, spec))
    if conv_norm == "batch_norm":
        calibration = family.calibration_batches(config, 8)
        reestimate(small, lambda batch: small.encode(**batch), calibration)
    total = count = 0
    with torch.no_grad():
        for batch in _valid_batches(config, 3):
            loss, _, weight = small(**batch)
            total, count = total + float(loss * weight), count + int(weight)
    assert count == 3
    assert score == pytest.approx(total / count, rel=1e-4)


def test_the_word_error_rate_is_that_of_greedy_search(experiment):
    import torch

    from espnet_omnisparse.extract import experiment as family
    from espnet_omnisparse.search.dev_set import DevSet

    folder = experiment()
    config = family.read_config(folder)
    state = family.load_tensors(folder / "valid.loss_sizes.ave.pth")
    model = family.build(config, state)
    dev = DevSet(model, config, "wer", utterances=4)
    # four references, of a word each
    full = (True,) * len(model.encoder.space)
    with torch.no_grad():
        model.ctc.ctc_lo.bias[0] = 1e3  # blank everywhere: all deleted
    assert dev.score(full, ()) == 100.0
    hidden, batch = dev._batches[0]
    with torch.no_grad():
        model.ctc.ctc_lo.bias[2] = 2e3  # one A, in whatever length
    said = [row[row >= 0].tolist() for row in batch.text]
    assert dev.score(full, ()) == 100.0 and [2] not in said
    tokens = config["token_list"]
    tokens[2] = "".join(tokens[one] for one in said[0])
    wrong = sum(one != said[0] for one in said)
    dev._tokens = [tokens[2] if i == 2 else t for i, t in enumerate("-?xBC/")]
    batch.text[0], batch.text_lengths[0] = 2, 1
    assert dev.score(full, ()) == 100.0 * wrong / 4 or wrong == 4


LAMP = ["turn the lamp off", "the lamp", "lamp turn", "off the turn"]


def train_bpe(folder):
    import sentencepiece

    (folder / "text").write_text("\n".join(20 * LAMP))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"), model_prefix=str(folder / "bpe"), vocab_size=18
    )
    processor = sentencepiece.SentencePieceProcessor(str(folder / "bpe.model"))
    return str(folder / "bpe.model"), lambda text: processor.encode(text, out_type=str)


@pytest.mark.parametrize("kind", ["word", "char", "bpe"])
def test_the_words_of_each_kind_of_tokens_are_those_of_the_text(
    experiment, tmp_path, kind
):
    import jiwer
    import torch

    from espnet_omnisparse.extract import experiment as family
    from espnet_omnisparse.search.dev_set import DevSet

    bpemodel, pieces = train_bpe(tmp_path) if kind == "bpe" else (None, None)
    split = {
        "word": str.split,
        "char": lambda text: [c.replace(" ", "<space>") for c in text],
        "bpe": pieces,
    }[kind]
    found = sorted({token for text in LAMP for token in split(text)})
    tokens = ["<blank>", "<unk>", *found, "<sos/eos>"]
    folder = experiment(token_list=tokens, token_type=kind, bpemodel=bpemodel)
    config = family.read_config(folder)
    speech, text = (one[0] for one in config["valid_data_path_and_name_and_type"])
    ids = [line.split()[0] for line in Path(speech).open()]
    said = tmp_path / "said"
    said.write_text("".join(f"{i} {t}\n" for i, t in zip(ids, LAMP, strict=True)))
    config["valid_data_path_and_name_and_type"][1][0] = str(said)
    model = family.build(
        config, family.load_tensors(folder / "valid.loss_sizes.ave.pth")
    )
    # hears one token, the whole time: the first of a text
    heard = split("lamp")[0]
    with torch.no_grad():
        model.ctc.ctc_lo.bias[tokens.index(heard)] = 1e4
    wer = DevSet(model, config, "wer", utterances=4).score(
        (True,) * len(model.encoder.space), ()
    )
    word = heard.replace("▁", "")
    assert wer == pytest.approx(100 * jiwer.wer(LAMP, [word] * 4))


def test_a_run_goes_on_and_another_objective_has_its_own_file(experiment, monkeypatch):
    from espnet_omnisparse.files import load_tensors, save_tensors
    from espnet_omnisparse.search.dev_set import DevSet

    folder = experiment()
    files = run(folder)
    score, calls = DevSet.score, []
    counted = lambda *args: calls.append(1) or score(*args)  # noqa: E731
    monkeypatch.setattr(DevSet, "score", counted)
    assert run(folder) == files
    assert not calls
    run(folder, "--objective", "loss")
    assert calls

    def kinds():
        paths = (folder / "search").glob("*.jsonl")
        return sorted(path.name.split("_")[1] for path in paths)

    assert kinds() == ["loss", "wer"]  # the profile's losses are a search's, too
    calls.clear()
    checkpoint = folder / "valid.loss_sizes.ave.pth"
    state = load_tensors(checkpoint)
    state["ctc.ctc_lo.bias"] += 1.0
    save_tensors(checkpoint, state)
    run(folder)
    assert calls  # another checkpoint's
    assert kinds() == ["loss", "loss", "wer", "wer"]


def _worker(folder, number, port, out):
    import contextlib

    os.environ |= {
        **{"RANK": f"{number}", "LOCAL_RANK": f"{number}", "WORLD_SIZE": "2"},
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}"},
        "TORCHELASTIC_RUN_ID": "test",
    }
    with out.open("w") as file, contextlib.redirect_stdout(file):
        run(folder, "--jobs", "2")


def test_two_processes_find_what_one_finds(experiment, tmp_path):
    one, two = experiment("one"), experiment("two")
    files = run(one)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    outs = [tmp_path / f"{number}.out" for number in range(2)]
    processes = [
        # everything is imported here already, which is what takes the time
        multiprocessing.get_context("fork").Process(
            target=_worker, args=(two, number, port, out)
        )
        for number, out in enumerate(outs)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        process.kill()  # of no consequence to one that has ended
        assert process.exitcode == 0
    for name in files:
        if name.startswith("subnets/") or name.endswith(("front.json", "jsonl")):
            assert files[name] == (two / name).read_bytes(), name
    # the first process alone tells and writes
    assert ["| 60pct |" in out.read_text() for out in outs] == [True, False]


def test_several_jobs_are_launched_and_a_stop_is_told(experiment, capsys, monkeypatch):
    from espnet_omnisparse.cli import main

    commands = []
    stopped = subprocess.CompletedProcess([], returncode=3)
    launch = lambda command: commands.append(command) or stopped  # noqa: E731
    folder = experiment()
    monkeypatch.setattr(subprocess, "run", launch)
    with pytest.raises(SystemExit):
        main(["search", str(folder), *COMMAND, "--jobs", "3"])
    assert "run the same command again" in capsys.readouterr().err
    text = " ".join(map(str, commands[0]))
    assert "--nproc_per_node 3 -m espnet_omnisparse.cli search" in text
    assert not list((folder / "search").glob("*"))


@pytest.mark.slow
def test_the_launched_command_works(experiment):
    """A minute, most of it four times importing PyTorch and ESPnet."""
    folder = experiment()
    path = os.pathsep.join(filter(None, sys.path))
    command = [sys.executable, "-m", "espnet_omnisparse.cli", "search", str(folder)]
    done = subprocess.run(
        [*command, *COMMAND, "--jobs", "2"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("| 60pct |") == 2  # once in each of its two tables


@pytest.mark.parametrize(
    "budgets, sentence",
    [
        ("99%", "the nearest that can is"),
        ("12", "must be a share of zeros"),
        (" ", "names none"),
        ("12M", "no less than the full net's"),
    ],
)
def test_mistakes_are_told_in_one_sentence(experiment, capsys, budgets, sentence):
    from espnet_omnisparse.cli import main

    with pytest.raises(SystemExit):
        main(["search", str(experiment()), "--budgets", budgets, "--jobs", "2"])
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: --budgets") and sentence in error


def test_a_net_without_masks_has_nothing_to_search(experiment, capsys):
    from espnet_omnisparse.cli import main

    folder = experiment()
    config = yaml.safe_load((folder / "config.yaml").read_text())
    del config["model_conf"]["supernet"]["sparsity"]
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(SystemExit):
        main(["search", str(folder), *COMMAND])
    assert "was not trained with masks" in capsys.readouterr().err


def test_sets_of_branches_are_those_trained_whatever_was_searched(experiment):
    from espnet_omnisparse.core.spec import SubnetSpec
    from espnet_omnisparse.search.run import read_problem

    folder = experiment()
    problem = read_problem(folder, "valid.loss_sizes.ave.pth", [])
    assert [sum(mask) for mask in problem.masks] == [8, 6]
    space, weights = problem.model.encoder.space, len(problem.genes.alive[0])
    odd = (True,) * 7 + (False,)
    for name, mask, sparsity in (
        ("searched", odd, (0.2, 0.4) + (0.0,) * (weights - 2)),
        ("a_uniform", problem.masks[1], (0.4,) * weights),
    ):
        spec = SubnetSpec(name, problem.supernet, space, mask, sparsity)
        write_spec(spec, folder / "subnets" / f"{name}.yaml")
    again = read_problem(folder, "valid.loss_sizes.ave.pth", [])
    assert again.masks == problem.masks
    assert problem.genes.grid == (0.0, 0.2, 0.4, 0.6, 0.8)
    assert [sum(row) for row in problem.genes.alive] == [22, 12]


# --- a sensitivity profile ------------------------------------------------------------


def additive(ones):
    """The toy without its interactions, of which it has none; the dense net has 7."""
    return [7.0 + toy(one) for one in ones]


def test_a_profile_has_the_harm_of_each_weight_alone():
    levels = measured_levels(3, 3)
    rows = sensitivity(GENES, 0, levels, additive)
    expected = [[h * share**2 for share in GRID] for h in HARM]
    assert [pytest.approx(row) for row in expected] == rows
    # of one level measured the others lie on a line
    row = sensitivity(GENES, 0, measured_levels(3, 1), additive)[0]
    assert row == pytest.approx([9 * 0.75**2 * n / 3 for n in range(4)])
    # a set has nothing of the weights that it has not
    rows = sensitivity(GENES, 1, levels, additive)
    assert [any(row) for row in rows] == list(ALIVE[1])


def test_a_profile_never_says_that_zeros_help():
    noise = random.Random(0)
    rows = sensitivity(GENES, 0, [1, 2, 3], lambda ones: [noise.random() for _ in ones])
    assert all(row == sorted(row) and row[0] == 0.0 for row in rows)


def test_the_profile_begins_near_the_optimum_that_can_be_enumerated():
    rows = sensitivity(GENES, 0, [1, 2, 3], additive)
    for target in TARGETS:
        one = cheapest_harm(GENES, 0, target, rows)
        assert target.met_by(one)
        every = [c for c in every_candidate() if c.branches == 0 and target.met_by(c)]
        uniform = toy(GENES.uniform(0, 1.0 - target.limit / sum(SIZES)))
        best = min(map(toy, every))
        assert best <= toy(one) < best + 0.3 * (uniform - best)
    assert cheapest_harm(GENES, 0, Target("none", cost, 1.0), rows) is None


def test_what_it_suggests_is_evaluated_first():
    rows = sensitivity(GENES, 0, [1, 2, 3], additive)
    starts = {t.name: [cheapest_harm(GENES, 0, t, rows)] for t in TARGETS}
    options = SearchOptions(population=4, generations=0)
    evaluate = lambda ones: [toy(one) for one in ones]  # noqa: E731
    with_starts = Search(GENES, TARGETS, options, evaluate, starts=starts).run()
    without = Search(GENES, TARGETS, options, evaluate).run()
    for target in TARGETS:
        name = target.name
        assert toy(with_starts.best[name]) <= toy(starts[name][0])
        assert toy(with_starts.best[name]) < toy(without.best[name])


@pytest.mark.parametrize("seed", range(20))
def test_nothing_worse_than_uniform_is_ever_returned(seed):
    """Whatever the evaluations say, ties included, and whatever a start is worth."""
    values = random.Random(seed)
    fitness = {}

    def evaluate(ones):
        for one in ones:
            fitness[one] = values.choice([1.0, 2.0, 3.0, float("inf")])
        return [fitness[one] for one in ones]

    bad = {target.name: [GENES.candidate(0, [3] * 6)] for target in TARGETS}
    options = SearchOptions(population=2, generations=2, seed=seed)
    found = Search(GENES, TARGETS, options, evaluate, starts=bad).run()
    for target in TARGETS:
        best, uniform = found.best[target.name], found.uniform[target.name]
        assert target.met_by(best) and target.met_by(uniform)
        assert uniform in found.fitness
        assert fitness[best] < fitness[uniform] or best == uniform


def test_a_profile_is_kept_and_made_once(experiment):
    folder = experiment()
    run(folder, "--profile", "1")
    losses = [
        path
        for path in (folder / "search").glob("evaluations_loss_*.jsonl")
        if '"objective": "loss"' in path.read_text().splitlines()[0]
    ]
    (path,) = losses
    lines = path.read_text().splitlines()
    model_weights = len(json.loads(lines[1])["sparsity"])
    # each weight of both sets of branches alone, and both dense nets
    assert len(lines) - 1 > model_weights
    assert max(sum(map(bool, json.loads(x)["sparsity"])) for x in lines[1:]) == 1
    before = path.read_bytes()
    run(folder, "--profile", "1")
    assert path.read_bytes() == before
