"""Apple's GPUs."""

from torch import Tensor

from .base import Backend

QUERIES = 1024  # per call of torch's attention, which stores the scores of all its queries


class MPS(Backend):
    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """In contiguous float32: torch ignores the strides of views (pytorch issues 163597, 181133) and rounds the softmax of long rows
        to 16 bits (190791)."""
        return self.attend_in_parts(*(part.float().contiguous() for part in (q, k, v)), mask, QUERIES).to(q.dtype)
