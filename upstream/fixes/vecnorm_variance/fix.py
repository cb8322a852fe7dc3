# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Corrects both moments of ``VecNormV2`` before they are combined, and keeps the variance from being negative."""

# ruff: noqa: F821  # names of the file that it goes into

TARGET = "torchrl/envs/transforms/vecnorm.py"


class VecNormV2:
    def _moments(self, loc: TensorDictBase, second: TensorDictBase, count: TensorDictBase, dtypes: TensorDictBase):
        """Mean and deviation from the running means of the data and of its square."""
        if self.decay < 1.0:
            # what a mean that began at zero has seen of the data so far
            seen = (1 - (count * math.log(self.decay)).exp()).apply(lambda x, like: x.to(like.dtype), dtypes)
            loc, second = loc / seen, second / seen
        # rounding leaves a number that hardly varies with less than nothing
        variance = (second - loc.pow(2)).clamp_min(0.0)
        return loc, variance.sqrt().clamp_min(self.eps)

    def _norm(self, data, loc, var, count):
        if self.missing_tolerance:
            present = list(data.keys(True, True))
            loc, var, count = (moment.select(*present) for moment in (loc, var, count))
            if loc.is_empty():
                return data
        loc, scale = self._moments(loc, var, count, data)
        normalized = (data - loc) / scale
        in_keys = self._in_keys_safe
        for in_key, out_key in zip(in_keys, self.out_keys[: len(in_keys)], strict=True):
            if in_key != out_key and in_key in normalized:
                normalized.rename_key_(in_key, out_key)
        return normalized

    def _get_loc_scale(self, loc_only: bool = False) -> tuple:
        if not self.stateful:
            raise RuntimeError("_get_loc_scale() called on stateless vecnorm.")
        loc, scale = self._moments(self._loc, self._var, self._count, self._loc)
        return loc, None if loc_only else scale
