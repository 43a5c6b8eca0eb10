"""How four bits a weight are chosen and read back, for the export, which sees no kernels; see `kernels.graph`."""

from __future__ import annotations

from tintype.kernels.graph.four_bits import BLOCK as BLOCK
from tintype.kernels.graph.four_bits import BlockScales as BlockScales
from tintype.kernels.graph.four_bits import block_scales as block_scales
from tintype.kernels.graph.four_bits import fits_blocks as fits_blocks
from tintype.kernels.graph.four_bits import from_integers as from_integers
from tintype.kernels.graph.four_bits import to_integers as to_integers
