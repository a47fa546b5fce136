import random

import pytest
import torch

from espnet_omnisparse.core.gate import Gate, mask_gates
from espnet_omnisparse.core.mask import ranking
from espnet_omnisparse.core.search_space import SearchSpace
from espnet_omnisparse.errors import UserError
from espnet_omnisparse.selection import Selection
from espnet_omnisparse.supernet.config import SupernetConfig
from espnet_omnisparse.supernet.supernet import Supernet

SIZES = {"small": 4, "medium": 6, "large": 8}
RUN = 100


def supernet(updates=0, run=RUN, **conf):
    conf = {"method": "simple_topk", "sizes": SIZES, "warm_start": 10, **conf}
    net = Supernet(SupernetConfig.read(conf), SearchSpace(3))
    net.set_run_length(run)
    net.update = updates
    if conf["method"] == "simple_topk":
        # unit 7 is the best, then 6, ...; 11 is the worst
        scores = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, -0.1, -0.2, -0.3, -0.4]
        net.selection.scores.data = torch.tensor(scores)
    return net


@pytest.fixture
def toy():
    """A selection method as a user writes it: one class."""

    class Toy(Selection, name="toy"):
        def __init__(self, space, sizes, scale=1.0):
            super().__init__(space, sizes)
            self.weights = torch.nn.Parameter(torch.arange(float(len(space))))
            self.scale = scale
            self.calls = []

        def gates(self, time: int, length: int) -> tuple[Gate, ...]:
            return tuple(torch.sigmoid(self.weights).unbind())

        def mask_now(self, time, length):
            return list(self.masks().values())[-1]

        def ranking(self):
            return ranking(self.weights)

        def penalty(self, time, length):
            self.calls.append(("penalty", time, length))
            return self.scale * self.weights.sum()

        def after_update(self, time, length):
            self.calls.append(("after_update", time, length))

    yield Toy
    del Selection.registry["toy"]


BAD_CONFIGS = [
    ({"methd": "simple_topk"}, "unknown key 'methd'; did you mean 'method'"),
    ({"zzz": 1}, "unknown key 'zzz'; known: .*method"),
    ({"method": "best"}, "method 'best' is unknown; the methods are .*simple_topk"),
    (
        {"method_conf": {"shrnk": 1}},
        "unknown key 'shrnk'; did you mean 'shrink'",
    ),
    (
        {"method_conf": {"shrink": 0}},
        "shrink must be .* of at least 1, not 0",
    ),
    (
        {"method_conf": {"temperature": 0.0}},
        "temperature must be .* above 0, not 0.0",
    ),
    (
        {"method_conf": {"shrink": 1.5}},
        "shrink must be a whole number .*, not 1.5",
    ),
    (
        {"method_conf": {"shrink": "1e1"}},
        "shrink must be .*, not the text '1e1'",
    ),
    (
        {"method_conf": {"shrink": True}},
        "shrink must be a whole number .*, not True",
    ),
    (
        {"method_conf": {"straight_through": 1}},
        "through must be true or false, not 1",
    ),
    (
        {"method": "iterative_zero_out", "method_conf": {"first_iteration": "14k"}},
        "first_iteration must be .*, not the text '14k'",
    ),
    ({"method": "taylor", "method_conf": {"momentum": 1.0}}, "momentum must be .* 1"),
    ({"method": "greedy", "method_conf": {"utterances": 0}}, "utterances must be"),
    ({"step1": 0}, "step1 has no update"),
    ({"method": "none"}, "trains one size only"),
    ({"sizes": {}}, "sizes is empty"),
    ({"sizes": {"full": 3}}, "may not be called 'full', a word that the log uses"),
    ({"sizes": {"current": 3}}, "may not be called 'current', a word that the log"),
    ({"sizes": {"small": 0}}, "small asks for 0 units; the nearest .* 1 units"),
    (
        {"sizes": {"small": 12}},
        "nearest that this net can give is 11 units .the full net",
    ),
    ({"sizes": {"small": 13}}, "small asks for 13 units; the nearest .* 11 units"),
    ({"sizes": {"small": 0.01}}, "small asks for 0 units"),
    ({"sizes": {"small": 1.0}}, "small asks for 12 units"),
    ({"heads": "own"}, "heads must be one of shared, per_size, not 'own'"),
    ({"update": "accum"}, "of per_batch, split_batch, per_accum, in_turn, not 'accum'"),
    (
        {"layer_dropout_step1": 1.0},
        "step1 must be a number of at least 0 and below",
    ),
    (
        {"layer_dropout_step2": -0.1},
        "step2 must be a number of at least 0 and below",
    ),
    ({"warm_start": 1.5}, "warm_start must be a number of updates, or a fraction"),
    ({"step1": -1}, "step1 must be a number of updates, or a fraction"),
    ({"warm_start": 0.4, "step1": 0.6}, "leave none for the joint training"),
    ({"warm_start": 40, "step1": 60}, "take 100 of the run's 100 updates"),
]


@pytest.mark.parametrize("conf, sentence", BAD_CONFIGS)
def test_a_bad_config_gets_its_sentence(conf, sentence):
    with pytest.raises(UserError, match=sentence):
        supernet(**conf)


@pytest.mark.parametrize(
    "conf",
    [
        {"score_lr": "1e-3"},  # YAML reads a number without a point as text
        {"sizes": {"small": "4"}},
        {"step1": "0.6"},
        {"layer_dropout_step1": "0.1"},
    ],
)
def test_a_number_given_as_text_is_refused(conf):
    with pytest.raises(UserError, match=next(iter(conf))):
        supernet(**conf)


ONE_SIZE = {"sizes": {"small": 4}, "method": "simple_topk"}
WITHOUT_EFFECT = [
    ("distillation", {"method": "layerdrop", "distillation": "kl"}),
    ("distillation", {"method": "none", "sizes": {}, "distillation": "alpha"}),
    ("subnet_weight", {"method": "layerdrop", "subnet_weight": 0.5}),
    ("subnet_dropout", {"method": "none", "sizes": {}, "subnet_dropout": "none"}),
    ("update", {"method": "layerdrop", "update": "split_batch"}),
    ("distillation_weight", {"distillation_weight": 0.1}),
    ("distillation_blocks", {"distillation_blocks": 0.1}),
    ("fraction_of", {"fraction_of": "params"}),
    ("heads", {"method": "none", "sizes": {}, "heads": "per_size"}),
]


@pytest.mark.parametrize("name, conf", WITHOUT_EFFECT)
def test_an_option_without_effect_is_refused(name, conf):
    config = SupernetConfig(**{**ONE_SIZE, **conf})
    with pytest.raises(UserError, match=f"supernet.{name}: .* has no effect with"):
        Supernet(config, SearchSpace(3))


def test_distillation_between_exits_is_refused():
    conf = {"method": "early_exits", "sizes": {"small": 1}, "distillation": "kl"}
    with pytest.raises(UserError, match="distillation: kl has no effect with method"):
        Supernet(SupernetConfig(**conf), SearchSpace(3, "block"))


OF_STEPS = [
    ("score_lr", {"method": "uniform", "score_lr": 0.1}),
    ("score_lr", {"method": "taylor", "score_lr": 0.1}),
    ("step1", {"method": "random", "step1": 5}),
    ("warm_start", {"method": "layerdrop", "warm_start": 5}),
    ("layer_dropout_step1", {"method": "taylor", "layer_dropout_step1": 0.1}),
    ("layer_dropout_step2", {"method": "layerdrop", "layer_dropout_step2": 0.1}),
]


@pytest.mark.parametrize("name, conf", OF_STEPS)
def test_what_belongs_to_a_step_of_another_method_is_told(caplog, name, conf):
    Supernet(SupernetConfig(**{**ONE_SIZE, **conf}), SearchSpace(3))
    (message,) = caplog.messages
    assert message.startswith(f"supernet.{name}: ") and "has no effect" in message


@pytest.mark.parametrize(
    "conf",
    [
        {"distillation": "kl", "distillation_weight": 0.1, "score_lr": 0.1},
        {"layer_dropout_step1": 0.1, "layer_dropout_step2": 0.1, "step1": 50},
        {"method": "taylor", "step1": 50, "layer_dropout_step2": 0.1},
        {"heads": "per_size", "update": "split_batch", "subnet_weight": "adaptive"},
    ],
)
def test_an_option_with_effect_is_taken(caplog, conf):
    assert Supernet(SupernetConfig(**{**ONE_SIZE, **conf}), SearchSpace(3)).sizes
    assert not caplog.messages


def test_heads_that_no_update_trains_are_refused():
    conf = {"sizes": {"small": 1}, "heads": "per_size"}
    blocks = SearchSpace(3, "block")
    with pytest.raises(UserError, match="layerdrop trains the full net alone.*shared"):
        Supernet(SupernetConfig(method="layerdrop", **conf), blocks)
    Supernet(SupernetConfig(method="early_exits", **conf), blocks)  # with their heads


@pytest.mark.parametrize("name", ["sizes", "a.b"])
def test_a_size_name_that_cannot_name_log_entries_or_heads_is_refused(name):
    with pytest.raises(UserError, match=f"sizes.*{name}"):
        supernet(sizes={name: 4}, heads="per_size")


def test_a_fraction_of_an_unknown_run_is_refused():
    with pytest.raises(UserError, match="step1: 0.6 is a fraction of a run"):
        supernet(run=None)
    assert supernet(run=None, step1=60).timeline.selected_at == 70


def test_sizes_are_units_or_fractions_and_sorted():
    net = supernet(sizes={"small": 0.33, "large": 9, "medium": 0.5})
    units = [(name, size.units) for name, size in net.sizes.items()]
    assert units == [("large", 9), ("medium", 6), ("small", 4)]


def test_an_untrained_supernet_has_equal_scores_of_one_half():
    conf = SupernetConfig(method="simple_topk", sizes=SIZES)
    scores = Supernet(conf, SearchSpace(3)).selection.scores
    assert torch.equal(scores.detach(), torch.full((12,), 0.5))


def test_the_warm_start_trains_the_full_net_alone():
    (draw,) = supernet(updates=9).sample_subnets()
    assert (draw.size, draw.weight, draw.layer_dropout) == ("full", 1.0, None)
    assert draw.gates == (1.0,) * 12


def test_step1_trains_the_full_net_and_the_current_subnet():
    net = supernet(updates=10)
    full, current = net.sample_subnets()
    assert full.gates == (1.0,) * 12 and full.weight == 1.0
    assert (current.size, current.weight) == ("current", 0.3)
    # straight-through: hard values, gradient into the scores, every unit computed
    gates = torch.stack(current.gates)
    assert gates.tolist() == pytest.approx([1.0] * 11 + [0.0])
    gates.square().sum().backward()
    assert net.selection.scores.grad.abs().max() > 0


def test_soft_gates_are_between_none_and_all():
    net = supernet(updates=10, method_conf={"straight_through": False})
    gates = torch.stack(net.sample_subnets()[1].gates)
    assert gates.sum().item() == pytest.approx(11)
    assert ((gates > 0.5) & (gates < 1.5) & (gates != 1.0)).all()


def test_k_shrinks_to_the_smallest_size_during_step1():
    def k(update):
        return round(sum(g.item() for g in supernet(update).sample_subnets()[1].gates))

    assert [k(update) for update in (10, 17, 18, 40, 69)] == [11, 11, 10, 7, 4]


def test_step2_is_a_sandwich():
    full, smallest, between = supernet(updates=70).sample_subnets()
    assert [full.weight, smallest.weight, between.weight] == [1.0, 0.3, 0.3]
    assert full.gates == (1.0,) * 12
    assert smallest.size == "small"
    assert smallest.gates == (None,) * 4 + (1.0,) * 4 + (None,) * 4
    assert between.size in ("medium", "large")


def test_two_sizes_have_no_intermediate():
    net = supernet(updates=70, sizes={"small": 4})
    assert [draw.size for draw in net.sample_subnets()] == ["full", "small"]


def test_the_random_intermediate_depends_on_seed_and_update_only():
    def sequence(seed, elsewhere):
        random.seed(elsewhere)
        torch.manual_seed(elsewhere)
        return [
            supernet(update, seed=seed).sample_subnets()[2].size
            for update in range(70, 100)
        ]

    first = sequence(1, elsewhere=1)
    assert sequence(1, elsewhere=2) == first
    assert sequence(2, elsewhere=1) != first
    assert set(first) == {"medium", "large"}


def test_no_seed_is_stuck_on_one_intermediate():
    for seed in range(5):
        draws = [
            supernet(update, seed=seed).sample_subnets()[2].size
            for update in range(70, 100)
        ]
        assert 5 < draws.count("large") < 25


def test_layer_dropout_spares_the_current_and_the_smallest_subnet():
    rates = {"layer_dropout_step1": 0.1, "layer_dropout_step2": 0.4}
    step1 = supernet(updates=40, **rates).sample_subnets()  # k = 7
    assert step1[0].layer_dropout.tolist() == pytest.approx([0.1] + [0] * 7 + [0.1] * 4)
    step2 = supernet(updates=70, **rates).sample_subnets()
    expected = [0.4] * 4 + [0] * 4 + [0.4] * 4
    assert step2[0].layer_dropout.tolist() == pytest.approx(expected)
    assert all(draw.layer_dropout is None for draw in step1[1:] + step2[1:])
    assert supernet(updates=0, **rates).sample_subnets()[0].layer_dropout is None


def test_validation_sees_what_is_known_so_far():
    assert [d.size for d in supernet(9).validation_subnets()] == ["full"]
    full, current = supernet(40).validation_subnets()
    assert (full.size, current.size) == ("full", "current")
    assert current.gates == (None,) + (1.0,) * 7 + (None,) * 4
    sizes = [draw.size for draw in supernet(70).validation_subnets()]
    assert sizes == ["full", "large", "medium", "small"]


def test_without_selection_the_full_net_is_trained_alone_from_the_start():
    net = supernet(method="none", sizes={}, warm_start=0)
    for update in (0, 99):
        net.update = update
        assert [draw.size for draw in net.sample_subnets()] == ["full"]
        assert [draw.size for draw in net.validation_subnets()] == ["full"]
    assert list(net.parameters()) == []


def test_a_supernet_without_run_length_does_not_train():
    net = Supernet(SupernetConfig(method="simple_topk", sizes=SIZES), SearchSpace(3))
    with pytest.raises(UserError, match=r"does not know its phases, .*begin\("):
        net.sample_subnets()


def test_a_training_that_counts_no_updates_is_told_so():
    net = Supernet(SupernetConfig(method="simple_topk", sizes=SIZES), SearchSpace(3))
    net.set_run_length(100)
    with pytest.raises(UserError, match=r"does not count its updates, .*begin\("):
        net.sample_subnets()
    net.load_state_dict(net.state_dict())  # which brings a count, but no counting
    with pytest.raises(UserError, match="does not count its updates"):
        net.sample_subnets()
    net.count_update()
    assert len(net.sample_subnets()) == 2


def test_a_training_of_ones_own_begins_with_one_call_and_counts():
    net = Supernet(SupernetConfig(method="simple_topk", sizes=SIZES), SearchSpace(3))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net.begin(5, optimizer)
    phases = []
    for _ in range(5):
        phases.append(net.phase)
        optimizer.step()
    assert phases == ["step1"] * 3 + ["step2"] * 2


def test_a_method_of_ones_own_is_one_class(toy):
    net = supernet(method="toy", method_conf={"scale": 2.0}, warm_start=2, step1=3)
    assert isinstance(net.selection, toy)
    penalties = []
    for _ in range(7):
        net.sample_subnets()
        penalties.append(torch.as_tensor(net.penalty()).item())
        net.count_update()
    assert net.update == 7
    assert penalties == [0, 0, 132, 132, 132, 0, 0]
    assert net.selection.calls == [
        ("penalty", 0, 3),
        ("after_update", 1, 3),
        ("penalty", 1, 3),
        ("after_update", 2, 3),
        ("penalty", 2, 3),
        ("after_update", 3, 3),
    ]
    masks = net.selection.masks()
    smallest = net.sample_subnets()[1]
    assert smallest.gates == mask_gates(masks["small"])


def test_the_penalty_of_a_method_is_part_of_the_loss(toy, tiny_model, batch):
    conf = {"method": "toy", "step1": 10}
    plain = tiny_model(supernet={**conf, "method_conf": {"scale": 0.0}})
    charged = tiny_model(supernet={**conf, "method_conf": {"scale": 0.5}})
    charged.load_state_dict(plain.state_dict())
    plain.train(), charged.train()
    penalty = 0.5 * plain.supernet.selection.weights.sum()
    difference = charged(**batch)[0] - plain(**batch)[0]
    # beside losses of the weights 1 and 0.3, whose sum all is divided by
    assert difference.item() == pytest.approx(penalty.item() / 1.3, rel=1e-5)


def test_updates_and_scores_travel_with_the_checkpoint():
    trained = supernet(updates=42)
    fresh = supernet()
    fresh.load_state_dict(trained.state_dict())
    assert fresh.update == 42
    assert torch.equal(fresh.selection.scores, trained.selection.scores)
