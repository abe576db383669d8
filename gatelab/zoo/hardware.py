"""Which common accelerators hold a model's weights. GB are 10⁹ bytes, as printed on the card."""

CARDS = {
    24: "RTX 4090",
    40: "A100 40 GB",
    48: "L40S",
    80: "A100 / H100 80 GB",
    96: "GH200 96 GB",
    141: "H200",
    192: "MI300X",
}


def cards_that_hold(weight_bytes: int) -> list[int]:
    """Sizes in GB of the single cards that hold `weight_bytes`, smallest first.

    Weights alone: the key-value cache, activations and the runtime come on top.
    """
    return [size for size in CARDS if weight_bytes <= size * 10**9]
