# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Scores the stored action, of which V-trace needs the importance weight."""

# ruff: noqa: F821  # names of the file that it goes into

TARGET = "torchrl/objectives/value/advantages.py"


def _call_actor_net(
    actor_net: ProbabilisticTensorDictModule, data: TensorDictBase, params: TensorDictBase, log_prob_key: NestedKey
):
    if any(data.get(key, None) is None for key in actor_net.dist_sample_keys):
        # no action was taken that could be weighed, as in TorchRL's own tests
        data = actor_net(data.select(*actor_net.in_keys, strict=False))
    log_prob = actor_net.log_prob(data)
    if is_tensor_collection(log_prob):  # one entry for each part of a composite action
        log_prob = log_prob.sum(dim="feature", reduce=True)
    return log_prob
