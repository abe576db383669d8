"""What cannot be converted."""


class UnsupportedBlock(ValueError):
    """A block that would not be the same after conversion; the message names what was not understood."""


class NotOneLayer(UnsupportedBlock):
    """A block that is no MoE layer by itself. In a whole model it stays as it is, and what it holds is converted."""
