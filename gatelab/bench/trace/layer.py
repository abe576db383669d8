"""What is kept of one layer: counts and sums whose size the length of the texts does not change.

Axis letters as in `gatelab.bench.metrics`; X texts, V frequent token ids.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gatelab.bench import metrics
from gatelab.routers.routing import Routing


class LayerCounts:
    """Filled window by window.

    Args:
        num_experts: E, those that compute; E + Z columns of a Routing with zero-computation experts.
        num_columns: E + Z.
        num_texts: X.
        num_ids: V.
        devices: G, a divisor of E.

    Attributes:
        kept_XE: assignments by text.
        tokens_X: tokens by text.
        pairs_EE: co-activation.
        all_VE, first_VE: assignments and first choices by frequent token id.
        tokens_V: tokens by frequent token id.
        zero: assignments to experts that compute nothing.
        requested, assigned: sums over all tokens, the prefix of a window included.
        windows: how many.
        max_violation, straggler: sums over windows, each times its tokens.
        entropy, margin: sums over tokens.
        fewest, most: experts of a token.
    """

    def __init__(self, num_experts: int, num_columns: int, num_texts: int, num_ids: int, devices: int) -> None:
        E, V = num_experts, num_ids
        self.num_experts, self.num_columns, self.devices = num_experts, num_columns, devices
        self.kept_XE, self.tokens_X = torch.zeros(num_texts, E, dtype=torch.int64), torch.zeros(num_texts).long()
        self.pairs_EE = torch.zeros(E, E, dtype=torch.int64)
        # Many layers × V × E: half the size of int64, and no text has 2^31 tokens of one kind.
        self.all_VE, self.first_VE = torch.zeros(2, V, E, dtype=torch.int32).unbind()
        self.tokens_V = torch.zeros(V, dtype=torch.int64)
        self.zero = self.requested = self.assigned = self.windows = 0
        self.max_violation = self.straggler = self.entropy = self.margin = 0.0
        self.fewest, self.most = num_columns, 0

    def add(self, routing: Routing, text: int, labels_T: Tensor) -> None:
        """Count a window.

        Args:
            routing: of the window.
            text: which one it is from.
            labels_T: (T,) the frequent id of each token, −1 = a rare one, −2 = of the prefix, which is left out.
        """
        E, V = self.num_experts, len(self.tokens_V)
        real_T = labels_T > -2
        ids_TK = routing.topk()[1].cpu()
        self.requested += int(routing.requested.sum())
        self.assigned += int(routing.expert_offsets[-1])
        labels_T, ids_TK = labels_T[real_T], ids_TK[real_T]
        self.zero += int((ids_TK >= E).sum())
        fewest, _, most = metrics.experts_per_token(ids_TK)
        self.fewest, self.most = min(self.fewest, int(fewest)), max(self.most, int(most))
        ids_TK = torch.where(ids_TK < E, ids_TK, -1)
        n_E = metrics.tokens_per_expert(ids_TK, E)
        self.kept_XE[text] += n_E
        self.tokens_X[text] += len(ids_TK)
        self.windows += 1
        self.max_violation += float(metrics.max_violation(n_E)) * len(ids_TK)
        self.straggler += float(metrics.straggler_factor(n_E, self.devices)) * len(ids_TK)
        self.pairs_EE += metrics.co_activation(ids_TK, E)
        counted = metrics.count_by_label(labels_T, ids_TK, num_labels=V, num_experts=E)
        self.all_VE += counted.assignments
        self.tokens_V += counted.tokens
        self.first_VE += metrics.count_by_label(labels_T, ids_TK[:, :1], num_labels=V, num_experts=E).assignments
        p_TE = routing.probabilities[real_T.to(routing.probabilities.device)]
        self.entropy += float(metrics.gate_entropy(p_TE)) * len(p_TE)
        self.margin += float(metrics.top1_margin(p_TE)) * len(p_TE)
