"""Tile sides and pipelines of the Triton kernels: the fastest of a sweep on one H100 with bfloat16 matrices.

`docs/fast-path.md` has the sweep. The wider side of a tile lies along the dimension that is contiguous. With E in codes
that side is made of whole blocks, and tiles are about as large as the registers of an H100 hold; those were not timed.
"""

from typing import NamedTuple


class Tiles(NamedTuple):
    """What a launch depends on: r rounded up to a power of two, the contiguous dimension, and the size of an entry."""

    padded_rank: int
    rows_contiguous: bool
    itemsize: int
    in_codes: bool = False

    @property
    def stages(self) -> int:
        """Tiles in flight; float32 ones fill shared memory sooner."""
        return 2 if self.itemsize == 4 else 3

    def project(self, *, adds: bool) -> dict[str, int]:
        """For `project_kernel`."""
        if not self.rows_contiguous:
            sides = (128, 32) if adds and self.padded_rank > 16 and not self.in_codes else (64, 64)
        else:
            sides = (32, 64) if adds and self.padded_rank <= 16 else (32, 128)
        return {"BLOCK_M": sides[0], "BLOCK_N": sides[1], "num_warps": 4, "num_stages": self.stages}

    def lift(self) -> dict[str, int]:
        """For `lift_kernel`."""
        sides = (128, 64) if self.rows_contiguous and not self.in_codes else (64, 64)
        return {"BLOCK_M": sides[0], "BLOCK_N": sides[1], "num_warps": 4, "num_stages": self.stages}

    def finish(self, *, factor_itemsize: int) -> dict[str, int]:
        """For `finish_kernel`."""
        depth = min(64 if factor_itemsize == 2 and self.rows_contiguous else 32, self.padded_rank)
        if not self.rows_contiguous:
            sides, stages = (64, 32), 3
        elif self.in_codes:
            sides, stages = (32, 64), 2
        else:
            sides, stages = (32, 128) if self.padded_rank <= 16 else (64, 64), 2
        return {"BLOCK_M": sides[0], "BLOCK_N": sides[1], "BLOCK_K": depth, "num_warps": 4, "num_stages": stages}
