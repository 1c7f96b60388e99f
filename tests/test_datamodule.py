import numpy as np
import pytest
import torch

from fnostab.dataset import Split
from fnostab.training.batches import Batch, EpochOrder, PatchLoader


def _split(n=53, objects=2):
    rng = np.random.default_rng(1)
    return Split(
        rng.random((n, 8, 8)).astype(np.float32), rng.uniform(0, 100, (n, 2)), np.sort(rng.integers(0, objects, n))
    )


def _patches(split):
    n = len(split.counts)
    index = torch.from_numpy(split.object_index)
    return Batch(torch.arange(n).float(), torch.from_numpy(split.positions_px), index, n)


@pytest.mark.parametrize("neighbours", [False, True])
def test_every_patch_comes_once_an_epoch_in_an_order_that_seed_and_epoch_decide(neighbours):
    def order(seed, epoch):
        batches = EpochOrder(_split(), 8, seed, neighbours, epoch).batches()
        assert len(batches) == len(EpochOrder(_split(), 8, seed, neighbours, epoch))
        assert max(map(len, batches)) <= 8
        return np.concatenate(batches).tolist()

    assert sorted(order(0, 0)) == list(range(53))
    assert order(0, 3) == order(0, 3)
    assert order(0, 3) != order(0, 4)
    assert order(0, 3) != order(1, 3)


def test_batches_of_neighbours_are_compact_and_from_one_object():
    split = _split(400)
    batches = EpochOrder(split, 16, 0, neighbours=True).batches()
    assert all(len(set(split.object_index[batch])) == 1 for batch in batches)

    def spread(groups):
        return np.mean([split.positions_px[group].std(axis=0).mean() for group in groups])

    assert spread(batches) < 0.5 * spread(EpochOrder(split, 16, 0, neighbours=False).batches())


def test_a_restored_loader_goes_on_where_the_saved_one_stood():
    split = _split()
    loader = PatchLoader(_patches(split), EpochOrder(split, 8, 0, neighbours=False))
    whole = [batch.sqrt_counts.tolist() for batch in loader]
    iterator = iter(loader)
    begun = [next(iterator).sqrt_counts.tolist() for _ in range(3)]
    resumed = PatchLoader(_patches(split), EpochOrder(split, 8, 0, neighbours=False))
    resumed.load_state_dict(loader.state_dict())
    assert begun + [batch.sqrt_counts.tolist() for batch in resumed] == whole
    assert [batch.sqrt_counts.tolist() for batch in resumed] == whole  # the next epoch is whole


def test_ranks_share_each_batch_without_overlap():
    split = _split()
    loaders = [PatchLoader(_patches(split), EpochOrder(split, 8, 0, False), rank, 2) for rank in range(2)]
    for first, second, members in zip(*loaders, loaders[0].sampler.batches(), strict=True):
        together = first.sqrt_counts.tolist() + second.sqrt_counts.tolist()
        assert sorted(together) == sorted(members.tolist())
        assert first.global_size == second.global_size == len(members)
