"""Groups of neighbouring patterns, which a network takes together."""

import numpy as np
import pytest
import torch

from fnostab.config import ConfigError, resolve_config
from fnostab.dataset import Split, load_or_build
from fnostab.dataset.groups import group_patterns
from fnostab.training.batches import Batch, EpochOrder, PatchLoader, in_groups


def _grid(rows, columns, step=4.0):
    grid = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    return step * np.stack(grid, axis=-1).reshape(-1, 2)


def _scattered(n, seed=0):
    return np.random.default_rng(seed).uniform(0, 100, (n, 2))


def _one_object(positions):
    return np.zeros(len(positions), np.int64)


def _groups(positions, rng=None):
    return group_patterns(positions, _one_object(positions), 2, rng)


def _split(n=53, objects=2):
    rng = np.random.default_rng(1)
    return Split(
        rng.random((n, 8, 8)).astype(np.float32), rng.uniform(0, 100, (n, 2)), np.sort(rng.integers(0, objects, n))
    )


@pytest.mark.parametrize("shape", [(8, 8), (6, 10), (2, 14)])
@pytest.mark.parametrize("seed", [None, 0, 1, 2, 3, 4])
def test_a_regular_grid_of_even_sides_falls_into_squares_whose_channels_go_by_row_then_column(shape, seed):
    positions = _grid(*shape)
    groups = _groups(positions, None if seed is None else np.random.default_rng(seed))
    for members in groups.members:
        square = positions[members] - positions[members[0]]
        assert square.tolist() == [[0, 0], [0, 4], [4, 0], [4, 4]]
    assert sorted(groups.in_order) == list(range(len(positions)))


@pytest.mark.parametrize("seed", [None, 0, 1])
def test_most_of_a_grid_of_odd_sides_falls_into_squares(seed):
    positions = _grid(33, 33)
    members = _groups(positions, None if seed is None else np.random.default_rng(seed)).members
    squares = (np.ptp(positions[members], axis=1) == 4).all(axis=1)
    assert squares.mean() > 0.8


@pytest.mark.parametrize("seed", [None, 0, 1, 2])
def test_groups_of_scattered_positions_are_compact(seed):
    positions = _scattered(1000)
    members = _groups(positions, None if seed is None else np.random.default_rng(seed)).members
    extent = np.ptp(positions[members], axis=1).max(axis=1)
    spacing = 100 / np.sqrt(1000)
    assert extent.mean() < 2 * spacing
    assert extent.max() < 8 * spacing


def test_of_scattered_positions_the_two_upper_ones_come_first_each_pair_from_left_to_right():
    positions = _scattered(200)
    rows, columns = np.moveaxis(positions[_groups(positions).members], 2, 0)
    assert (rows[:, :2].max(axis=1) <= rows[:, 2:].min(axis=1)).all()
    assert (columns[:, 0] <= columns[:, 1]).all()
    assert (columns[:, 2] <= columns[:, 3]).all()


@pytest.mark.parametrize("n", [4, 5, 53, 54, 55, 56])
def test_every_pattern_counts_once_and_only_its_neighbours_fill_the_last_group(n):
    positions = _scattered(n)
    groups = _groups(positions)
    assert groups.members.shape == (-(-n // 4), 4)
    assert all(len(set(members)) == 4 for members in groups.members.tolist())
    assert groups.counted.sum() == n
    assert groups.in_order[groups.places].tolist() == list(range(n))
    filling = groups.in_order[~groups.counted]
    assert len(filling) == -n % 4
    last = groups.members[-1]
    counted = last[groups.counted[-4:]]
    first = counted[np.argmin(positions[counted] @ [1.0, 1.0])]
    nearest = np.argsort(np.square(positions - positions[first]).sum(axis=1))
    others = [one for one in nearest if one not in counted]
    if len(filling):
        assert sorted(filling) == sorted(others[: len(filling)])


def test_what_is_predicted_in_groups_is_put_back_into_the_order_of_the_patterns():
    groups = _groups(_scattered(54))
    np.testing.assert_array_equal(groups.once(groups.in_order), np.arange(54))
    assert groups.once(torch.from_numpy(groups.in_order)).tolist() == list(range(54))


def test_positions_that_are_there_many_times_are_grouped_too():
    positions = np.repeat(_grid(3, 3), 30, axis=0)
    groups = _groups(positions)
    assert sorted(set(groups.in_order.tolist())) == list(range(270))
    assert np.ptp(positions[groups.members], axis=1).max() <= 8


def test_a_group_is_of_one_object():
    split = _split()
    groups = split.groups(2)
    assert all(len(set(split.object_index[members])) == 1 for members in groups.members)
    assert sorted(set(groups.in_order.tolist())) == list(range(53))


def test_alone_every_pattern_is_a_group_in_its_order():
    split = _split()
    assert split.groups(1).in_order.tolist() == list(range(53))
    assert split.groups(1).counted.all()


def test_the_groups_are_always_the_same_unless_they_are_drawn():
    split = _split()
    assert split.groups(2).in_order.tolist() == split.groups(2).in_order.tolist()
    drawn = [split.groups(2, np.random.default_rng(seed)).in_order.tolist() for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("neighbours", [False, True])
def test_an_epoch_has_every_pattern_in_groups_that_seed_and_epoch_decide(neighbours):
    split = _split()

    def order(seed, epoch):
        made = EpochOrder(split, 8, seed, neighbours, epoch, gridsize=2)
        batches = made.batches()
        assert len(batches) == len(made)
        assert {len(batch) for batch in batches} <= {4, 8}
        return np.concatenate(batches)

    groups = order(0, 0).reshape(-1, 4)
    assert all(len(set(split.object_index[members])) == 1 for members in groups)
    objects = np.bincount(split.object_index)
    assert len(groups) == sum(-(-objects // 4))  # at most three patches an object come twice
    assert set(groups.ravel()) == set(range(53))
    assert order(0, 3).tolist() == order(0, 3).tolist()
    assert order(0, 3).tolist() != order(0, 4).tolist()
    assert order(0, 3).tolist() != order(1, 3).tolist()
    grouped = [{frozenset(members) for members in order(0, epoch).reshape(-1, 4).tolist()} for epoch in (3, 3, 4)]
    assert grouped[0] == grouped[1] != grouped[2]


def test_groups_of_a_batch_of_neighbours_lie_side_by_side_on_one_object():
    split = _split(400)

    def spread(neighbours):
        batches = EpochOrder(split, 16, 0, neighbours, gridsize=2).batches()
        if neighbours:
            assert all(len(set(split.object_index[batch])) == 1 for batch in batches)
        return np.mean([split.positions_px[batch].std(axis=0).mean() for batch in batches])

    assert spread(True) < 0.5 * spread(False)


def test_ranks_share_whole_groups_of_each_batch():
    split = _split(50)  # 13 groups, so the last batch has one
    n = len(split.counts)
    positions, objects = torch.from_numpy(split.positions_px), torch.from_numpy(split.object_index)
    patches = Batch(torch.arange(n).float(), positions, objects, n, group_size=4)
    order = EpochOrder(split, 8, 0, False, gridsize=2)
    loaders = [PatchLoader(patches, order, rank, 2) for rank in range(2)]
    assert len(order.batches()[-1]) == 4
    for first, second, members in zip(*loaders, order.batches(), strict=True):
        assert first.global_size == second.global_size == len(members)
        assert first.sqrt_counts.tolist() == members[:4].tolist()
        assert second.is_stand_in == (len(members) == 4)
        assert second.sqrt_counts.tolist() == members[-4:].tolist()
        whole = torch.from_numpy(members)
        assert first.share(whole).tolist() == first.sqrt_counts.tolist()
        assert second.share(whole).tolist() == second.sqrt_counts.tolist()


def test_validation_patches_lie_in_their_groups_and_fillers_do_not_count():
    split = _split(54, objects=1)
    batch = in_groups(split, split.groups(2))
    np.testing.assert_allclose(batch.sqrt_counts.numpy() ** 2, split.counts[split.groups(2).in_order], rtol=1e-5)
    assert (batch.group_size, batch.global_size, int(batch.counted.sum())) == (4, 56, 54)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        ({"data.gridsize": 3}, r"^`data.gridsize` \(=3\) must be 1, or 2 for groups of four overlapping patterns$"),
        ({"data.gridsize": 0}, r"^`data.gridsize` \(=0\) must be 1, or 2 for groups of four overlapping patterns$"),
        (
            {"data.gridsize": 2, "batch_size": 6},
            r"^`train.batch_size` \(=6\) must be a multiple of 4, the patches of a group, at `data.gridsize` 2$",
        ),
    ],
)
def test_other_groups_and_batches_that_split_a_group_are_refused(overrides, line):
    with pytest.raises(ConfigError, match=line):
        resolve_config({"preset": "smoke"} | overrides)


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"data.max_train_patches": 3}, r"object 0 of split train has 3 patterns, fewer than a group of 4$"),
        ({"data.max_val_patches": 2}, r"object 0 of split val has 2 patterns, fewer than a group of 4$"),
        ({"data.stride_test_px": 129}, r"object 0 of split test has 1 patterns, fewer than a group of 4$"),
        (
            {"data.nimgs_val": 3, "data.max_val_patches": 11},
            r"object 2 of split val has 3 patterns, fewer than a group of 4$",
        ),
    ],
)
def test_an_object_with_fewer_patterns_than_a_group_is_refused_whether_the_data_are_there_or_not(keys, line, tmp_path):
    line = r"^`data.gridsize` \(=2\) must be 1: " + line
    alone = resolve_config({"preset": "smoke", **keys}).data
    grouped = resolve_config({"preset": "smoke", "data.gridsize": 2, **keys}).data
    with pytest.raises(ValueError, match=line):
        load_or_build(grouped, cache_dir=tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file() and not path.name.endswith(".lock")] == []
    load_or_build(alone, cache_dir=tmp_path)
    with pytest.raises(ValueError, match=line):
        load_or_build(grouped, cache_dir=tmp_path)


def test_groups_are_made_of_the_same_dataset(tmp_path):
    configs = [resolve_config({"preset": "smoke", "data.gridsize": gridsize}) for gridsize in (1, 2)]
    first, second = (load_or_build(config.data) for config in configs)
    assert (first.sha256, first.config_sha256) == (second.sha256, second.config_sha256)
    assert configs[0].sha256() != configs[1].sha256()
