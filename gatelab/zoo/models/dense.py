"""Dense models that headline claims compare with. They are not part of the zoo's table."""

from gatelab.zoo.geometry import Block, Geometry
from gatelab.zoo.parts import Attention, GatedMLP

LLAMA3_70B = Geometry(
    hidden_size=8192,
    vocab_size=128256,
    blocks=(Block(80, (Attention(heads=64, kv_heads=8, head_dim=128), GatedMLP(28672))),),
)
DEEPSEEK_7B = Geometry(
    hidden_size=4096,
    vocab_size=102400,
    blocks=(Block(30, (Attention(heads=32, kv_heads=32, head_dim=128), GatedMLP(11008))),),
)
LLAMA2_7B = Geometry(
    hidden_size=4096,
    vocab_size=32000,
    blocks=(Block(32, (Attention(heads=32, kv_heads=32, head_dim=128), GatedMLP(11008))),),
)
