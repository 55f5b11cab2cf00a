"""SyncBatchNorm over real processes: the parts of a batch are the batch."""

import subprocess
import sys
from pathlib import Path

import pytest
from torch_norms import distance, nt, torch

if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("this PyTorch has no gloo", allow_module_level=True)

from gloo_program import CASES, module, step, tensors

BOUNDS = {torch.float32: 1e-6, torch.float64: 1e-13, torch.bfloat16: 1e-2}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of three processes found."""
    folder = tmp_path_factory.mktemp("gloo")
    program = str(Path(__file__).with_name("gloo_program.py"))
    running = [
        subprocess.Popen([sys.executable, program, str(rank), "3", str(folder)])
        for rank in range(3)
    ]
    try:
        assert [process.wait(120) for process in running] == [0, 0, 0]
    finally:
        for process in running:
            process.kill()
            process.wait()
    return [torch.load(folder / f"{rank}.pt") for rank in range(3)]


@pytest.mark.parametrize("name", [name for name in CASES if name != "none"])
def test_parts_are_the_whole(ranks, name):
    case = CASES[name]
    parts = [rank[name] for rank in ranks[: len(case["sizes"])]]
    norm = module(case, nt.BatchNorm2d if len(case.get("shape", "123")) > 1 else nt.BatchNorm1d)
    norm.activation = case.get("activation")
    whole = step(case, norm, *tensors(case))
    bound = BOUNDS[case["dtype"]]
    for key in ("y", "dx", "dresidual"):
        if whole[key] is not None:
            assert distance(torch.cat([part[key] for part in parts]), whole[key]) <= bound, key
    for key in ("dweight", "dbias"):  # of the own part, as in PyTorch
        assert distance(sum(part[key].double() for part in parts), whole[key]) <= bound, key
    for key in ("running_mean", "running_var", "num_batches_tracked"):
        assert distance(parts[0][key], whole[key]) <= bound, key


@pytest.mark.parametrize("name", CASES)
def test_all_ranks_have_the_same_bits(ranks, name):
    first, *others = (rank[name] for rank in ranks[: len(CASES[name]["sizes"])])
    for other in others:
        for key in ("running_mean", "running_var", "num_batches_tracked"):
            assert torch.equal(first[key], other[key])


def test_no_rank_has_a_value(ranks):
    for rank in ranks:
        found = rank["none"]
        assert found["y"].shape == found["dx"].shape == (0, 6, 5, 3)
        assert not found["dweight"].any()
        assert found["num_batches_tracked"] == 0
        assert torch.equal(found["running_var"], torch.ones(6))


def test_errors_and_evaluation(ranks):
    for i, rank in enumerate(ranks):
        assert "Expected more than 1 value per channel when training" in rank["one value"]
        assert rank["twice"] == "SyncBatchNorm: its gradients cannot be differentiated again"
        assert rank["evaluation"].shape == (i + 1, 6)


def test_alone_it_is_batch_norm():
    x = torch.randn(4, 6, 3, 3)
    assert torch.equal(nt.SyncBatchNorm(6)(x), nt.BatchNorm2d(6)(x))
    with pytest.raises(ValueError, match="expected at least 2D input"):
        nt.SyncBatchNorm(6)(x[0, 0, 0])


def test_models_are_converted_in_place():
    nn = torch.nn
    model = nn.Sequential(nn.BatchNorm1d(4), nt.BatchNorm1d(4, activation="relu"), nn.LayerNorm(4))
    states = [dict(m.__dict__) for m in model]
    weight = model[0].weight
    assert nt.SyncBatchNorm.convert_sync_batchnorm(model, "group") is model
    assert [type(m) for m in model] == [nt.SyncBatchNorm, nt.SyncBatchNorm, nn.LayerNorm]
    assert model[0].weight is weight
    assert model[0].process_group == "group"
    assert model[1].activation == "relu"
    nt.revert(model)
    assert [type(m) for m in model] == [nn.BatchNorm1d, nt.BatchNorm1d, nn.LayerNorm]
    assert [m.__dict__.keys() for m in model] == [state.keys() for state in states]
    theirs = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(nn.BatchNorm2d(4)))
    assert type(nt.convert(theirs)[0]) is nt.SyncBatchNorm
    assert theirs(torch.randn(4, 4, 3, 3)).shape == (4, 4, 3, 3)
