"""Apple's GPUs."""

from torch import Tensor

from .base import Backend

QUERIES = 1024  # whose scores are held at a time


class MPS(Backend):
    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """In contiguous float32: torch reads views as if they were contiguous (pytorch issues 163597, 181133) and rounds the softmax of
        long rows to 16 bits (190791). It also keeps all scores, so queries go in parts."""
        return self.attend_in_parts(*(part.float().contiguous() for part in (q, k, v)), mask, QUERIES).to(q.dtype)
