# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Scripts that measure the library; from the repository's root, ``python -m benchmarks.<group>.<script>`` runs one."""
