import dataclasses

import pytest
import torch
import yaml

from espnet_omnisparse.core.mask import Pattern, top_k_mask
from espnet_omnisparse.core.search_space import SearchSpace
from espnet_omnisparse.core.spec import FULL, SubnetSpec, fingerprint
from espnet_omnisparse.core.spec_yaml import read_spec, write_spec
from espnet_omnisparse.errors import UserError

MASK = (True, True, False, True, False, False, False, False)


@pytest.fixture
def spec():
    return SubnetSpec("small", "0123abcd", SearchSpace(2), MASK)


@pytest.fixture
def edit(spec, tmp_path):
    """Saves the spec, changes keys of its YAML and loads it again."""

    def reload(granularity="branch", **changes):
        path = tmp_path / "spec.yaml"
        write_spec(spec, path)
        value = yaml.safe_load(path.read_text())
        value |= {"granularity": granularity, **changes}
        value = {key: item for key, item in value.items() if item is not ...}
        path.write_text(yaml.safe_dump(value))
        return read_spec(path)

    return reload


def test_units_are_in_the_order_of_computation():
    branches = SearchSpace(2).units
    assert branches == (
        *("0.ffn1", "0.mhsa", "0.conv", "0.ffn2"),
        *("1.ffn1", "1.mhsa", "1.conv", "1.ffn2"),
    )
    assert SearchSpace(2, "block").units == ("0", "1")
    assert len(SearchSpace(12)) == 48
    assert len(SearchSpace(12, "block")) == 12


def test_an_unknown_granularity_is_refused():
    with pytest.raises(UserError, match="one of branch, block, component, not 'layer'"):
        SearchSpace(2, "layer")


@pytest.mark.parametrize(
    "space, mask",
    [
        (SearchSpace(2), MASK),
        (SearchSpace(2), (True,) * 8),
        (SearchSpace(3, "block"), (True, False, True)),
    ],
)
def test_a_spec_survives_yaml(space, mask, tmp_path):
    spec = SubnetSpec("small", "0123", space, mask)
    write_spec(spec, tmp_path / "spec.yaml")
    again = read_spec(tmp_path / "spec.yaml")
    assert again == spec
    assert hash(again) == hash(spec)


def test_a_fingerprint_of_digits_stays_text(tmp_path):
    spec = SubnetSpec("1", "0000123456789012", SearchSpace(2), MASK)
    write_spec(spec, tmp_path / "spec.yaml")
    assert read_spec(tmp_path / "spec.yaml") == spec


def test_a_spec_is_a_value(spec):
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.mask = (True,) * 8
    other = dataclasses.replace(spec, mask=(True,) * 8)
    assert len({spec, dataclasses.replace(spec), other}) == 2


def test_a_spec_tells_what_it_keeps(spec):
    assert spec.kept_branches == (("ffn1", "mhsa", "ffn2"), ())
    assert spec.num_branches == 3
    assert not spec.is_full
    assert spec.gates() == (1.0, 1.0, None, 1.0, None, None, None, None)
    full = SubnetSpec.full("0123", SearchSpace(2))
    assert full.is_full and full.name == FULL and full.num_branches == 8


def test_a_kept_block_keeps_its_four_branches():
    spec = SubnetSpec("small", "0", SearchSpace(2, "block"), (False, True))
    assert spec.kept_branches == ((), ("ffn1", "mhsa", "conv", "ffn2"))
    assert spec.num_branches == 4
    assert spec.gates() == (None, 1.0)


def test_a_mask_of_another_length_is_refused():
    with pytest.raises(ValueError, match="3 mask entries, 8 units"):
        SubnetSpec("small", "0", SearchSpace(2), (True,) * 3)


def test_a_spec_of_another_supernet_is_refused(spec):
    spec.check_supernet("0123abcd")
    with pytest.raises(UserError, match="belongs to supernet 0123abcd.* feed"):
        spec.check_supernet("feed")


BAD_EDITS = [
    ({"supernet": ...}, "needs exactly the keys"),
    ({"extra": 1}, "needs exactly the keys"),
    ({"format": 2}, "spec format 2, this version reads 1"),
    ({"kept": "ffn1"}, "kept must list what each block keeps"),
    ({"kept": ["ffn1", "conv"]}, "kept must list what each block keeps"),
    (
        {"granularity": "head"},
        "yaml: granularity must be one of branch, block, component, not 'head'",
    ),
    ({"kept": [["ffn1", "attention"], []]}, "block 0 keeps an unknown branch 'att"),
    ({"kept": [["ffn1"], [["ffn1"]]]}, "block 1 keeps an unknown branch"),
    ({"kept": [["ffn1", "mhsa", "ffn1"], []]}, "block 0 repeats a branch"),
    ({"kept": [["ffn1", "mhsa"], []]}, "lists 2 of 8 branches but declares"),
    ({"branches": {"kept": 3, "of": 12}}, "lists 3 of 8 branches but declares"),
    ({"branches": 3}, "lists 3 of 8 branches but declares 3"),
    ({"granularity": "block"}, "block 0 keeps only some of its branches"),
]


@pytest.mark.parametrize("changes, sentence", BAD_EDITS)
def test_a_bad_edit_gets_its_sentence(edit, changes, sentence):
    with pytest.raises(UserError, match=sentence) as error:
        edit(**changes)
    assert "\n" not in str(error.value)


def test_an_edit_that_agrees_with_itself_is_read(edit):
    spec = edit(kept=[["conv"], ["ffn2", "ffn1"]], branches={"kept": 3, "of": 8})
    assert spec.kept_branches == (("conv",), ("ffn1", "ffn2"))


def test_files_that_are_no_specs_are_refused(tmp_path):
    path = tmp_path / "spec.yaml"
    with pytest.raises(UserError, match="does not exist"):
        read_spec(path)
    path.write_text("kept: [")
    with pytest.raises(UserError, match="is not valid YAML"):
        read_spec(path)
    path.write_text("- small\n")
    with pytest.raises(UserError, match="is not a subnet spec"):
        read_spec(path)


def test_masks_of_the_same_scores_are_nested():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 5, (48,), generator=generator).float()
    masks = [top_k_mask(scores, k) for k in range(49)]
    for k, (smaller, larger) in enumerate(zip(masks[:-1], masks[1:], strict=True)):
        assert smaller.sum() == k
        assert not (smaller & ~larger).any()


def test_a_fingerprint_is_of_shapes_and_tokens_not_of_values():
    state = {"encoder.a": torch.zeros(2, 3), "encoder.b": torch.zeros(2)}
    mark = fingerprint(state, ["a", "b"])
    trained = {"encoder.b": torch.ones(2), "encoder.a": torch.ones(2, 3)}
    assert fingerprint(trained, ("a", "b")) == mark
    assert fingerprint({**state, "ctc.weight": torch.ones(1)}, ["a", "b"]) == mark
    others = [
        fingerprint({**state, "encoder.c": torch.zeros(1)}, ["a", "b"]),
        fingerprint({"encoder.a": torch.zeros(2, 3)}, ["a", "b"]),
        fingerprint({**state, "encoder.a": torch.zeros(3, 2)}, ["a", "b"]),
        fingerprint(state, ["b", "a"]),
        fingerprint(state, ["a", "b", "c"]),
    ]
    assert len({mark, *others}) == 6


# weights


SPARSE = SearchSpace(2, pattern=Pattern(rows=8))
SHARES = tuple(round(0.07 * (index % 12), 2) for index in range(22))


def sparse_spec(space=SPARSE, mask=MASK, sparsity=SHARES):
    return SubnetSpec("small", "0123abcd", space, mask, sparsity)


@pytest.mark.parametrize(
    "space, mask",
    [
        (SPARSE, MASK),
        (SearchSpace(3, "block", pattern=Pattern(of=4)), (True, False, True)),
        (SearchSpace(2, pattern=Pattern(3, 5, norm="l2"), positional=False), MASK),
        (SearchSpace(1, "component", 2, Pattern()), (True, False) * 5 + (True,)),
    ],
    ids=str,
)
def test_a_sparse_spec_survives_yaml(space, mask, tmp_path):
    # numbers that are not short in binary, and the smallest there is above 0
    sparsity = [0.1 * (index % 10) for index in range(len(space.weights))]
    sparsity[0] = 5e-324
    spec = sparse_spec(space, mask, tuple(sparsity))
    write_spec(spec, tmp_path / "spec.yaml")
    again = read_spec(tmp_path / "spec.yaml")
    assert again == spec and hash(again) == hash(spec)
    assert again.sparsities == spec.sparsities
    write_spec(again, tmp_path / "again.yaml")
    assert (tmp_path / "again.yaml").read_bytes() == (
        tmp_path / "spec.yaml"
    ).read_bytes()


def test_a_dense_spec_of_a_sparse_supernet_survives_yaml(tmp_path):
    spec = SubnetSpec.full("0123abcd", SPARSE)
    write_spec(spec, tmp_path / "spec.yaml")
    assert read_spec(tmp_path / "spec.yaml") == spec
    assert spec.sparsity == () and spec.sparsities == {}
    assert sparse_spec(mask=spec.mask, sparsity=(0.0,) * 22).sparsity == ()


def test_the_weights_are_those_of_each_kind_of_layer():
    assert len(SPARSE.weights) == 22 and SearchSpace(2).weights == ()
    unpositional = SearchSpace(2, pattern=Pattern(), positional=False)
    gone = set(SPARSE.weights) - set(unpositional.weights)
    assert gone == {"0.mhsa.linear_pos", "1.mhsa.linear_pos"}
    shares = sparse_spec().sparsities
    assert list(shares.values()) == [share for share in SHARES if share]
    assert shares["0.ffn1.w_2"] == 0.07 and "0.ffn1.w_1" not in shares


@pytest.mark.parametrize("sparsity", [(0.5,) * 21, (1.0,) * 22, (-0.1,) * 22])
def test_impossible_sparsities_are_refused(sparsity):
    with pytest.raises(ValueError, match="21 sparsities, 22|at least 0 and below 1"):
        sparse_spec(sparsity=sparsity)


BAD_WEIGHTS = [
    ({"weights": 3}, "weights needs exactly the keys norm, pattern, positional, spars"),
    ({"extra": 3}, "weights needs exactly the keys"),
    ({"norm": ...}, "weights needs exactly the keys"),
    ({"pattern": "8by1"}, "spec.yaml: weights.pattern must be unstructured, a block"),
    ({"norm": "l3"}, "spec.yaml: weights.norm must be one of l1, l2, not 'l3'"),
    ({"positional": "no"}, "weights.positional must be true or false"),
    ({"sparsity": [0.5]}, "weights.sparsity must map weights to sparsities"),
    ({"sparsity": {"0.ffn1.w_3": 0.5}}, "there is no weight '0.ffn1.w_3' to mask"),
    ({"sparsity": {"2.ffn1.w_1": 0.5}}, "there is no weight '2.ffn1.w_1' to mask"),
    ({"positional": False, "sparsity": {"0.mhsa.linear_pos": 0.5}}, "there is no wei"),
    ({"sparsity": {"0.ffn1.w_1": 1.0}}, "of 0.ffn1.w_1 must be a number of at least 0"),
    ({"sparsity": {"0.ffn1.w_1": "half"}}, "the sparsity of 0.ffn1.w_1 must be a"),
    ({"sparsity": {"0.ffn1.w_1": True}}, "the sparsity of 0.ffn1.w_1 must be a"),
    ({"sparsity": {"0.ffn1.w_1": float("nan")}}, "the sparsity of 0.ffn1.w_1 must be"),
]


@pytest.mark.parametrize("changes, sentence", BAD_WEIGHTS)
def test_a_bad_edit_of_the_weights_gets_its_sentence(changes, sentence, tmp_path):
    path = tmp_path / "spec.yaml"
    write_spec(sparse_spec(), path)
    value = yaml.safe_load(path.read_text())
    section = {**value["weights"], **changes}
    section = {key: item for key, item in section.items() if item is not ...}
    value["weights"] = changes.get("weights", section)
    path.write_text(yaml.safe_dump(value))
    with pytest.raises(UserError, match=sentence) as error:
        read_spec(path)
    assert "\n" not in str(error.value) and "encoder_conf" not in str(error.value)


def test_a_spec_that_masks_by_another_pattern_is_refused():
    spec = sparse_spec()
    spec.check_space(SPARSE)
    spec.check_space(SearchSpace(2))  # trained without masks: any pattern will do
    for other in (Pattern(cols=8), Pattern(rows=8, norm="l2"), Pattern(of=4)):
        with pytest.raises(UserError, match=r"by the pattern 8x1 \(norm l1\), but its"):
            spec.check_space(dataclasses.replace(SPARSE, pattern=other))
        # a spec that masks nothing fits them all
        SubnetSpec.full("0", SPARSE).check_space(SearchSpace(2, pattern=other))
    with pytest.raises(UserError, match="has 2 blocks .* has 3"):
        spec.check_space(dataclasses.replace(SPARSE, num_blocks=3))
