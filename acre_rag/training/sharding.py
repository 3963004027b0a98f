"""The frozen model's layers shared out among processes (PyTorch's FSDP2). Knows nothing of what is trained.

Each process keeps its part of every layer, and gathers the others' for as long as the layer computes. Embedding, last
norm and head stay whole: they are used outside of the model's own forward pass.
"""

from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from acre_rag.decoder import Decoder


def shard_layers(decoder: Decoder, *, n_processes: int) -> None:
    """Leave each process its part of every layer, in place; what depends on whole weights has to be known before.

    Every process must run the layers equally often, forward and backward: each run gathers.

    Args:
        decoder: the frozen model, whole in every process.
        n_processes: all that train.
    """
    mesh = init_device_mesh(decoder.device.type, (n_processes,))
    for layer in decoder.base.layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)  # by default a module above all others would not
