"""From the host to a device."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["sent"]


def sent(own: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU that nobody has pinned, on ``device``, without that torch lets the host wait for a GPU.

    A blocking copy waits for all that its stream has still to do. Pageable memory is staged by CUDA's driver, of which
    ``cudaMemcpyAsync`` waits for no more than its copy: then ``own`` may be freed or changed. Only so: the other way
    round, or to a device that is none of CUDA's, torch's ``non_blocking`` promises nothing of the kind.
    """
    return own.to(device, non_blocking=device.type == "cuda")
